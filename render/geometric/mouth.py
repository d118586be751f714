"""The inside of the mouth: teeth, tongue and the dark behind them, shown between the lips.

What the photo shows between the lips is kept: its upper part is moved with the skull (upper teeth), its lower part
with the jaw. What opens beyond that is drawn: two dental arches, a tongue and a cavity, in the frames of skull and jaw.
Every pixel's ray is met with an arch z = z0 - x^2 / (2 rho), which tells the place along the arch and the height, and
with these the tooth, its edge, its neighbour and the gum. There is no mesh, hence no resolution: teeth are as sharp as
the photo. Colours come from the photo's skin and light.

Sizes are those of adult teeth (Ash and Nelson, "Wheeler's Dental Anatomy"), scaled by the width of the mouth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from ...geom.camera import Camera
from ...geom.head import HeadModel, HeadParams
from ...geom.landmarks import Embedding
from . import opening
from .opening import SAMPLES, Opening, bilinear, from_rims

Image = NDArray[np.float32]
Points = NDArray[np.float32]

UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
"""MediaPipe landmarks of the inner lips, from the corner on the picture's left (the person's right) to the other."""

MOUTH_WIDTH = 0.050
"""Metres between the corners of the lips that the sizes below belong to."""
UPPER_TEETH = ((8.6, 10.4), (6.7, 9.2), (7.7, 10.0), (7.0, 8.6), (6.8, 7.8), (10.0, 7.2), (9.5, 6.8))
"""mm width and height from the middle outwards: incisors, canine, premolars, molars."""
LOWER_TEETH = ((5.4, 8.8), (5.9, 9.0), (6.9, 10.2), (7.0, 8.6), (7.1, 8.0), (11.0, 7.4), (10.5, 7.0))
SLIT = (0.08, 0.14)
"""Gap of the photo's lips, in mouth widths, up to which it shows but a slit, and from which it shows what is inside."""


@dataclass(frozen=True)
class Arch:
    """One row of teeth, in the rest shape of the head."""

    centre: Points
    """(3,) metres: the edge between the two middle teeth."""
    curvature: float
    """Metres: rho of z = z0 - x^2 / (2 rho)."""
    scale: float
    """1 for an adult mouth 50 mm wide."""
    joint: int
    """Joint that carries it."""


@dataclass
class Mouth:
    """What frames share."""

    opening: Opening
    """Of the source, output px."""
    upper: Arch
    lower: Arch
    split: float
    """Share of the source's opening (from the upper lip) that belongs to the upper teeth."""
    skin: NDArray[np.float32]
    """(3,) median colour of the skin."""
    saturation: float
    """0 for a grey picture, 1 for a colourful one: mouths are red only where skin is."""
    own: float
    """[0, 1]: how far the photo shows the inside of the mouth itself."""
    palette: NDArray[np.float32]
    """(4, 3): enamel, gum, tongue, cavity under the photo's light."""


def arches(head: HeadModel, params: HeadParams, embedding: Embedding) -> tuple[Arch, Arch]:
    """Upper and lower row of teeth, placed behind the lips of the neutral face."""
    closed = params.replace(expression=torch.zeros_like(params.expression), jaw=torch.zeros_like(params.jaw))
    places = dict(zip(embedding.indices.tolist(), embedding.points(head.rest_vertices(closed))[0].numpy(), strict=True))
    seam = 0.5 * (places[13] + places[14])
    scale = float(np.linalg.norm(places[78] - places[308])) / MOUTH_WIDTH
    neck, jaw = max(1, len(head.parents) - 4), max(1, len(head.parents) - 3)
    mm = 1e-3 * scale
    upper = Arch((seam + np.array([0, -3.0, -6.5]) * mm).astype(np.float32), 17 * mm, scale, neck)
    lower = Arch((seam + np.array([0, -3.7, -8.5]) * mm).astype(np.float32), 16 * mm, scale, jaw)
    return upper, lower


