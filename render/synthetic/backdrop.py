"""What is behind a head: walls, rooms and lights, far out of focus."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from . import noise
from .palette import to_linear

KINDS = {"wall": 0.35, "room": 0.35, "shapes": 0.18, "lights": 0.12}
"""Backdrops and how often they are drawn."""


def paint_backdrop(rng: np.random.Generator, kind: str | None = None, size: int = 192) -> Tensor:
    """(3, size, size) linear RGB picture of a kind in `KINDS` (None draws one), stretched over the frame by the
    renderer."""
    drawn = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    kind = drawn if kind is None else kind
    y, x = np.mgrid[0:size, 0:size] / size
    hue = _muted(rng)
    second = _muted(rng)
    if kind == "wall":
        glow = np.exp(-(((x - rng.uniform(0.1, 0.9)) / 0.6) ** 2) - ((y - rng.uniform(0.0, 0.6)) / 0.7) ** 2)
        picture = hue * (0.55 + 0.6 * glow[..., None]) * (1.1 - 0.3 * y[..., None])
        picture = picture * np.exp(0.04 * _cloud(x, y, 6, rng))[..., None]
    elif kind == "room":
        picture = hue * (0.9 - 0.25 * y[..., None]) * np.ones((size, size, 3))
        floor = y > rng.uniform(0.72, 0.95)
        picture[floor] = second * 0.5
        for _ in range(rng.integers(3, 8)):
            left, top = rng.uniform(-0.1, 0.9), rng.uniform(0.0, 0.8)
            box = (x > left) & (x < left + rng.uniform(0.06, 0.35)) & (y > top) & (y < top + rng.uniform(0.1, 0.7))
            picture[box] = _muted(rng) * rng.uniform(0.4, 1.1)
        if rng.random() < 0.5:
            left, top = rng.choice([rng.uniform(-0.1, 0.15), rng.uniform(0.7, 0.9)]), rng.uniform(0, 0.3)
            window = (x > left) & (x < left + 0.25) & (y > top) & (y < top + 0.45)
            picture[window] = to_linear(np.array([0.93, 0.95, 0.97])) * 1.3
        picture = ndimage.gaussian_filter(picture, (size * rng.uniform(0.02, 0.05),) * 2 + (0,))
    elif kind == "shapes":
        picture = hue * np.ones((size, size, 3))
        for _ in range(rng.integers(5, 12)):
            centre, radius = rng.uniform(0, 1, 2), rng.uniform(0.08, 0.3)
            picture[np.hypot(x - centre[0], y - centre[1]) < radius] = _muted(rng)
        picture = ndimage.gaussian_filter(picture, (size * 0.06,) * 2 + (0,))
    else:
        picture = hue * 0.25 * np.ones((size, size, 3))
        for _ in range(rng.integers(12, 30)):
            centre, radius = rng.uniform(0, 1, 2), rng.uniform(0.02, 0.06)
            warm = np.array([1.0, rng.uniform(0.6, 0.95), rng.uniform(0.3, 0.9)])
            picture[np.hypot(x - centre[0], y - centre[1]) < radius] += warm * rng.uniform(0.15, 0.6)
        picture = ndimage.gaussian_filter(picture, (size * 0.012,) * 2 + (0,))
    return torch.from_numpy(np.ascontiguousarray(picture.clip(0, 1.5).transpose(2, 0, 1))).float()


def _muted(rng: np.random.Generator) -> np.ndarray:
    """A colour that walls and furniture have: any hue, low saturation."""
    value, saturation, hue = rng.uniform(0.25, 0.85), rng.beta(1.4, 5) * 0.7, rng.uniform(0, 6.283)
    shift = np.cos(hue - np.array([0.0, 2.094, 4.189]))
    return to_linear(np.clip(value * (1 + 0.5 * saturation * shift), 0, 1))


def _cloud(x: np.ndarray, y: np.ndarray, frequency: float, rng: np.random.Generator) -> np.ndarray:
    points = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], 1)
    return noise.fractal(points, frequency, 4, seed=int(rng.integers(1 << 20))).reshape(x.shape) / 0.17
