"""Geometry keeps its precision inside a training step in half precision (`run_params.precision`)."""

import pytest
import torch

from headwarp.geom.head import HeadParams, load_head
from headwarp.geom.precision import exact
from headwarp.nets.dense_motion import sparse_motion
from headwarp.nets.depth import CameraMotion, reproject
from headwarp.nets.keypoints import KeypointDetector, Motion
from headwarp.nets.unsup3d import Unsup3d, Unsup3dConfig
from headwarp.training.keypoint_losses import RandomTransform, TransformParams

SEED = 0


def a_head():
    head = load_head("open")
    torch.manual_seed(SEED)
    params = HeadParams.zeros(head, 2)
    params = params.replace(shape=torch.randn_like(params.shape), rotation=0.3 * torch.randn(2, 3))
    return head(params)


def a_motion():
    torch.manual_seed(SEED)
    first, second = (Motion(torch.rand(2, 5, 2), torch.eye(2) + 0.2 * torch.randn(2, 5, 2, 2)) for _ in range(2))
    return sparse_motion(first, second, 16, 16)


def keypoints():
    torch.manual_seed(SEED)
    detector = KeypointDetector(5, 3, estimate_jacobian=True)
    motion = detector._expected(3 * torch.randn(2, 5, 16, 16), torch.randn(2, 20, 16, 16))
    return torch.cat([motion.value, motion.jacobian.flatten(2)], -1)


def a_frame():
    torch.manual_seed(SEED)
    intrinsics = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]]).expand(2, 3, 3)
    camera = CameraMotion(0.1 * torch.randn(2, 3), 0.1 * torch.randn(2, 3), intrinsics)
    matrix = camera.matrix(inverse=True)
    return reproject(torch.rand(2, 3, 32, 32), 1 + torch.rand(2, 1, 32, 32), intrinsics, matrix)[1]


def a_surface():
    torch.manual_seed(SEED)
    camera = Unsup3d(Unsup3dConfig()).camera
    depth = 1 + 0.1 * torch.rand(2, 1, camera.size, camera.size)
    return camera.turn(camera.points(depth), 0.2 * torch.randn(2, 6))


def places():
    torch.manual_seed(SEED)
    return RandomTransform(2, TransformParams())(torch.rand(2, 7, 2))


@pytest.mark.parametrize("geometry", [a_head, a_motion, keypoints, a_frame, a_surface, places])
def test_half_precision_around_it_changes_nothing(geometry):
    plain = geometry()
    with torch.autocast("cpu", torch.bfloat16):
        inside = geometry()
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)


def test_half_precision_is_back_after_it_and_results_of_layers_become_float32():
    @exact
    def product(a, b):
        return a @ b

    a, b = torch.randn(2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16, "autocast would take it for a layer"
        layer = a @ b
        assert product(layer, b).dtype == torch.float32
        inside = product(a, b=b)
        assert (a @ b).dtype == torch.bfloat16
    assert torch.equal(inside, a @ b)
