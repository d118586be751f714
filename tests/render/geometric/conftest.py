"""A portrait whose truth is known: the open head with a painted skin before a plain wall."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.render import interpolate, rasterize
from headwarp.render.geometric import GeometricRenderer, Observation

SIZE = (192, 192)


def landmarks_of(head: HeadModel, params: HeadParams, camera: Camera) -> np.ndarray:
    """(478, 2) px; landmarks that the head does not have stay at the place of the nose."""
    embedding = head.embeddings["mediapipe"]
    points = camera.project(embedding.points(head(params)))[0, :, :2].numpy()
    marks = np.repeat(points[embedding.indices == 1], 478, 0)
    marks[embedding.indices.numpy()] = points
    return marks


def paint(head: HeadModel, params: HeadParams, camera: Camera, colours: torch.Tensor, wall: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 picture of a head with vertex colours (N, 3) before a wall (H, W, 3) in [0, 1]; and its mask."""
    ndc = camera.ndc(head(params), SIZE)
    fragments = rasterize(ndc, head.faces, SIZE)
    picture = interpolate(colours[None], fragments, ndc, head.faces)[0].permute(1, 2, 0).numpy()
    mask = fragments.face_id[0].numpy() >= 0
    return (np.where(mask[..., None], picture, wall).clip(0, 1) * 255).astype(np.uint8), mask.astype(np.float32)


@pytest.fixture(scope="session")
def head() -> HeadModel:
    return load_head("open")


@pytest.fixture(scope="session")
def camera() -> Camera:
    return Camera.portrait(SIZE, field_of_view=24)


@pytest.fixture(scope="session")
def params(head: HeadModel) -> HeadParams:
    return HeadParams.zeros(head).replace(translation=torch.tensor([[0.0, 0.02, -0.9]]))


@pytest.fixture(scope="session")
def wall() -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] / SIZE[0]
    return np.stack([0.3 + 0.2 * x, 0.45 + 0.1 * y, 0.6 - 0.2 * x], -1).astype(np.float32)


@pytest.fixture(scope="session")
def skin(head: HeadModel) -> torch.Tensor:
    """(N, 3) smooth skin colours with structure about 1 cm wide."""
    place = head.v_template
    waves = 0.06 * torch.sin(place * 300).prod(1, keepdim=True) + 0.05 * place[:, 1:2] / 0.1
    return torch.tensor([[0.80, 0.60, 0.50]]) + waves


@pytest.fixture(scope="session")
def observation(head, params, camera, skin, wall) -> Observation:
    image, mask = paint(head, params, camera, skin, wall)
    return Observation(image, landmarks_of(head, params, camera), params, camera, mask)


@pytest.fixture(scope="session")
def renderer(head) -> GeometricRenderer:
    return GeometricRenderer(head)


@pytest.fixture(scope="session")
def state(renderer, observation):
    return renderer.encode_source(observation)
