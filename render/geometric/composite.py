"""The new picture: one warp of the source at its own resolution, over the painted background.

    out(p) = gain P(q) + (1 - a(q)) B(p),   q = p + displacement(p)           P, a, B: see matte.py

The field lives on the work grid and is interpolated; the source is sampled with a cubic kernel at its own resolution,
so nothing gets softer than the photo. Across a jump of the field (a nose in front of a cheek) colours are blended, not
displacements: a mean of two displacements would show a third, wrong place. Where nothing moves the source pixel is
copied.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

from .. import threads
from . import membrane
from .field import CELL, bands
from .shading import LUMA
from .surface import Surface, sample

Image = NDArray[np.float32]

JUMP = 2.0
"""Pixels between displacements of neighbours from which colours are blended in place of displacements."""
STILL = 2e-3
"""Pixels of displacement below which the source pixel is copied."""


def warp(layers: Image, background: Image, values: Image, scale: float, workers: int = 1) -> tuple[Image, Image]:
    """The source picture moved by a field.

    Args:
        layers: (h, w, 4) P and a, premultiplied, at the source's resolution.
        background: (h, w, 3) B.
        values: (H, W, 3) dx, dy in work pixels, gain - 1.
        scale: source pixels per work pixel.
        workers: threads.
    Returns:
        (h, w, 3) picture in [0, 1] (cubic overshoot is clipped), and (h, w) how much of each pixel the person covers.
    """
    out = np.empty_like(background)
    cover = np.empty(background.shape[:2], np.float32)

    def run(top: int, bottom: int) -> None:
        _warp(layers, background, values, np.float32(scale), out, cover, top, bottom)

    threads.run(run, bands(len(out), 16), workers)
    return out, cover


def shrink(image: Image, alpha: Image) -> Image:
    """(H, W, 3) and the person matte (H, W) -> (h, w, 4): person's colour times alpha, and alpha; means over cells."""
    height, width = alpha.shape
    person = np.dstack([image * alpha[..., None], alpha])
    padded = np.pad(person, ((0, -height % CELL), (0, -width % CELL), (0, 0)), mode="edge")
    return padded.reshape(padded.shape[0] // CELL, CELL, -1, CELL, 4).mean((1, 3)).astype(np.float32)


def skin_grain(image: Image, surface: Surface, size: int = 256) -> Image:
    """(size, size) noise as strong as the fine structure of the photo's skin, so that painted skin does not look waxy.

    Args:
        image: (H, W, 3) in [0, 1].
    """
    luminance = image @ LUMA
    fine = luminance - ndimage.gaussian_filter(luminance, 1.5)
    used = (surface.skin > 0.5) & (surface.confidence > 0.8)
    strength = 1.48 * np.median(np.abs(sample(fine, surface.pixels[used, :2]))) if used.any() else 0.0
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((size, size)), 0.7, mode="wrap")
    return (noise / noise.std() * min(strength, 0.03)).astype(np.float32)


def paint_stretched(
    image: Image,
    cover: Image,
    small: Image,
    field: Image,
    stretch: Image,
    grain: Image,
    scale: float,
    workers: int = 1,
) -> None:
    """Paint smooth skin, in place, where the warp repeats the same few source pixels (striped chins and temples).

    Args:
        image: (h, w, 3).
        cover: (h, w) how much of each pixel is the person.
        small: (H / CELL, W / CELL, 4) the person, see `shrink`.
        field: (H, W, 3) work displacement.
        stretch: (H / CELL, W / CELL) in [0, 1].
        grain: (G, G) texture of the skin with mean 0, tiled.
        scale: source pixels per work pixel.
        workers: threads.
    """
    if stretch.max() < 0.02:
        return
    colours = _gather(small, field)
    alpha = colours[..., 3]
    weights = ((1 - np.minimum(1.25 * stretch, 1)) ** 2 * alpha).astype(np.float32)
    known = (colours[..., :3] / np.maximum(alpha, 0.05)[..., None]).astype(np.float32)
    fill = membrane.solve(known, 20 * weights, sweeps=8)

    def run(top: int, bottom: int) -> None:
        _paint(image, cover, fill, stretch, grain, np.float32(scale), top, bottom)

    threads.run(run, bands(len(image), 16), workers)


