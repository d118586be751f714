"""Skin as a texture: albedo, gloss and fine relief of one person, painted in object space and stored in the head's own
texture chart.

    chart texels --rasterise the chart--> points on the template --paint--> albedo, gloss, relief (one atlas per person)

Everything that is painted is a function of the point on the template, so there are no seams and no stretching.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from . import noise
from .anatomy import Anatomy
from .facial_hair import BrowShape, beard_region, brow_coordinates
from .hair import scalp_density
from .noise import smoothstep
from .palette import Colouring

# Half of the lips' outline, person's left: x, upper edge y, lower edge y (local metres).
LIP_X = np.array([0.0, 0.003, 0.006, 0.010, 0.015, 0.020, 0.0235, 0.0255])
LIP_TOP = np.array([-0.0655, -0.0648, -0.0643, -0.0652, -0.0676, -0.0702, -0.0724, -0.0740])
LIP_BOTTOM = np.array([-0.0862, -0.0862, -0.0858, -0.0848, -0.0824, -0.0790, -0.0762, -0.0744])

NASOLABIAL = np.array([[0.0185, -0.040], [0.0225, -0.047], [0.0275, -0.057], [0.0315, -0.068], [0.0325, -0.078]])
FOREHEAD_LINES = (0.034, 0.0425, 0.051)


@dataclass(frozen=True)
class SkinLook:
    """What the skin of one person is painted with, besides its colours."""

    seed: int
    beard_shadow: float
    """0 none to 1: shaven stubble."""
    makeup: float
    """0 none to 1: lipstick and darker lids."""
    scalp: float
    """How much of the hair's colour shows on the scalp, 0 (bald) to 1."""
    recede: float
    """As in the hair style."""
    brows: BrowShape


@dataclass(frozen=True)
class Paint:
    """Painted points; arrays over P points."""

    albedo: np.ndarray
    """(P, 3) linear RGB."""
    gloss: np.ndarray
    """(P,) strength of the specular reflection, about 1 on skin."""
    relief: np.ndarray
    """(P, 3) what is added to the unit normal, template axes."""


def _blob(local: np.ndarray, centre: tuple[float, float, float], radius: tuple[float, float, float]) -> np.ndarray:
    """A soft ellipsoid and its mirror image, 1 in the middle."""
    offset = (np.stack([np.abs(local[:, 0]), local[:, 1], local[:, 2]], 1) - centre) / radius
    return np.exp(-(offset**2).sum(1))


def lip_weight(local: np.ndarray, softness: float = 0.0011) -> np.ndarray:
    """1 on the lips, 0 off them, soft over `softness` metres; (P,) for local points (P, 3)."""
    x = np.abs(local[:, 0])
    inside = np.minimum(np.interp(x, LIP_X, LIP_TOP) - local[:, 1], local[:, 1] - np.interp(x, LIP_X, LIP_BOTTOM))
    inside = np.minimum(inside, (LIP_X[-1] - x))
    front = local[:, 2] > 0.002
    return smoothstep(inside, -softness, softness) * front


def _near_line(local: np.ndarray, line: np.ndarray, width: float) -> np.ndarray:
    """Gaussian profile around a polyline (Q, 2) in x, y and its mirror image; (P,)."""
    dense = np.concatenate([np.linspace(a, b, 12) for a, b in pairwise(line)])
    distance, _ = cKDTree(dense).query(np.stack([np.abs(local[:, 0]), local[:, 1]], 1))
    return np.exp(-((distance / width) ** 2)) * (local[:, 2] > -0.03)


