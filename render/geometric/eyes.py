"""Eyes: an eyeball that stays when the lids move, and an iris that turns.

The source's eye is taken apart once: a sclera without iris, and a complete iris, whose parts under the lids are
continued from the visible ones. A frame puts them back together between the lids' new rims: the eyeball moves with the
skull (never with the lids), the iris is shifted by the gaze. While gaze and lids are those of the source, it is the
source's own pixels that are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

from . import opening
from .opening import Opening, bilinear, from_rims

Image = NDArray[np.float32]
Points = NDArray[np.float32]

UPPER = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (362, 398, 384, 385, 386, 387, 388, 466, 263))
LOWER = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (362, 382, 381, 380, 374, 373, 390, 249, 263))
"""MediaPipe landmarks of the lid rims, from the corner on the picture's left to the other: the person's right eye, then
the left one."""
IRIS = ((468, 469, 470, 471, 472), (473, 474, 475, 476, 477))
"""Centre and four points of the rim, right and left eye."""
SIDES = ("right", "left")


@dataclass
class Eye:
    """One eye of the source, in output pixels."""

    opening: Opening
    iris: Points
    """(3,) centre x, y and radius."""
    origin: tuple[int, int]
    """Row and column of the plates' first pixel."""
    sclera: Image
    """(h, w, 3) eyeball without iris."""
    disc: Image
    """(h, w, 3) complete iris, at the place of the source's."""
    lid: Image
    """(h, w, 3) the skin around the eye, blurred and without eye and lashes: what a closing lid is made of."""
    grain: Image
    """(G, G) texture of the skin, mean 0; the blur has taken the lid's own."""
    lashes: NDArray[np.float32]
    """(3,) how much darker than the lid the line of the lashes is, as a factor per channel."""


def take_apart(image: Image, landmarks: Points, grain: Image, side: int) -> Eye:
    """The source's eye.

    Args:
        image: (h, w, 3) in [0, 1] at output size.
        landmarks: (478, 2) output px.
        grain: (G, G) texture of the skin.
        side: 0 the person's right eye, 1 the left one.
    """
    rims = from_rims(landmarks[list(UPPER[side])], landmarks[list(LOWER[side])])
    centre = landmarks[IRIS[side][0]]
    radius = float(np.linalg.norm(landmarks[list(IRIS[side][1:])] - centre, axis=1).mean())
    radius = max(radius, 0.12 * rims.width)
    height, width = image.shape[:2]
    top, bottom, left, right = opening.bounds(rims, 0.45 * rims.width, (height, width))
    bottom, right = max(bottom, top + 2), max(right, left + 2)
    patch = image[top:bottom, left:right]
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    points = np.stack([x.ravel(), y.ravel()], 1)
    # The rim itself is lashes and wet line: no colour of the eyeball.
    inside = rims.coverage(points, 1.0, grow=-0.035 * rims.width).reshape(x.shape)
    from_iris = np.hypot(x - centre[0], y - centre[1]) / radius

    white = inside * np.clip((from_iris - 1.12) / 0.12, 0, 1)
    luma = patch.mean(-1)
    if white.sum() > 8:
        # Lashes, veins and shadows make most of a narrow eye's white darker than it is: its bright part counts.
        level = _quantile(luma, white, 0.75)
        white = white * np.clip((luma - 0.70 * level) / (0.2 * level + 1e-6), 0, 1)
    sclera = _spread(patch, white, 0.10 * rims.width)

    shown = inside * np.clip((1.06 - from_iris) / 0.08, 0, 1)
    disc = _complete_iris(patch, shown, x - centre[0], y - centre[1], radius)

    # Lid skin without lashes: every colour an average over a neighbourhood, so that none makes a streak when stretched.
    skin = 1 - rims.coverage(points, 0.05 * rims.width, grow=0.07 * rims.width).reshape(x.shape)
    lid = _spread(patch, (skin * (skin > 0.5)).astype(np.float32), 0.05 * rims.width, keep=False)

    # Lashes: the dark part of the upper rim.
    band = rims.coverage(points, 1.0, grow=0.05 * rims.width) - rims.coverage(points, 1.0, grow=-0.04 * rims.width)
    band = (band.reshape(x.shape) > 0.5) & (y < rims.frame[0, 1] + (x - rims.frame[0, 0]) * slope(rims))
    dark = np.quantile(patch[band], 0.2, axis=0) if band.sum() > 8 else np.full(3, 0.2)
    lashes = np.clip(dark / np.maximum(lid.reshape(-1, 3).mean(0), 0.05), 0.25, 0.85).astype(np.float32)
    return Eye(rims, np.array([*centre, radius], np.float32), (top, left), sclera, disc, lid, grain, lashes)


def slope(rims: Opening) -> float:
    """Rise of the line between the corners, px down per px right."""
    along = float(rims.frame[1, 0])
    return float(rims.frame[1, 1]) / along if abs(along) > 1e-3 else 0.0


