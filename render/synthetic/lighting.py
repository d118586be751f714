"""Light: a soft environment with true visibility at the vertices, and a key light with a shadow map.

    environment L(d) on D directions --rasterise from each--> which vertices see it --> irradiance at vertices,
    occlusion included
    key light --rasterise once--> variance shadow map (Donnelly and Lauritzen 2006), blurred, one look-up per point

Both are computed for every frame, so that a lowered brow, an open mouth and hair shade what they should.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..rasterize import rasterize


@dataclass(frozen=True)
class Lighting:
    """The light of a scene. Directions are unit vectors towards the light in the world."""

    key: Tensor
    """(3,) direction."""
    key_colour: Tensor
    """(3,) irradiance of a surface that faces it."""
    directions: Tensor
    """(D, 3) of the environment, spread evenly over the sphere."""
    radiance: Tensor
    """(D, 3) from each direction."""
    harmonics: Tensor
    """(9, 3) irradiance over pi as a polynomial of the normal (see `ambient`)."""


def sphere(count: int) -> np.ndarray:
    """(count, 3) directions spread evenly over the sphere (Fibonacci lattice)."""
    k = np.arange(count) + 0.5
    z = 1 - 2 * k / count
    phi = k * math.pi * (3 - math.sqrt(5))
    r = np.sqrt(1 - z * z)
    return np.stack([r * np.cos(phi), z, r * np.sin(phi)], 1)


@cache
def _fine_sphere() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions (2000, 3), normals (400, 3), and the cosines between them (400, 2000), at least 0."""
    fine, normals = sphere(2000), sphere(400)
    return fine, normals, np.maximum(normals @ fine.T, 0)


def _basis(directions: Tensor) -> Tensor:
    """(..., 9) polynomials up to degree 2 of unit vectors (..., 3)."""
    x, y, z = directions.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y], -1)


def make_lighting(
    key: np.ndarray,
    key_colour: np.ndarray,
    lobes: list[tuple[np.ndarray, float, np.ndarray]],
    base: np.ndarray,
    count: int = 40,
) -> Lighting:
    """A key light in an environment of soft lobes.

    Args:
        key: (3,) towards the key light, any length.
        key_colour: (3,).
        lobes: (direction (3,), sharpness, colour (3,)): adds colour * exp(sharpness * (cos - 1)).
        base: (3,) radiance of everything else.
        count: D.
    """
    directions = sphere(count)
    fine, normals, cosines = _fine_sphere()

    def radiance(at: np.ndarray) -> np.ndarray:
        total = np.repeat(base[None], len(at), 0)
        for direction, sharpness, colour in lobes:
            cosine = at @ (direction / np.linalg.norm(direction))
            total = total + np.exp(sharpness * (cosine - 1))[:, None] * colour
        return total

    # A photographer exposes for the face: what falls on it is the same in every scene.
    face = np.array([0.0, 0.2, 0.98])
    arriving = (np.maximum(fine @ face, 0)[:, None] * radiance(fine)).mean() * 4 + key_colour.mean() * max(
        float(face @ key) / np.linalg.norm(key), 0
    )
    gain = 0.92 / arriving
    irradiance = cosines @ radiance(fine) * (4.0 / len(fine)) * gain  # over pi
    basis = _basis(torch.from_numpy(normals)).numpy()
    harmonics = np.linalg.lstsq(basis, irradiance, rcond=None)[0]
    return Lighting(
        key=torch.from_numpy(key / np.linalg.norm(key)).float(),
        key_colour=torch.from_numpy(gain * key_colour).float(),
        directions=torch.from_numpy(directions).float(),
        radiance=torch.from_numpy(gain * radiance(directions)).float(),
        harmonics=torch.from_numpy(harmonics).float(),
    )


def ambient(lighting: Lighting, normals: Tensor) -> Tensor:
    """(P, 3) unoccluded irradiance over pi at unit normals (P, 3); Ramamoorthi and Hanrahan 2001."""
    return (_basis(normals) @ lighting.harmonics).clamp_min(0.0)


def visibility(
    vertices: Tensor,
    normals: Tensor,
    faces: Tensor,
    lighting: Lighting,
    resolution: int = 160,
    framed: Tensor | None = None,
) -> Tensor:
    """(V, 3) share of the environment's irradiance that reaches each vertex, per colour.

    Args:
        vertices: (V, 3) world.
        normals: (V, 3) unit.
        faces: (F, 3).
        resolution: of the picture taken from each direction.
        framed: (K,) the vertices that these pictures are to hold, None for all; vertices outside them are not occluded.
    """
    directions = lighting.directions
    ndc, offset = _orthographic(vertices, directions, framed)
    depth = rasterize(ndc, faces, (resolution, resolution), cull=False).depth
    seen = _depth_at(depth, ndc[..., :2])
    bias = 0.0025 + 0.002 * offset
    visible = torch.sigmoid((seen + bias - ndc[..., 2]) / (0.25 * bias))  # (D, V)
    if framed is not None:
        visible = torch.where((ndc[..., :2].abs() < 1).all(-1), visible, torch.ones_like(visible))
    weight = (directions @ normals.mT).clamp_min(0.0)  # (D, V)
    total = weight.mT @ lighting.radiance
    return ((weight * visible).mT @ lighting.radiance + 1e-4) / (total + 1e-4)


