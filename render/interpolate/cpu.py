"""The sums of `reference` as numba loops over pixels."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import threads as _threads

_BAND = 32  # rows per piece of work


def interpolate(
    attributes: NDArray[np.float32],
    face_id: NDArray[np.int32],
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    image: NDArray[np.float32],
    *,
    perspective: bool = False,
    background: float = 0.0,
    threads: int = 1,
) -> None:
    """Interpolates numpy arrays into a given one.

    Args:
        attributes: (B or 1, V, C) float32, contiguous.
        face_id: (B, H, W) int32, contiguous, from `rasterize`.
        vertices: (B, V, 3) float32 NDC, contiguous.
        faces: (F, 3) int32, contiguous.
        image: (B, H, W, C) float32, contiguous, written.
        perspective, background: as `headwarp.render.interpolate`.
        threads: at most this many work.
    Raises:
        TypeError: another dtype or memory order.
    """
    batch, height, _ = face_id.shape

    def fill(b: int, top: int) -> None:
        _interpolate(
            attributes[b % len(attributes)],
            face_id[b],
            vertices[b],
            faces,
            perspective,
            background,
            top,
            min(top + _BAND, height),
            image[b],
        )

    _threads.run(fill, [(b, top) for b in range(batch) for top in range(0, height, _BAND)], threads)


def barycentrics(
    face_id: NDArray[np.int32],
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    weights: NDArray[np.float32],
    *,
    perspective: bool = False,
    threads: int = 1,
) -> None:
    """Corner weights into `weights` (B, H, W, 3) float32, contiguous; the rest as `interpolate`."""
    batch, height, _ = face_id.shape

    def fill(b: int, top: int) -> None:
        _barycentrics(face_id[b], vertices[b], faces, perspective, top, min(top + _BAND, height), weights[b])

    _threads.run(fill, [(b, top) for b in range(batch) for top in range(0, height, _BAND)], threads)


@njit("UniTuple(f4,3)(f4[:,::1],i4,i4,i4,f4,f4,b1)", cache=True, nogil=True, error_model="numpy")
def _weights(vertices, i, j, k, px, py, perspective):  # type: ignore[no-untyped-def]
    zero, one = np.float32(0), np.float32(1)
    x0, y0 = vertices[i, 0] - px, vertices[i, 1] - py
    x1, y1 = vertices[j, 0] - px, vertices[j, 1] - py
    x2, y2 = vertices[k, 0] - px, vertices[k, 1] - py
    u0, u1, u2 = x1 * y2 - y1 * x2, x2 * y0 - y2 * x0, x0 * y1 - y0 * x1
    if perspective:
        u0, u1, u2 = u0 / vertices[i, 2], u1 / vertices[j, 2], u2 / vertices[k, 2]
    if u0 + u1 + u2 < 0:
        u0, u1, u2 = -u0, -u1, -u2
    u0, u1, u2 = max(u0, zero), max(u1, zero), max(u2, zero)
    total = u0 + u1 + u2
    if total == 0:
        return one, zero, zero
    return u0 / total, u1 / total, u2 / total


@njit("void(i4[:,::1],f4[:,::1],i4[:,::1],b1,i8,i8,f4[:,:,::1])", cache=True, nogil=True, error_model="numpy")
def _barycentrics(face_id, vertices, faces, perspective, top, bottom, weights):  # type: ignore[no-untyped-def]
    height, width = face_id.shape
    one = np.float32(1)
    for row in range(top, bottom):
        py = np.float32(2 * row + 1) / np.float32(height) - one
        for column in range(width):
            f = face_id[row, column]
            if f < 0:
                weights[row, column] = 0
                continue
            px = np.float32(2 * column + 1) / np.float32(width) - one
            w = _weights(vertices, faces[f, 0], faces[f, 1], faces[f, 2], px, py, perspective)
            weights[row, column, 0], weights[row, column, 1], weights[row, column, 2] = w


@njit(
    "void(f4[:,::1],i4[:,::1],f4[:,::1],i4[:,::1],b1,f4,i8,i8,f4[:,:,::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _interpolate(attributes, face_id, vertices, faces, perspective, background, top, bottom, image):  # type: ignore[no-untyped-def]
    height, width = face_id.shape
    one = np.float32(1)
    for row in range(top, bottom):
        py = np.float32(2 * row + 1) / np.float32(height) - one
        for column in range(width):
            f = face_id[row, column]
            if f < 0:
                image[row, column] = background
                continue
            px = np.float32(2 * column + 1) / np.float32(width) - one
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            w0, w1, w2 = _weights(vertices, i, j, k, px, py, perspective)
            for c in range(attributes.shape[1]):
                image[row, column, c] = w0 * attributes[i, c] + w1 * attributes[j, c] + w2 * attributes[k, c]
