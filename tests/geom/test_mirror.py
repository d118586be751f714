"""The face in the mirror: its vertices are those of the face, with left and right exchanged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.head_files import read_head
from headwarp.geom.mirror import Mirror
from headwarp.nets.model_file import ASSETS

FLIP = torch.tensor([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


@pytest.fixture(scope="module")
def params(head) -> HeadParams:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    return HeadParams(
        shape=random(4, head.n_shape),
        expression=0.5 * random(4, head.n_expression),
        rotation=0.4 * random(4, 3),
        neck=0.1 * random(4, 3),
        jaw=0.1 * random(4, 3),
        eyes=0.2 * random(4, 6),
        eyelids=torch.rand(4, 2, generator=generator),
        translation=0.1 * random(4, 3),
    )


def mirrored(head: HeadModel, vertices: torch.Tensor) -> torch.Tensor:
    """(B, N, 3) each vertex replaced by the image of its partner."""
    _, partner = cKDTree(head.v_template.numpy()).query((head.v_template * FLIP).numpy())
    return vertices[:, partner] * FLIP


def test_mirrored_parameters_give_the_mirrored_vertices(head, params):
    mirror = Mirror(head)
    torch.testing.assert_close(head(mirror(params)), mirrored(head, head(params)), rtol=0, atol=1e-7)  # metres
    moved = (head(mirror(params)) - head(params)).norm(dim=-1).mean()
    assert moved > 1e-2  # these faces are far from symmetric


def test_directions_need_not_be_symmetric(head, params):
    """The same faces in coordinates that mix symmetric and lopsided directions."""
    data = read_head(ASSETS / "open_head.safetensors")
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(head.n_shape, head.n_shape)))
    directions = data.shapedirs.copy()
    directions[..., : head.n_shape] = directions[..., : head.n_shape] @ turn
    mixed = HeadModel(dataclasses.replace(data, shapedirs=directions.astype(np.float32)))
    mirror = Mirror(mixed)
    torch.testing.assert_close(mixed(mirror(params)), mirrored(mixed, mixed(params)), rtol=0, atol=1e-6)
    assert (mirror.shape - mirror.shape.diag().diag()).abs().max() > 0.1


def test_twice_is_the_identity(head, params):
    mirror = Mirror(head)
    again = mirror(mirror(params))
    for name, value in params.asdict().items():
        torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=1e-5)
