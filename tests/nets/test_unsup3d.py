"""Unsup3D against golden numbers of the official code, its geometry, its checkpoint, and the depth metrics."""

from __future__ import annotations

import json
import math
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headwarp.nets.depth_metrics import erode, mad, side
from headwarp.nets.model_file import load_model, save_model
from headwarp.nets.unsup3d import (
    DepthReader,
    EDDeconv,
    Pinhole,
    Unsup3d,
    Unsup3dConfig,
    laplacian_nll,
    network_input,
    perceptual_nll,
    pin_border,
    smoothness,
    view_rotation,
)
from headwarp.third_party import unsup3d as official

GOLDEN = Path(os.environ.get("HEADWARP_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the golden vectors, see HEADWARP_GOLDEN")
TINY = Unsup3dConfig(image_size=32, width=8, code=16)


@pytest.fixture(scope="module")
def golden():
    from safetensors.torch import load_file

    return load_file(GOLDEN / "golden_unsup3d.safetensors")


@pytest.fixture(scope="module")
def facts():
    return json.loads((GOLDEN / "golden_unsup3d.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(facts, named_weights):
    """checkpoint030.pth with the golden weights."""
    networks = json.loads((GOLDEN / "unsup3d_state_dict.json").read_text())["networks"]
    found = {}
    for tag, rows in networks.items():
        given = facts["weights"]["overrides"]
        gains = {k.split("/")[1]: float(v.split()[1]) for k, v in given.items() if k.startswith(f"{tag}/")}
        given = facts["weights"]["conv_transpose_stride"]
        strides = next((v for k, v in given.items() if tag in k.split(",")), {})
        shapes = {name: tuple(shape) for name, shape, _ in rows}
        found[tag] = named_weights(shapes, tag, lambda name, gains=gains: gains.get(name, 2**0.5), strides)
    return found | {"epoch": 30}


def filled(checkpoint, config: Unsup3dConfig) -> Unsup3d:
    model = Unsup3d(config)
    for name, network in model.named_children():
        network.load_state_dict(checkpoint[name])
    return model.eval()


@pytest.fixture(scope="module")
def model(checkpoint):
    return filled(checkpoint, Unsup3dConfig())


def assert_golden(ours, theirs, share=1e-4):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=share * theirs.abs().max().item())


@needs_golden
def test_names_and_shapes_are_the_official_ones():
    model = Unsup3d()
    for tag, rows in json.loads((GOLDEN / "unsup3d_state_dict.json").read_text())["networks"].items():
        ours = [(name, list(value.shape)) for name, value in getattr(model, tag).state_dict().items()]
        assert ours == [(name, shape) for name, shape, _ in rows]


@needs_golden
@torch.no_grad()
def test_factors_and_canonical_picture_agree_with_the_official_ones(model, golden):
    factors, rendered = model(golden["input"])
    assert_golden(model.netD(golden["input"] * 2 - 1)[:, 0], golden["canon_depth_raw"])
    assert_golden(factors.depth[:, 0], golden["canon_depth"])
    assert_golden(factors.albedo[:2], golden["albedo"])
    assert_golden(factors.ambient, golden["canon_light_a"])
    assert_golden(factors.diffuse, golden["canon_light_b"])
    assert_golden(factors.direction, golden["canon_light_d"])
    assert_golden(factors.view, golden["view"])
    assert_golden(rendered.normals.permute(0, 2, 3, 1), golden["canon_normal"])
    assert_golden(rendered.canonical, golden["canon_im"])
    fine, coarse = model.confidence(golden["input"])
    assert_golden(fine, torch.cat([golden["conf_sigma_l1"], golden["conf_sigma_l1_flip"]]))
    assert_golden(coarse, torch.cat([golden["conf_sigma_percl"], golden["conf_sigma_percl_flip"]]))


@needs_golden
@torch.no_grad()
def test_the_reconstruction_agrees_but_for_edge_pixels(model, golden):
    """Ours snaps to 1/256 pixel before drawing: depth agrees to 1e-5, what is made from it to some 1e-4."""
    factors, rendered = model(golden["input"])
    assert_golden(rendered.depth[:, 0], golden["recon_depth"], 2e-5)
    for image, name in [
        (rendered.image, "recon_im_align_true"),
        (old_grid(model, factors, rendered), "recon_im_align_false"),
    ]:
        off = (image - golden[name]).abs() / golden[name].abs().max()
        assert off.max() < 5e-4
        assert (off > 1e-4).float().mean() < 5e-4
    off = (model.camera.normals(rendered.depth).permute(0, 2, 3, 1) - golden["recon_normal"]).abs()
    assert off.max() < 1e-3
    assert (off > 1e-4).float().mean() < 0.01


def old_grid(model, factors, rendered):
    """The reconstruction as today's default of grid_sample makes it (the official code was written for the older)."""
    grid = model.camera.grid(rendered.depth, factors.view)
    return F.grid_sample(rendered.canonical, grid, align_corners=False) * rendered.mask


@needs_golden
@torch.no_grad()
def test_losses_agree_with_the_official_ones(model, golden, facts, named_weights):
    factors, rendered = model(golden["input"])
    truth = golden["input"].repeat(2, 1, 1, 1) * 2 - 1
    fine, coarse = model.confidence(golden["input"])
    vgg = golden_vgg16(named_weights)
    seen, wanted = vgg(rendered.image), vgg(truth)
    ours = {"loss_depth_sm": smoothness(factors.free_depth[:2], 0.2)}
    for suffix, half in [("", slice(0, 2)), ("_flip", slice(2, 4))]:
        ours[f"loss_l1_im{suffix}"] = laplacian_nll(rendered.image[half], truth[half], rendered.mask[half], fine[half])
        ours[f"loss_perc_im{suffix}"] = perceptual_nll(seen[half], wanted[half], rendered.mask[half], coarse[half])
    for name, value in ours.items():
        assert value.item() == pytest.approx(facts["values"]["losses_align_corners_true"][name], rel=1e-4), name


def golden_vgg16(named_weights):
    """relu3_3 with the golden weights; names as the official wrapper's slices."""
    convolutions = [(1, 0, 3, 64), (1, 2, 64, 64), (2, 5, 64, 128), (2, 7, 128, 128)]
    convolutions += [(3, 10, 128, 256), (3, 12, 256, 256), (3, 14, 256, 256)]
    names = {
        f"slice{s}.{i}.{k}": (b, a, 3, 3)[: 4 if k == "weight" else 1]
        for s, i, a, b in convolutions
        for k in ("weight", "bias")
    }
    state = named_weights(names, "vgg16")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def features(image):
        x = (image / 2 + 0.5 - mean[:, None, None]) / std[:, None, None]
        for s, i, _, _ in convolutions:
            x = F.max_pool2d(x, 2) if i in (5, 10) else x
            x = F.relu(F.conv2d(x, state[f"slice{s}.{i}.weight"], state[f"slice{s}.{i}.bias"], padding=1))
        return x

    return features


@needs_golden
@torch.no_grad()
def test_geometry_agrees_with_the_official_renderer(golden):
    camera = Pinhole(64)
    depth, view = golden["geom.depth"][:, None], golden["geom.views"]
    assert camera.focal == pytest.approx(golden["geom.K"][0, 0, 0].item(), rel=1e-6)
    assert_golden(camera.points(depth), golden["geom.grid3d"])
    assert_golden(camera.normals(depth).permute(0, 2, 3, 1), golden["geom.normal"])
    assert_golden(view_rotation(view), golden["geom.rot_mat"])
    turned = camera.turn(camera.points(depth), view[:1])
    assert_golden(turned, golden["geom.warped3d_view0"])
    assert_golden(camera.grid(depth, view[:1]), golden["geom.inv_warped2d_view0"])
    assert_golden(camera.rasterise(turned)[:, 0].clamp(0.8, 1.2), golden["geom.warp_canon_depth_view0"])


@needs_golden
@torch.no_grad()
def test_metrics_agree_with_the_official_ones(model, golden):
    depth, camera = golden["recon_depth"][:2, None], model.camera
    value = golden["metric.gt_depth_image"]
    truth = 0.9 + 0.2 * (1 - value)
    assert_golden(truth[:, 0], golden["metric.depth_gt"])
    mask = erode(truth < truth.max()) & erode(depth < 1.2)
    torch.testing.assert_close(side(depth, truth, mask), golden["metric.acc_sie_masked"], rtol=1e-4, atol=0)
    angles = mad(camera.normals(depth), camera.normals(truth), mask)
    torch.testing.assert_close(angles, golden["metric.acc_normal_masked"], rtol=1e-4, atol=0)


@needs_golden
@pytest.mark.parametrize("size", ["small", "big"])
@torch.no_grad()
def test_any_picture_is_read_as_in_the_demo(checkpoint, golden, size):
    """Pictures of 100 and 300 pixels (the second goes through 128); maps enlarged to 128, border depth 1.05."""
    image = golden[f"demo_{size}.input_uint8"].permute(2, 0, 1)[None].float() / 255
    assert_golden(network_input(image) * 2 - 1, golden[f"demo_{size}.input_im"])
    model = filled(checkpoint, Unsup3dConfig(border_depth=1.05))
    depth = model.factors(network_input(image)).depth
    enlarged = F.interpolate(depth, (128, 128), mode="bilinear", align_corners=False)
    assert_golden(enlarged[:, 0], golden[f"demo_{size}.canon_depth"])


def test_no_motion_shows_the_picture_half_a_pixel_off():
    """neural_renderer's convention: a ramp comes back half a step on, the last row and column are empty."""
    camera = Pinhole(64)
    ramp = (1 + 1e-3 * torch.arange(64.0)).expand(1, 1, 64, 64)
    drawn = camera.rasterise(camera.points(ramp))
    torch.testing.assert_close(drawn[..., :-1, :-1], (ramp + 0.5e-3)[..., :-1, :-1], rtol=0, atol=2e-6)
    assert (drawn[..., -1, :] > 1.2).all()
    assert (drawn[..., -1] > 1.2).all()


def test_turning_back_undoes_turning():
    camera = Pinhole(24)
    points = camera.points(0.9 + 0.2 * torch.rand(3, 1, 24, 24))
    view = torch.randn(3, 6) * torch.tensor([0.5, 0.5, 0.5, 0.1, 0.1, 0.1])
    torch.testing.assert_close(camera.turn_back(camera.turn(points, view), view), points, rtol=0, atol=1e-5)


def test_normals_of_a_plane_are_the_plane_s():
    camera = Pinhole(32)
    x, y, _ = camera.points(torch.ones(1, 1, 32, 32))[0].unbind(-1)
    slope = torch.tensor([0.4, -0.7])
    depth = 1 / (1 - slope[0] * x - slope[1] * y)  # z = 1 + 0.4 X - 0.7 Y
    wanted = F.normalize(torch.tensor([-slope[0], -slope[1], 1.0]), dim=0)
    # the published 1e-7 in the denominator shortens them by a thousandth
    inner = F.normalize(camera.normals(depth[None, None])[0, :, 1:-1, 1:-1], dim=0)
    torch.testing.assert_close(inner, wanted[:, None, None].expand_as(inner), rtol=0, atol=1e-4)


def test_the_mirrored_half_is_the_mirror_picture_for_a_frontal_face():
    model = Unsup3d(TINY).eval()
    factors = model.factors(torch.rand(1, 3, 32, 32))
    factors.view = torch.zeros_like(factors.view)
    factors.direction = torch.tensor([[0.0, 0.0, 1.0]])
    canonical = model.render(factors.with_mirrored()).canonical
    torch.testing.assert_close(canonical[1], canonical[0].flip(-1), rtol=0, atol=1e-4)


def test_every_network_learns_from_the_reconstruction():
    """One loss reaches all five; depth and view through the rasteriser too."""
    torch.manual_seed(0)
    model = Unsup3d(TINY)
    image = torch.rand(2, 3, 32, 32)
    _, rendered = model(image)
    fine, _ = model.confidence(image)
    laplacian_nll(rendered.image, image.repeat(2, 1, 1, 1) * 2 - 1, rendered.mask, fine).backward()
    for name in ("netD", "netA", "netL", "netV"):
        assert next(getattr(model, name).parameters()).grad.abs().sum() > 0, name
    assert model.netC.out_net1[0].weight.grad.abs().sum() > 0


def test_128_pixels_have_one_level_more():
    model = Unsup3d(Unsup3dConfig(image_size=128, width=8, code=16))
    factors, rendered = model(torch.rand(1, 3, 128, 128))
    fine, coarse = model.confidence(torch.rand(1, 3, 128, 128))
    assert rendered.image.shape == (2, 3, 128, 128)
    assert factors.view.shape == (2, 6)
    assert (fine.shape, coarse.shape) == ((2, 1, 128, 128), (2, 1, 32, 32))


def test_a_shared_mask_covers_both_halves():
    _, rendered = Unsup3d(TINY)(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(rendered.mask[:2], rendered.mask[2:])
    assert not rendered.image[(rendered.mask == 0).expand_as(rendered.image)].any()


def test_a_turned_face_is_the_canonical_one_under_no_view():
    model = Unsup3d(TINY).eval()
    with torch.no_grad():
        factors = model.factors(torch.rand(1, 3, 32, 32))
        drawn = model.turned(factors, torch.zeros(1, 6))
        shaded = model.render(factors).canonical.clamp(-1, 1) / 2 + 0.5
    # half a pixel off: means of four neighbours
    wanted = F.avg_pool2d(shaded, 2, stride=1)
    assert (drawn[..., :-1, :-1] - wanted).abs().mean() < 0.02


def test_bad_pictures_and_sizes_are_told():
    with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\), got \(1, 3, 64, 64\)"):
        Unsup3d(TINY).factors(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="power of two"):
        Unsup3d(Unsup3dConfig(image_size=48))


def test_the_depth_reader_gives_maps_of_the_picture_s_size():
    reader = DepthReader(EDDeconv(1, 32, 8, 16, tanh=False), TINY)
    depth, normals = reader(torch.rand(2, 3, 48, 40))
    assert (depth.shape, normals.shape) == ((2, 1, 48, 40), (2, 3, 48, 40))
    assert ((depth > 0.9) & (depth < 1.1)).all()


def test_border_columns_are_pinned_and_pass_no_gradient():
    depth = torch.rand(1, 1, 8, 8, requires_grad=True)
    pinned = pin_border(depth, 1.05)
    assert (pinned[..., [0, 1, 6, 7]] == 1.05).all()
    pinned.sum().backward()
    assert depth.grad[..., [0, 1, 6, 7]].sum() == 0


def test_side_ignores_scale_and_mad_measures_degrees():
    depth = 1 + torch.rand(2, 1, 6, 6)
    mask = torch.rand(2, 1, 6, 6) > 0.3
    outside = torch.where(mask, depth * 1.7, torch.inf)
    torch.testing.assert_close(side(outside, depth, mask), torch.zeros(2), rtol=0, atol=1e-6)
    noise = torch.tensor([0.1, -0.1]).repeat(18).view(1, 1, 6, 6)
    full = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    torch.testing.assert_close(side(noise.exp(), torch.ones(1, 1, 6, 6), full), torch.tensor([0.1]))
    up = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 6, 6)
    angle = math.radians(30)
    tilted = torch.tensor([math.sin(angle), 0.0, math.cos(angle)])[None, :, None, None].expand(1, 3, 6, 6)
    torch.testing.assert_close(mad(tilted, up, full), torch.tensor([30.0]), rtol=1e-4, atol=0)


def test_erosion_takes_one_pixel_off_every_side():
    mask = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    mask[..., 1:6, 1:5] = True
    wanted = torch.zeros_like(mask)
    wanted[..., 2:5, 2:4] = True
    assert torch.equal(erode(mask.float()), wanted)


def write_checkpoint(path, model, monkeypatch):
    """As the training of Unsup3D leaves it: with the pickled log of the run, an object of its own."""
    trace = type("MetricsTrace", (), {"__module__": "unsup3d.meters"})
    module = types.ModuleType("unsup3d.meters")
    module.MetricsTrace = trace
    monkeypatch.setitem(sys.modules, "unsup3d", types.ModuleType("unsup3d"))
    monkeypatch.setitem(sys.modules, "unsup3d.meters", module)
    log = trace()
    log.data = {"train": [{"loss": np.float64(1.5)}]}
    parts = {name: getattr(model, name).state_dict() for name in ("netD", "netA", "netL", "netV", "netC")}
    torch.save({**parts, "metrics_trace": log, "epoch": 30}, path)
    monkeypatch.undo()


def test_a_checkpoint_with_its_log_is_found_and_read(tmp_path, monkeypatch):
    model = Unsup3d(TINY)
    write_checkpoint(tmp_path / "checkpoint030.pth", model, monkeypatch)
    monkeypatch.setenv("HEADWARP_UNSUP3D", str(tmp_path))
    loaded = official.load_unsup3d(config=TINY)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    save_model(tmp_path / "unsup3d.safetensors", loaded)
    again = load_model(tmp_path / "unsup3d.safetensors")
    assert again.config == TINY


def test_a_missing_or_unsafe_checkpoint_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWARP_UNSUP3D", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"checkpoint030\.pth was not found"):
        official.load_unsup3d()
    torch.save({"netD": os.system}, tmp_path / "checkpoint030.pth")
    with pytest.raises(ValueError, match="read safely"):
        official.load_unsup3d()
    torch.save({"netD": {}}, tmp_path / "checkpoint030.pth")
    with pytest.raises(ValueError, match="no entry 'netA', but netD"):
        official.load_unsup3d()
