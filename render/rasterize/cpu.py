"""The rule set of `reference` as a numba loop: bounding boxes and a z-buffer, no lock, no atomics.

Triangles are taken in ascending order and replace a pixel only when strictly nearer, so the lowest triangle wins ties.
Each piece of work owns a band of rows of one mesh, so the result does not depend on the number of threads.

A triangle's box is walked in columns of eight pixels, all of them computed and blended by masks: a head's triangles are
about five pixels wide, and a branch per pixel would be mispredicted too often. Snapped coordinates are whole numbers in
float64; products of their differences stay below 2^51 and are exact.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .. import threads as _threads
from ..lanes import WIDTH, get, kernel, least, load, most, narrow, put, ramp, select, splat, store
from .reference import FAR, LIMIT, NEAR, STEPS

_STEPS, _HALF = float(STEPS), float(STEPS // 2)


def rasterize(
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    face_id: NDArray[np.int32],
    depth: NDArray[np.float32],
    *,
    cull: bool = True,
    perspective: bool = False,
    threads: int = 1,
) -> None:
    """Rasterises numpy arrays into given ones. All are C-contiguous.

    Args:
        vertices: (B, V, 3) float32 NDC and depth.
        faces: (F, 3) int32.
        face_id: (B, H, W) int32, written.
        depth: (B, H, W) float32, written.
        cull, perspective: as `headwarp.render.rasterize`.
        threads: at most this many work.
    Raises:
        ValueError: a face names a vertex that is not there. TypeError: another dtype or memory order.
    """
    batch, height, width = face_id.shape
    if width < WIDTH:  # too narrow for a row of lanes: draw on a wider sheet
        wide = (batch, height, WIDTH)
        ids, depths = np.empty(wide, np.int32), np.empty(wide, np.float32)
    else:
        ids, depths = face_id, depth
    bands = 1 if batch >= threads else min(threads, height)
    edges = [height * k // bands for k in range(bands + 1)]
    pieces = [(b, edges[k], edges[k + 1]) for b in range(batch) for k in range(bands)]
    bad: list[bool] = []

    def draw(b: int, top: int, bottom: int) -> None:
        ids[b, top:bottom] = -1
        depths[b, top:bottom] = np.inf
        flat = ids[b].reshape(-1), depths[b].reshape(-1)
        mesh = vertices[b].reshape(-1), faces.reshape(-1)
        n = vertices.shape[1]
        snapped = np.empty(n), np.empty(n), np.empty(n, np.float32)  # numba takes long to compile an allocation
        bad.append(_draw(*mesh, cull, perspective, (height, width), top, bottom, *flat, *snapped))

    _threads.run(draw, pieces, threads)
    if any(bad):
        raise ValueError(f"rasterize: faces must name vertices from 0 to {vertices.shape[1] - 1}.")
    if width < WIDTH:
        face_id[:], depth[:] = ids[:, :, :width], depths[:, :, :width]


@kernel("b1(f4[::1],i4[::1],b1,b1,UniTuple(i8,2),i8,i8,i4[::1],f4[::1],f8[::1],f8[::1],f4[::1])")
def _draw(vertices, faces, cull, perspective, size, top, bottom, face_id, depth, xs, ys, ss):  # type: ignore[no-untyped-def]
    """Rows top ... bottom - 1 of one mesh, into an empty image; returns whether a face named a vertex not there.

    Room for one number per vertex: xs, ys its place in snapped steps, ss what interpolates linearly in depth.
    """
    height, width = size
    stride = most(width, WIDTH)
    n = len(xs)
    one, half = np.float32(1), np.float32(0.5)
    scale_x, scale_y = np.float32(width * _HALF), np.float32(height * _HALF)
    for v in range(n):
        # From 2^23 on float32 has whole numbers only, so that the limit may be looked at before rounding down.
        x = (get(vertices, 3 * v) + one) * scale_x + half
        y = (get(vertices, 3 * v + 1) + one) * scale_y + half
        z = get(vertices, 3 * v + 2)
        good = abs(x) < LIMIT and abs(y) < LIMIT and z > NEAR and z < FAR
        # NaN makes areas NaN, which are neither above nor below 0.
        put(xs, v, float(math.floor(x)) if good else math.nan)
        put(ys, v, float(math.floor(y)) if good else math.nan)
        put(ss, v, -one / z if perspective else z)

    columns = ramp(0.0) * _STEPS
    for f in range(len(faces) // 3):
        i, j, k = np.intp(get(faces, 3 * f)), np.intp(get(faces, 3 * f + 1)), np.intp(get(faces, 3 * f + 2))
        if least(least(i, j), k) < 0 or most(most(i, j), k) >= n:
            return True
        x0, y0 = get(xs, i), get(ys, i)
        area = (get(xs, j) - x0) * (get(ys, k) - y0) - (get(ys, j) - y0) * (get(xs, k) - x0)
        if area < 0:
            j, k = k, j
            area = -area
        elif cull or not area > 0:
            continue
        x1, y1, x2, y2 = get(xs, j), get(ys, j), get(xs, k), get(ys, k)
        left = most(math.ceil((least(least(x0, x1), x2) - _HALF) * (1 / _STEPS)), 0)
        right = least(math.floor((most(most(x0, x1), x2) - _HALF) * (1 / _STEPS)) + 1, width)
        first = most(math.ceil((least(least(y0, y1), y2) - _HALF) * (1 / _STEPS)), top)
        last = least(math.floor((most(most(y0, y1), y2) - _HALF) * (1 / _STEPS)) + 1, bottom)
        if left >= right or first >= last:
            continue

        inverse = one / np.float32(area)
        s0, s1, s2 = get(ss, i) * inverse, get(ss, j) * inverse, get(ss, k) * inverse
        dx0, dy0, dx1, dy1, dx2, dy2 = x2 - x1, y2 - y1, x0 - x2, y0 - y2, x1 - x0, y1 - y0
        # All are whole numbers: e >= low reads "e > 0, or e = 0 on a top or left edge".
        low0 = 0.0 if dy0 < 0 or (dy0 == 0 and dx0 > 0) else 1.0
        low1 = 0.0 if dy1 < 0 or (dy1 == 0 and dx1 > 0) else 1.0
        low2 = 0.0 if dy2 < 0 or (dy2 == 0 and dx2 > 0) else 1.0
        for block in range(left, right, WIDTH):
            column = least(block, stride - WIDTH)  # near the right border pixels are taken twice, to no effect
            px, py = column * _STEPS + _HALF, first * _STEPS + _HALF
            e0 = dx0 * (py - y1) - dy0 * (px - x1) - columns * dy0
            e1 = dx1 * (py - y2) - dy1 * (px - x2) - columns * dy1
            e2 = dx2 * (py - y0) - dy2 * (px - x0) - columns * dy2
            for at in range(first * stride + column, last * stride + column, stride):
                s = narrow(e0) * s0 + narrow(e1) * s1 + narrow(e2) * s2
                nearest = load(depth, at)
                wins = (e0 >= low0) & (e1 >= low1) & (e2 >= low2) & (s < nearest)
                store(depth, at, select(wins, s, nearest))
                store(face_id, at, select(wins, splat(np.int32(f)), load(face_id, at)))
                e0 = e0 + dx0 * _STEPS
                e1 = e1 + dx1 * _STEPS
                e2 = e2 + dx2 * _STEPS

    if perspective:
        for block in range(top * stride, bottom * stride, WIDTH):
            at = least(block, bottom * stride - WIDTH)
            s = load(depth, at)
            store(depth, at, select(s < np.float32(0), np.float32(-1) / s, s))
    return False
