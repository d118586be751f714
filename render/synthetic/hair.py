"""Head hair: strands grown over the scalp by a style's rules.

A strand starts at a root on the scalp and takes steps. Each step mixes the style's combing direction on the skull, the
outward normal (lift, strong at
the root) and gravity (strong once the strand hangs free); then it is pushed out of the head to its own height above
the skin. Curls are a helix
around the grown line, clumps draw neighbours together towards their tips.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ...geom.head import HeadModel
from . import noise
from .anatomy import CROWN, Anatomy, hairline_margin, measure
from .noise import smoothstep
from .palette import GREY_HAIR, HAIR, Colouring
from .strands import Strands

KNOT = (0.0, 0.03, -0.175)
"""Local position of a knot of hair."""
AXIS_MIDDLE = -0.07
"""Local z of the middle of the skull."""
_CUTS = 6
"""Cuts of each style among drafts."""


@dataclass(frozen=True)
class HairStyle:
    """How hair is cut and combed. Lengths in local metres."""

    strands: int
    """Strands at full detail."""
    points: int
    """Points per strand."""
    top: float
    """Length on top of the head."""
    side: float
    """Length at the sides and the nape."""
    width: float
    """Of a strand at its root; a strand stands for a lock of hairs."""
    volume: float
    """Largest height of the hair above the skull."""
    lift: float
    """How steeply hair leaves the skin: 0 flat, 1 upright."""
    flow: str
    """Combing: "whorl" (outwards from the crown), "back", "part" (sideways from a parting), "radial" (straight out)."""
    forward: float = 0.0
    """For "part": where the hair beside the parting goes, -1 backwards to 1 over the forehead."""
    gravity: float = 0.2
    curl: float = 0.0
    """Radius of curls."""
    clump: float = 0.4
    """How much locks gather at their tips, 0 to 1."""
    stray: float = 0.15
    """Randomness of directions."""
    recede: float = 0.0
    """How far the hairline is drawn back."""
    tied: bool = False
    """Drawn back into a knot behind the head."""


STYLES = {
    "bald": HairStyle(0, 2, 0, 0, 0.0004, 0, 0, "whorl"),
    "buzz": HairStyle(15000, 3, 0.006, 0.004, 0.00050, 0.005, 0.55, "whorl", stray=0.3, clump=0),
    "fade": HairStyle(13000, 5, 0.024, 0.004, 0.00055, 0.016, 0.55, "whorl", stray=0.3, clump=0.3),
    "short": HairStyle(11000, 7, 0.042, 0.016, 0.00065, 0.022, 0.5, "whorl", stray=0.25, clump=0.45),
    "quiff": HairStyle(11000, 8, 0.062, 0.012, 0.00065, 0.034, 0.8, "back", stray=0.16, clump=0.4),
    "parted": HairStyle(12000, 9, 0.080, 0.022, 0.00062, 0.015, 0.4, "part", forward=-0.45, stray=0.09, clump=0.4),
    "slick": HairStyle(11000, 9, 0.095, 0.04, 0.00070, 0.009, 0.15, "back", stray=0.06, clump=0.25),
    "bob": HairStyle(
        12000, 14, 0.225, 0.165, 0.00060, 0.024, 0.35, "part", forward=-0.5, gravity=0.5, stray=0.05, clump=0.3
    ),
    "long": HairStyle(
        12000, 18, 0.30, 0.25, 0.00062, 0.026, 0.35, "part", forward=-0.5, gravity=0.5, stray=0.05, clump=0.35
    ),
    "bun": HairStyle(11000, 10, 0.16, 0.15, 0.00068, 0.009, 0.15, "back", stray=0.03, clump=0.2, tied=True),
    "curly": HairStyle(10000, 12, 0.075, 0.045, 0.00085, 0.032, 0.7, "whorl", curl=0.0055, stray=0.2, clump=0.85),
    "afro": HairStyle(
        18000, 10, 0.062, 0.045, 0.00065, 0.05, 1.0, "radial", gravity=0.0, curl=0.0032, stray=0.22, clump=0.35
    ),
}


def sample_style(rng: np.random.Generator, colouring: Colouring, masculine: float) -> str:
    """A style that goes with the hair's curl, the age and how masculine the person presents (0 to 1)."""
    short = masculine
    weight = {
        "bald": 0.10 * short * (colouring.age > 30),
        "buzz": 0.12 * short + 0.01,
        "fade": 0.16 * short,
        "short": 0.2 * short + 0.06,
        "quiff": 0.14 * short,
        "parted": 0.16 * short + 0.05,
        "slick": 0.08,
        "bob": 0.3 * (1 - short),
        "long": 0.3 * (1 - short),
        "bun": 0.2 * (1 - short),
        "curly": 0.08,
        "afro": 0.02,
    }
    if colouring.curl > 0.6:
        for name in ("quiff", "parted", "slick", "bob", "long", "short"):
            weight[name] = 0.0
        weight["curly"], weight["afro"] = 0.2, 0.35 * (1 - 0.4 * short)
    elif colouring.curl < 0.15:
        weight["curly"] = weight["afro"] = 0.0
    else:
        weight["afro"] = 0.0
    names = list(weight)
    shares = np.array([weight[name] for name in names])
    return names[rng.choice(len(names), p=shares / shares.sum())]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


