"""Brows, lashes and beards: short strands that stand on the skin and move with it. Lengths in local metres (see
anatomy)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from . import noise
from .anatomy import EYE_DISTANCE, Anatomy
from .hair import hair_colours
from .noise import smoothstep
from .palette import Colouring
from .strands import Strands, concatenate

# The middle line of a brow, from its head beside the nose to its tail, for the person's left: x, y over the eyes.
BROW_X = np.array([0.0115, 0.020, 0.029, 0.0375, 0.045, 0.051, 0.056])
BROW_Y = np.array([0.0145, 0.0168, 0.0190, 0.0205, 0.0198, 0.0168, 0.0128])
BROW_HALF = np.array([0.0036, 0.0040, 0.0038, 0.0034, 0.0027, 0.0018, 0.0008])
BROW_COMB = np.radians([78, 58, 38, 20, -2, -18, -28])
"""Angle of the hairs over the horizontal, outwards."""


@dataclass(frozen=True)
class BrowShape:
    """How the brows of a person differ from the middle."""

    density: float
    """0.4 thin to 1.4 bushy."""
    thickness: float
    """Multiplies the half height."""
    arch: float
    """Metres by which the middle is lifted."""
    raise_: float
    """Metres by which the whole brow is lifted."""


def brow_coordinates(local: np.ndarray, shape: BrowShape) -> tuple[np.ndarray, np.ndarray]:
    """Where points lie in the brow of their side: along (0 head ... 1 tail) and across (-1 lower edge ... 1 upper
    edge), both (P,)."""
    x = np.abs(local[:, 0])
    along = (x - BROW_X[0]) / (BROW_X[-1] - BROW_X[0])
    arch = shape.arch * np.clip(1 - ((x - 0.0375) / 0.026) ** 2, -1, 1)
    middle = np.interp(x, BROW_X, BROW_Y) + arch + shape.raise_
    across = (local[:, 1] - middle) / (np.interp(x, BROW_X, BROW_HALF) * shape.thickness)
    return along, across


def _tangent_frame(anatomy: Anatomy, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit outward, up and sideways (+x) directions (P, 3) on the skin at points (P, 3)."""
    _, normal = anatomy.clearance(points)
    up = np.array([0.0, 1.0, 0.0]) - normal[:, 1:2] * normal
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    return normal, up, np.cross(up, normal)


def _lay(
    root: np.ndarray,
    normal: np.ndarray,
    direction: np.ndarray,
    bend: np.ndarray,
    length: np.ndarray,
    lift: np.ndarray,
    points: int,
    scale: float,
) -> np.ndarray:
    """(K, points, 3) arcs on the skin: they leave by `lift` (metres), run along `direction` and turn towards `bend`."""
    t = np.linspace(0, 1, points)[None, :, None]
    run = direction[:, None] * t + 0.5 * bend[:, None] * t**2
    rise = normal[:, None] * lift[:, None, None] * np.sin(np.pi * (0.15 + 0.65 * t)) * (t > 0)
    return root[:, None] + scale * (length[:, None, None] * run + rise)


def _pack(
    anatomy: Anatomy,
    triangle: np.ndarray,
    points: np.ndarray,
    width: np.ndarray,
    colour: np.ndarray,
    normal: np.ndarray,
) -> Strands:
    count, steps, _ = points.shape
    return Strands(
        points=torch.from_numpy(points).float(),
        triangle=torch.from_numpy(triangle),
        width=torch.from_numpy(width * anatomy.scale).float(),
        colour=torch.from_numpy(colour).float(),
        depth=torch.ones(count, steps),
        normal=torch.from_numpy(np.repeat(normal[:, None], steps, 1)).float(),
    )


