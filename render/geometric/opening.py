"""Openings in the skin, eyes and mouth, as two curves: the upper and the lower rim.

In a frame that leans with the opening (u from corner to corner, v across, downwards) both rims are functions of u:

        corner u=0  .---- upper(u) ----.  u=1 corner          open where upper(u) < v < lower(u)
                     '---- lower(u) ---'

Coverage is soft over about one pixel, and zero where the rims meet or cross. So an opening can close and open again
without anything jumping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Image = NDArray[np.float32]
Points = NDArray[np.float32]

SAMPLES = 64
"""Samples of each rim from corner to corner."""


@dataclass
class Opening:
    """One opening, in pixels."""

    frame: Points
    """(3, 2): origin (first corner), axis from corner to corner, axis across; u = (p - origin) . axis / |axis|^2."""
    upper: NDArray[np.float32]
    """(SAMPLES,) px across, of the upper rim."""
    lower: NDArray[np.float32]
    """(SAMPLES,) px across, of the lower rim."""

    @property
    def width(self) -> float:
        """px from corner to corner."""
        return float(np.linalg.norm(self.frame[1]))

    @property
    def gap(self) -> float:
        """Mean px between the rims over the middle half; negative where they overlap."""
        quarter = SAMPLES // 4
        return float((self.lower - self.upper)[quarter:-quarter].mean())

    def sealed(self, amount: float) -> Opening:
        """The opening with its rims drawn together by `amount` px where they are close, hardly where they are apart."""
        gap = np.maximum(self.lower - self.upper, 0)
        half = 0.5 * amount * np.exp(-gap / max(3 * amount, 1e-6)).astype(np.float32)
        return Opening(self.frame, self.upper + half, self.lower - half)

    def coverage(self, points: Points, feather: float, grow: float = 0.0) -> NDArray[np.float32]:
        """(K,) how far (K, 2) px lie inside; soft over `feather` px, the rims moved out by `grow` px."""
        points = np.ascontiguousarray(points, np.float32)
        out = np.empty(len(points), np.float32)
        for k in range(len(points)):
            out[k] = coverage(self.frame, self.upper, self.lower, points[k, 0], points[k, 1], feather, grow)
        return out


def from_rims(upper: Points, lower: Points) -> Opening:
    """The opening between two chains of (K, 2) px that both run from the first corner to the second, corners included,
    first corner on the left of the picture (the frame's v then points down)."""
    origin, end = upper[0], upper[-1]
    axis = end - origin
    length = float(np.linalg.norm(axis)) + 1e-6
    across = np.array([-axis[1], axis[0]], np.float32) / length
    rims = []
    for chain in (upper, lower):
        along = (chain - origin) @ axis / length**2
        # Seen from the side, points beyond the corner fold back; a function of u needs them in order.
        along = np.maximum.accumulate(along) + 1e-4 * np.arange(len(along))
        rims.append(_curve(along.astype(np.float64), ((chain - origin) @ across).astype(np.float64)))
    frame = np.stack([origin, axis, across]).astype(np.float32)
    return Opening(frame, rims[0], rims[1])


@njit(cache=True, nogil=True)
def _curve(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
    """(SAMPLES,) over [0, 1]: monotone cubic through the points (Fritsch and Butland 1984), constant beyond its ends.

    Monotone: between two landmarks a rim runs from one to the other, without a bump that could open a shut eye.
    """
    count = len(x)
    step = x[1:] - x[:-1]
    slope = (y[1:] - y[:-1]) / step
    tangent = np.zeros(count)
    tangent[0], tangent[-1] = slope[0], slope[-1]
    for k in range(1, count - 1):
        if slope[k - 1] * slope[k] > 0:
            a, b = 2 * step[k] + step[k - 1], step[k] + 2 * step[k - 1]
            tangent[k] = (a + b) / (a / slope[k - 1] + b / slope[k])
    out = np.empty(SAMPLES, np.float32)
    k = 0
    for i in range(SAMPLES):
        at = min(max(i / (SAMPLES - 1), x[0]), x[-1])
        while k < count - 2 and at > x[k + 1]:
            k += 1
        t = (at - x[k]) / step[k]
        rest = 1 - t
        out[i] = (
            y[k] * (1 + 2 * t) * rest * rest
            + y[k + 1] * t * t * (3 - 2 * t)
            + step[k] * (tangent[k] * t * rest * rest - tangent[k + 1] * t * t * rest)
        )
    return out


def bounds(opening: Opening, margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right) of the pixels that the opening may touch."""
    u = np.linspace(0, 1, SAMPLES)[:, None]
    line = opening.frame[0] + u * opening.frame[1]
    rims = [line + rim[:, None] * opening.frame[2] for rim in (opening.upper, opening.lower)]
    points = np.concatenate(rims)
    low, high = points.min(0) - margin, points.max(0) + margin
    left, top = np.clip(np.floor(low), 0, (size[1], size[0])).astype(int)
    right, bottom = np.clip(np.ceil(high), 0, (size[1], size[0])).astype(int)
    return int(top), int(bottom), int(left), int(right)


@njit(cache=True, nogil=True, inline="always")
def place(frame, upper, lower, x, y):  # type: ignore[no-untyped-def]
    """(u, px below the upper rim, px above the lower rim) of a pixel; u is outside [0, 1] beyond the corners."""
    ax, ay = frame[1, 0], frame[1, 1]
    rx, ry = x - frame[0, 0], y - frame[0, 1]
    u = (rx * ax + ry * ay) / (ax * ax + ay * ay + np.float32(1e-12))
    v = rx * frame[2, 0] + ry * frame[2, 1]
    t = min(max(u, np.float32(0)), np.float32(1)) * np.float32(len(upper) - 1)
    i = min(int(t), len(upper) - 2)
    f = t - np.float32(i)
    top = upper[i] + f * (upper[i + 1] - upper[i])
    bottom = lower[i] + f * (lower[i + 1] - lower[i])
    return u, v - top, bottom - v


@njit(cache=True, nogil=True, inline="always")
def soft(distance, feather):  # type: ignore[no-untyped-def]
    """Coverage of a pixel `distance` px inside an edge that is `feather` px wide."""
    return min(max(distance / feather + np.float32(0.5), np.float32(0)), np.float32(1))


@njit(cache=True, nogil=True)
def coverage(frame, upper, lower, x, y, feather, grow):  # type: ignore[no-untyped-def]
    """Soft inside of an opening at one pixel."""
    u, below, above = place(frame, upper, lower, np.float32(x), np.float32(y))
    length = np.sqrt(frame[1, 0] ** 2 + frame[1, 1] ** 2)
    side = min(u, np.float32(1) - u) * length
    f, g = np.float32(feather), np.float32(grow)
    return soft(below + g, f) * soft(above + g, f) * soft(side + g, f)


@njit(cache=True, nogil=True, inline="always")
def bilinear(image, qx, qy, c):  # type: ignore[no-untyped-def]
    """One channel, bilinear, edges repeated; (qx, qy) in pixels of the image."""
    height, width = image.shape[:2]
    u = min(max(qx - np.float32(0.5), np.float32(0)), np.float32(width - 1))
    v = min(max(qy - np.float32(0.5), np.float32(0)), np.float32(height - 1))
    ix, iy = int(u), int(v)
    jx, jy = min(ix + 1, width - 1), min(iy + 1, height - 1)
    fx, fy = u - np.float32(ix), v - np.float32(iy)
    a = image[iy, ix, c] + fx * (image[iy, jx, c] - image[iy, ix, c])
    b = image[jy, ix, c] + fx * (image[jy, jx, c] - image[jy, ix, c])
    return a + fy * (b - a)
