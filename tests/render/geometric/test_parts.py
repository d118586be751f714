"""Membrane, matte, openings, light: the parts of the geometric animator against what is known about them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwarp.render.geometric import matte, membrane, opening, shading


def harmonic(height: int, width: int) -> np.ndarray:
    """(H, W, 3) functions whose Laplacian is zero: x^2 - y^2, xy, e^x sin y."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / width
    return np.stack([x * x - y * y, x * y, np.exp(x) * np.sin(y)], -1).astype(np.float32)


def test_the_membrane_continues_harmonic_functions_from_their_border():
    truth = harmonic(60, 90)
    weights = np.full(truth.shape[:2], 1e4, np.float32)
    weights[1:-1, 1:-1] = 0
    garbage = np.where(weights[..., None] > 0, truth, 7).astype(np.float32)
    np.testing.assert_allclose(membrane.solve(garbage, weights), truth, atol=0.015)
    np.testing.assert_allclose(membrane.solve(garbage, weights, sweeps=400), truth, atol=0.001)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_membrane_stays_between_its_values(height, width, seed):
    random = np.random.default_rng(seed)
    values = random.random((height, width, 2)).astype(np.float32)
    weights = (random.random((height, width)) < 0.1).astype(np.float32) * 100
    result = membrane.solve(values, weights)
    assert result.shape == values.shape
    if weights.any():
        known = values[weights > 0]
        assert (result >= known.min(0) - 0.05).all()
        assert (result <= known.max(0) + 0.05).all()
    else:
        assert not result.any()


def test_one_anchor_makes_a_constant():
    values, weights = np.zeros((33, 20, 1), np.float32), np.zeros((33, 20), np.float32)
    values[30, 2], weights[30, 2] = 5, 10
    np.testing.assert_allclose(membrane.solve(values, weights), 5, rtol=1e-5)


def test_the_membrane_says_what_it_wants():
    with pytest.raises(ValueError, match=r"\(H, W, C\)"):
        membrane.solve(np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32))


def portrait() -> tuple[np.ndarray, np.ndarray]:
    """A disc before a striped wall, with single strands of hair around it; image and coarse mask."""
    y, x = np.mgrid[:120, :100] + 0.5
    radius = np.hypot(x - 50, y - 60)
    wall = 0.5 + 0.2 * np.sin(x / 9)[..., None] * np.array([1, 0.5, 0.2])
    image = np.where((radius < 30)[..., None], [0.8, 0.5, 0.4], wall)
    strand = (np.abs(x - 50 - (60 - y) * 0.3) < 0.7) & (radius < 36) & (y < 60)
    return np.where(strand[..., None], 0.05, image).astype(np.float32), (radius < 31).astype(np.float32)


def test_the_layers_add_up_to_the_picture():
    image, person = portrait()
    face = np.zeros_like(person)
    face[50:70, 40:60] = 1
    split = matte.split(image, person, face, 60)
    layers, background, scale = matte.at_resolution(split, image)
    assert scale == 1
    np.testing.assert_allclose(layers[..., :3] + (1 - layers[..., 3:]) * background, image, atol=1e-6)
    assert split.trust == 1
    assert split.alpha[60, 50] == 1
    assert split.alpha[5, 5] == 0
    # What is painted behind the person looks like the wall, not like the person.
    assert np.abs(split.background[60, 50] - [0.5, 0.5, 0.5]).max() < 0.25


def test_a_mask_that_misses_the_face_is_not_trusted():
    image, person = portrait()
    face = np.zeros_like(person)
    face[50:70, 40:60] = 1
    for poor in (np.zeros_like(person), np.full_like(person, 0.5), np.ones_like(person)):
        assert matte.split(image, poor, face, 60).trust == 0
        assert (matte.split(image, poor, face, 60).alpha == 1).all()


def test_the_guided_filter_keeps_constants_and_finds_edges():
    image, person = portrait()
    np.testing.assert_allclose(matte.guided_filter(image, np.full_like(person, 0.3), 5, 1e-4), 0.3, atol=1e-3)
    plain = np.where(person[..., None] > 0, [0.8, 0.5, 0.4], [0.2, 0.4, 0.5]).astype(np.float32)
    coarse = np.roll(person, 3, axis=1)  # a mask three pixels beside the edge
    refined = matte.guided_filter(plain, coarse, 8, 1e-4) > 0.5
    assert (refined != (person > 0.5)).sum() < 0.2 * (coarse != person).sum()


def eye(gap: float) -> opening.Opening:
    along = np.linspace(0, 1, 9)
    arc = gap / 2 * np.sin(np.pi * along)
    upper = np.stack([20 + 40 * along, 30 - arc], 1)
    lower = np.stack([20 + 40 * along, 30 + arc], 1)
    return opening.from_rims(upper.astype(np.float32), lower.astype(np.float32))


def test_coverage_of_an_opening():
    shape = eye(16)
    assert shape.width == pytest.approx(40)
    inside, above, beside = shape.coverage(np.array([[40, 30], [40, 20], [15, 30]]), 1.0)
    assert (inside, above, beside) == (1, 0, 0)
    y, x = np.mgrid[:60, :80] + 0.5
    area = shape.coverage(np.stack([x.ravel(), y.ravel()], 1), 1.0).sum()
    assert area == pytest.approx(40 * 16 * 2 / np.pi, rel=0.03)


@pytest.mark.parametrize("gap", [0.0, -6.0])
def test_a_shut_opening_covers_nothing(gap):
    y, x = np.mgrid[:60, :80] + 0.5
    covered = eye(gap).coverage(np.stack([x.ravel(), y.ravel()], 1), 1.0)
    assert covered.max() <= 0.25 + 1e-6  # half of a pixel from above times half from below, along the line itself


def test_sealing_closes_small_gaps_only():
    assert eye(1.0).sealed(1.5).gap < 0.2
    assert eye(20.0).sealed(1.5).gap > 0.97 * eye(20.0).gap


def test_openings_may_fold_back():
    points = np.array([[0, 0], [5, 2], [4, 3], [3, 1], [10, 0]], np.float32)
    shape = opening.from_rims(points, points + 1)
    assert np.isfinite(shape.upper).all()


def test_unmoved_skin_keeps_its_shading_and_light_is_recovered():
    random = np.random.default_rng(0)
    normals = random.normal(size=(500, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    light = np.array([0.6, 0.2, 0.1, 0.1, 0, 0, 0, 0, 0], np.float32)
    np.testing.assert_array_equal(shading.gain(light, normals, normals, 0.7), 1)
    towards = np.array([[1, 0, 0]], np.float32)
    away = -towards
    assert shading.gain(light, away, towards, 1.0)[0] > 1.1
    assert shading.gain(light, towards, away, 1.0)[0] < 0.85
