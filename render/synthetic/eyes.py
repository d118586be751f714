"""Eyeballs: a baked picture of iris and sclera, and the wet surface over it.

The picture is the eyeball seen along its axis: a texel at (x, y), |(x, y)| <= 1, shows the direction whose sideways
part is sin(EDGE) (x, y).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from . import noise
from .noise import smoothstep
from .palette import Colouring, from_bytes

EDGE = math.radians(75)
"""Angle from the axis at the picture's edge."""
IRIS_ANGLE = math.radians(20.5)
"""Half opening of the iris seen from the ball's centre."""


def bake_eye(colouring: Colouring, pupil: float, seed: int, size: int = 512) -> Tensor:
    """(3, size, size) float32 square root of the albedo.

    Args:
        pupil: radius as a share of the iris's, 0.25 bright light to 0.55 dusk.
    """
    step = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = (axis.ravel() for axis in np.meshgrid(step, -step))
    radius = np.hypot(x, y) * math.sin(EDGE) / math.sin(IRIS_ANGLE)  # 1 at the iris's edge
    angle = np.arctan2(y, x)
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], 1)

    # Iris: radial fibres around the collarette, dark rim.
    fibre = noise.fractal(ring * 9 + np.array([0, 0, 1]) * radius[:, None] * 1.6, 1.0, 3, gain=0.7, seed=seed) / 0.17
    fine = noise.fractal(ring * 26 + np.array([0, 0, 1]) * radius[:, None] * 1.2, 1.0, 2, seed=seed + 1) / 0.17
    jagged = radius + 0.035 * fibre
    collarette = pupil + 0.25 * (1 - pupil)
    mix = smoothstep(jagged, collarette - 0.08, collarette + 0.16)[:, None]
    iris = colouring.iris_inner * (1 - mix) + colouring.iris_outer * mix
    iris = iris * np.exp(0.16 * fibre + 0.18 * fine)[:, None]
    iris = iris * (1 + 0.35 * np.exp(-(((jagged - collarette) / 0.07) ** 2)))[:, None]
    crypts = smoothstep(fibre, 0.8, 1.6) * smoothstep(radius, collarette, collarette + 0.2)
    iris = iris * (1 - 0.35 * crypts)[:, None]
    limbus = smoothstep(radius, 0.80, 0.99)
    iris = iris * (1 - 0.72 * limbus)[:, None]
    iris = iris * (0.012 + 0.988 * smoothstep(jagged, pupil - 0.03, pupil + 0.035))[:, None]

    # Sclera: warm white, pinker to the corners, fine veins.
    place = np.stack([x, y, np.zeros_like(x)], 1)
    tint = 0.5 + 0.5 * colouring.melanin
    white = from_bytes(216, 209, 203) * (1 - 0.10 * tint)
    corner = smoothstep(np.abs(x), 0.45, 0.95) + 0.25 * smoothstep(np.abs(y), 0.5, 0.95)
    sclera = white * np.array([0.97, 0.80, 0.76]) ** (0.6 * corner)[:, None]
    warp = place + 0.10 * np.stack([noise.fractal(place, 3, 3, seed=seed + 3 + k) for k in range(3)], 1)
    vein = np.abs(noise.fractal(warp * np.array([1, 2.4, 1]), 3.4, 3, seed=seed + 8))
    veins = np.exp(-((vein / 0.012) ** 2)) * smoothstep(np.hypot(x, y), 0.42, 0.85)
    sclera = sclera * (1 - 0.30 * veins[:, None] * np.array([0.25, 0.8, 0.75]))
    sclera = sclera * np.exp(0.03 * noise.fractal(place, 6, 3, seed=seed + 9) / 0.17)[:, None]
    outside = smoothstep(radius + 0.01 * fibre, 0.965, 1.06)[:, None]
    albedo = iris * (1 - outside) + sclera * outside
    return torch.from_numpy(np.sqrt(albedo.clip(0.0005, 0.9)).T.reshape(3, size, size)).float().contiguous()


def eye_albedo(picture: Tensor, direction: Tensor) -> Tensor:
    """(P, 3) albedo.

    Args:
        picture: (3, S, S) from `bake_eye`.
        direction: (P, 3) unit, from the ball's centre in the ball's own axes (z forward).
    """
    grid = direction[:, :2] / math.sin(EDGE) * torch.tensor([1.0, -1.0], device=direction.device)
    sampled = torch.nn.functional.grid_sample(
        picture[None], grid[None, None], align_corners=False, padding_mode="border"
    )
    return sampled[0, :, 0].mT ** 2


def cornea_normal(normal: Tensor, axis: Tensor) -> Tensor:
    """(P, 3) normals of the ball with its cornea: over the iris the surface bulges, so that normals turn 1.5 times
    faster.

    Args:
        normal: (P, 3) unit normals of the ball in the world.
        axis: (P, 3) unit gaze direction of each point's ball.
    """
    along = (normal * axis).sum(-1, keepdim=True)
    sideways = normal - along * axis
    inside = torch.sigmoid((along - math.cos(IRIS_ANGLE * 1.12)) * 120)
    bulged = normal + 0.55 * inside * sideways
    return bulged / bulged.norm(dim=-1, keepdim=True)