def draw(
    image: Image,
    source: Image,
    eye: Eye,
    field: Image,
    target: Opening,
    to_source: Points,
    shift: Points,
    strength: float,
) -> None:
    """Draw an eye into `image`, in place.

    Args:
        image: (h, w, 3) the frame.
        source: (h, w, 3) the photo at the same size.
        field: (H, W, 2 or 3) displacement on the work grid, px.
        target: the lids' rims in the frame.
        to_source: (2, 3) affine map from frame pixels to source pixels of an eyeball that does not turn.
        shift: (2,) source px that the gaze moves the iris.
        strength: [0, 1] opacity of the layer.
    """
    if strength <= 0 or not np.isfinite(to_source).all():
        return
    window = opening.bounds(target, 0.5 * eye.opening.width, (image.shape[0], image.shape[1]))
    shut = float(np.clip((0.4 - target.gap / max(eye.opening.gap, 1.0)) / 0.35, 0, 1))
    turned = float(np.clip((np.hypot(*shift) / (0.02 * eye.opening.width) - 0.3) / 1.2, 0, 1))
    _draw(
        image, source, field, np.float32(image.shape[0] / field.shape[0]), eye.sclera, eye.disc, eye.lid, eye.grain,
        eye.lashes, np.array(eye.origin, np.int64), eye.iris,
        eye.opening.frame, eye.opening.upper, eye.opening.lower, target.frame, target.upper, target.lower,
        to_source.astype(np.float32), shift.astype(np.float32), np.float32(strength), np.float32(turned),
        np.float32(shut), np.float32(max(1.2, 0.012 * eye.opening.width)), np.array(window, np.int64),
    )  # fmt: skip


def _quantile(values: Image, weight: Image, share: float) -> float:
    """The value below which `share` of the weight lies."""
    order = np.argsort(values, axis=None)
    total = np.cumsum(weight.ravel()[order])
    return float(values.ravel()[order][np.searchsorted(total, share * total[-1])])


def _spread(patch: Image, weight: Image, sigma: float, keep: bool = True) -> Image:
    """Colours of the weighted pixels continued over the whole patch; `keep`: pixels of weight 1 stay as they are."""
    if weight.sum() < 4:
        # No white to be seen: a light grey of the brightness around.
        grey = np.percentile(patch.reshape(-1, 3), 70, axis=0)
        return np.broadcast_to(grey, patch.shape).astype(np.float32).copy()
    total = np.zeros(patch.shape[:2])
    colours = np.zeros(patch.shape)
    for reach in (1.0, 3.0, 12.0):  # near colours first, far ones where there are none
        w = ndimage.gaussian_filter(weight, reach * sigma)
        c = ndimage.gaussian_filter(patch * weight[..., None], (reach * sigma, reach * sigma, 0))
        share = (1 - np.clip(total, 0, 1)) * np.clip(w / 0.08, 0, 1) if reach < 12 else 1 - np.clip(total, 0, 1)
        colours += share[..., None] * c / np.maximum(w, 1e-6)[..., None]
        total += share
    colours /= np.maximum(total, 1e-6)[..., None]
    return (colours + (weight[..., None] * (patch - colours) if keep else 0)).astype(np.float32)


def _complete_iris(patch: Image, shown: Image, dx: Image, dy: Image, radius: float) -> Image:
    """The patch, where hidden replaced by colours of the iris at the same distance from its centre and near angles."""
    rings, angles = 16, 48
    r = np.hypot(dx, dy) / radius * rings
    phi = np.arctan2(dy, dx) / (2 * np.pi) * angles
    ring = np.clip(r, 0, rings * 1.25).astype(int)
    sector = np.floor(phi).astype(int) % angles
    sums = np.zeros((int(rings * 1.25) + 2, angles, 4))
    weighted = np.concatenate([patch * shown[..., None], shown[..., None]], -1)
    np.add.at(sums, (ring, sector), weighted)
    wide = ndimage.gaussian_filter(sums, (0.8, 4.0, 0), mode=("nearest", "wrap", "nearest"))
    every = ndimage.gaussian_filter1d(sums.sum(1, keepdims=True), 1.0, axis=0, mode="nearest")
    all_rings = np.maximum(sums.sum((0, 1)), 1e-6)
    mean = all_rings[:3] / all_rings[3] if all_rings[3] > 1e-3 else np.full(3, 0.15)
    ring_colour = (every[..., :3] + 0.5 * mean) / (every[..., 3:] + 0.5)
    colour = (wide[..., :3] + 0.4 * ring_colour) / (wide[..., 3:] + 0.4)
    smooth = np.stack(
        [
            ndimage.map_coordinates(
                colour[..., c], (np.clip(r, 0, len(colour) - 1), phi % angles), order=1, mode="grid-wrap"
            )
            for c in range(3)
        ],
        -1,
    )
    return (shown[..., None] * patch + (1 - shown[..., None]) * smooth).astype(np.float32)


