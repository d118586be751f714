"""The rule set of `reference` as a numba loop: bounding boxes and a z-buffer, no lock, no atomics.

Triangles are taken in ascending order and replace a pixel only when strictly nearer, so the lowest triangle wins ties.
Each piece of work owns a band of rows of one mesh: the result does not depend on the number of threads.

Snapped coordinates are whole numbers in float64: products of two differences stay below 2^51, hence exact.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import threads as _threads
from .reference import FAR, LIMIT, NEAR, STEPS

_HALF = STEPS // 2


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
    """Rasterises numpy arrays into given ones.

    Args:
        vertices: (B, V, 3) float32 NDC, contiguous.
        faces: (F, 3) int32, contiguous.
        face_id: (B, H, W) int32, written.
        depth: (B, H, W) float32, written.
        cull, perspective: as `headwarp.render.rasterize`.
        threads: at most this many work.
    Raises:
        TypeError: another dtype or memory order. ValueError: a face names a vertex that is not there.
    """
    batch, height, _ = face_id.shape
    bands = 1 if batch >= threads else min(threads, height)
    edges = [height * k // bands for k in range(bands + 1)]
    errors: list[bool] = []

    def draw(b: int, k: int) -> None:
        errors.append(_draw(vertices[b], faces, cull, perspective, edges[k], edges[k + 1], face_id[b], depth[b]))

    _threads.run(draw, [(b, k) for b in range(batch) for k in range(bands)], threads)
    if any(errors):
        raise ValueError(f"rasterize: faces must name vertices 0 ... {vertices.shape[1] - 1}.")


@njit("b1(f4[:,::1],i4[:,::1],b1,b1,i8,i8,i4[:,::1],f4[:,::1])", cache=True, nogil=True, error_model="numpy")
def _draw(vertices, faces, cull, perspective, top, bottom, face_id, depth):  # type: ignore[no-untyped-def]
    """Rows top ... bottom - 1 of one mesh; returns whether a face named a vertex that is not there."""
    height, width = face_id.shape
    n = len(vertices)
    xs, ys, ss = np.empty(n), np.empty(n), np.empty(n, np.float32)
    scale_x, scale_y = np.float32(width * _HALF), np.float32(height * _HALF)
    one, half = np.float32(1), np.float32(0.5)
    for v in range(n):
        x = np.floor((vertices[v, 0] + one) * scale_x + half)
        y = np.floor((vertices[v, 1] + one) * scale_y + half)
        z = vertices[v, 2]
        good = abs(x) < LIMIT and abs(y) < LIMIT and z > NEAR and z < FAR
        xs[v] = x if good else np.nan  # NaN makes every area NaN, which is neither above nor below 0
        ys[v] = y
        ss[v] = -one / z if perspective else z

    face_id[top:bottom] = -1
    depth[top:bottom] = np.inf
    for f in range(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        if min(i, j, k) < 0 or max(i, j, k) >= n:
            return True
        x0, y0 = xs[i], ys[i]
        area = (xs[j] - x0) * (ys[k] - y0) - (ys[j] - y0) * (xs[k] - x0)
        if area < 0:
            j, k = k, j
            area = -area
        elif cull or not area > 0:
            continue
        x1, y1, x2, y2 = xs[j], ys[j], xs[k], ys[k]
        left = max(int(np.ceil((min(x0, x1, x2) - _HALF) / STEPS)), 0)
        right = min(int(np.floor((max(x0, x1, x2) - _HALF) / STEPS)) + 1, width)
        first = max(int(np.ceil((min(y0, y1, y2) - _HALF) / STEPS)), top)
        last = min(int(np.floor((max(y0, y1, y2) - _HALF) / STEPS)) + 1, bottom)
        if left >= right or first >= last:
            continue

        inverse = one / np.float32(area)
        a0, a1, a2 = ss[i] * inverse, ss[j] * inverse, ss[k] * inverse
        dx0, dy0, dx1, dy1, dx2, dy2 = x2 - x1, y2 - y1, x0 - x2, y0 - y2, x1 - x0, y1 - y0
        # Whole numbers: e >= low reads "e > 0, or e = 0 on a top or left edge".
        low0 = 0.0 if dy0 < 0 or (dy0 == 0 and dx0 > 0) else 1.0
        low1 = 0.0 if dy1 < 0 or (dy1 == 0 and dx1 > 0) else 1.0
        low2 = 0.0 if dy2 < 0 or (dy2 == 0 and dx2 > 0) else 1.0
        for row in range(first, last):
            py, px = row * float(STEPS) + _HALF, left * float(STEPS) + _HALF
            e0 = dx0 * (py - y1) - dy0 * (px - x1)
            e1 = dx1 * (py - y2) - dy1 * (px - x2)
            e2 = dx2 * (py - y0) - dy2 * (px - x0)
            for column in range(left, right):
                if e0 >= low0 and e1 >= low1 and e2 >= low2:
                    s = np.float32(e0) * a0 + np.float32(e1) * a1 + np.float32(e2) * a2
                    if s < depth[row, column]:
                        depth[row, column] = s
                        face_id[row, column] = f
                e0 -= dy0 * STEPS
                e1 -= dy1 * STEPS
                e2 -= dy2 * STEPS
    if perspective:
        for row in range(top, bottom):
            for column in range(width):
                if face_id[row, column] >= 0:
                    depth[row, column] = -one / depth[row, column]
    return False
