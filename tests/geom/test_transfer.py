"""Motion transfer: what it keeps, what it follows, where it bends."""

from __future__ import annotations

import math

import pytest
import torch

from headwarp.geom import arkit
from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.rotation import axis_angle_to_euler, compose, euler_to_axis_angle
from headwarp.geom.transfer import TransferOptions, region_projection, scaled_motion, soft_limit, transfer

FREE = TransferOptions(
    expression_gain=1.0, yaw_limit=179, pitch_limit=179, roll_limit=179, translation_limit=9.0, zoom_limit=9.0
)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head("open")


def random_params(head: HeadModel, seed: int, spread: float = 0.3) -> HeadParams:
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(1, width, generator=generator)

    return HeadParams(
        shape=draw(head.n_shape, 1.0),
        expression=draw(head.n_expression, spread),
        rotation=draw(3, 0.2),
        neck=torch.zeros(1, 3),
        jaw=torch.tensor([[0.05, 0.0, 0.0]]),
        eyes=draw(3, 0.05).repeat(1, 2),
        eyelids=torch.tensor([[0.1, 0.1]]),
        translation=torch.tensor([[0.02, -0.01, -0.9]]) + draw(3, 0.01),
    )


def face_place(head: HeadModel, params: HeadParams) -> torch.Tensor:
    camera = Camera(torch.tensor([1500.0]), torch.tensor([[256.0, 256.0]]))
    return camera.project(head.embeddings["mediapipe"].points(head(params))).mean(1)


def test_no_motion_gives_the_source(head):
    source, rest = random_params(head, 0), random_params(head, 1)
    target = transfer(head, source, rest, rest)
    for name, value in source.asdict().items():
        torch.testing.assert_close(getattr(target, name), value, rtol=0, atol=2e-6, msg=name)


def test_a_clip_that_drives_its_own_first_frame_is_followed(head):
    rest, driving = random_params(head, 2), random_params(head, 3).replace(shape=random_params(head, 2).shape)
    target = transfer(head, rest, driving, rest, FREE)
    torch.testing.assert_close(target.rotation, driving.rotation, rtol=0, atol=1e-5)
    torch.testing.assert_close(target.expression, driving.expression, rtol=0, atol=1e-5)
    torch.testing.assert_close(head(target).mean(1), head(driving).mean(1), rtol=0, atol=2e-3)


def test_a_head_fitted_smaller_and_nearer_moves_the_face_as_far(head):
    """One camera cannot tell a small head from a distant one; the transfer must not care."""
    rest = random_params(head, 4)
    moved = rest.replace(translation=rest.translation + torch.tensor([[0.03, 0.02, 0.0]]))
    small = head.shape_from_controls({})  # the mean head against one with larger eye distance
    source = rest.replace(shape=small, translation=rest.translation * 1.2)
    own = face_place(head, transfer(head, source, moved, rest, FREE)) - face_place(head, source)
    asked = face_place(head, moved) - face_place(head, rest)
    joints = [head.joints(p) for p in (source, rest)]
    sizes = [float((j[0, 3] - j[0, 4]).norm() / -j[0, 3, 2]) for j in joints]
    torch.testing.assert_close(own[:, :2], asked[:, :2] * sizes[0] / sizes[1], rtol=0.03, atol=0.2)


def test_a_wrong_pitch_of_the_source_fit_does_not_shift_the_face(head):
    rest = random_params(head, 5)
    turn = euler_to_axis_angle(torch.tensor(15.0))[None]
    driving = rest.replace(rotation=compose(turn, rest.rotation))
    tilted = rest.replace(rotation=compose(euler_to_axis_angle(0.0, torch.tensor(5.0))[None], rest.rotation))
    asked = face_place(head, driving) - face_place(head, rest)
    own = face_place(head, transfer(head, tilted, driving, rest, FREE)) - face_place(head, tilted)
    assert float((own - asked)[:, :2].norm()) < 2.0  # pixels, of about 60 that the face moves


@pytest.mark.parametrize("region", ["pose", "expression", "eyes", "mouth"])
def test_a_region_leaves_the_others_alone(head, region):
    source, rest, driving = (random_params(head, seed) for seed in (6, 7, 8))
    target = transfer(head, source, driving, rest, TransferOptions(region=region))
    changed = {name for name, value in source.asdict().items() if not torch.equal(value, getattr(target, name))}
    allowed = {
        "pose": {"rotation", "neck", "translation"},
        "expression": {"expression", "jaw", "eyes", "eyelids"},
        "eyes": {"expression", "eyes", "eyelids"},
        "mouth": {"expression", "jaw"},
    }
    assert changed <= allowed[region]
    assert changed


def test_mouth_region_keeps_the_brows(head):
    keep = region_projection(head, "mouth")
    brow = head.arkit(arkit.weights_from_names({"browInnerUp": 1.0}))["expression"]
    smile = head.arkit(arkit.weights_from_names({"mouthSmileLeft": 1.0}))["expression"]
    assert float((brow @ keep).norm()) < 1e-3 * float(brow.norm())
    torch.testing.assert_close(smile @ keep, smile, rtol=1e-3, atol=1e-3)


def test_turns_bend_smoothly_at_the_limit(head):
    source = random_params(head, 9).replace(rotation=torch.zeros(1, 3))
    yaws = []
    for yaw in (10.0, 25.0, 60.0, 120.0):
        driving = source.replace(rotation=euler_to_axis_angle(torch.tensor([yaw])))
        target = transfer(head, source, driving, source)
        yaws.append(float(axis_angle_to_euler(target.rotation)[0, 0]))
    assert yaws[0] == pytest.approx(10, abs=1e-3)
    assert yaws == sorted(yaws)
    assert yaws[-1] <= TransferOptions().yaw_limit


def test_soft_limit_has_slope_one_at_the_knee():
    values = torch.linspace(-3, 3, 601, dtype=torch.float64)
    bent = soft_limit(values, 1.0)
    assert bool((bent.diff() >= 0).all())
    assert float(bent.diff().max()) <= 0.01 + 1e-9
    torch.testing.assert_close(bent[values.abs() <= 0.6], values[values.abs() <= 0.6])


def test_strength_scales_the_turn(head):
    rest = random_params(head, 10)
    turn = torch.tensor([[0.0, math.radians(12), 0.0]])
    driving = rest.replace(rotation=compose(turn, rest.rotation))
    half = scaled_motion(rest, driving, 0.5)
    torch.testing.assert_close(half.rotation, compose(0.5 * turn, rest.rotation), rtol=0, atol=1e-5)
    none = scaled_motion(rest, driving, 0.0)
    torch.testing.assert_close(none.rotation, rest.rotation, rtol=0, atol=1e-5)