@njit(cache=True, nogil=True, inline="always")
def _stretched(before, after, width, u):  # type: ignore[no-untyped-def]
    """How far a pixel is stretched lid: `before`, `after`: px inside the lid's old and new rim."""
    moved = _step(before - after, np.float32(0.03) * width, np.float32(0.12) * width)
    below_brow = _step(before, np.float32(-0.30) * width, np.float32(-0.10) * width)
    above_lashes = _step(-after, np.float32(0.02) * width, np.float32(0.07) * width)
    side = _step(min(u, np.float32(1) - u), np.float32(-0.06), np.float32(0.10))
    return moved * below_brow * above_lashes * side


@njit(cache=True, nogil=True, inline="always")
def _step(x, low, high):  # type: ignore[no-untyped-def]
    """Smooth rise from 0 at `low` to 1 at `high`."""
    t = min(max((x - low) / (high - low), np.float32(0)), np.float32(1))
    return t * t * (np.float32(3) - np.float32(2) * t)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _draw(  # type: ignore[no-untyped-def]
    image, source, field, scale, sclera, disc, lid, grain, lashes, origin, iris,
    frame_s, upper_s, lower_s, frame, upper, lower, affine, shift, strength, turned, shut, feather, window,
):  # fmt: skip
    one, zero = np.float32(1), np.float32(0)
    radius = iris[2]
    width = np.sqrt(frame_s[1, 0] ** 2 + frame_s[1, 1] ** 2)
    for y in range(window[0], window[1]):
        for x in range(window[2], window[3]):
            px, py = np.float32(x) + np.float32(0.5), np.float32(y) + np.float32(0.5)
            u, below, above = opening.place(frame, upper, lower, px, py)
            if u < -0.1 or u > 1.1 or below < -0.35 * width or above < -0.35 * width:
                continue
            qx = affine[0, 0] * px + affine[0, 1] * py + affine[0, 2]
            qy = affine[1, 0] * px + affine[1, 1] * py + affine[1, 2]
            u_s, below_s, above_s = opening.place(frame_s, upper_s, lower_s, qx, qy)

            # Shut, the lids meet in one clean line; the photo's lashes point elsewhere.
            from_line = abs(below) / width
            clean = shut * (one - _step(from_line, np.float32(0.05), np.float32(0.12)))
            clean *= _step(min(u, one - u), np.float32(-0.05), np.float32(0.06))

            # A lid that comes down (or up) is stretched skin: blurred, lest the lashes and pores of its few source
            # pixels become stripes. Its rim, with the lashes, stays as the warp brought it.
            skin = max(_stretched(below_s, below, width, u_s), _stretched(above_s, above, width, u_s))
            skin = max(skin, clean)
            if skin > 0:
                skin *= strength
                row = min(max(int(py / scale), 0), field.shape[0] - 1)
                column = min(max(int(px / scale), 0), field.shape[1] - 1)
                wx = px + scale * field[row, column, 0] - origin[1]
                wy = py + scale * field[row, column, 1] - origin[0]
                noise = grain[int(qy) % len(grain), int(qx) % len(grain)]
                thick = np.float32(0.022) + np.float32(0.012) * (below > 0)  # lashes hang down a little
                line = shut * np.exp(-((from_line / thick) ** 2)) * _step(min(u, one - u), zero, np.float32(0.15))
                for c in range(3):
                    value = (bilinear(lid, wx, wy, c) + noise) * (one - line * (one - lashes[c]))
                    image[y, x, c] += skin * (value - image[y, x, c])

            inside = strength * opening.coverage(frame, upper, lower, px, py, feather, np.float32(0))
            if inside <= 0:
                continue
            # The iris, looked up where it was before the gaze moved it.
            ix, iy = qx - shift[0], qy - shift[1]
            distance = np.sqrt((ix - iris[0]) ** 2 + (iy - iris[1]) ** 2)
            on_iris = opening.soft(np.float32(1.05) * radius - distance, max(np.float32(0.16) * radius, one))
            # Own pixels where the photo shows the eyeball and the gaze is the photo's.
            own = opening.coverage(frame_s, upper_s, lower_s, qx, qy, feather, np.float32(0.5) * feather)
            own *= one - turned
            # The lids' shadow on what they uncover; the photo's own pixels have theirs.
            shade = one - np.float32(0.38) * np.exp(-max(below, np.float32(0)) / (np.float32(0.07) * width))
            shade *= one - np.float32(0.15) * np.exp(-max(above, np.float32(0)) / (np.float32(0.04) * width))
            for c in range(3):
                ball = bilinear(sclera, qx - origin[1], qy - origin[0], c)
                value = ball + on_iris * (bilinear(disc, ix - origin[1], iy - origin[0], c) - ball)
                value *= one + (shade - one) * (one - own)
                value += own * (bilinear(source, qx, qy, c) - value)
                image[y, x, c] += inside * (value - image[y, x, c])