def scalp_density(local: np.ndarray, recede: float, seed: int) -> np.ndarray:
    """How densely hair grows (0 to 1) at local points (P, 3): a soft, ragged edge along the hairline."""
    margin = hairline_margin(local, recede) + 0.012 * noise.fractal(local, 90, 3, seed=seed)
    return smoothstep(margin, -0.004, 0.009)


def _combing(style: HairStyle, local: np.ndarray, normal: np.ndarray, part_x: float) -> np.ndarray:
    """Direction (..., 3) in which hair lies at local points, along the skull."""
    if style.flow == "radial":
        return normal
    if style.tied:
        direction = _unit(np.array(KNOT) - local)
    elif style.flow == "whorl":
        direction = _unit(local - np.array(CROWN))
        sideways = smoothstep(np.abs(normal[..., :1]), 0.45, 0.8)
        direction = _unit(direction * (1 - sideways) + sideways * np.array([0.0, -0.9, -0.35]))
    elif style.flow == "back":
        direction = np.broadcast_to(np.array([0.0, 0.3, -1.0]), local.shape)
        sideways = smoothstep(np.abs(normal[..., :1]), 0.5, 0.9)
        direction = direction * (1 - sideways) + sideways * np.array([0.0, -0.45, -1.0])
    else:
        across = np.tanh((local[..., :1] - part_x) / 0.006)
        ahead = style.forward * smoothstep(local[..., 2:], -0.06, 0.0) - 0.35 * smoothstep(-local[..., 2:], 0.06, 0.14)
        direction = np.concatenate([across, np.full_like(across, -0.35), ahead], -1)
        low = smoothstep(0.075 - local[..., 1:2], 0.0, 0.05)
        direction = direction * (1 - low) + low * np.array([0.0, -1.0, -0.25])
    along = direction - (direction * normal).sum(-1, keepdims=True) * normal
    return _unit(along)


