"""FOMM against golden numbers of the official code, and what its parts promise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headwarp.nets.config import build
from headwarp.nets.dense_motion import sparse_motion
from headwarp.nets.fomm import CommonParams, Fomm, FommConfig
from headwarp.nets.keypoints import Motion, best_frame, hull_area, normalise
from headwarp.nets.layers import AntiAlias, DoublingConv, corner_grid


def tiny(golden) -> Fomm:
    settings = golden.facts["config"]
    model = Fomm(
        build(
            FommConfig,
            {
                "common_params": settings["common"],
                "kp_detector_params": settings["kp"],
                "generator_params": settings["gen"],
            },
        )
    )
    model.kp_detector.load_state_dict(golden.weights("kp_detector"))
    model.generator.load_state_dict(golden.weights("generator"))
    return model.eval()


@pytest.fixture(scope="module")
def fomm_golden(golden):
    return golden("golden_fomm_tiny")


@pytest.fixture(scope="module")
def model(fomm_golden):
    return tiny(fomm_golden)


@torch.no_grad()
def test_keypoints_agree_with_the_official_ones(model, fomm_golden, outputs_of):
    detector = model.kp_detector
    parts = {
        "input_downsampled": detector.down,
        "hourglass_out": detector.predictor,
        "logits": detector.kp,
        "jacobian_map": detector.jacobian,
    }
    with outputs_of(parts) as seen:
        model.read_motion(fomm_golden.pictures("source"))
    for name, value in seen.items():
        fomm_golden.near(value, f"kp.source.{name}")
    for name in ("source", "driving", "initial"):
        motion = model.read_motion(fomm_golden.pictures(name))
        fomm_golden.near(motion.value, f"kp.{name}.value")
        fomm_golden.near(motion.jacobian, f"kp.{name}.jacobian")


@torch.no_grad()
def test_dense_motion_and_pictures_agree_with_the_official_ones(model, fomm_golden, outputs_of):
    state = model.encode_source(fomm_golden.pictures("source"))
    driving = model.read_motion(fomm_golden.pictures("driving"))
    with outputs_of({"bottleneck": model.generator.bottleneck}) as seen:
        output = model.render(state, driving)
    dense = output.dense
    fomm_golden.near(state.small, "dense.source_downsampled")
    fomm_golden.near(dense.sparse_motion, "dense.sparse_motion")
    fomm_golden.near(dense.sparse_deformed, "dense.sparse_deformed")
    fomm_golden.near(dense.mask, "dense.mask")
    fomm_golden.near(dense.deformation, "dense.deformation")
    fomm_golden.near(dense.occlusion, "dense.occlusion_map")
    fomm_golden.near(state.features, "gen.encoder_feature")
    fomm_golden.near(output.features, "gen.warped_occluded_feature")
    fomm_golden.near(seen["bottleneck"], "gen.bottleneck_out")
    fomm_golden.near(model.generator.dense_motion_network.deformed(state.image, dense), "gen.deformed")
    fomm_golden.near(output.image, "gen.prediction")


@torch.no_grad()
def test_relative_motion_agrees_with_the_official_one(model, fomm_golden):
    source, driving, first = (model.read_motion(fomm_golden.pictures(n)) for n in ("source", "driving", "initial"))
    fomm_golden.near(source.hull_area, "norm.hull_area_source")
    fomm_golden.near(first.hull_area, "norm.hull_area_initial")
    for name, options in {
        "relative": {},
        "relative_adapt": {"adapt_scale": True},
        "relative_nojac": {"jacobian": False},
    }.items():
        motion = normalise(driving, first, source, **options)
        fomm_golden.near(motion.value, f"norm.{name}.value")
        fomm_golden.near(motion.jacobian, f"norm.{name}.jacobian")
    motion = normalise(driving, first, source, adapt_scale=True)
    output = model.render(model.encode_source(fomm_golden.pictures("source")), motion)
    fomm_golden.near(output.image, "gen.prediction_relative_adapt")
    assert normalise(driving, first, source, relative=False, adapt_scale=True) is driving


@torch.no_grad()
def test_other_shapes_and_scales_agree_with_the_official_ones(model, fomm_golden):
    state = model.encode_source(fomm_golden.pictures("rect_source"))
    output = model.render(state, model.read_motion(fomm_golden.pictures("rect_driving")))
    fomm_golden.near(output.dense.occlusion, "rect.occlusion_map")
    fomm_golden.near(output.image, "rect.prediction")

    config = model.config.generator_params
    finer = dataclasses.replace(
        config, dense_motion_params=dataclasses.replace(config.dense_motion_params, scale_factor=0.5)
    )
    other = Fomm(dataclasses.replace(model.config, generator_params=finer))
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "motion_network.down" not in k}, strict=False)
    other.eval()
    state = other.encode_source(fomm_golden.pictures("source"))
    output = other.render(state, other.read_motion(fomm_golden.pictures("driving")))
    fomm_golden.near(output.dense.occlusion, "variant_dense_scale0.5.occlusion_map")
    fomm_golden.near(output.image, "variant_dense_scale0.5.prediction")


def test_small_pieces_agree_with_the_official_ones(fomm_golden):
    for scale in (0.5, 0.25, 0.125):
        shrink = AntiAlias(3, scale)
        fomm_golden.near(shrink.weight[0, 0], f"blur_kernel.{scale}", times=1e-6)
        fomm_golden.near(shrink(fomm_golden.pictures("driving")), f"pyramid.driving.{scale}")
    fomm_golden.near(corner_grid(3, 5, torch.zeros(1)), "util.grid_3x5", times=1e-6)


def test_names_and_shapes_are_the_official_ones(official_names):
    names = official_names("fomm")
    model = Fomm()
    for net in ("kp_detector", "generator"):
        official = {name: tuple(shape) for name, shape, _ in names[net]}
        assert {k: tuple(v.shape) for k, v in getattr(model, net).state_dict().items()} == official
    model = Fomm(FommConfig(CommonParams(num_kp=15)))
    ours = {
        k: tuple(v.shape) for net in ("generator", "kp_detector") for k, v in getattr(model, net).state_dict().items()
    }
    for net in ("generator", "kp_detector"):
        for name, shape, _ in names["_if_num_kp_15"][net]:
            assert ours[name] == tuple(shape)


def test_the_same_keypoints_move_nothing():
    motion = Motion(torch.rand(2, 5, 2) - 0.5, torch.eye(2) + 0.2 * torch.rand(2, 5, 2, 2))
    grids = sparse_motion(motion, motion, 6, 9)
    torch.testing.assert_close(grids, corner_grid(6, 9, grids).expand_as(grids), rtol=0, atol=1e-5)


def test_relative_motion_of_the_first_frame_is_the_source():
    first, source = (Motion(torch.rand(1, 7, 2), torch.eye(2) + 0.2 * torch.rand(1, 7, 2, 2)) for _ in range(2))
    motion = normalise(first, first, source, adapt_scale=True)
    torch.testing.assert_close(motion.value, source.value)
    torch.testing.assert_close(motion.jacobian, source.jacobian)


def test_adapted_scale_is_the_ratio_of_the_faces():
    first = Motion(torch.rand(1, 9, 2))
    source, later = Motion(2 * first.value), Motion(first.value + 0.1)
    moved = normalise(later, first, source, adapt_scale=True).value - source.value
    torch.testing.assert_close(moved, torch.full_like(moved, 0.2))


def test_hull_area():
    square = np.array([[0.0, 0], [2, 0], [2, 3], [0, 3], [1, 1], [0.5, 2]])
    assert hull_area(square) == pytest.approx(6)
    with pytest.raises(ValueError, match="one line"):
        hull_area(np.array([[0.0, 0], [1, 1], [2, 2]]))


def test_the_best_frame_is_the_one_posed_like_the_source():
    rng = np.random.default_rng(3)
    frames = rng.normal(size=(6, 20, 3))
    frames[2] = np.nan  # no face found
    source = 3 * frames[4, :, :2] + 100  # elsewhere and larger, but the same pose
    assert best_frame(source, frames) == 4
    with pytest.raises(ValueError, match="no face"):
        best_frame(source, frames[2:3])


def test_a_doubling_convolution_is_doubling_and_a_convolution():
    conv = torch.nn.Conv2d(5, 7, 3, padding=1)
    x = torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(DoublingConv(conv)(x), conv(F.interpolate(x, scale_factor=2)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_source_serves_many_frames(model, fomm_golden):
    state = model.encode_source(fomm_golden.pictures("source")[:1])
    motion = model.read_motion(fomm_golden.pictures("driving"))
    both = model.render(state, motion).image
    apart = torch.cat([model.render(state, motion[i : i + 1]).image for i in range(2)])
    torch.testing.assert_close(both, apart, rtol=0, atol=1e-6)
