"""The face depth network against golden numbers of the official code, and the geometry of its training."""

from __future__ import annotations

import pytest
import torch

from headwarp.nets.depth import CameraMotion, DepthConfig, FaceDepth, disparity_to_depth, reproject


def filled(net: torch.nn.Module, name: str, formula, gains: dict[str, float]) -> None:
    net.load_state_dict(formula(net.state_dict(), name, gains))
    net.eval()


@pytest.fixture(scope="module")
def dagan_golden(golden):
    return golden("golden_dagan_tiny")


def face_depth(formula, gains, layers=18, *, pose=False) -> FaceDepth:
    model = FaceDepth(DepthConfig(num_layers=layers, pose=pose, intrinsics="official"))
    suffix = "50" if layers == 50 else ""
    filled(model.depth_encoder, f"depth_encoder{suffix}", formula, gains)
    filled(model.depth_decoder, f"depth_decoder{suffix}", formula, gains)
    if pose:
        filled(model.pose_encoder, "pose_encoder", formula, gains)
        filled(model.pose, "pose", formula, gains)
    return model.eval()


@torch.no_grad()
def test_disparities_agree_with_the_official_ones(dagan_golden, formula):
    model = face_depth(formula, dagan_golden.facts["gains"])
    maps = model.depth_encoder(dagan_golden.pictures("source"))
    dagan_golden.near(maps[3], "depth.source.feature3")
    dagan_golden.near(maps[4], "depth.source.feature4")
    for scale, disparity in enumerate(model.disparities(dagan_golden.pictures("source"))):
        dagan_golden.near(disparity, f"depth.source.disp{scale}")
    dagan_golden.near(model(dagan_golden.pictures("driving")), "depth.driving.disp0")
    dagan_golden.near(model(dagan_golden.pictures("rect_source")), "rect.disp0_source")
    deep = face_depth(formula, dagan_golden.facts["gains"], 50)
    for scale, disparity in enumerate(deep.disparities(dagan_golden.pictures("source")[:1])):
        dagan_golden.near(disparity, f"depth50.source0.disp{scale}")


@torch.no_grad()
def test_camera_motion_agrees_with_the_official_one(dagan_golden, formula):
    model = face_depth(formula, {}, pose=True)
    pair = torch.cat([dagan_golden.pictures("source"), dagan_golden.pictures("driving")], 1)
    motion = model.pose(model.pose_encoder(pair)[-1], 256, 256)  # DaGAN's copy says 256 pixels whatever comes
    # the official decoder gives two motions and uses the first
    for name, ours in {"axisangle": motion.axis_angle, "translation": motion.translation}.items():
        torch.testing.assert_close(ours, dagan_golden.arrays[f"pose.{name}"][:, 0, 0], rtol=1e-4, atol=1e-6)
    dagan_golden.near(motion.intrinsics, "pose.intrinsics")
    dagan_golden.near(motion.matrix(), "pose.T")
    dagan_golden.near(motion.matrix(inverse=True), "pose.T_inverted")


def test_a_frame_is_made_from_another_one():
    """A picture on a plane of depth 2, seen by a camera that moved right by 4 pixels' worth."""
    focal, depth = 100.0, 2.0
    intrinsics = torch.tensor([[[focal, 0, 15.5], [0, focal, 11.5], [0, 0, 1]]])
    right = CameraMotion(torch.zeros(1, 3), torch.tensor([[-4 * depth / focal, 0, 0]]), intrinsics)
    target = torch.rand(1, 3, 24, 32)
    other = target.roll(-4, 3)  # what stood at x stands at x - 4
    _, grid = reproject(other, torch.full((1, 1, 24, 32), depth), intrinsics, right.matrix())
    x = (grid[0, :, :, 0] + 1) / 2 * 31
    torch.testing.assert_close(x, (torch.arange(32.0) - 4).expand(24, 32), rtol=0, atol=1e-4)


def test_an_inverse_motion_undoes_the_motion():
    motion = CameraMotion(torch.randn(3, 3), torch.randn(3, 3), torch.eye(3).expand(3, 3, 3))
    there_and_back = motion.matrix(inverse=True) @ motion.matrix()
    torch.testing.assert_close(there_and_back, torch.eye(4).expand(3, 4, 4), rtol=0, atol=1e-5)


def test_depth_spans_its_range():
    torch.testing.assert_close(disparity_to_depth(torch.tensor([1.0, 0.0])), torch.tensor([0.1, 100.0]))


def test_odd_sizes_and_missing_parts_are_told():
    model = FaceDepth()
    with pytest.raises(ValueError, match="multiples of 32"):
        model(torch.zeros(1, 3, 40, 64))
    with pytest.raises(ValueError, match="no pose network"):
        model.camera_motion(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