def paint(local: np.ndarray, colouring: Colouring, look: SkinLook, rims: cKDTree) -> Paint:
    """Skin at local points (P, 3).

    Args:
        rims: tree over points of the lid rims (local), for the lash line.
    """
    seed = look.seed
    x, y, z = local.T
    one = np.ones(len(local))
    age = np.clip((colouring.age - 25) / 45, 0, 1)
    light = 1 - colouring.melanin

    # Tone: mottled melanin, blood under thin skin.
    mottle = noise.fractal(local, 70, 4, gain=0.6, seed=seed) / 0.17
    grain = noise.fractal(local, 700, 2, gain=0.65, seed=seed + 1) / 0.17
    albedo = colouring.skin * np.exp(0.022 * (1 + 0.8 * age) * mottle + 0.022 * grain)[:, None]
    blood = (
        0.60 * _blob(local, (0.040, -0.034, 0.02), (0.020, 0.017, 0.04))
        + 0.75 * _blob(local, (0.0, -0.042, 0.05), (0.017, 0.014, 0.03))
        + 0.30 * _blob(local, (0.0, -0.102, 0.03), (0.016, 0.012, 0.03))
        + 0.9 * smoothstep(np.abs(x), 0.077, 0.088)
        + 0.25 * _blob(local, (0.033, 0.004, 0.015), (0.018, 0.006, 0.02))
        + 0.30 * _blob(local, (0.018, -0.046, 0.03), (0.006, 0.007, 0.02))
    )
    blood = np.clip(blood * (1 + 0.5 * noise.fractal(local, 160, 3, seed=seed + 2) / 0.17) + 0.05 * mottle, 0, 1.3)
    albedo = albedo * colouring.flush ** blood[:, None]
    tired = _blob(local, (0.030, -0.0155, 0.01), (0.014, 0.0060, 0.03)) * (0.55 + 0.6 * age)
    albedo = albedo * np.array([0.87, 0.80, 0.84]) ** tired[:, None]
    lid = _blob(local, (0.033, 0.0065, 0.012), (0.013, 0.0045, 0.02))
    albedo = albedo * np.array([0.92, 0.84, 0.83]) ** ((0.7 + 1.4 * look.makeup) * lid)[:, None]
    # The forehead and the temples tan; the throat does not.
    albedo = albedo * np.exp(-0.05 * smoothstep(y, 0.01, 0.06) + 0.03 * smoothstep(-y, 0.1, 0.14))[:, None]

    # Spots: freckles on nose and cheeks, a few moles.
    if colouring.freckles > 0.03:
        distance, which = noise.cells(local, 420, seed=seed + 3)
        band = np.clip(_blob(local, (0.022, -0.028, 0.02), (0.034, 0.020, 0.05)) + 0.35, 0, 1) * (z > -0.03)
        size = 0.0011 * (which * 1.7 % 1) * np.sqrt(colouring.freckles)
        spot = (which < 0.75 * band) * smoothstep(size - distance, -0.0003, 0.0003)
        albedo = albedo * np.array([0.86, 0.75, 0.66]) ** (spot * (0.4 + 0.6 * colouring.freckles))[:, None]
    distance, which = noise.cells(local, 42, seed=seed + 4)
    mole = smoothstep(0.0007 + 0.0006 * (which * 57 % 1) - distance, -0.0003, 0.0003) * (which < 0.05)
    albedo = albedo * (1 - mole[:, None] * np.array([0.45, 0.55, 0.6]))
    age_spot = smoothstep(noise.fractal(local, 150, 3, seed=seed + 5) / 0.17, 1.3, 2.2) * age * light
    albedo = albedo * np.array([0.90, 0.84, 0.78]) ** age_spot[:, None]

    # Shaven stubble: a cool shade, with dots where hairs stand.
    shadow = look.beard_shadow * beard_region(local) * (1 - lip_weight(local))
    if look.beard_shadow > 0:
        distance, which = noise.cells(local, 1250, seed=seed + 6)
        dots = smoothstep(0.00028 - distance, -0.0002, 0.0002) * (which < 0.7)
        hair = np.minimum(colouring.brows, 0.25)
        cover = np.clip(shadow * (0.30 + 0.35 * dots + 0.12 * grain), 0, 0.8)[:, None]
        albedo = albedo * (1 - cover) + cover * (0.55 * hair + 0.45 * albedo * np.array([0.62, 0.68, 0.74]))

    # Scalp under the hair, and under the brows.
    density = scalp_density(local, look.recede, seed)[:, None] * look.scalp
    albedo = albedo * (1 - 0.97 * density) + 0.97 * density * 0.3 * colouring.hair
    along, across = brow_coordinates(local, look.brows)
    profile = (
        np.interp(along, [-0.06, 0.08, 0.3, 0.85, 1.05], [0, 0.55, 1, 0.9, 0])
        * np.clip(1.3 - np.abs(across), 0, 1)
        * (z > -0.03)
    )
    under = (0.46 * look.brows.density * profile * (1 + 0.3 * grain)).clip(0, 0.75)[:, None]
    albedo = albedo * (1 - under) + under * (0.35 * albedo + 0.65 * colouring.brows)

    # Lips: colour, vertical lines, gloss.
    lips = lip_weight(local)
    squeezed = local * np.array([1.0, 0.16, 0.3])
    lines = noise.fractal(squeezed, 950, 2, seed=seed + 7) / 0.17
    stain = colouring.lips * (1 - 0.25 * look.makeup * np.array([0.1, 1.0, 0.7]))
    red = albedo * stain * np.exp(0.07 * lines - 0.10 * smoothstep(np.abs(y + 0.0735), 0.004, 0.0) * one)[:, None]
    albedo = albedo * (1 - lips[:, None]) + lips[:, None] * red
    # The lash line: skin darkens where lashes stand.
    rim_distance, _ = rims.query(local, distance_upper_bound=0.006)
    lash_line = np.exp(-((np.minimum(rim_distance, 0.006) / (0.0008 + 0.0006 * look.makeup)) ** 2))
    albedo = albedo * (1 - (0.45 + 0.35 * look.makeup) * lash_line[:, None])

    # Relief: pores, fine creases, wrinkles of age.
    cheeks = 0.6 + 0.8 * _blob(local, (0.02, -0.035, 0.03), (0.035, 0.022, 0.06))
    pore = noise.relief(local, 1150, 2, gain=0.7, seed=seed + 20) / 0.86
    crease = noise.relief(local, 260, 2, gain=0.5, seed=seed + 30) / 0.79
    relief = (0.040 + 0.015 * age) * cheeks[:, None] * pore + (0.02 + 0.035 * age) * crease
    relief *= 1 - 0.6 * lips[:, None]
    relief[:, 0] += 0.10 * lips * lines
    fold = np.zeros(len(local))
    bump = np.zeros(len(local))
    sway = 0.0022 * noise.fractal(local * np.array([1, 0.1, 0.1]), 35, 2, seed=seed + 8) / 0.17
    for height in FOREHEAD_LINES:
        offset = (y - height - sway) / 0.0011
        weight = smoothstep(0.045 - np.abs(x), 0.0, 0.03) * (z > -0.02) * (0.02 + age)
        fold += 0.22 * weight * np.exp(-(offset**2))
        bump += 0.30 * weight * offset * np.exp(-(offset**2))
    fold += (0.10 + 0.32 * age) * _near_line(local, NASOLABIAL, 0.0016)
    corner = np.stack([np.abs(x) - 0.046, y + 0.003], 1)
    radius, angle = np.linalg.norm(corner, axis=1), np.arctan2(corner[:, 1], corner[:, 0])
    feet = (
        age
        * smoothstep(radius, 0.001, 0.006)
        * smoothstep(0.022 - radius, 0.0, 0.012)
        * (np.abs(angle) < 0.75)
        * (z > -0.04)
    )
    fold += 0.16 * feet * np.clip(np.cos(angle * 17), 0, 1) ** 2
    relief[:, 1] += bump
    albedo = albedo * np.array([0.90, 0.82, 0.80]) ** fold[:, None]

    oily = (
        1
        + 0.55 * _blob(local, (0.0, -0.03, 0.04), (0.012, 0.03, 0.04))
        + 0.3 * _blob(local, (0.0, 0.04, 0.02), (0.03, 0.02, 0.04))
    )
    gloss = oily * (1 + 0.22 * noise.fractal(local, 300, 3, seed=seed + 9) / 0.17) * (1 - 0.85 * density[:, 0])
    gloss = gloss * (1 - lips) + lips * (1.9 + 0.9 * look.makeup + 0.3 * lines)
    gloss = gloss * (1 - 0.5 * np.clip(shadow, 0, 1))
    return Paint(albedo.clip(0.005, 0.95), gloss.clip(0.05, 4), relief.clip(-0.4, 0.4))


