"""OSTNet: splines, stretches, and that its parts change nothing until they have learned."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from headwarp.evaluation.protocols import stretched
from headwarp.nets.config import as_dict, build
from headwarp.nets.dense_motion import warp_features
from headwarp.nets.inference import optimise
from headwarp.nets.keypoints import Motion, normalise
from headwarp.nets.model_file import load_model, save_model
from headwarp.nets.ostnet import PAPER, OstNet, OstNetConfig
from headwarp.nets.scale import (
    ScaleConfig,
    ScaledMotion,
    ScaleLocalisation,
    ScaleTransformation,
    stretch,
    thin_plate_fields,
)

KEYPOINTS = {"block_expansion": 8, "max_features": 32, "num_blocks": 2}
GENERATOR: dict[str, Any] = {
    "block_expansion": 8,
    "max_features": 32,
    "num_down_blocks": 3,
    "num_bottleneck_blocks": 1,
    "dense_motion_params": {"block_expansion": 8, "max_features": 32, "num_blocks": 2},
}
TINY: dict[str, dict[str, Any]] = {
    "fomm": {"common_params": {"num_kp": 4}, "kp_detector_params": KEYPOINTS, "generator_params": GENERATOR},
    "dagan": {
        "common_params": {"num_kp": 4},
        "kp_detector_params": KEYPOINTS,
        "generator_params": GENERATOR,
        "keypoint_input": "rgb",
        "attention": "self",
    },
    "g3fa": {
        "common_params": {"num_kp": 4},
        "kp_detector_params": KEYPOINTS,
        "generator_params": {"dense_motion_params": GENERATOR["dense_motion_params"]},
    },
}


def tiny(base: str = "fomm", **switches: Any) -> OstNet:
    torch.manual_seed(0)
    config = {"base": base, "base_params": TINY[base], "scale_params": {"hidden": [32], "code": 16}, **switches}
    return OstNet(build(OstNetConfig, config)).eval()


def pictures(seed: int, batch: int = 2, size: int = 64) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def disturb(model: OstNet) -> OstNet:
    """As if it had learned something."""
    torch.manual_seed(5)
    with torch.no_grad():
        if model.transformation is not None:
            model.transformation.move.weight.normal_(0, 0.2)
        if model.config.scale_embedding:
            for layer in model.generator.scale_embedding.weights:
                layer.weight.normal_(0, 0.5)
    return model


LAYOUTS = [(2, 10), (2, 2), (4, 5)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_spline_is_the_identity_at_the_base_points(layout):
    part = ScaleTransformation(ScaleConfig(fiducials=layout))
    assert (part.displacement(part.base[None], 24, 40) == 0).all()
    image = pictures(1)[:, :, :24, :40].contiguous()
    assert torch.equal(part(image, part.base.expand(2, -1, -1)), image)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_spline_reproduces_affine_maps(layout):
    """Everywhere, not at the fiducial points only."""
    part = ScaleTransformation(ScaleConfig(fiducials=layout))
    torch.manual_seed(0)
    matrix, shift = torch.eye(2) + 0.4 * torch.randn(3, 2, 2), 0.3 * torch.randn(3, 1, 2)
    moved = part.displacement(part.base @ matrix.mT + shift, 24, 40)
    x, y = (torch.arange(40) * 2 + 1) / 40 - 1, (torch.arange(24) * 2 + 1) / 24 - 1
    places = torch.stack([x.expand(24, 40), y[:, None].expand(24, 40)], -1).flatten(0, 1)
    wanted = places @ matrix.mT + shift - places
    torch.testing.assert_close(moved.flatten(2).mT, wanted, rtol=0, atol=1e-5)


def test_the_spline_meets_its_points():
    """Pixel centres that are fiducial points go where they are told; the fields there are 1 and 0."""
    size = 8
    rows, columns = torch.tensor([0, 2, 5, 7, 3]), torch.tensor([1, 6, 0, 7, 3])
    points = torch.stack([(columns * 2 + 1) / size - 1, (rows * 2 + 1) / size - 1], -1)
    fields = thin_plate_fields(points, size, size)
    torch.testing.assert_close(fields[:, rows, columns], torch.eye(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(fields.sum(0), torch.ones(size, size), rtol=0, atol=1e-5)


def test_points_on_one_line_are_refused():
    with pytest.raises(ValueError, match="not on one line"):
        thin_plate_fields(torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]), 8, 8)
    with pytest.raises(ValueError, match="at least 2 rows"):
        ScaleConfig(fiducials=(1, 10))


def test_gradients_of_the_rectification_are_finite_and_right():
    """At the identity, where training begins: moving all fiducial points moves the picture."""
    part = ScaleTransformation()
    x = ((torch.arange(32) * 2 + 1) / 32 - 1).expand(1, 3, 32, 32).contiguous()
    fiducials = part.base[None].clone().requires_grad_()
    part(x, fiducials)[..., 8:24, 8:24].mean().backward()
    assert fiducials.grad.isfinite().all()
    # the picture is its own x, so a shift of all points by dx brightens it by dx
    torch.testing.assert_close(fiducials.grad.sum((0, 1)), torch.tensor([1.0, 0.0]), rtol=1e-3, atol=1e-3)


def test_distance_vectors_know_no_place():
    """They are what the second half of each input is; without them the layer is half as wide."""
    with_vectors, without = ScaleLocalisation(5), ScaleLocalisation(5, ScaleConfig(distance_vectors=False))
    assert with_vectors.layers[0].in_features == 40
    assert without.layers[0].in_features == 20
    x = torch.randn(2, 5, 2)
    seen = []
    with_vectors.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].unflatten(1, (4, 5, 2))))
    with_vectors(x, x + 1)
    torch.testing.assert_close(seen[0][:, 1], x - x.mean(1, keepdim=True))
    torch.testing.assert_close(seen[0][:, 3], seen[0][:, 1])


def test_the_stretch_keeps_the_middle_and_moves_places_as_stated():
    """(x, y) -> (a x, b y) / max(a, b), measured on the centres of mass of spots."""
    size = 128
    line = (torch.arange(size) * 2 + 1) / size - 1

    def spot(place: torch.Tensor) -> torch.Tensor:
        x, y = place[:, 0, None, None], place[:, 1, None, None]
        return torch.exp(-((line - x).square() + (line[:, None] - y).square()) / 0.005)[:, None].expand(-1, 3, -1, -1)

    width, height = torch.tensor([0.7, 1.3, 1.0, 0.9]), torch.tensor([1.3, 0.7, 1.0, 1.1])
    longer = torch.maximum(width, height)
    for place in ([0.0, 0.0], [0.4, -0.3]):
        start = torch.tensor([place] * 4)
        image = stretch(spot(start), width, height)[:, 0]
        mass = image.sum((1, 2))
        found = torch.stack([(image.sum(1) * line).sum(1) / mass, (image.sum(2) * line).sum(1) / mass], -1)
        torch.testing.assert_close(found, start * torch.stack([width / longer, height / longer], -1), rtol=0, atol=1e-4)


def test_the_stretch_without_a_change_is_exact_and_its_padding_repeats_the_border():
    image = pictures(0)
    assert torch.equal(stretch(image, torch.ones(2), torch.ones(2)), image)
    torch.testing.assert_close(stretch(image, torch.full((2,), 0.8), torch.full((2,), 0.8)), image)
    flat = torch.full((1, 3, 32, 32), 0.4)
    torch.testing.assert_close(stretch(flat, torch.tensor([0.7]), torch.tensor([1.3])), flat)
    sides = torch.zeros(1, 3, 32, 32)
    sides[..., 0], sides[..., -1] = 0.2, 0.9
    narrow = stretch(sides, torch.tensor([0.7]), torch.tensor([1.3]))
    torch.testing.assert_close(narrow[..., 0], torch.full((1, 3, 32), 0.2))
    torch.testing.assert_close(narrow[..., -1], torch.full((1, 3, 32), 0.9))
    with pytest.raises(ValueError, match="square"):
        stretch(torch.zeros(1, 3, 32, 40), torch.ones(1), torch.ones(1))


@pytest.mark.parametrize("factors", [(0.7, 1.3), (1.2, 0.85)])
def test_training_and_evaluation_stretch_alike(factors):
    """Up to evaluation's whole pixels and its filter."""
    x = torch.linspace(0, 1, 96)
    smooth = torch.stack([x.expand(96, 96), x[:, None].expand(96, 96), (x[:, None] * x)])[None]
    ours = stretch(smooth, *(torch.tensor([f]) for f in factors))[0]
    theirs = stretched((smooth[0].permute(1, 2, 0) * 255).round().byte().numpy(), *factors)
    torch.testing.assert_close(ours, torch.from_numpy(theirs).permute(2, 0, 1) / 255, rtol=0, atol=0.02)


