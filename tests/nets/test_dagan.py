"""DaGAN against golden numbers of the official code, its names, its switches, its speed-ups."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from headwarp.nets import winograd
from headwarp.nets.config import build
from headwarp.nets.dagan import DaGan, DaGanConfig
from headwarp.nets.depth import DepthConfig
from headwarp.nets.inference import optimise
from headwarp.nets.keypoints import normalise
from headwarp.nets.layers import rename_spectral
from headwarp.nets.winograd import WinogradConv


@pytest.fixture(scope="module")
def dagan_golden(golden):
    return golden("golden_dagan_tiny")


@pytest.fixture(scope="module")
def model(dagan_golden, formula) -> DaGan:
    settings = dagan_golden.facts["config"]
    values = {
        "common_params": settings["common"],
        "kp_detector_params": settings["kp"],
        "generator_params": settings["gen"],
    }
    model = DaGan(build(DaGanConfig, values))
    model.kp_detector.load_state_dict(dagan_golden.weights("kp_detector"))
    model.generator.load_state_dict(dagan_golden.weights("generator"))
    for net in ("depth_encoder", "depth_decoder"):
        part = getattr(model.depth, net)
        part.load_state_dict(formula(part.state_dict(), net, dagan_golden.facts["gains"]))
    return model.eval()


@torch.no_grad()
def test_keypoints_agree_with_the_official_ones(model, dagan_golden, outputs_of):
    detector = model.kp_detector
    parts = {
        "input_downsampled": detector.down,
        "hourglass_out": detector.predictor,
        "logits": detector.kp,
        "jacobian_map": detector.jacobian,
    }
    with outputs_of(parts) as seen:
        model.read_motion(dagan_golden.pictures("source"))
    for name, value in seen.items():
        dagan_golden.near(value, f"kp.source.{name}")
    motions = {name: model.read_motion(dagan_golden.pictures(name)) for name in ("source", "driving", "initial")}
    for name, motion in motions.items():
        dagan_golden.near(motion.value, f"kp.{name}.value")
        dagan_golden.near(motion.jacobian, f"kp.{name}.jacobian")
    moved = normalise(motions["driving"], motions["initial"], motions["source"], adapt_scale=True)
    dagan_golden.near(moved.value, "norm.relative_adapt.value")
    dagan_golden.near(moved.jacobian, "norm.relative_adapt.jacobian")
    output = model.render(model.encode_source(dagan_golden.pictures("source")), moved)
    dagan_golden.near(output.image, "gen.prediction_relative_adapt")


@torch.no_grad()
def test_pictures_agree_with_the_official_ones(model, dagan_golden, outputs_of):
    generator = model.generator
    parts = {
        "depth_feature": generator.src_down_blocks[-1],
        "attention_out": generator.AttnModule,
        "bottleneck_out": generator.bottleneck,
    }
    with outputs_of(parts) as seen:
        state = model.encode_source(dagan_golden.pictures("source"))
        output = model.render(state, model.read_motion(dagan_golden.pictures("driving")))
    for name, value in seen.items():
        dagan_golden.near(value, f"gen.{name}")
    dense = output.dense
    dagan_golden.near(state.small, "dense.source_downsampled")
    dagan_golden.near(dense.sparse_motion, "dense.sparse_motion")
    dagan_golden.near(dense.sparse_deformed, "dense.sparse_deformed")
    dagan_golden.near(dense.mask, "dense.mask")
    dagan_golden.near(dense.deformation, "dense.deformation")
    dagan_golden.near(dense.occlusion, "dense.occlusion_map")
    dagan_golden.near(state.features, "gen.encoder_feature")
    dagan_golden.near(output.features, "gen.warped_occluded_feature")
    dagan_golden.near(generator.dense_motion_network.deformed(state.image, dense), "gen.deformed")
    dagan_golden.near(output.image, "gen.prediction")
    rows = [
        generator.AttnModule.weights(state.query[:1], output.features[:1], i // 16, i % 16).flatten()
        for i in range(256)
    ]
    dagan_golden.near(torch.stack(rows), "gen.attention_map_sample0")


@torch.no_grad()
def test_other_shapes_and_scales_agree_with_the_official_ones(model, dagan_golden):
    source, driving = dagan_golden.pictures("rect_source"), dagan_golden.pictures("rect_driving")
    state = model.encode_source(source)
    motion = model.read_motion(driving)
    dagan_golden.near(state.disparity, "rect.disp0_source")
    dagan_golden.near(state.motion.value, "rect.kp_source.value")
    dagan_golden.near(motion.jacobian, "rect.kp_driving.jacobian")
    dagan_golden.near(model.render(state, motion).image, "rect.prediction")
    config = model.config.generator_params
    dense = dataclasses.replace(config.dense_motion_params, scale_factor=0.5)
    other = DaGan(
        dataclasses.replace(model.config, generator_params=dataclasses.replace(config, dense_motion_params=dense))
    )
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "motion_network.down" not in k}, strict=False)
    other.eval()
    output = other.render(
        other.encode_source(dagan_golden.pictures("source")), other.read_motion(dagan_golden.pictures("driving"))
    )
    dagan_golden.near(output.dense.occlusion, "variant_dense_scale0.5.occlusion_map")
    dagan_golden.near(output.image, "variant_dense_scale0.5.prediction")


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def official(entries: list, *, without: str = " ") -> dict[str, tuple[int, ...]]:
    listed = {name: torch.empty(shape, device="meta") for name, shape, _ in entries if not name.startswith(without)}
    return shapes(rename_spectral(listed))


def test_names_and_shapes_are_the_official_ones(official_names):
    names = official_names("dagan")
    with torch.device("meta"):
        model = DaGan()
        spade = DaGan(DaGanConfig(decoder="spade", depth_params=DepthConfig(num_layers=50, pose=True)))
        shallow = DaGan(DaGanConfig(depth_params=DepthConfig(pose=True)))
    assert shapes(model.generator.state_dict()) == official(names["generator"])
    assert shapes(model.kp_detector.state_dict()) == official(names["kp_detector"])
    assert shapes(spade.generator.state_dict()) == official(names["generator_SPADEDepthAwareGenerator"])
    files = {
        (18, "depth_encoder"): "depth_encoder(encoder.pth, resnet18 weights_19)",
        (18, "depth_decoder"): "depth_decoder(depth.pth, for resnet18)",
        (18, "pose_encoder"): "pose_encoder(pose_encoder.pth, resnet18 2 frames)",
        (18, "pose"): "pose(pose.pth, for resnet18)",
        (50, "depth_encoder"): "depth_encoder(encoder.pth, resnet50 Voxceleb2_10w)",
        (50, "depth_decoder"): "depth_decoder(depth.pth, for resnet50)",
        (50, "pose_encoder"): "pose_encoder(pose_encoder.pth, resnet50 2 frames)",
        (50, "pose"): "pose(pose.pth, for resnet50)",
    }
    for (layers, net), title in files.items():
        depth = (shallow if layers == 18 else spade).depth
        # the unused classifier of the encoders is left out
        assert shapes(getattr(depth, net).state_dict()) == official(names[title], without="encoder.fc")


@pytest.mark.parametrize("keypoint_input", ["rgb", "rgbd", "depth"])
@pytest.mark.parametrize("attention", ["none", "self", "depth"])
def test_every_ablation_trains_and_renders(model, keypoint_input, attention):
    config = dataclasses.replace(model.config, keypoint_input=keypoint_input, attention=attention)
    ablated = DaGan(config)
    source, driving = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    output = ablated.render(ablated.encode_source(source), ablated.read_motion(driving))
    output.image.mean().backward()
    assert output.image.shape == source.shape
    idle = [n for n, p in ablated.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []  # every part that is on takes part
    assert (ablated.depth is None) == (keypoint_input == "rgb" and attention != "depth")
    assert ablated.depth is None or not ablated.depth.training


def randomised(config: DaGanConfig, seed: int = 0) -> DaGan:
    """A network whose norms and attention do something."""
    torch.manual_seed(seed)
    model = DaGan(config)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "norm.bias", "norm1.bias", "norm2.bias")):
            value.uniform_(-0.2, 0.2)
        elif name.endswith("running_var"):
            value.uniform_(0.7, 1.3)
        elif name.endswith("gamma"):
            value.fill_(0.5)
    return model.eval()


@torch.inference_mode()
@pytest.mark.parametrize("decoder", ["residual", "spade"])
def test_the_optimised_model_computes_the_same(model, decoder):
    config = dataclasses.replace(model.config.generator_params, block_expansion=32, max_features=128)
    plain = randomised(dataclasses.replace(model.config, generator_params=config, decoder=decoder))
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    fast = optimise(plain)
    source, driving = torch.rand(1, 3, 64, 64), torch.rand(2, 3, 64, 64)
    wanted = plain.render(plain.encode_source(source), plain.read_motion(driving))
    found = fast.render(fast.encode_source(source), fast.read_motion(driving))
    torch.testing.assert_close(found.image, wanted.image, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.dense.deformation, wanted.dense.deformation, rtol=0, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())  # a copy was changed


@torch.inference_mode()
def test_the_optimised_model_agrees_with_the_official_one(model, dagan_golden):
    fast = optimise(model)
    state = fast.encode_source(dagan_golden.pictures("source"))
    output = fast.render(state, fast.read_motion(dagan_golden.pictures("driving")))
    dagan_golden.near(state.motion.value, "kp.source.value")
    dagan_golden.near(output.dense.deformation, "dense.deformation")
    dagan_golden.near(output.image, "gen.prediction")


@torch.inference_mode()
def test_bfloat16_changes_pictures_by_about_a_grey_level(model, dagan_golden):
    fast = optimise(model, bfloat16=True)
    source, driving = dagan_golden.pictures("source"), dagan_golden.pictures("driving")
    found = fast.render(fast.encode_source(source), fast.read_motion(driving)).image
    assert found.dtype == torch.float32
    assert float((found - dagan_golden.arrays["gen.prediction"]).abs().mean()) < 1 / 255


@pytest.mark.parametrize(("channels", "out", "height", "width"), [(8, 16, 8, 12), (24, 40, 4, 64), (8, 8, 6, 8)])
@pytest.mark.parametrize("threads", [1, 2])
def test_winograd_is_the_convolution(channels, out, height, width, threads, monkeypatch):
    monkeypatch.setattr(winograd, "_TILES", 1)  # several strips of pictures as small as these
    monkeypatch.setattr(winograd, "_PRODUCTS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    conv = torch.nn.Conv2d(channels, out, 3, padding=1)
    x = torch.randn(2, channels, height, width)
    try:
        for image in (x, x.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(WinogradConv(conv)(image), conv(x), rtol=0, atol=1e-4)
        assert torch.get_num_threads() == threads
        late: list[int] = []
        thread = threading.Thread(target=lambda: late.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert late == [threads], "threads that come later compute with as many"
    finally:
        torch.set_num_threads(before)


def test_winograd_hands_out_rows_as_they_are_made(monkeypatch):
    conv, x = torch.nn.Conv2d(16, 32, 3, padding=1), torch.randn(2, 16, 40, 20)
    monkeypatch.setattr(winograd, "_TILES", 1)  # several strips of a picture as small as this
    monkeypatch.setattr(winograd, "_PRODUCTS", 1)
    seen = set()

    def finish(rows, picture, top):
        seen.update((picture, top + k) for k in range(len(rows)))
        return rows[..., :8] * rows[..., 8:16] + picture

    with torch.inference_mode():
        found = WinogradConv(conv)(x, finish, 8)
        plain = conv(x)
    wanted = plain[:, :8] * plain[:, 8:16] + torch.arange(2.0)[:, None, None, None]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert seen == {(picture, row) for picture in range(2) for row in range(40)}

    def broken(rows, picture, top):
        raise KeyError(picture)

    with torch.inference_mode(), pytest.raises(KeyError):
        WinogradConv(conv)(x, broken, 8)