def rim_tree(anatomy: Anatomy) -> cKDTree:
    """Points along the lid rims, about 0.3 mm apart, local metres."""
    dense = []
    for rim in anatomy.rims.values():
        line = anatomy.local[rim]
        dense += [np.linspace(a, b, 8) for a, b in pairwise(line)]
    return cKDTree(np.concatenate(dense))


@dataclass(frozen=True)
class Chart:
    """The head part's texture chart: which template point each texel shows."""

    size: tuple[int, int]
    """(H, W)."""
    covered: np.ndarray
    """(H, W) bool."""
    local: np.ndarray
    """(P, 3) local points of the covered texels, row by row."""
    nearest: np.ndarray
    """(H * W,) for every texel the index (0 ... P-1) of the nearest covered one: bleeds colours over the chart's
    edge."""


def bake(colouring: Colouring, look: SkinLook, anatomy: Anatomy, chart: Chart) -> Tensor:
    """The atlas of a person, (7, H, W): albedo as its square root 0-2, gloss 3, relief 4-6.

    The square root spends precision on dark colours; the atlas is float16.
    """
    painted = paint(chart.local, colouring, look, rim_tree(anatomy))
    texels = np.concatenate([np.sqrt(painted.albedo), painted.gloss[:, None], painted.relief], 1).astype(np.float16)
    return torch.from_numpy(np.ascontiguousarray(texels[chart.nearest].T)).reshape(7, *chart.size)


def spread(covered: np.ndarray) -> np.ndarray:
    """(H * W,) index of the nearest covered texel among the covered ones, for a mask (H, W)."""
    row, column = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    index = np.cumsum(covered.ravel()) - 1
    return index[(row * covered.shape[1] + column).ravel()]