def brows(shape: BrowShape, colouring: Colouring, anatomy: Anatomy, rng: np.random.Generator) -> Strands:
    """Both brows, 4 points per hair."""
    along, across = brow_coordinates(anatomy.local, shape)
    # A generous region for the scatter, the exact shape by rejection below.
    front = anatomy.local[:, 2] > -0.03
    near = front & (along > -0.3) & (along < 1.3) & (np.abs(across) < 6)
    triangle, root = anatomy.scatter(rng, 45000, anatomy.skin_faces, near.astype(float))
    local = anatomy.to_local(root)
    along, across = brow_coordinates(local, shape)
    ragged = 0.25 * noise.fractal(local, 500, 2, seed=3) / 0.17
    # Sparse at the head, dense in the body, fading at the tail; denser in the middle of its height.
    profile = np.interp(along, [-0.05, 0.0, 0.15, 0.35, 0.85, 1.0, 1.03], [0, 0.35, 0.8, 1, 1, 0.6, 0])
    keep = rng.random(len(local)) < profile * np.clip(1.25 - np.abs(across + ragged) ** 2.5, 0, 1)
    keep = np.flatnonzero(keep & (np.abs(across) < 1.25))[: int(1150 * shape.density)]
    triangle, root, local, along, across = triangle[keep], root[keep], local[keep], along[keep], across[keep]
    normal, up, side = _tangent_frame(anatomy, root)
    outwards = side * np.sign(local[:, :1])
    # Upper hairs comb down a little, lower ones up: they meet in the ridge of the brow.
    angle = (
        np.interp(along, np.linspace(0, 1, 7), BROW_COMB)
        - 0.35 * across * np.clip(along * 2, 0, 1)
        + rng.normal(0, 0.16, len(keep))
    )
    direction = np.cos(angle)[:, None] * outwards + np.sin(angle)[:, None] * up
    bend = 0.5 * outwards - 0.25 * np.sign(across)[:, None] * up * np.clip(along * 2, 0, 1)[:, None]
    length = np.interp(along, [0, 0.3, 0.8, 1], [0.0060, 0.0085, 0.0075, 0.0050]) * np.exp(
        rng.normal(0, 0.18, len(keep))
    )
    points = _lay(root, normal, direction, bend, length, np.full(len(keep), 0.0009), 4, anatomy.scale)
    width = 0.00029 * np.array([0.9, 1.0, 0.75, 0.25]) * np.exp(rng.normal(0, 0.2, (len(keep), 1)))
    colour = colouring.brows * np.exp(rng.normal(0, 0.18, (len(keep), 1)))
    return _pack(anatomy, triangle, points, width, colour, normal)


def lashes(length: float, colouring: Colouring, anatomy: Anatomy, rng: np.random.Generator) -> Strands:
    """Upper and lower lashes, 4 points per hair.

    Args:
        length: of the longest upper lashes.
    """
    parts = []
    skin = anatomy.faces_of("head")
    for name, rim in anatomy.rims.items():
        upper = name.endswith("upper")
        sign = 1.0 if name.startswith("left") else -1.0
        line = anatomy.vertices[rim]
        reach = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
        count = 190 if upper else 90
        at = np.sort(rng.uniform(0.06, 0.99, count))
        place = at * reach[-1]
        index = np.clip(np.searchsorted(reach, place) - 1, 0, len(rim) - 2)
        weight = ((place - reach[index]) / (reach[index + 1] - reach[index]))[:, None]
        root = line[index] * (1 - weight) + line[index + 1] * weight
        # The skin triangle at the edge's vertex carries the lash.
        carrier = np.array([skin[np.flatnonzero((anatomy.faces[skin] == vertex).any(1))[0]] for vertex in rim])
        triangle = carrier[index]
        eye = anatomy.to_template(np.array([sign * EYE_DISTANCE / 2, 0.0, 0.0]))
        outward = root - eye
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        vertical = 1.0 if upper else -1.0
        up = np.array([0.0, vertical, 0.0])
        fan = sign * (at - 0.42)[:, None] * np.array([1.0, 0.0, 0.0])
        direction = 0.9 * outward + (0.05 if upper else 0.25) * up + 0.65 * fan + rng.normal(0, 0.06, (count, 3))
        bend = (0.95 if upper else 0.3) * up + 0.3 * fan
        profile = np.interp(at, [0, 0.15, 0.6, 0.9, 1], [0.45, 0.7, 1.0, 0.95, 0.6])
        extent = (length if upper else 0.5 * length) * profile * np.exp(rng.normal(0, 0.12, count))
        # Lashes stick together in small tufts.
        tuft = np.round(at * 24) / 24
        direction += 5.0 * sign * (tuft - at)[:, None] * np.array([1.0, 0.0, 0.0])
        points = _lay(root, outward, direction, bend, extent, np.zeros(count), 4, anatomy.scale)
        width = (0.00019 if upper else 0.00013) * np.array([1.0, 0.85, 0.6, 0.15]) * np.ones((count, 1))
        dark = np.minimum(colouring.brows * 0.35, 0.05)
        parts.append(_pack(anatomy, triangle, points, width, np.repeat(dark[None], count, 0), outward))
    return concatenate(parts)


