"""Meshes with known geometry, and the kernels that can be tested here."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

# Triton decides when a kernel is defined, so this comes before the first import of one.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

Mesh = tuple[Tensor, Tensor]


def uv_sphere(rings: int = 24, segments: int = 36) -> Mesh:
    """Closed unit sphere: vertices (V, 3), counter-clockwise triangles (F, 3) seen from outside, y up."""
    theta = torch.arange(1, rings) / rings * math.pi
    phi = torch.arange(segments) / segments * 2 * math.pi
    t, p = torch.meshgrid(theta, phi, indexing="ij")
    ring = torch.stack([t.sin() * p.sin(), t.cos(), t.sin() * p.cos()], -1).flatten(0, 1)
    poles = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    north, south = len(ring), len(ring) + 1
    faces = []
    for j in range(segments):
        k = (j + 1) % segments
        last = (rings - 2) * segments
        faces += [[north, j, k], [south, last + k, last + j]]
        for i in range(0, last, segments):
            faces += [[i + j, i + segments + j, i + segments + k], [i + j, i + segments + k, i + k]]
    return torch.cat([ring, poles]), torch.tensor(faces)


@pytest.fixture(scope="session")
def sphere() -> Mesh:
    return uv_sphere()


@pytest.fixture(scope="session")
def small_sphere() -> Mesh:
    return uv_sphere(6, 8)


@pytest.fixture(scope="session")
def head_like() -> Mesh:
    """A bumpy closed surface with as many triangles as a head model, about 20 cm high."""
    vertices, faces = uv_sphere(50, 100)
    bumps = 0.1 * (1 + 0.1 * (15 * vertices[:, :1]).sin() * (9 * vertices[:, 1:2]).cos())
    return vertices * bumps, faces


@pytest.fixture(scope="session")
def to_ndc() -> Callable[[Tensor], Tensor]:
    """World points in the unit ball, y up, -> NDC of a picture that shows them whole, depths 1 ... 3."""

    def convert(points: Tensor) -> Tensor:
        return points * torch.tensor([0.8, -0.8, -1.0]) + torch.tensor([0.0, 0.0, 2.0])

    return convert


@pytest.fixture(scope="session")
def soup() -> Callable[..., Mesh]:
    """Random triangles of all sizes, many partly outside, many of equal depth: vertices (1, V, 3), faces (F, 3)."""

    def make(seed: int, triangles: int = 60) -> Mesh:
        generator = torch.Generator().manual_seed(seed)
        centres = torch.rand(triangles, 1, 3, generator=generator) * 2.6 - 1.3
        spread = torch.rand(triangles, 1, 1, generator=generator) ** 3
        vertices = centres + spread * torch.randn(triangles, 3, 3, generator=generator)
        vertices[..., 2] = (vertices[..., 2] * 2).round() / 2 + 4
        return vertices.reshape(1, -1, 3), torch.arange(3 * triangles).view(-1, 3)

    return make
