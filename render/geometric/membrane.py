"""Membrane: the smoothest picture through weighted, scattered values.

    minimise  sum_i w_i |u_i - v_i|^2  +  sum_(i~j) |u_i - u_j|^2        (i~j: neighbours left, right, above, below)

Where w is large, u follows v; where w is 0, u is harmonic (Laplace's equation); borders are free (Neumann) unless the
caller puts weight on them. It extends the motion of the face over hair and clothes, and colours over what no photo
shows. The weights are soft, so that what fades in and out of sight changes the result smoothly from frame to frame.

Solved coarse to fine (cascadic multigrid: Bornemann and Deuflhard 1996): every level starts from the level above and
needs a few sweeps of successive over-relaxation. In two dimensions the second sum does not change with the grid
spacing, so a coarse cell simply adds up the weights of its four cells.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Image = NDArray[np.float32]

MAX_WEIGHT = 1e4
"""Weights above this are cut: they fix a value to 4 digits already, and larger ones slow the coarse levels."""


def solve(values: Image, weights: Image, *, sweeps: int = 12, coarsest: int = 4) -> Image:
    """The membrane through `values`.

    Args:
        values: (H, W, C) float32; ignored where the weight is 0.
        weights: (H, W) float32 >= 0, relative to the stiffness of one cell edge (1 pulls as much as one neighbour).
        sweeps: relaxation sweeps per level; 12 leaves about 1 % of the largest value in the middle of wide holes.
        coarsest: side in cells at which the pyramid ends.
    Returns:
        (H, W, C) float32. All zeros where no weight is given at all.
    """
    if values.ndim != 3 or weights.shape != values.shape[:2]:
        raise ValueError(f"membrane: values must be (H, W, C), weights (H, W), got {values.shape} and {weights.shape}.")
    levels = [(np.ascontiguousarray(values, np.float32), np.minimum(weights, MAX_WEIGHT).astype(np.float32))]
    while max(levels[-1][1].shape) > coarsest:
        levels.append(_restrict(*levels[-1]))
    result = _average(*levels[-1])
    _relax(result, *levels[-1], 10 * sweeps)
    for v, w in reversed(levels[:-1]):
        result = upsample(result, (w.shape[0], w.shape[1]), 2.0)
        _relax(result, v, w, sweeps)
    return result


def upsample(image: Image, size: tuple[int, int], factor: float) -> Image:
    """(h, w, C) -> (H, W, C), bilinear, `factor` fine cells per coarse cell, edges repeated (align_corners=False)."""
    return _upsample(image, size[0], size[1], np.float32(1 / factor))


def _average(values: Image, weights: Image) -> Image:
    """Every cell the weighted mean of all."""
    total = max(float(weights.sum()), 1e-12)
    mean = (values * weights[..., None]).sum((0, 1)) / total
    return np.tile(mean.astype(np.float32), (*weights.shape, 1))


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _restrict(values: Image, weights: Image) -> tuple[Image, Image]:
    """Cells of twice the size: weights added, values averaged by weight."""
    height, width, channels = values.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    coarse = np.zeros((rows, columns, channels), np.float32)
    total = np.zeros((rows, columns), np.float32)
    for y in range(height):
        for x in range(width):
            w = weights[y, x]
            if w > 0:
                total[y // 2, x // 2] += w
                for c in range(channels):
                    coarse[y // 2, x // 2, c] += w * values[y, x, c]
    for y in range(rows):
        for x in range(columns):
            w = total[y, x]
            if w > 0:
                for c in range(channels):
                    coarse[y, x, c] /= w
                total[y, x] = min(w, np.float32(MAX_WEIGHT))
    return coarse, total


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _relax(u: Image, values: Image, weights: Image, sweeps: int) -> None:
    """Sweeps of successive over-relaxation in place, forwards and backwards in turn: no direction is favoured."""
    height, width, channels = u.shape
    omega = np.float32(1.6)
    one = np.float32(1)
    for sweep in range(sweeps):
        forward = sweep % 2 == 0
        for step_y in range(height):
            y = step_y if forward else height - 1 - step_y
            above, below = max(y - 1, 0), min(y + 1, height - 1)
            for step_x in range(width):
                x = step_x if forward else width - 1 - step_x
                left, right = max(x - 1, 0), min(x + 1, width - 1)
                # A neighbour beyond the border is the cell itself: free border. Its share is taken out of the diagonal.
                inside = np.float32((above != y) + (below != y) + (left != x) + (right != x))
                w = weights[y, x]
                scale = omega / max(w + inside, np.float32(1e-6))
                missing = np.float32(4) - inside
                for c in range(channels):
                    here = u[y, x, c]
                    around = u[above, x, c] + u[below, x, c] + u[y, left, c] + u[y, right, c] - missing * here
                    u[y, x, c] = (one - omega) * here + scale * (w * values[y, x, c] + around)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _upsample(image: Image, height: int, width: int, step: np.float32) -> Image:
    rows, columns, channels = image.shape
    out = np.empty((height, width, channels), np.float32)
    for y in range(height):
        v = min(max((np.float32(y) + np.float32(0.5)) * step - np.float32(0.5), np.float32(0)), np.float32(rows - 1))
        top = min(int(v), rows - 2) if rows > 1 else 0
        fy = v - np.float32(top)
        bottom = min(top + 1, rows - 1)
        for x in range(width):
            h = min(
                max((np.float32(x) + np.float32(0.5)) * step - np.float32(0.5), np.float32(0)), np.float32(columns - 1)
            )
            left = min(int(h), columns - 2) if columns > 1 else 0
            fx = h - np.float32(left)
            right = min(left + 1, columns - 1)
            for c in range(channels):
                a = image[top, left, c] + fx * (image[top, right, c] - image[top, left, c])
                b = image[bottom, left, c] + fx * (image[bottom, right, c] - image[bottom, left, c])
                out[y, x, c] = a + fy * (b - a)
    return out
