"""Faces to fit: the astronaut (public domain), and landmarks projected from known parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from headwarp.fitting.solve import Solver, SolveWeights, View, gaze_matrix
from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.rotation import euler_to_axis_angle, matrix_to_axis_angle


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """(512, 512, 3) uint8; the face fills about x 178 ... 275, y 70 ... 182."""
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.astronaut())


@pytest.fixture(scope="session")
def head() -> HeadModel:
    return load_head()


@pytest.fixture(scope="session")
def exact_solver(head: HeadModel) -> Solver:
    """A solver that believes landmarks, and knows nothing of how a landmark model errs."""
    return Solver(head, SolveWeights(landmark=0.002, contour=1.0), reading=None)


@dataclass
class Truth:
    """Frames of one person with everything known."""

    params: HeadParams
    weights: np.ndarray
    """(T, 52) ARKit units."""
    gaze: np.ndarray
    """(T, 2) yaw and pitch in radians."""
    landmarks: np.ndarray
    """(T, 478, 3) pixels."""
    view: View


def _make_truth(head: HeadModel, frames: int, seed: int = 0, *, moving: bool = False, shape: float = 0.6) -> Truth:
    """Frames of one random person, at random (or moving smoothly, for time series)."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=generator)

    solver = Solver(head, reading=None)
    weights = torch.zeros(frames, 52)
    if moving:
        phase = torch.linspace(0, 6.28 * frames / 50, frames)[:, None]
        used = torch.from_numpy(solver.unit_index[:: max(1, len(solver.unit_index) // 8)])
        weights[:, used] = 0.3 + 0.3 * torch.sin(phase + 6.28 * random(1, len(used)))
        angles = 12 * torch.sin(phase * torch.tensor([1.0, 0.7, 0.5]) + 6.28 * random(1, 3))
        gaze = 0.15 * torch.sin(phase + 6.28 * random(1, 2))
        place = 0.02 * torch.sin(phase + 6.28 * random(1, 3))
    else:
        picked = torch.from_numpy(solver.unit_index)
        weights[:, picked] = (random(frames, len(picked)) < 0.2) * random(frames, len(picked))
        weights[:, 17] = 0.6 * random(frames)
        weights[:, [0, 7]] = random(frames, 1)
        angles = 30 * (random(frames, 3) - 0.5) * torch.tensor([1.3, 0.7, 0.7])
        gaze = 0.5 * (random(frames, 2) - 0.5)
        place = 0.06 * (random(frames, 3) - 0.5)
    eyes = matrix_to_axis_angle(torch.from_numpy(gaze_matrix(gaze.double().numpy()))).float()
    params = HeadParams.zeros(head, frames).replace(**head.arkit(weights))
    params = params.replace(
        shape=shape * torch.randn(1, head.n_shape, generator=generator).repeat(frames, 1),
        eyes=torch.cat([eyes, eyes], 1),
        rotation=euler_to_axis_angle(*angles.T),
        translation=place + torch.tensor([0.0, 0.0, -0.9]),
    )
    view = View(1400.0, (256.0, 250.0))
    camera = Camera(torch.tensor([view.focal]), torch.tensor([view.principal]))
    embedding = head.embeddings["mediapipe"]
    pixels = camera.project(embedding.points(head(params))).numpy()
    landmarks = np.zeros((frames, 478, 3), np.float32)
    landmarks[:, embedding.indices.numpy()] = pixels
    depth = landmarks[..., 2] - landmarks[:, :468, 2].mean(1, keepdims=True)
    landmarks[..., 2] = depth * view.focal / 0.9
    return Truth(params, weights.numpy(), gaze.numpy(), landmarks, view)


@pytest.fixture(scope="session")
def make_truth():
    """(head, frames, seed=0, *, moving=False, shape=0.6) -> Truth."""
    return _make_truth