def find(
    photo: Image, landmarks: Points, edge: Points, metres: float, skin: NDArray[np.float32], upper: Arch, lower: Arch
) -> Mouth:
    """The mouth of a source.

    Args:
        photo: (h, w, 3) in [0, 1] at output size.
        landmarks: (478, 2) output px.
        edge: (2,) output px of the edge between the two middle upper teeth, where the model puts it.
        metres: size of an output pixel at the teeth.
        skin: (K, 3) colours of visible skin.
    """
    rims = from_rims(landmarks[list(UPPER)], landmarks[list(LOWER)])
    u, below, above = opening.place(rims.frame, rims.upper, rims.lower, np.float32(edge[0]), np.float32(edge[1]))
    gap = max(float(below + above), 1e-3)
    split = _teeth_end(photo, rims)
    if split is None:
        split = float(np.clip(below / gap, 0.3, 0.95))
    elif 0 < u < 1:
        # The photo shows where the teeth end: put the model's there, so that drawn teeth continue real ones.
        shift = np.clip((split * gap - float(below)) * metres, -0.006, 0.006)
        upper = replace(upper, centre=upper.centre - np.array([0, shift, 0], np.float32))
    own = float(np.clip((rims.gap / _feather(rims) - 1.0) / 1.5, 0, 1))
    colour = np.median(skin, axis=0) if len(skin) else np.full(3, 0.5)
    span = float(colour.max() - colour.min()) / max(float(colour.max()), 1e-3)
    saturation = float(np.clip((span - 0.04) / 0.25, 0, 1))
    return Mouth(rims, upper, lower, split, colour.astype(np.float32), saturation, own, _palette(colour, saturation))


