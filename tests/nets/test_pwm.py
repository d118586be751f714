from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from headwarp.geom.camera import Camera, WeakPerspective
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.nets.model_file import load_model, save_model
from headwarp.nets.pwm import Guidance, Guide, Posed, Pwm, PwmConfig, extrapolate
from headwarp.render.guidance import code_image, nmfc_codes
from headwarp.render.warp import warp

SIZE = (64, 96)
KINDS = ("displacement", "neural_codes", "nmfc", "displacement+neural_codes")
TINY = PwmConfig(base_channels=8, max_channels=16, spade_hidden=8, code_channels=4, spade_residual=False)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head("open")


def pose(guide: Guide, *, turn: float = 0.0, size: tuple[int, int] = SIZE, batch: int = 1) -> Posed:
    params = HeadParams.zeros(guide.head, batch)
    place = torch.tensor([[0.0, 0.03, -0.9]]).expand(batch, -1)
    params = params.replace(translation=place, rotation=torch.tensor([[0.2 * turn, turn, 0.0]]).expand(batch, -1))
    return guide.pose(params, Camera.portrait(size, batch=batch), size)


def painted(guide: Guide, posed: Posed) -> Tensor:
    """A picture of the head in colours of its own, on grey."""
    mesh = posed.vertices, guide.faces, posed.size
    colours = nmfc_codes(guide.head.v_template)
    stripes = 0.5 + 0.5 * torch.sin(8 * colours)
    image = code_image(stripes, *mesh, perspective=True)
    return torch.where((image == 0).all(1, keepdim=True), 0.5, image)


def psnr(image: Tensor, target: Tensor) -> float:
    return float(-10 * (image - target).square().mean().log10())


def config(kind: str, **values: object) -> PwmConfig:
    return dataclasses.replace(TINY, guidance=kind, **values)  # type: ignore[arg-type]