@torch.no_grad()
@pytest.mark.parametrize("base", ["fomm", "dagan", "g3fa"])
def test_an_untrained_model_is_its_base(base):
    model = tiny(base, **({"scale_embedding": False} if base == "g3fa" else {}))
    source, driving = pictures(1), pictures(2)
    state = model.encode_source(source)
    motion = model.read_motion(driving, state)
    assert torch.equal(motion.rectified, driving)
    plain = tiny(base, scale_transform=False, scale_embedding=False)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    wanted = plain.base.read_motion(driving)
    torch.testing.assert_close(motion.value, wanted.value, rtol=0, atol=1e-6)
    image = plain.base.render(plain.base.encode_source(source), wanted).image
    torch.testing.assert_close(model.render(state, motion).image, image, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("base", ["fomm", "dagan"])
def test_parts_that_learned_change_what_they_are_for(base):
    source, driving = pictures(1), pictures(2)
    model = disturb(tiny(base))
    state = model.encode_source(source)
    motion = model.read_motion(driving, state)
    assert (motion.rectified - driving).abs().max() > 0.1
    assert not torch.allclose(motion.value, motion.seen.value)
    with_scale = model.render(state, motion).image
    other = dataclasses.replace(motion, code=motion.code + 1)
    assert (model.render(state, other).image - with_scale).abs().max() > 1e-3
    # without embedding the same motion gives the base's picture
    bare = tiny(base, scale_embedding=False)
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k in bare.state_dict()})
    state = bare.encode_source(source)
    torch.testing.assert_close(
        bare.render(state, motion).image, bare.base.render(state, Motion(motion.value, motion.jacobian)).image
    )