@njit(cache=True, nogil=True, inline="always")
def _cubic(t):  # type: ignore[no-untyped-def]
    """Catmull-Rom weights of the four samples around a point at fraction t."""
    t2 = t * t
    t3 = t2 * t
    half = np.float32(0.5)
    return (
        half * (-t3 + np.float32(2) * t2 - t),
        half * (np.float32(3) * t3 - np.float32(5) * t2 + np.float32(2)),
        half * (np.float32(-3) * t3 + np.float32(4) * t2 + t),
        half * (t3 - t2),
    )


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _warp(
    layers: Image, background: Image, values: Image, scale: np.float32, out: Image, covers: Image, first: int, last: int
) -> None:
    height, width = background.shape[:2]
    rows, columns = values.shape[:2]
    half, one = np.float32(0.5), np.float32(1)
    same_grid = rows == height and columns == width
    for y in range(first, last):
        row = np.float32(y) + half
        v = row / scale - half
        top = min(max(int(np.floor(v)), 0), rows - 1)
        bottom = min(top + 1, rows - 1)
        fy = min(max(v - np.float32(top), np.float32(0)), one)
        for x in range(width):
            column = np.float32(x) + half
            h = column / scale - half
            left = min(max(int(np.floor(h)), 0), columns - 1)
            right = min(left + 1, columns - 1)
            fx = min(max(h - np.float32(left), np.float32(0)), one)

            # Range of the displacement around the pixel.
            first_y, last_y, first_x, last_x = top, bottom, left, right
            if same_grid:
                first_y, last_y = max(y - 1, 0), min(y + 1, rows - 1)
                first_x, last_x = max(x - 1, 0), min(x + 1, columns - 1)
            low_x = high_x = values[top, left, 0]
            low_y = high_y = values[top, left, 1]
            for j in range(first_y, last_y + 1):
                for i in range(first_x, last_x + 1):
                    low_x, high_x = min(low_x, values[j, i, 0]), max(high_x, values[j, i, 0])
                    low_y, high_y = min(low_y, values[j, i, 1]), max(high_y, values[j, i, 1])

            red = green = blue = cover = np.float32(0)
            on_border = y == 0 or y == height - 1 or x == 0 or x == width - 1
            if not on_border and (high_x - low_x > JUMP or high_y - low_y > JUMP):
                total = np.float32(0)
                for j in range(first_y, last_y + 1):
                    for i in range(first_x, last_x + 1):
                        # Tent of one work pixel around the output pixel's place on the work grid.
                        wy = np.float32(1.5) - abs(v - np.float32(j)) if same_grid else one - abs(v - np.float32(j))
                        wx = np.float32(1.5) - abs(h - np.float32(i)) if same_grid else one - abs(h - np.float32(i))
                        w = max(wy, np.float32(0)) * max(wx, np.float32(0))
                        if w > 0:
                            qx = column + scale * values[j, i, 0]
                            qy = row + scale * values[j, i, 1]
                            r, g, b, a = _bilinear(layers, qx, qy)
                            gain = w * _room(one + values[j, i, 2], max(r, max(g, b)))
                            red, green, blue = red + gain * r, green + gain * g, blue + gain * b
                            cover += w * a
                            total += w
                total = max(total, np.float32(1e-6))
                red, green, blue, cover = red / total, green / total, blue / total, cover / total
            else:
                w00, w01 = (one - fy) * (one - fx), (one - fy) * fx
                w10, w11 = fy * (one - fx), fy * fx
                dx = (
                    w00 * values[top, left, 0]
                    + w01 * values[top, right, 0]
                    + w10 * values[bottom, left, 0]
                    + w11 * values[bottom, right, 0]
                )
                dy = (
                    w00 * values[top, left, 1]
                    + w01 * values[top, right, 1]
                    + w10 * values[bottom, left, 1]
                    + w11 * values[bottom, right, 1]
                )
                gain = one + (
                    w00 * values[top, left, 2]
                    + w01 * values[top, right, 2]
                    + w10 * values[bottom, left, 2]
                    + w11 * values[bottom, right, 2]
                )
                if on_border or abs(dx) + abs(dy) < STILL:
                    red, green, blue, cover = layers[y, x, 0], layers[y, x, 1], layers[y, x, 2], layers[y, x, 3]
                else:
                    red, green, blue, cover = _bicubic(layers, column + scale * dx, row + scale * dy)
                gain = _room(gain, max(red, max(green, blue)))
                red, green, blue = gain * red, gain * green, gain * blue
            covers[y, x] = cover
            behind = one - min(max(cover, np.float32(0)), one)
            out[y, x, 0] = min(max(red + behind * background[y, x, 0], np.float32(0)), one)
            out[y, x, 1] = min(max(green + behind * background[y, x, 1], np.float32(0)), one)
            out[y, x, 2] = min(max(blue + behind * background[y, x, 2], np.float32(0)), one)


@njit(cache=True, nogil=True, inline="always")
def _room(gain, brightest):  # type: ignore[no-untyped-def]
    """A gain above 1 that leaves bright colours room: what is nearly white keeps its hue instead of clipping."""
    if gain <= 1:
        return gain
    room = min(max(np.float32(2.5) * (np.float32(1) - brightest), np.float32(0)), np.float32(1))
    return np.float32(1) + (gain - np.float32(1)) * room


@njit(cache=True, nogil=True, inline="always")
def _bicubic(image, qx, qy):  # type: ignore[no-untyped-def]
    """Four channels at (qx, qy) px, Catmull-Rom, edges repeated."""
    height, width = image.shape[:2]
    u = min(max(qx - np.float32(0.5), np.float32(0)), np.float32(width - 1))
    v = min(max(qy - np.float32(0.5), np.float32(0)), np.float32(height - 1))
    ix, iy = int(u), int(v)
    kx = _cubic(u - np.float32(ix))
    ky = _cubic(v - np.float32(iy))
    r = g = b = a = np.float32(0)
    for j in range(4):
        row = min(max(iy + j - 1, 0), height - 1)
        wy = ky[j]
        for i in range(4):
            column = min(max(ix + i - 1, 0), width - 1)
            w = wy * kx[i]
            r += w * image[row, column, 0]
            g += w * image[row, column, 1]
            b += w * image[row, column, 2]
            a += w * image[row, column, 3]
    return r, g, b, a