def shaken(model: Pwm) -> Pwm:
    """A network that has learned something: gains are not zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for block in model.warps:
            block.gain.fill_(0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_no_motion_is_the_identity_warp(head, kind):
    model = Pwm(config(kind)).eval()
    guide = Guide(head, model.config)
    posed = pose(guide, turn=0.2)
    image = torch.rand(1, 3, *SIZE)
    guidance = guide.driving(posed, posed, model.codes)
    output = model(image, guidance, guide.source(posed, model.codes))
    torch.testing.assert_close(output.warped, image, rtol=0, atol=1e-5)
    if guidance.displacement is not None:
        torch.testing.assert_close(warp(image, guidance.displacement), image, rtol=0, atol=1e-5)
    assert output.image.shape == image.shape
    assert 0 < output.image.min() < output.image.max() < 1
    assert output.displacement.shape == (1, 2, SIZE[0] // 2, SIZE[1] // 2)


def test_a_translated_head_gives_a_constant_displacement(head):
    guide = Guide(head, PwmConfig())
    params = HeadParams.zeros(head)
    near = params.replace(translation=torch.tensor([[0.02, -0.01, 0.0]]))
    flat = WeakPerspective(torch.tensor([200.0]), torch.tensor([[48.0, 30.0]]))
    shifted = pose(guide), pose(guide)
    moved = shifted[1].vertices + torch.tensor([0.1, -0.05, 0.0])
    cases = [
        # px = 200 * metres; NDC = 2 px / W, y down
        (guide.pose(params, flat, SIZE), guide.pose(near, flat, SIZE), (-2 * 4 / SIZE[1], -2 * 2 / SIZE[0])),
        (shifted[0], dataclasses.replace(shifted[1], vertices=moved), (-0.1, 0.05)),
    ]
    for source, driving, wanted in cases:
        guidance = guide.driving(source, driving)
        on = guide.rasterize(driving, (SIZE[0] // 2, SIZE[1] // 2)).face_id[0] >= 0
        assert on.float().mean() > 0.05
        inside = guidance.image[0][:, on]
        torch.testing.assert_close(inside, torch.tensor(wanted)[:, None].expand_as(inside), rtol=0, atol=1e-5)
        assert not guidance.image[0][:, ~on].any()


def test_codes_get_gradients_only_from_pixels_that_show_their_vertices(head):
    model = Pwm(config("neural_codes"))
    guide = Guide(head, model.config)
    posed = pose(guide, turn=0.5)
    half = SIZE[0] // 2, SIZE[1] // 2
    region = torch.zeros(half, dtype=torch.bool)
    region[10:25, 15:25] = True
    picture = guide.driving(posed, posed, model.codes).image
    (picture * torch.randn(4, 1, 1) * region).sum().backward()
    shown = guide.rasterize(posed, half).face_id[0][region]
    assert (shown >= 0).any()
    expected = torch.zeros(len(head.v_template), dtype=torch.bool)
    expected[guide.faces[shown[shown >= 0].long()].flatten()] = True
    assert torch.equal(model.codes.grad.abs().sum(1) > 0, expected)


@pytest.mark.parametrize("blend", [False, True])
@pytest.mark.parametrize("kind", ["neural_codes", "displacement+neural_codes"])
def test_the_loss_reaches_codes_and_every_weight(head, kind, blend):
    model = shaken(Pwm(config(kind, blend=blend)))
    guide = Guide(head, model.config)
    source, driving = pose(guide, turn=-0.2), pose(guide, turn=0.3)
    image = torch.rand(1, 3, *SIZE)
    output = model(image, guide.driving(source, driving, model.codes), guide.source(source, model.codes))
    (output.image.square().mean() + (output.warped - image).square().mean()).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("continued", [False, True])
def test_an_untrained_residual_net_warps_as_the_mesh_moves(head, continued):
    model = Pwm(config("displacement", residual_displacement=True, extrapolate=continued)).eval()
    guide = Guide(head, model.config)
    source, driving = pose(guide), pose(guide, turn=0.3)
    image = painted(guide, source)
    guidance = guide.driving(source, driving)
    output = model(image, guidance)
    assert guidance.displacement.abs().max() > 0.1
    torch.testing.assert_close(output.displacement, guidance.displacement, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.warped, warp(image, guidance.displacement), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_blend_is_the_warped_source_and_paint_under_a_mask_of_the_network(head):
    model = shaken(Pwm(config("displacement", blend=True))).fold()
    guide = Guide(head, model.config)
    image, guidance = torch.rand(1, 3, *SIZE), guide.driving(pose(guide), pose(guide, turn=0.3))

    def away(logit: float) -> float:
        model.last.bias.data[3] = logit
        output = model(image, guidance)
        return float((output.image - output.warped).abs().mean())

    assert away(20.0) < 1e-5, "nothing but the warped source"
    assert away(-20.0) > 0.05, "nothing but paint"
    assert 0 < away(2.0) < away(-20.0)


def test_the_displacement_points_from_the_driving_to_the_source_picture(head):
    guide = Guide(head, PwmConfig(extrapolate=True))
    source, driving = pose(guide, turn=-0.1), pose(guide, turn=0.2)
    image, target = painted(guide, source), painted(guide, driving)
    towards = guide.driving(source, driving).displacement
    right, still, wrong = (psnr(warp(image, d), target) for d in (towards, 0 * towards, -towards))
    assert right > still + 3
    assert wrong < still


def test_a_source_is_encoded_once(head):
    model = shaken(Pwm(config("displacement+neural_codes"))).eval()
    guide = Guide(head, model.config)
    source, image = pose(guide), torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        drawn = guide.source(source, model.codes)
        state = model.encode_source(image, drawn)
        kept = [f.clone() for f in state.features]
        for turn in (0.1, -0.3):
            guidance = guide.driving(source, pose(guide, turn=turn), model.codes)
            whole, frame = model(image, guidance, drawn), model.render(state, guidance)
            torch.testing.assert_close(frame.image, whole.image, rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(kept, state.features, strict=True))


@pytest.mark.parametrize("residual", [False, True])
def test_training_and_inference_compute_the_same(head, residual):
    model = shaken(Pwm(config("displacement", spade_residual=residual))).eval()
    guide = Guide(head, model.config)
    guidance, image = guide.driving(pose(guide, batch=2), pose(guide, turn=0.2, batch=2)), torch.rand(2, 3, *SIZE)
    recorded = model(image, guidance)
    with torch.no_grad():
        plain = model(image, guidance)
    torch.testing.assert_close(plain.image, recorded.image.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(plain.displacement, recorded.displacement.detach(), rtol=0, atol=1e-6)
    alone = Guidance(guidance.image[1:], guidance.displacement[1:])
    torch.testing.assert_close(model(image[1:], alone).image, recorded.image[1:], rtol=0, atol=1e-5)


def test_folding_the_spectral_norm_changes_nothing(head, tmp_path):
    model = shaken(Pwm(config("displacement", spade_residual=True)))
    guide = Guide(head, model.config)
    guidance, image = guide.driving(pose(guide), pose(guide, turn=0.2)), torch.rand(1, 3, *SIZE)
    model(image, guidance)  # in training mode: the estimates of the norms move
    before = model.eval()(image, guidance)
    folded = copy.deepcopy(model).fold()
    assert not any("parametrizations" in name for name in folded.state_dict())
    torch.testing.assert_close(folded(image, guidance).image, before.image, rtol=0, atol=1e-5)
    assert torch.equal(model(image, guidance).image, before.image)  # the original is left alone
    assert model.config.spectral_norm
    save_model(tmp_path / "folded.safetensors", folded)
    again = load_model(tmp_path / "folded.safetensors")
    assert torch.equal(again(image, guidance).image, folded(image, guidance).image)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_network_comes_back(head, kind, tmp_path):
    model = shaken(Pwm(config(kind))).eval()
    guide = Guide(head, model.config)
    source, image = pose(guide), torch.rand(1, 3, *SIZE)
    save_model(tmp_path / "pwm.safetensors", model, {"licence": "none"})
    again = load_model(tmp_path / "pwm.safetensors")
    assert again.config == model.config
    results = []
    for each in (model, again):
        guidance = guide.driving(source, pose(guide, turn=0.2), each.codes)
        results.append(each(image, guidance, guide.source(source, each.codes)).image)
    assert torch.equal(*results)


def test_any_head_drives(head):
    other = head.subset(torch.arange(0, len(head.v_template)))
    other.face_part, other.part_names = None, ()
    assert len(Guide(other, TINY).faces) == len(head.faces)  # nothing to leave out
    assert len(Guide(head, TINY).faces) == len(head.faces) - len(head.part_faces("neck"))
    fewer = head.subset(torch.arange(1000))
    model = Pwm(config("displacement+neural_codes", vertices=1000))
    guide = Guide(fewer, model.config)
    posed = pose(guide)
    assert guide.driving(posed, posed, model.codes).image.shape == (1, 6, 32, 48)
    with pytest.raises(ValueError, match="codes for 1000 vertices"):
        Guide(head, model.config)


def test_extrapolation_keeps_what_is_known_and_fades_to_the_border():
    mask = torch.zeros(1, 1, 48, 64, dtype=torch.bool)
    mask[..., 15:30, 20:50] = True
    values = torch.randn(1, 2, 48, 64)
    filled = extrapolate(values, mask)
    torch.testing.assert_close(filled[mask.expand_as(filled)], values[mask.expand_as(values)])
    assert not filled[..., 0, :].any()
    assert not filled[..., -1].any()
    constant = extrapolate(torch.ones_like(values), mask)
    assert (constant[..., 12, 22:48] > 0.5).all()  # next to what is known
    assert ((constant >= 0) & (constant <= 1)).all()
    assert (constant[..., :15, 35].diff() >= -0.02).all()
    assert not extrapolate(values, torch.zeros_like(mask)).any()


def macs(model: nn.Module) -> list[int]:
    """Multiply-adds of the convolutions from now on, in a list of one."""
    total = [0]

    def count(layer: nn.Conv2d, _: object, out: Tensor) -> None:
        total[0] += out.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    return total


def test_the_compact_network_keeps_its_budget(head):
    from headwarp.training.config import read_config

    model = Pwm(read_config("pwm_256_s").settings.model_params).eval()
    assert sum(p.numel() for p in model.parameters()) < 15e6
    guide = Guide(head, model.config)
    size = (model.config.size,) * 2
    source = pose(guide, size=size)
    with torch.no_grad():
        state = model.encode_source(torch.rand(1, 3, *size), guide.source(source, model.codes))
        total = macs(model)
        model.render(state, guide.driving(source, source, model.codes))
    assert 1e9 < total[0] < 10e9


def test_errors_say_what_is_wrong(head):
    with pytest.raises(ValueError, match="need a displacement"):
        config("neural_codes", residual_displacement=True)
    with pytest.raises(ValueError, match="multiples of 16"):
        Pwm(TINY).encode_source(torch.rand(1, 3, 60, 64))
    with pytest.raises(ValueError, match="4 channels drawn of the source head"):
        Pwm(config("neural_codes")).encode_source(torch.rand(1, 3, 64, 64))
    model = Pwm(TINY)
    with pytest.raises(ValueError, match="2 channels and a displacement, got 4"):
        model(torch.rand(1, 3, 64, 64), Guidance(torch.zeros(1, 4, 32, 32), None))
