"""A small random head in FLAME's layout: a lat-long ball with five joints, so that every rule can be tested exactly."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch

from headwarp.geom.head import HeadModel, HeadParams
from headwarp.geom.head_files import HeadData

ROWS, COLUMNS = 9, 12


def ball(rows: int = ROWS, columns: int = COLUMNS, radius: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and outward triangles of a ball whose poles are on the y axis."""
    polar = np.linspace(0.05, np.pi - 0.05, rows)
    around = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    p, a = np.meshgrid(polar, around, indexing="ij")
    vertices = radius * np.stack([np.sin(p) * np.sin(a), np.cos(p), np.sin(p) * np.cos(a)], -1).reshape(-1, 3)
    faces = []
    for r in range(rows - 1):
        for c in range(columns):
            i, j = r * columns + c, r * columns + (c + 1) % columns
            faces += [(i, i + columns, j), (j, i + columns, j + columns)]
    return vertices, np.array(faces)


def make_data(seed: int = 0, n_shape: int = 4, n_expression: int = 3, eyelids: bool = True) -> HeadData:
    rng = np.random.default_rng(seed)
    vertices, faces = ball()
    n = len(vertices)
    weights = rng.random((n, 5)) ** 3
    regressor = rng.random((5, n))
    return HeadData(
        name="tiny",
        v_template=vertices,
        faces=faces,
        shapedirs=rng.normal(size=(n, 3, n_shape + n_expression)) * 0.003,
        posedirs=rng.normal(size=(n, 3, 36)) * 0.003 * (np.arange(36) >= 9),
        J_regressor=regressor / regressor.sum(1, keepdims=True),
        weights=weights / weights.sum(1, keepdims=True),
        parents=np.array([-1, 0, 1, 1, 1]),
        n_shape=n_shape,
        n_expression=n_expression,
        eyelid_dirs=rng.normal(size=(n, 3, 2)) * 0.002 if eyelids else None,
    )


def make_params(head: HeadModel, batch: int = 3, seed: int = 0) -> HeadParams:
    generator = torch.Generator().manual_seed(seed)
    zeros = HeadParams.zeros(head, batch)
    scale = {"shape": 1.0, "expression": 1.0, "eyelids": 1.0}
    return HeadParams(
        **{
            name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) * scale.get(name, 0.5)
            for name, value in zeros.asdict().items()
        }
    )


@pytest.fixture(name="make_data")
def _make_data() -> Callable[..., HeadData]:
    return make_data


@pytest.fixture(name="make_params")
def _make_params() -> Callable[..., HeadParams]:
    return make_params


@pytest.fixture
def data() -> HeadData:
    return make_data()


@pytest.fixture
def head() -> HeadModel:
    return HeadModel(make_data())


@pytest.fixture
def params(head: HeadModel) -> HeadParams:
    return make_params(head)


@pytest.fixture(scope="session")
def chumpy() -> ModuleType:
    """The real chumpy, to write files as FLAME's authors did. It asks for a function that Python 3.11 dropped."""
    missing = not hasattr(inspect, "getargspec")
    if missing:
        inspect.getargspec = inspect.getfullargspec  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pytest.importorskip("chumpy_fork")
    finally:
        if missing:
            del inspect.getargspec