def shadow_map(
    vertices: Tensor,
    faces: Tensor,
    lighting: Lighting,
    centre: Tensor,
    radius: float,
    resolution: int = 512,
    blur: int = 7,
) -> ShadowMap:
    """The key light's view of the scene.

    Args:
        vertices: (V, 3) world.
        faces: (F, 3).
        centre: (3,) middle of the region that gets sharp shadows.
        radius: of that region, metres.
        resolution: side of the map in texels.
        blur: side of the box in texels, odd, that softens the edges twice.
    """
    frame = _frame(lighting.key[None])[0]  # rows: right, up, towards the light
    view = (vertices - centre) @ frame.mT
    ndc = torch.stack([view[:, 0] / radius, -view[:, 1] / radius, 1.0 - view[:, 2]], -1)[None]
    depth = rasterize(ndc, faces, (resolution, resolution), cull=False).depth
    depth = torch.where(torch.isfinite(depth), depth, torch.full_like(depth, 1.3))
    moments = torch.stack([depth, depth**2], 1)
    for _ in range(2):  # a box twice: soft edges of about a centimetre
        padded = F.pad(moments, (blur // 2,) * 4, mode="replicate")
        moments = F.avg_pool2d(F.avg_pool2d(padded, (1, blur), stride=1), (blur, 1), stride=1)
    return ShadowMap(moments, frame, centre, radius)


@dataclass(frozen=True)
class ShadowMap:
    """Mean and mean square of the depths that the key light sees in a neighbourhood."""

    moments: Tensor
    """(1, 2, S, S)"""
    frame: Tensor
    """(3, 3) rows right, up, towards the light."""
    centre: Tensor
    radius: float

    def light(self, points: Tensor, bias: float = 0.004) -> Tensor:
        """(P,) share of the key light that reaches world points (P, 3), 0 to 1."""
        view = (points - self.centre) @ self.frame.mT
        grid = torch.stack([view[:, 0] / self.radius, -view[:, 1] / self.radius], -1)
        mean, square = F.grid_sample(self.moments, grid[None, None], align_corners=False, padding_mode="border")[
            0, :, 0
        ]
        behind = (1.0 - view[:, 2] - bias) - mean
        variance = (square - mean**2).clamp_min(6e-6)
        # Chebyshev's bound on the share of the neighbourhood that is not nearer to the light; its lower end leaks
        # light.
        bound = variance / (variance + behind.clamp_min(0) ** 2)
        return ((bound - 0.2) / 0.8).clamp(0.0, 1.0)


def _frame(towards: Tensor) -> Tensor:
    """(D, 3, 3) rows right, up and `towards` (D, 3)."""
    helper = torch.where(
        towards[:, 1:2].abs() < 0.9, towards.new_tensor([[0.0, 1.0, 0.0]]), towards.new_tensor([[1.0, 0.0, 0.0]])
    )
    right = torch.linalg.cross(helper, towards)
    right = right / right.norm(dim=-1, keepdim=True)
    return torch.stack([right, torch.linalg.cross(towards, right), towards], 1)


def _orthographic(vertices: Tensor, directions: Tensor, framed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """NDC and depth (D, V, 3) of vertices seen from each direction, scaled to fit those named by `framed`; and metres
    per half picture (D, 1)."""
    frame = _frame(directions)
    middle = vertices.mean(0) if framed is None else vertices[framed].mean(0)
    view = torch.einsum("dij,vj->dvi", frame, vertices - middle)
    kept = view if framed is None else view[:, framed]
    reach = kept[..., :2].abs().amax((1, 2))[:, None] * 1.02
    return torch.stack([view[..., 0] / reach, -view[..., 1] / reach, 2.0 - view[..., 2]], -1), reach


def _depth_at(depth: Tensor, ndc: Tensor) -> Tensor:
    """(D, V) depth images (D, S, S) at positions (D, V, 2), nearest pixel."""
    size = depth.shape[-1]
    pixel = ((ndc + 1) * (0.5 * size)).long().clamp(0, size - 1)
    return depth.flatten(1).gather(1, pixel[..., 1] * size + pixel[..., 0])
