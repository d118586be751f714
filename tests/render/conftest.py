"""Meshes with known geometry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

Mesh = tuple[Tensor, Tensor]


def uv_sphere(rings: int = 24, segments: int = 36) -> Mesh:
    """Closed unit sphere: vertices (V, 3), counter-clockwise triangles (F, 3) seen from outside."""
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
def head_like() -> Mesh:
    """A bumpy closed surface with as many triangles as a head model, about 20 cm high."""
    vertices, faces = uv_sphere(50, 100)
    bumps = 0.1 * (1 + 0.1 * (15 * vertices[:, :1]).sin() * (9 * vertices[:, 1:2]).cos())
    return vertices * bumps, faces