@torch.no_grad()
def test_the_embedding_is_added_to_every_block():
    """Eq. 5, F_i = block_i(F_(i-1)) + W_i z, written out."""
    model = disturb(tiny())
    source, driving = pictures(1), pictures(2)
    state = model.encode_source(source)
    motion = model.read_motion(driving, state)
    output = model.render(state, motion)
    generator = model.generator
    scales = [layer(motion.code)[..., None, None] for layer in generator.scale_embedding.weights]
    assert len(scales) == 6
    features = generator.first(source)
    for block, scale in zip(generator.down_blocks, scales[:3], strict=True):
        features = block(features) + scale
    features = generator.bottleneck(warp_features(features, output.dense))
    for block, scale in zip(generator.up_blocks, scales[3:], strict=True):
        features = block(features) + scale
    torch.testing.assert_close(output.image, generator.final(features).sigmoid())


@torch.no_grad()
def test_one_source_serves_many_frames():
    model = disturb(tiny())
    state, driving = model.encode_source(pictures(1, 1)), pictures(2, 3)
    motion = model.read_motion(driving, state)
    together = model.render(state, motion).image
    for i in range(3):
        alone = model.read_motion(driving[i : i + 1], state)
        torch.testing.assert_close(motion[i : i + 1].code, alone.code)
        torch.testing.assert_close(model.render(state, alone).image, together[i : i + 1], rtol=0, atol=1e-5)


def test_motion_without_a_code_is_refused_where_it_is_needed():
    model = tiny()
    state = model.encode_source(pictures(1))
    plain = model.read_motion(pictures(2))
    assert type(plain) is Motion
    with pytest.raises(ValueError, match="read for its source"):
        model.render(state, plain)
    motion = model.read_motion(pictures(2), state)
    assert isinstance(normalise(motion, motion, state.motion, relative=False), ScaledMotion)
    bare = tiny(scale_embedding=False)
    assert bare.render(bare.encode_source(pictures(1)), plain).image.shape == (2, 3, 64, 64)


@torch.no_grad()
def test_the_fast_copy_agrees():
    model = disturb(tiny())
    fast = optimise(model)
    source, driving = pictures(1), pictures(2)
    for image in (driving, driving.flip(0)):
        state, fast_state = model.encode_source(source), fast.encode_source(source)
        motion, fast_motion = model.read_motion(image, state), fast.read_motion(image, fast_state)
        torch.testing.assert_close(fast_motion.rectified, motion.rectified, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            fast.render(fast_state, fast_motion).image, model.render(state, motion).image, rtol=0, atol=1e-4
        )


def test_what_was_used_without_gradients_can_be_trained():
    """The spline's pictures are kept between calls, also those made in inference mode."""
    model = tiny()
    with torch.inference_mode():
        model.read_motion(pictures(2), model.encode_source(pictures(1)))
    state = model.encode_source(pictures(1))
    model.read_motion(pictures(2), state).rectified.mean().backward()
    assert model.transformation.move.bias.grad.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("base", ["fomm", "dagan", "g3fa"])
def test_model_files_bring_it_back(base, tmp_path):
    model = disturb(tiny(base, scale_embedding=base != "g3fa"))
    save_model(tmp_path / "model.safetensors", model)
    again = load_model(tmp_path / "model.safetensors")
    assert isinstance(again, OstNet)
    assert again.config == model.config
    source, driving = pictures(1), pictures(2)
    images = []
    for one in (model, again):
        state = one.encode_source(source)
        images.append(one.render(state, one.read_motion(driving, state)).image)
    torch.testing.assert_close(*images, rtol=0, atol=0)


def test_settings_go_to_the_base_and_back():
    assert build(OstNetConfig, as_dict(PAPER)) == PAPER
    assert PAPER.base_config().common_params.num_kp == 15
    assert build(OstNetConfig, {"base": "dagan"}).base_params["attention"] == "depth"
    with pytest.raises(ValueError, match=r"base_params\.generator_params\.num_down_blocks"):
        build(OstNetConfig, {"base_params": {"generator_params": {"num_down_blocks": "three"}}})
    with pytest.raises(ValueError, match="attention is no setting of FommConfig"):
        build(OstNetConfig, {"base_params": {"attention": "self"}})
    with pytest.raises(ValueError, match="must be false with the base g3fa"):
        build(OstNetConfig, {"base": "g3fa"})
    with pytest.raises(ValueError, match="needs the residual decoder"):
        tiny("dagan", base_params={**TINY["dagan"], "decoder": "spade"})