@njit(cache=True, nogil=True, inline="always")
def _bilinear(image, qx, qy):  # type: ignore[no-untyped-def]
    """Four channels at (qx, qy) px, edges repeated."""
    height, width = image.shape[:2]
    u = min(max(qx - np.float32(0.5), np.float32(0)), np.float32(width - 1))
    v = min(max(qy - np.float32(0.5), np.float32(0)), np.float32(height - 1))
    ix, iy = int(u), int(v)
    fx, fy = u - np.float32(ix), v - np.float32(iy)
    jx, jy = min(ix + 1, width - 1), min(iy + 1, height - 1)
    one = np.float32(1)
    w00, w01, w10, w11 = (one - fy) * (one - fx), (one - fy) * fx, fy * (one - fx), fy * fx
    r = w00 * image[iy, ix, 0] + w01 * image[iy, jx, 0] + w10 * image[jy, ix, 0] + w11 * image[jy, jx, 0]
    g = w00 * image[iy, ix, 1] + w01 * image[iy, jx, 1] + w10 * image[jy, ix, 1] + w11 * image[jy, jx, 1]
    b = w00 * image[iy, ix, 2] + w01 * image[iy, jx, 2] + w10 * image[jy, ix, 2] + w11 * image[jy, jx, 2]
    a = w00 * image[iy, ix, 3] + w01 * image[iy, jx, 3] + w10 * image[jy, ix, 3] + w11 * image[jy, jx, 3]
    return r, g, b, a


@njit(cache=True, nogil=True)
def _gather(small: Image, field: Image) -> Image:
    """Colours of the warped picture, one per cell."""
    rows, columns = small.shape[:2]
    height, width = field.shape[:2]
    out = np.empty_like(small)
    for y in range(rows):
        for x in range(columns):
            py, px = min(y * CELL + CELL // 2, height - 1), min(x * CELL + CELL // 2, width - 1)
            u = (np.float32(px) + field[py, px, 0]) / np.float32(CELL) - np.float32(0.5)
            v = (np.float32(py) + field[py, px, 1]) / np.float32(CELL) - np.float32(0.5)
            u = min(max(u, np.float32(0)), np.float32(columns - 1))
            v = min(max(v, np.float32(0)), np.float32(rows - 1))
            ix, iy = int(u), int(v)
            jx, jy = min(ix + 1, columns - 1), min(iy + 1, rows - 1)
            fx, fy = u - np.float32(ix), v - np.float32(iy)
            for c in range(4):
                a = small[iy, ix, c] + fx * (small[iy, jx, c] - small[iy, ix, c])
                b = small[jy, ix, c] + fx * (small[jy, jx, c] - small[jy, ix, c])
                out[y, x, c] = a + fy * (b - a)
    return out


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _paint(
    image: Image, cover: Image, fill: Image, stretch: Image, grain: Image, scale: np.float32, first: int, last: int
) -> None:
    width = image.shape[1]
    rows, columns = stretch.shape
    size = grain.shape[0]
    smooth = np.empty(3, np.float32)
    half, one = np.float32(0.5), np.float32(1)
    step = one / (scale * np.float32(CELL))
    for y in range(first, last):
        v = min(max((np.float32(y) + half) * step - half, np.float32(0)), np.float32(rows - 1))
        top = max(min(int(v), rows - 2), 0)
        fy = v - np.float32(top)
        for x in range(width):
            h = min(max((np.float32(x) + half) * step - half, np.float32(0)), np.float32(columns - 1))
            left = max(min(int(h), columns - 2), 0)
            fx = h - np.float32(left)
            w00, w01, w10, w11 = (one - fy) * (one - fx), (one - fy) * fx, fy * (one - fx), fy * fx
            w = (
                w00 * stretch[top, left]
                + w01 * stretch[top, left + 1]
                + w10 * stretch[top + 1, left]
                + w11 * stretch[top + 1, left + 1]
            )
            if w <= 0:
                continue
            # Stripes differ little from the colours around; what differs much is no skin (hair beside a cheek), and
            # would turn to fog.
            apart = np.float32(0)
            for c in range(3):
                smooth[c] = (
                    w00 * fill[top, left, c]
                    + w01 * fill[top, left + 1, c]
                    + w10 * fill[top + 1, left, c]
                    + w11 * fill[top + 1, left + 1, c]
                )
                apart += abs(smooth[c] - image[y, x, c])
            apart /= np.float32(3 * 0.09)
            w *= np.float32(0.75) * min(max(cover[y, x], np.float32(0)), one) / (one + apart * apart)
            noise = grain[y % size, x % size]
            for c in range(3):
                value = image[y, x, c] + w * (smooth[c] + noise - image[y, x, c])
                image[y, x, c] = min(max(value, np.float32(0)), one)