def beard_region(local: np.ndarray) -> np.ndarray:
    """How densely a beard grows (0 to 1) at local points (P, 3): moustache, chin, jaw up to the sideburns, upper
    throat."""
    x, y, z = np.abs(local[:, 0]), local[:, 1], local[:, 2]
    # Upper border on the cheek, from beside the mouth to the sideburn.
    border = np.interp(
        x, [0.0, 0.012, 0.024, 0.034, 0.048, 0.060, 0.072], [-0.087, -0.087, -0.080, -0.072, -0.060, -0.040, -0.008]
    )
    cheek = smoothstep(border - y, -0.004, 0.008)
    moustache = (
        smoothstep(0.031 - x, 0.0, 0.006) * smoothstep(-0.0525 - y, -0.001, 0.004) * smoothstep(y + 0.086, 0.0, 0.004)
    )
    throat = smoothstep(y + 0.138 - 0.4 * np.clip(-z, 0, 0.08), 0.0, 0.02)
    front = smoothstep(z + 0.062, 0.0, 0.012)
    return np.maximum(cheek, moustache) * throat * front


def beard(length: float, colouring: Colouring, anatomy: Anatomy, lips: np.ndarray, rng: np.random.Generator) -> Strands:
    """A short beard with moustache, 4 points per hair.

    Args:
        length: 0.002 (stubble) to 0.02.
        lips: (N,) weight of the lips at the vertices, where nothing grows.
    """
    density = beard_region(anatomy.local) * (1 - np.clip(3 * lips, 0, 1))
    triangle, root = anatomy.scatter(rng, 6500, anatomy.skin_faces, density)
    local = anatomy.to_local(root)
    normal, up, side = _tangent_frame(anatomy, root)
    outwards = side * np.tanh(local[:, :1] / 0.004)
    moustache = (local[:, 1] > -0.073) & (np.abs(local[:, 0]) < 0.03)
    lock = noise.fractal(local, 120, 2, seed=9)[:, None] / 0.17
    direction = (
        np.where(moustache[:, None], 0.9 * outwards - 0.55 * up, -0.9 * up + 0.15 * outwards)
        + 0.25 * lock * side
        + 0.35 * normal
    )
    direction += rng.normal(0, 0.22, direction.shape)
    extent = (
        length
        * np.where(moustache, 0.8, 1.0)
        * np.exp(rng.normal(0, 0.2, len(root)))
        * (0.4 + 0.6 * beard_region(local))
    )
    points = _lay(root, normal, direction, -0.35 * up, extent, 0.12 * extent, 4, anatomy.scale)
    width = 0.00042 * np.array([1.0, 1.0, 0.8, 0.3]) * np.ones((len(root), 1))
    colour = 0.8 * hair_colours(colouring, local, rng)
    return _pack(anatomy, triangle, points, width, colour, normal)
