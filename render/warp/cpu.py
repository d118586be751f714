"""The warp of `reference` as a numba loop over channels-last pixels."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import threads as _threads
from .reference import Axis, displacement_axis

_BAND = 16  # rows per piece of work


def warp(
    features: NDArray[np.float32],
    displacement: NDArray[np.float32],
    image: NDArray[np.float32],
    *,
    zeros: bool = False,
    axes: tuple[Axis, Axis] | None = None,
    threads: int = 1,
) -> None:
    """Warps numpy arrays into a given one.

    Args:
        features: (B, H, W, C) float32, contiguous.
        displacement: (B, h, w, 2) float32, contiguous, x and y in NDC, enlarged to H x W when coarser.
        image: (B, H, W, C) float32, contiguous, written.
        zeros: outside the features lies 0; else the nearest border pixel.
        axes: another meaning of the field, see `reference`.
        threads: at most this many work.
    """
    batch, height, width, _ = features.shape
    x, y = axes or (displacement_axis(width), displacement_axis(height))

    def fill(b: int, top: int) -> None:
        _warp(features[b], displacement[b], *x, *y, zeros, top, min(top + _BAND, height), image[b])

    _threads.run(fill, [(b, top) for b in range(batch) for top in range(0, height, _BAND)], threads)


@njit(
    "void(f4[:,:,::1],f4[:,:,::1],f4,f4,f4,f4,f4,f4,b1,i8,i8,f4[:,:,::1])", cache=True, nogil=True, error_model="numpy"
)
def _warp(  # type: ignore[no-untyped-def]
    features, field, base_x, offset_x, scale_x, base_y, offset_y, scale_y, zeros, top, bottom, image
):
    height, width, channels = features.shape
    rows, columns = field.shape[:2]
    same = rows == height and columns == width
    zero, one, half = np.float32(0), np.float32(1), np.float32(0.5)
    ratio_y, ratio_x = np.float32(rows) / np.float32(height), np.float32(columns) / np.float32(width)
    for i in range(top, bottom):
        v = min(max((np.float32(i) + half) * ratio_y - half, zero), np.float32(rows - 1))
        v0 = int(v)
        v1 = min(v0 + 1, rows - 1)
        fv = v - np.float32(v0)
        for j in range(width):
            if same:
                dx, dy = field[i, j, 0], field[i, j, 1]
            else:
                u = min(max((np.float32(j) + half) * ratio_x - half, zero), np.float32(columns - 1))
                u0 = int(u)
                u1 = min(u0 + 1, columns - 1)
                fu = u - np.float32(u0)
                dx = (one - fv) * ((one - fu) * field[v0, u0, 0] + fu * field[v0, u1, 0]) + fv * (
                    (one - fu) * field[v1, u0, 0] + fu * field[v1, u1, 0]
                )
                dy = (one - fv) * ((one - fu) * field[v0, u0, 1] + fu * field[v0, u1, 1]) + fv * (
                    (one - fu) * field[v1, u0, 1] + fu * field[v1, u1, 1]
                )
            x = base_x * np.float32(j) + offset_x + scale_x * dx
            y = base_y * np.float32(i) + offset_y + scale_y * dy
            if zeros:
                # Two pixels outside nothing is left of the picture; NaN ends there too.
                if not (x > -2 and x < width + 1 and y > -2 and y < height + 1):
                    image[i, j] = 0
                    continue
            else:
                x = min(x, np.float32(width - 1)) if x > 0 else zero
                y = min(y, np.float32(height - 1)) if y > 0 else zero
            x0, y0 = int(np.floor(x)), int(np.floor(y))
            fx, fy = x - np.float32(x0), y - np.float32(y0)
            w00, w01 = (one - fx) * (one - fy), fx * (one - fy)
            w10, w11 = (one - fx) * fy, fx * fy
            if x0 < 0 or x0 >= width:
                w00, w10 = zero, zero
            if x0 < -1 or x0 >= width - 1:
                w01, w11 = zero, zero
            if y0 < 0 or y0 >= height:
                w00, w01 = zero, zero
            if y0 < -1 or y0 >= height - 1:
                w10, w11 = zero, zero
            xa, xb = min(max(x0, 0), width - 1), min(max(x0 + 1, 0), width - 1)
            ya, yb = min(max(y0, 0), height - 1), min(max(y0 + 1, 0), height - 1)
            for c in range(channels):
                image[i, j, c] = (
                    w00 * features[ya, xa, c]
                    + w01 * features[ya, xb, c]
                    + w10 * features[yb, xa, c]
                    + w11 * features[yb, xb, c]
                )
