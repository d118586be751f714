"""Change of shading on moving skin: light stays where it is while the skin turns.

The photo's light is nine spherical harmonics fitted to the luminance of the face (Ramamoorthi and Hanrahan, "An
efficient representation for irradiance environment maps", 2001). A surface that turns from normal n_s to n_t gets the
gain E(n_t) / E(n_s): cheeks that bulge in a smile, the fold beside the nose, a face that turns into the light.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .surface import Points, Surface, sample

Image = NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
GAIN = (0.82, 1.16)
"""Limits of the gain; the fit knows no shadows, so large values are wrong ones."""


def estimate_light(image: Image, surface: Surface) -> NDArray[np.float32]:
    """(9,) harmonics of the light that explains the luminance of the visible face.

    Args:
        image: (H, W, 3) in [0, 1].
    """
    weight = surface.confidence * surface.skin * np.maximum(surface.facing, 0)
    used = weight > 0.2
    if used.sum() < 50:
        return np.eye(1, 9, dtype=np.float32)[0]
    luminance = sample(image @ LUMA, surface.pixels[used, :2])
    basis = harmonics(surface.normals[used])
    weight = weight[used]
    prior = np.diag([1e-4] + [0.02] * 3 + [0.06] * 5) * weight.sum()
    light = np.zeros(9)
    # Brows, lips, nostrils and highlights are no shading: rounds of dropping what does not fit.
    for _ in range(4):
        square = basis.T @ (basis * weight[:, None]) + prior
        light = np.linalg.solve(square, basis.T @ (weight * luminance))
        error = np.abs(basis @ light - luminance)
        weight = np.where(error < 2.0 * np.median(error) + 1e-3, weight, 0.1 * weight)
    return light.astype(np.float32)


def gain(light: NDArray[np.float32], source: Points, target: Points, strength: float) -> NDArray[np.float32]:
    """(N,) factor on the colour of skin whose normals (N, 3) went from `source` to `target`; exactly 1 where equal."""
    before = np.maximum(harmonics(source) @ light, 0.05)
    after = np.maximum(harmonics(target) @ light, 0.05)
    return np.clip((after / before) ** strength, *GAIN).astype(np.float32)


def harmonics(normals: Points) -> NDArray[np.float32]:
    """(N, 9) real spherical harmonics up to order 2 without their constants (the fit absorbs them)."""
    x, y, z = normals.T
    return np.stack([np.ones_like(x), x, y, z, x * y, x * z, y * z, x * x - y * y, 3 * z * z - 1], 1)