def _teeth_end(photo: Image, rims: Opening) -> float | None:
    """Share of the opening's height, from the upper lip, where the photo's upper teeth end; None if it shows none."""
    if rims.gap < max(4.0, SLIT[0] * rims.width):
        return None
    u = np.linspace(0.3, 0.7, 15)
    share = (np.arange(24) + 0.5) / 24
    at = (u * (SAMPLES - 1)).astype(int)
    across = rims.upper[at] + share[:, None] * (rims.lower - rims.upper)[at]
    points = rims.frame[0] + u[None, :, None] * rims.frame[1] + across[..., None] * rims.frame[2]
    height, width = photo.shape[:2]
    x = np.clip(points[..., 0].astype(int), 0, width - 1)
    y = np.clip(points[..., 1].astype(int), 0, height - 1)
    # Teeth are the bright and least red of what is in a mouth.
    rows = np.median(photo[y, x].min(-1), axis=1)
    peak = rows[: len(rows) * 3 // 4].max()
    outside = float(np.median(photo[y, x].max(-1)))
    if peak < 0.25 or peak < 0.5 * outside:
        return None
    bright = rows > 0.6 * peak
    first = int(np.argmax(bright))
    run = np.flatnonzero(~bright[first:])
    return float(np.clip((first + (run[0] if len(run) else len(rows) - first)) / len(rows), 0.3, 0.97))


def draw(
    image: Image, source: Image, mouth: Mouth, target: Opening, upper: Points, lower: Points,
    upper_map: Points, lower_map: Points, camera: Camera, strength: float,
) -> None:  # fmt: skip
    """Draw the inside of the mouth into `image`, in place.

    Args:
        image: (h, w, 3) the frame.
        source: (h, w, 3) the photo at the same size.
        target: the inner lips in the frame.
        upper, lower: `rims.carried` axes of the arches.
        upper_map, lower_map: `rims.rigid_map` of the arches.
        camera: of the output picture.
        strength: [0, 1] opacity of the layer.
    """
    if strength <= 0 or not (np.isfinite(upper_map).all() and np.isfinite(lower_map).all()):
        return
    feather = _feather(mouth.opening)
    window = opening.bounds(target, 2.0, (image.shape[0], image.shape[1]))
    rays = np.array([float(camera.focal[0]), *camera.principal[0].tolist()], np.float32)
    # A slit pulled apart would float in the middle of the open mouth: it goes as the lips part.
    shown = np.clip((mouth.opening.gap / mouth.opening.width - SLIT[0]) / (SLIT[1] - SLIT[0]), 0, 1)
    apart = np.clip((target.gap / max(mouth.opening.gap, 1.0) - 1.4) / 1.4, 0, 1)
    own = mouth.own * (shown + (1 - shown) * (1 - apart))
    rows = []
    for axes, arch, teeth in ((upper, mouth.upper, UPPER_TEETH), (lower, mouth.lower, LOWER_TEETH)):
        frame = axes[1:] - axes[0]  # rows: unit axes in the world
        rows.append((axes[0], frame, _along(teeth, arch.scale), arch.curvature))
    (centre_u, frame_u, teeth_u, rho_u), (centre_l, frame_l, teeth_l, rho_l) = rows
    _draw(
        image, source, mouth.opening.frame, mouth.opening.upper, mouth.opening.lower,
        target.frame, target.upper, target.lower, upper_map, lower_map, rays,
        centre_u, np.ascontiguousarray(frame_u), teeth_u, np.float32(rho_u),
        centre_l, np.ascontiguousarray(frame_l), teeth_l, np.float32(rho_l),
        mouth.palette, np.float32(mouth.upper.scale), np.float32(mouth.split), np.float32(own),
        np.float32(strength), np.float32(feather), np.array(window, np.int64),
    )  # fmt: skip


def _feather(rims: Opening) -> float:
    """Output px over which the lips' inner edge is soft."""
    return max(1.3, 0.014 * rims.width)


def _along(teeth: tuple[tuple[float, float], ...], scale: float) -> Points:
    """(K, 3) metres: start and end along the arch, and height, of the teeth on one side."""
    widths = np.array(teeth)
    ends = np.cumsum(widths[:, 0])
    return (1e-3 * scale * np.stack([ends - widths[:, 0], ends, widths[:, 1]], 1)).astype(np.float32)


def _palette(skin: NDArray, saturation: float) -> NDArray[np.float32]:
    """(4, 3) colours of enamel, gum, tongue and cavity under the light that the skin shows."""
    luma = float(skin @ np.array([0.299, 0.587, 0.114]))
    # Enamel is a bit brighter than light skin, and much brighter than dark skin.
    bright = np.clip(0.36 + 0.78 * luma, 0.2, 0.97)
    tint = (np.maximum(skin, 0.02) / max(luma, 0.02)) ** 0.22
    base = np.array([[0.97, 0.93, 0.86], [0.80, 0.42, 0.42], [0.74, 0.40, 0.42], [0.30, 0.12, 0.12]])
    colours = base * bright * tint
    grey = colours @ np.array([0.299, 0.587, 0.114])
    return (grey[:, None] + saturation * (colours - grey[:, None])).astype(np.float32)


@njit(cache=True, nogil=True, inline="always")
def _meet(centre, frame, rho, ray):  # type: ignore[no-untyped-def]
    """Where a ray from the camera meets an arch: hit or not, x, y (metres in the arch's frame, y up), drop z0 - z.

    z + x^2 / (2 rho) = 0 along origin + t * direction is a quadratic in t; the nearer root is the teeth's front.
    """
    ox = -(frame[0, 0] * centre[0] + frame[0, 1] * centre[1] + frame[0, 2] * centre[2])
    oy = -(frame[1, 0] * centre[0] + frame[1, 1] * centre[1] + frame[1, 2] * centre[2])
    oz = -(frame[2, 0] * centre[0] + frame[2, 1] * centre[1] + frame[2, 2] * centre[2])
    dx = frame[0, 0] * ray[0] + frame[0, 1] * ray[1] + frame[0, 2] * ray[2]
    dy = frame[1, 0] * ray[0] + frame[1, 1] * ray[1] + frame[1, 2] * ray[2]
    dz = frame[2, 0] * ray[0] + frame[2, 1] * ray[1] + frame[2, 2] * ray[2]
    a = dx * dx
    b = 2 * (ox * dx + rho * dz)
    c = ox * ox + 2 * rho * oz
    if a < 1e-9:
        t = -c / b if abs(b) > 1e-12 else np.float32(0)
    else:
        root = b * b - 4 * a * c
        if root < 0:
            return False, np.float32(0), np.float32(0), np.float32(0)
        # Stable for small a: the front of the arch is the solution that exists at a = 0.
        t = 2 * c / (-b + np.sqrt(root)) if b < 0 else 2 * c / (-b - np.sqrt(root))
    x = ox + t * dx
    return t > 0, x, oy + t * dy, x * x / (2 * rho)


@njit(cache=True, nogil=True, inline="always")
def _step(x, low, high):  # type: ignore[no-untyped-def]
    t = min(max((x - low) / (high - low), np.float32(0)), np.float32(1))
    return t * t * (np.float32(3) - np.float32(2) * t)


@njit(cache=True, nogil=True)
def _teeth(hit, x, y, drop, teeth, rho, scale, down, pixel):  # type: ignore[no-untyped-def]
    """(opacity of tooth or gum, share of gum, brightness) where a ray meets an arch.

    `down` is 1 for upper teeth, whose edges point down, -1 for lower ones; `pixel` is the size of a pixel in metres.
    """
    if not hit:
        return np.float32(0), np.float32(0), np.float32(0)
    # Length along the parabola, good to 1 % up to the molars.
    along = abs(x) * (np.float32(1) + x * x / (np.float32(6) * rho * rho))
    count = len(teeth)
    if along > teeth[count - 1, 1]:
        return np.float32(0), np.float32(0), np.float32(0)
    k = 0
    while k < count - 1 and along > teeth[k, 1]:
        k += 1
    width = teeth[k, 1] - teeth[k, 0]
    t = (along - teeth[k, 0]) / width * 2 - 1  # -1 towards the middle, 1 outwards
    mm = np.float32(1e-3) * scale
    height = down * y  # above the edge of the middle teeth, into the gum
    # Edge: corners rounded, laterals a little shorter, canines pointed, then rising along the row.
    edge = mm * np.float32(0.9) * t * t * t * t
    if k == 1:
        edge += np.float32(0.6) * mm
    elif k == 2:
        edge += np.float32(0.9) * mm * abs(t)
    elif k > 2:
        edge += (np.float32(0.6) + np.float32(0.35) * (k - 2)) * mm
    inside = opening.soft(height - edge, max(pixel, np.float32(0.25) * mm))
    # Gum: scalloped, points of gum between the teeth.
    neck = teeth[k, 2] - np.float32(1.6) * mm * t * t
    gum = _step(height, neck - np.float32(0.4) * mm, neck + np.float32(0.4) * mm)

    # Shading: rounded sides, a dark line between neighbours (softer than a pixel it vanishes), bright upper middle,
    # edges a little translucent, less light the deeper it lies.
    gap = (np.float32(1) - abs(t)) * np.float32(0.5) * width
    line = max(np.float32(0.45) * mm, pixel)
    seam = np.float32(0.22) * min(np.float32(0.4) * mm / line, np.float32(1)) / (np.float32(1) + np.float32(0.4) * k)
    bright = np.float32(1) - seam * (np.float32(1) - _step(gap, np.float32(0), line)) - np.float32(0.06) * t * t
    bright *= np.float32(0.90) + np.float32(0.10) * _step(height - edge, np.float32(0), np.float32(2.5) * mm)
    bright *= np.exp(-drop / (np.float32(34) * mm))
    return inside, gum, bright


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _draw(  # type: ignore[no-untyped-def]
    image, source, frame_s, upper_s, lower_s, frame, upper, lower, upper_map, lower_map, rays,
    centre_u, frame_u, teeth_u, rho_u, centre_l, frame_l, teeth_l, rho_l,
    palette, scale, split, own, strength, feather, window,
):  # fmt: skip
    one, zero = np.float32(1), np.float32(0)
    mm = np.float32(1e-3) * scale
    depth = -centre_u[2]
    pixel = depth / rays[0]
    ray = np.empty(3, np.float32)
    value = np.empty(3, np.float32)
    for y in range(window[0], window[1]):
        for x in range(window[2], window[3]):
            px, py = np.float32(x) + np.float32(0.5), np.float32(y) + np.float32(0.5)
            inside = strength * opening.coverage(frame, upper, lower, px, py, feather, zero)
            if inside <= 0:
                continue
            ray[0], ray[1], ray[2] = (px - rays[1]) / rays[0], -(py - rays[2]) / rays[0], -one
            hit_u, xu, yu, drop_u = _meet(centre_u, frame_u, rho_u, ray)
            hit_l, xl, yl, drop_l = _meet(centre_l, frame_l, rho_l, ray)
            tooth_u, gum_u, bright_u = _teeth(hit_u, xu, yu, drop_u, teeth_u, rho_u, scale, one, pixel)
            tooth_l, gum_l, bright_l = _teeth(hit_l, xl, yl, drop_l, teeth_l, rho_l, scale, -one, pixel)

            # Under the lips it is darker: less sky. Metres to the lips, across.
            _, below, above = opening.place(frame, upper, lower, px, py)
            from_upper, from_lower = below * pixel, above * pixel
            lips = np.float32(0.80) + np.float32(0.20) * _step(from_upper, zero, np.float32(3.0) * mm)
            lips *= np.float32(0.90) + np.float32(0.10) * _step(from_lower, zero, np.float32(2.5) * mm)
            open_wide = _step((below + above) * pixel, np.float32(4) * mm, np.float32(16) * mm)

            # Tongue: a mound behind the lower teeth, in the frame of the jaw; it fills the floor of an open mouth.
            rise = (yl + np.float32(3) * mm) / (np.float32(26) * mm)
            side = xl / (np.float32(25) * mm)
            mound = one - side * side - max(rise, zero) ** 2
            tongue = _step(mound, zero, np.float32(0.9)) if hit_l else zero
            tongue_light = np.float32(0.36) + np.float32(0.52) * _step(mound, np.float32(0.1), one) * open_wide
            tongue_light *= one - np.float32(0.10) * np.exp(-((xl / (np.float32(3) * mm)) ** 2))
            for c in range(3):
                v = palette[3, c] * (np.float32(0.35) + np.float32(0.65) * open_wide)
                v += tongue * (palette[2, c] * tongue_light - v)
                lower_colour = palette[0, c] + gum_l * (np.float32(0.8) * palette[1, c] - palette[0, c])
                v += tooth_l * (np.float32(0.76) * bright_l * lower_colour - v)
                upper_colour = palette[0, c] + gum_u * (palette[1, c] - palette[0, c])
                v += tooth_u * (bright_u * upper_colour - v)
                value[c] = lips * v

            if own > 0:
                # The photo's own mouth: upper part with the skull, lower part with the jaw.
                ux = upper_map[0, 0] * px + upper_map[0, 1] * py + upper_map[0, 2]
                uy = upper_map[1, 0] * px + upper_map[1, 1] * py + upper_map[1, 2]
                _, sb, sa = opening.place(frame_s, upper_s, lower_s, ux, uy)
                share = sb / max(sb + sa, np.float32(1e-3))
                grow = np.float32(0.6) * feather
                from_top = opening.coverage(frame_s, upper_s, lower_s, ux, uy, feather, grow)
                from_top *= one - _step(share, split, split + np.float32(0.12))
                lx = lower_map[0, 0] * px + lower_map[0, 1] * py + lower_map[0, 2]
                ly = lower_map[1, 0] * px + lower_map[1, 1] * py + lower_map[1, 2]
                _, sb, sa = opening.place(frame_s, upper_s, lower_s, lx, ly)
                share = sb / max(sb + sa, np.float32(1e-3))
                from_below = opening.coverage(frame_s, upper_s, lower_s, lx, ly, feather, grow)
                from_below *= _step(share, split - np.float32(0.06), split + np.float32(0.06))
                # A split at the lower lip means that the photo shows nothing of the lower jaw.
                from_below *= one - _step(split, np.float32(0.75), np.float32(0.92))
                from_top, from_below = own * from_top, own * from_below
                for c in range(3):
                    v = value[c]
                    v += from_below * (bilinear(source, lx, ly, c) - v)
                    v += from_top * (bilinear(source, ux, uy, c) - v)
                    value[c] = v
            for c in range(3):
                image[y, x, c] += inside * (value[c] - image[y, x, c])