def grow(style: HairStyle, anatomy: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strands of a style on the template.

    Returns:
        points (K, P, 3) in template metres, root triangles (K,), depth (K, P) in [0, 1] (1 on the surface of the hair).
    """
    seed = int(rng.integers(1 << 30))
    density = scalp_density(anatomy.local, style.recede, seed)
    triangle, root = anatomy.scatter(rng, style.strands, anatomy.skin_faces, density)
    local = anatomy.to_local(root)
    count, points = len(root), style.points
    _, normal = anatomy.clearance(root)
    part_x = float(rng.choice([-1, 1]) * rng.uniform(0.012, 0.028)) if style.flow == "part" else 0.0

    high = smoothstep(local[:, 1], 0.015, 0.07)
    length = style.side + (style.top - style.side) * high
    length = (
        length * np.exp(rng.normal(0, 0.12, count)) * (0.45 + 0.55 * smoothstep(hairline_margin(local), 0.0, 0.022))
    )
    # Each strand rides at its own height over the skin; the lower ones are covered by the others.
    rank = rng.random(count) ** 0.55
    wave = 1 + 0.35 * noise.fractal(local, 35, 2, seed=seed + 1) / 0.17
    near_edge = smoothstep(hairline_margin(local, style.recede), 0.0, 0.03)
    thin = style.side / max(style.top, 1e-6)
    height = style.volume * (0.12 + 0.88 * rank) * np.clip(wave, 0.4, 1.6) * (0.25 + 0.75 * near_edge)
    height *= high + (1 - high) * min(1.0, 0.35 + thin)
    if style.tied:
        length *= 0.2 + 0.8 * smoothstep(local[:, 1], 0.0, 0.03)  # the short hair around the ears is not tied
        # Around the skull to the knot, not further: the rest of the hair is wound up there.
        length = np.minimum(length, 1.25 * np.linalg.norm(local - KNOT, axis=1))
    step = length / (points - 1)

    # Directions vary from lock to lock, not only from hair to hair.
    drift = np.stack([noise.fractal(local, 55, 2, seed=seed + 10 + k) for k in range(3)], 1) / 0.17
    scatter = style.stray * (0.6 * drift + 0.6 * rng.normal(size=(count, 3)))
    line = np.empty((count, points, 3))
    line[:, 0] = local - 0.0008 * normal
    heading = _unit(max(style.lift, 0.05) * normal + 0.4 * _combing(style, local, normal, part_x))
    skin_normal = normal
    for k in range(1, points):
        t = k / (points - 1)
        here = line[:, k - 1]
        comb = _combing(style, here, skin_normal, part_x)
        above, _ = anatomy.clearance(anatomy.to_template(here))
        above = above / anatomy.scale
        free = smoothstep(above - height, -0.004, 0.012)[:, None]
        upright = style.lift * (1 - t) ** 1.5 * np.clip(1 - above / np.maximum(height, 1e-4), 0, 1)[:, None]
        pull = np.array([0.0, -style.gravity, 0.0]) * (0.3 + 1.5 * free + t)
        wish = _unit(comb * (1.15 - upright) + skin_normal * upright * 1.3 + pull + scatter)
        heading = _unit(0.45 * heading + 0.55 * wish)
        ahead = here + heading * step[:, None]
        above, skin_normal = anatomy.clearance(anatomy.to_template(ahead))
        above = above / anatomy.scale
        floor = height * min(1.0, 1.6 * t) if style.flow != "radial" else np.full(count, 0.001)
        # Below the chin hair hangs free; what enters the shoulders is hidden by them.
        push = np.maximum(floor - above, 0) * (ahead[:, 1] > -0.115)
        ahead = ahead + skin_normal * push[:, None]
        line[:, k] = _off_the_face(ahead, local, style)
    if style.curl > 0:
        line = _curl(line, style, rng)
    if style.clump > 0:
        line = _gather(line, style, rng)
    along = np.linspace(0, 1, points)
    above = anatomy.clearance(anatomy.to_template(line))[0] / anatomy.scale
    if style.flow == "radial" or style.curl > 0:
        depth = np.clip(above / max(style.volume * 0.8, 1e-4), 0, 1)
    else:
        depth = np.clip(0.25 + 0.55 * rank[:, None] + 0.35 * along, 0, 1) * np.ones_like(above)
    if style.tied:
        knot_line, knot_depth = _knot(style, rng)
        line, depth = np.concatenate([line, knot_line]), np.concatenate([depth, knot_depth])
        triangle = np.concatenate([triangle, np.full(len(knot_line), triangle[0])])
    return anatomy.to_template(line), triangle, depth


def _off_the_face(points: np.ndarray, root: np.ndarray, style: HairStyle) -> np.ndarray:
    """Keeps long hair beside the face: a curtain at each temple that a strand may not cross inwards, and over the
    ears."""
    if style.top < 0.12 or style.tied:
        return points
    side = np.where(np.abs(points[:, 0]) > 0.004, np.sign(points[:, 0]), np.sign(root[:, 0]))
    ear = (
        smoothstep(points[:, 2], -0.115, -0.10)
        * smoothstep(-points[:, 2], 0.05, 0.06)
        * smoothstep(points[:, 1], -0.07, -0.05)
    )
    ear *= smoothstep(-points[:, 1], -0.03, -0.01)
    inside = smoothstep(points[:, 2], -0.04, -0.01) * smoothstep(0.068 - points[:, 1], 0.0, 0.022)
    least = np.maximum(0.066 * inside, 0.091 * ear)
    out = points.copy()
    out[:, 0] = side * np.maximum(np.abs(points[:, 0]), least)
    out[:, 2] = np.where(points[:, 1] < 0.03, np.minimum(points[:, 2], 0.004), points[:, 2])
    return out


def _curl(line: np.ndarray, style: HairStyle, rng: np.random.Generator) -> np.ndarray:
    """Winds each strand around its line; neighbours share the phase."""
    count, points, _ = line.shape
    tangent = np.gradient(line, axis=1)
    tangent = _unit(tangent)
    helper = np.where(np.abs(tangent[..., :1]) < 0.8, np.array([1.0, 0, 0]), np.array([0, 1.0, 0]))
    first = _unit(np.cross(tangent, helper))
    second = np.cross(tangent, first)
    length = np.linalg.norm(np.diff(line, axis=1), axis=2).sum(1)
    turns = length / (style.curl * 4.5)
    phase = 6.28 * (noise.fractal(line[:, 0], 60, 1, seed=5) / 0.25 + 0.12 * rng.random(count))
    angle = phase[:, None] + 2 * np.pi * turns[:, None] * np.linspace(0, 1, points)
    radius = style.curl * smoothstep(np.linspace(0, 1, points), 0.0, 0.35) * rng.uniform(0.6, 1.2, (count, 1))
    return line + radius[..., None] * (np.cos(angle)[..., None] * first + np.sin(angle)[..., None] * second)


def _gather(line: np.ndarray, style: HairStyle, rng: np.random.Generator) -> np.ndarray:
    """Draws strands towards a leader nearby, more towards the tips."""
    count, points, _ = line.shape
    leaders = rng.choice(count, size=max(count // 22, 1), replace=False)
    nearest = leaders[cKDTree(line[leaders, 0]).query(line[:, 0])[1]]
    along = np.linspace(0, 1, points)[None, :, None]
    offset = line[:, :1] - line[nearest, :1]
    # A strand on the other side of the parting is not followed.
    same = (
        np.linalg.norm(line[:, -1] - line[nearest, -1], axis=1)
        < 0.5 * np.linalg.norm(line[:, -1] - line[:, 0], axis=1) + 0.01
    )
    weight = style.clump * along**1.3 * same[:, None, None] * rng.uniform(0.5, 1.0, (count, 1, 1))
    return line * (1 - weight) + (line[nearest] + offset * (1 - 0.75 * along)) * weight


def _knot(style: HairStyle, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Strands wound into a bun at the back of the head, local metres."""
    count = 1500
    centre = np.array(KNOT) + np.array([0.0, 0.005, -0.007])
    tilt = rng.uniform(-0.5, 0.5, count)[:, None]
    angle = rng.uniform(0, 2 * np.pi, count)[:, None] + np.linspace(0, 2.2, style.points)
    ring = 0.020 + 0.004 * rng.random((count, 1))
    thick = 0.014 * np.sqrt(rng.random((count, 1)))
    around = rng.uniform(0, 2 * np.pi, (count, 1)) + 0.5 * angle
    radius = ring + thick * np.cos(around)
    line = (
        np.stack([radius * np.cos(angle + tilt), radius * np.sin(angle + tilt), thick * np.sin(around) * 1.2], -1)
        + centre
    )
    return line, np.clip(thick / 0.014, 0, 1) * np.ones((1, style.points))


def head_hair(
    style_name: str, colouring: Colouring, anatomy: Anatomy, rng: np.random.Generator, *, detail: float = 1.0
) -> Strands | None:
    """The hair of one person on the template; None without hair.

    Args:
        style_name: key of `STYLES`.
        detail: share of the style's strands; fewer are drawn wider.
    """
    style = STYLES[style_name]
    if style.strands == 0:
        return None
    if detail != 1.0:
        style = _thinned(style, detail)
    cut, roots = _cut(style, anatomy, rng)
    colour = hair_colours(colouring, roots, rng)
    return replace(cut, colour=torch.from_numpy(colour).float())


def draft_hair(
    style_name: str, colouring: Colouring, head: HeadModel, rng: np.random.Generator, resolution: int
) -> tuple[Strands | None, Tensor | None]:
    """As `head_hair`, one of a few cuts that are kept, in this person's colours; and the skin vertices (K, P, M) that
    its points follow. Strands are as many as a picture of `resolution` pixels shows."""
    variant = int(rng.integers(_CUTS))
    if STYLES[style_name].strands == 0:
        return None, None
    cut, nearest, roots = _kept_cut(style_name, variant, head, float(np.clip(resolution / 1100, 0.12, 0.4)))
    return replace(cut, colour=torch.from_numpy(hair_colours(colouring, roots, rng)).float()), nearest


@lru_cache(maxsize=96)
def _kept_cut(name: str, variant: int, head: HeadModel, detail: float) -> tuple[Strands, Tensor, np.ndarray]:
    """A cut in black, the skin that it follows, and its roots (K, 3), local metres."""
    anatomy = measure(head)
    rng = np.random.default_rng([list(STYLES).index(name), variant])
    style = _thinned(STYLES[name], detail)
    # Gaps show where there are few strands, so these are even wider.
    cut, roots = _cut(replace(style, width=style.width * detail**-0.25), anatomy, rng)
    return cut, torch.from_numpy(anatomy.neighbours(cut.points.double().numpy())), roots


def _cut(style: HairStyle, anatomy: Anatomy, rng: np.random.Generator) -> tuple[Strands, np.ndarray]:
    """Strands of a style on the template, black, and their roots (K, 3) in local metres."""
    points, triangle, depth = grow(style, anatomy, rng)
    count, steps = len(points), points.shape[1]
    along = np.linspace(0, 1, steps)
    taper = 1 - 0.7 * along**2
    width = style.width * anatomy.scale * taper * rng.uniform(0.7, 1.25, (count, 1))
    _, normal = anatomy.clearance(points)
    radial = _unit(anatomy.to_local(points) - np.array([0.0, 0.03, AXIS_MIDDLE]))
    normal = _unit(0.35 * normal + 0.65 * radial)
    strands = Strands(
        points=torch.from_numpy(points).float(),
        triangle=torch.from_numpy(triangle),
        width=torch.from_numpy(width).float(),
        colour=torch.zeros(count, 3),
        depth=torch.from_numpy(np.ascontiguousarray(depth)).float(),
        normal=torch.from_numpy(normal).float(),
    )
    return strands, anatomy.to_local(points[:, 0])


def _thinned(style: HairStyle, detail: float) -> HairStyle:
    return replace(style, strands=max(int(style.strands * detail), 1), width=style.width / np.sqrt(detail))


def hair_colours(colouring: Colouring, roots: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(K, 3) colours of single strands: pigment varies in locks and between hairs, and grey spreads unevenly."""
    count = len(roots)
    pure = HAIR[colouring.hair_name]
    lock = noise.fractal(roots, 60, 2, seed=int(rng.integers(1 << 20))) / 0.17
    vary = np.exp(0.14 * lock + rng.normal(0, 0.16, count))[:, None]
    warm = 1 + np.array([0.06, 0.0, -0.06]) * rng.normal(0, 1, (count, 1))
    pigment = pure * vary * warm
    # A strand stands for a lock of hairs, some of them grey.
    grey = np.clip(colouring.grey + (0.10 * lock + rng.normal(0, 0.14, count)) * (0.02 < colouring.grey < 0.98), 0, 1)[
        :, None
    ]
    white = GREY_HAIR * np.exp(rng.normal(0, 0.1, (count, 1)))
    return ((1 - grey) * pigment + grey * white).clip(0.004, 0.9)
