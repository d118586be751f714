"""Motion transfer: what must hold whatever the two people look like."""

from __future__ import annotations

import math

import pytest
import torch

from headwarp.geom import arkit
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.rotation import angle_between, axis_angle_to_euler, compose, euler_to_axis_angle
from headwarp.geom.transfer import TransferOptions, region_projection, soft_limit, transfer


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head("open")


def person(head: HeadModel, seed: int, frames: int = 1) -> HeadParams:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=random)

    return HeadParams.zeros(head, frames).replace(
        shape=draw(1, head.n_shape, scale=1.0).expand(frames, -1),
        expression=draw(frames, head.n_expression, scale=0.5),
        rotation=draw(frames, 3, scale=0.1),
        jaw=draw(frames, 3, scale=0.03),
        eyes=draw(frames, 3, scale=0.1).repeat(1, 2),
        eyelids=torch.rand(frames, 2, generator=random) * 0.3,
        translation=torch.tensor([0.0, 0.0, -0.9]) + draw(frames, 3, scale=0.01),
        neck=draw(frames, 3, scale=0.1),
    )


def assert_same(first: HeadParams, second: HeadParams) -> None:
    for name, value in first.asdict().items():
        torch.testing.assert_close(value, getattr(second, name).expand_as(value), rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("region", ["all", "pose", "expression", "eyes", "mouth"])
def test_a_driver_at_rest_moves_nothing(head, region):
    source, rest = person(head, 0), person(head, 1)
    assert_same(transfer(head, source, rest, rest, TransferOptions(region=region)), source)


def test_driving_oneself_relatively_gives_the_motion_back(head):
    clip = person(head, 2, frames=5)
    options = TransferOptions(
        expression_gain=1,
        yaw_limit=180,
        pitch_limit=90,
        roll_limit=180,
        translation_limit=1,
        zoom_limit=1,
        gaze_limit=90,
    )
    result = transfer(head, clip[0], clip, clip[0], options)
    for name in ("shape", "expression", "neck", "jaw", "translation", "eyes"):
        torch.testing.assert_close(getattr(result, name), getattr(clip, name), rtol=0, atol=3e-4, msg=name)
    assert angle_between(result.rotation, clip.rotation).max() < 1e-3


def test_absolute_motion_takes_the_drivers_values_and_keeps_the_place(head):
    source, driving = person(head, 3), person(head, 4, frames=3)
    result = transfer(head, source, driving, driving[0], TransferOptions(relative=False))
    torch.testing.assert_close(result.expression, driving.expression)
    torch.testing.assert_close(result.eyelids, driving.eyelids)
    torch.testing.assert_close(result.translation, source.translation.expand(3, -1))
    torch.testing.assert_close(result.shape, source.shape.expand(3, -1))


def test_turns_stop_short_of_the_limits(head):
    source = person(head, 5)
    rest = person(head, 6)
    turns = torch.stack([euler_to_axis_angle(float(yaw), 0.0, 0.0) for yaw in range(0, 90, 10)]).float()
    driving = rest.expand(9).replace(rotation=compose(turns, rest.rotation.expand(9, -1)))
    result = transfer(head, source, driving, rest)
    yaw = axis_angle_to_euler(compose(result.rotation, -source.rotation.expand(9, -1)))[:, 0]
    assert yaw.max() < TransferOptions().yaw_limit
    assert (yaw.diff() > 0).all()
    torch.testing.assert_close(yaw[1], torch.tensor(10.0), rtol=0, atol=1e-2)


def test_eyes_move_together_and_lids_by_ratio(head):
    source, rest = person(head, 7), HeadParams.zeros(head).replace(translation=torch.tensor([[0.0, 0, -1]]))
    source = source.replace(eyelids=torch.tensor([[0.2, 0.2]]))
    driving = rest.replace(eyes=torch.tensor([[0.1, 0.2, 0, 0.1, 0.0, 0]]), eyelids=torch.tensor([[0.5, 0.5]]))
    result = transfer(head, source, driving, rest)
    step = (result.eyes - source.eyes).view(2, 3)
    torch.testing.assert_close(step[0], step[1])
    assert step[0, 1] == pytest.approx(0.1, abs=1e-6)
    torch.testing.assert_close(result.eyelids, torch.full((1, 2), 0.6))  # 0.8 open, halved
    wink = transfer(head, source, rest.replace(eyelids=torch.tensor([[1.0, 0.0]])), rest).eyelids[0]
    assert wink[0] > 0.8
    assert wink[1] < 0.35


def test_regions_split_the_expression(head):
    names = ("mouthSmileLeft", "browInnerUp", "eyeWideRight", "mouthFunnel")
    mouth, eyes = region_projection(head, "mouth"), region_projection(head, "eyes")
    for name in names:
        expression = head.arkit(arkit.weights_from_names({name: 1.0}))["expression"]
        mine, other = (mouth, eyes) if name.startswith("mouth") else (eyes, mouth)
        torch.testing.assert_close(expression @ mine, expression, rtol=0, atol=1e-4)
        torch.testing.assert_close(expression @ other, torch.zeros_like(expression), rtol=0, atol=1e-4)


def test_pose_leaves_the_face_and_expression_leaves_the_pose(head):
    source, driving, rest = person(head, 8), person(head, 9), person(head, 10)
    pose = transfer(head, source, driving, rest, TransferOptions(region="pose"))
    for name in ("expression", "jaw", "eyes", "eyelids"):
        torch.testing.assert_close(getattr(pose, name), getattr(source, name))
    face = transfer(head, source, driving, rest, TransferOptions(region="expression"))
    for name in ("rotation", "translation"):
        torch.testing.assert_close(getattr(face, name), getattr(source, name))


def test_unknown_regions_are_refused(head):
    source = person(head, 11)
    with pytest.raises(ValueError, match="region"):
        transfer(head, source, source, source, TransferOptions(region="nose"))  # type: ignore[arg-type]


def test_the_soft_limit_is_smooth_and_bounded():
    values = torch.linspace(-100, 100, 4001, dtype=torch.float64)
    limited = soft_limit(values, 30.0)
    assert limited.abs().max() < 30
    torch.testing.assert_close(limited[values.abs() < 18], values[values.abs() < 18])
    slope = limited.diff() / values.diff()
    assert slope.max() <= 1 + 1e-9
    assert slope.diff().abs().max() < 0.02  # no kink
    assert not math.isnan(float(limited.sum()))
