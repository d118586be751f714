"""The sums of `reference` as numba loops, a row of pixels at a time.

The corners of the row's triangles are first laid out in planes (x0 x1 x2 y0 y1 y2 z0 z1 z2, each as long as the row),
so that weights and their gradients take eight pixels per step; the sums over channels then take eight channels per
step. Attributes are padded to whole steps, and rows whose channels are not are made in a buffer that may overrun.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import threads as _threads
from ..lanes import WIDTH, copy, get, kernel, least, load, most, put, ramp, select, splat, store, total, write
from ..memory import goes_past

_ZERO, _ONE = np.float32(0), np.float32(1)


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
    """Interpolates numpy arrays into a given one. All are C-contiguous.

    Args:
        attributes: (B or 1, V, C) float32.
        face_id: (B, H, W) int32, from `rasterize`.
        vertices: (B, V, 3) float32 NDC and depth.
        faces: (F, 3) int32.
        image: (B, H, W, C) float32, written.
        perspective, background: as `headwarp.render.interpolate`.
        threads: at most this many work.
    Raises:
        ValueError: face_id or faces name something that is not there. TypeError: another dtype or memory order.
    """
    batch, height, width = face_id.shape
    channels = attributes.shape[2]
    padded = _pad(attributes)
    past = padded.shape[2] == channels and goes_past(image)
    bad: list[bool] = []

    def fill(b: int, top: int, bottom: int) -> None:
        line = np.empty(0 if padded.shape[2] == channels else width * channels + WIDTH, np.float32)
        bad.append(
            _interpolate(
                padded[b % len(padded)].reshape(-1),
                channels,
                face_id[b].reshape(-1),
                vertices[b].reshape(-1),
                faces.reshape(-1),
                perspective,
                background,
                (height, width),
                top,
                bottom,
                image[b].reshape(-1),
                past,
                line,
                *_row(width),
            )
        )

    _threads.run(fill, _threads.bands(batch, height, threads), threads)
    _complain(bad)


def interpolate_backward(
    grad: NDArray[np.float32],
    attributes: NDArray[np.float32],
    face_id: NDArray[np.int32],
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    *,
    perspective: bool = False,
    to_attributes: bool = True,
    to_vertices: bool = True,
    threads: int = 1,
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Gradients (B or 1, V, C) to the attributes and (B, V, 3) to the vertices, from `grad` (B, H, W, C) to the image.

    A single mesh is cut in two sets of rows whatever the number of threads, and the parts are added in order: the
    result is always the same.
    """
    batch, height, width = face_id.shape
    channels = attributes.shape[2]
    padded = _pad(attributes)
    step = 2 if batch == 1 else 1
    d_attributes = np.zeros((batch, step, *padded.shape[1:]) if to_attributes else (batch, step, 0), np.float32)
    d_vertices = np.zeros((batch, step, *vertices.shape[1:]) if to_vertices else (batch, step, 0), np.float32)
    bad: list[bool] = []

    def fill(b: int, first: int) -> None:
        bad.append(
            _backward(
                grad[b].reshape(-1),
                padded[b % len(padded)].reshape(-1),
                channels,
                face_id[b].reshape(-1),
                vertices[b].reshape(-1),
                faces.reshape(-1),
                perspective,
                (height, width),
                first,
                step,
                d_attributes[b, first].reshape(-1),
                d_vertices[b, first].reshape(-1),
                np.zeros(width * channels + WIDTH, np.float32),
                *_row(width),
            )
        )

    _threads.run(fill, [(b, first) for b in range(batch) for first in range(step)], threads)
    _complain(bad)
    per_mesh = d_attributes.sum(1) if step > 1 else d_attributes[:, 0]
    if to_attributes and len(attributes) < batch:
        per_mesh = per_mesh.sum(0, keepdims=True)
    return (
        np.ascontiguousarray(per_mesh[..., :channels]) if to_attributes else None,
        (d_vertices.sum(1) if step > 1 else d_vertices[:, 0]) if to_vertices else None,
    )


def barycentrics(
    face_id: NDArray[np.int32],
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    weights: NDArray[np.float32],
    *,
    perspective: bool = False,
    threads: int = 1,
) -> None:
    """Corner weights into `weights` (B, H, W, 3) float32, C-contiguous; the rest as `interpolate`."""
    batch, height, width = face_id.shape
    bad: list[bool] = []

    def fill(b: int, top: int, bottom: int) -> None:
        flat = vertices[b].reshape(-1), faces.reshape(-1)
        bad.append(
            _barycentrics(
                face_id[b].reshape(-1),
                *flat,
                perspective,
                (height, width),
                top,
                bottom,
                weights[b].reshape(-1),
                *_row(width),
            )
        )

    _threads.run(fill, _threads.bands(batch, height, threads), threads)
    _complain(bad)


def _pad(attributes: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same with zero channels appended up to a multiple of WIDTH."""
    sets, count, channels = attributes.shape
    if channels % WIDTH == 0:
        return attributes
    padded = np.zeros((sets, count, -(-channels // WIDTH) * WIDTH), np.float32)
    padded[..., :channels] = attributes
    return padded


def _row(width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Room for the corners and the weights of one row of pixels; numba takes long to compile an allocation.

    Corners of pixels without a triangle stay 1, so that nothing divides by zero.
    """
    n = -(-width // WIDTH) * WIDTH
    return np.ones(9 * n, np.float32), np.empty(3 * n, np.float32)


def _complain(bad: list[bool]) -> None:
    if any(bad):
        raise ValueError(
            "interpolate: the fragments name triangles, or the triangles vertices, that are not there; pass the "
            "vertices and faces that were rasterised."
        )


@njit(error_model="numpy")
def _gather(vertices, faces, face_id, start, width, perspective, corners):  # type: ignore[no-untyped-def]
    """Lays out the corners of one row's triangles.

    Returns whether an id was out of range, the first column that shows a triangle, and the one after the last (0, 0
    without any).
    """
    n = len(corners) // 9
    first, last = width, 0
    for column in range(width):
        f = np.intp(get(face_id, start + column))
        if f >= 0:
            first, last = least(first, column), column + 1
            if 3 * f >= len(faces):
                return True, 0, 0
            i, j, k = (
                3 * np.intp(get(faces, 3 * f)),
                3 * np.intp(get(faces, 3 * f + 1)),
                3 * np.intp(get(faces, 3 * f + 2)),
            )
            if least(least(i, j), k) < 0 or most(most(i, j), k) >= len(vertices):
                return True, 0, 0
            put(corners, column, get(vertices, i))
            put(corners, n + column, get(vertices, j))
            put(corners, 2 * n + column, get(vertices, k))
            put(corners, 3 * n + column, get(vertices, i + 1))
            put(corners, 4 * n + column, get(vertices, j + 1))
            put(corners, 5 * n + column, get(vertices, k + 1))
            if perspective:
                put(corners, 6 * n + column, get(vertices, i + 2))
                put(corners, 7 * n + column, get(vertices, j + 2))
                put(corners, 8 * n + column, get(vertices, k + 2))
    return False, least(first, last), last


@njit(error_model="numpy")
def _relative(corners, column, row, size):  # type: ignore[no-untyped-def]
    """x0, x1, x2, y0, y1, y2 of eight pixels' triangles, seen from the pixels' centres."""
    n = len(corners) // 9
    height, width = size
    px = (ramp(np.float32(column)) * np.float32(2) + _ONE) * (_ONE / np.float32(width)) - _ONE
    py = np.float32(2 * row + 1) * (_ONE / np.float32(height)) - _ONE
    return (
        load(corners, column) - px,
        load(corners, n + column) - px,
        load(corners, 2 * n + column) - px,
        load(corners, 3 * n + column) - py,
        load(corners, 4 * n + column) - py,
        load(corners, 5 * n + column) - py,
    )


@njit(error_model="numpy")
def _positive(u, turned):  # type: ignore[no-untyped-def]
    """max(t u, 0) with t = -1 where turned."""
    u = select(turned, _ZERO - u, u)
    return select(u > _ZERO, u, splat(_ZERO))


@njit(error_model="numpy")
def _weigh(corners, row, size, perspective, first, last, weights):  # type: ignore[no-untyped-def]
    """Weights of columns first ... last - 1, in planes w0 w1 w2; where no triangle is shown they mean nothing."""
    n = len(corners) // 9
    for column in range(first - first % WIDTH, last, WIDTH):
        x0, x1, x2, y0, y1, y2 = _relative(corners, column, row, size)
        u0, u1, u2 = x1 * y2 - y1 * x2, x2 * y0 - y2 * x0, x0 * y1 - y0 * x1
        if perspective:
            u0 = u0 / load(corners, 6 * n + column)
            u1 = u1 / load(corners, 7 * n + column)
            u2 = u2 / load(corners, 8 * n + column)
        turned = u0 + u1 + u2 < _ZERO
        u0, u1, u2 = _positive(u0, turned), _positive(u1, turned), _positive(u2, turned)
        total = u0 + u1 + u2
        flat = total == _ZERO
        inverse = _ONE / select(flat, splat(_ONE), total)
        store(weights, column, select(flat, splat(_ONE), u0 * inverse))
        store(weights, n + column, u1 * inverse)
        store(weights, 2 * n + column, u2 * inverse)


@kernel("b1(f4[::1],i8,i4[::1],f4[::1],i4[::1],b1,f4,UniTuple(i8,2),i8,i8,f4[::1],b1,f4[::1],f4[::1],f4[::1])")
def _interpolate(  # type: ignore[no-untyped-def]
    attributes,
    channels,
    face_id,
    vertices,
    faces,
    perspective,
    background,
    size,
    top,
    bottom,
    image,
    past,
    buffer,
    corners,
    weights,
):
    """Rows top ... bottom - 1 of one image; returns whether an id was out of range.

    A row is made in `buffer` where channels are not whole steps; else `past` tells how to write it.
    """
    width = size[1]
    n = len(weights) // 3
    stride = -(-channels // WIDTH) * WIDTH
    whole = stride == channels
    line = image if whole else buffer
    for row in range(top, bottom):
        start = row * width
        bad, first, last = _gather(vertices, faces, face_id, start, width, perspective, corners)
        if bad:
            return True
        _weigh(corners, row, size, perspective, first, last, weights)
        at = start * channels if whole else 0
        for column in range(width):
            f = np.intp(get(face_id, start + column))
            if f >= 0:
                w0, w1, w2 = get(weights, column), get(weights, n + column), get(weights, 2 * n + column)
                i, j, k = get(faces, 3 * f) * stride, get(faces, 3 * f + 1) * stride, get(faces, 3 * f + 2) * stride
                for c in range(0, channels, WIDTH):
                    value = load(attributes, i + c) * w0 + load(attributes, j + c) * w1 + load(attributes, k + c) * w2
                    write(line, at + c, value, past)
            else:
                for c in range(0, channels, WIDTH):
                    write(line, at + c, splat(background), past)
            at += channels
        if not whole:
            copy(line, 0, image, start * channels, width * channels)
    return False


@kernel(
    "b1(f4[::1],f4[::1],i8,i4[::1],f4[::1],i4[::1],b1,UniTuple(i8,2),i8,i8,f4[::1],f4[::1],f4[::1],f4[::1],f4[::1])"
)
def _backward(  # type: ignore[no-untyped-def]
    grad,
    attributes,
    channels,
    face_id,
    vertices,
    faces,
    perspective,
    size,
    first,
    step,
    d_attributes,
    d_vertices,
    line,
    corners,
    weights,
):
    """Adds the gradients of rows first, first + step, ...; empty arrays are left out."""
    height, width = size
    n = len(weights) // 3
    stride = -(-channels // WIDTH) * WIDTH
    for row in range(first, height, step):
        start = row * width
        bad, begin, end = _gather(vertices, faces, face_id, start, width, perspective, corners)
        if bad:
            return True
        _weigh(corners, row, size, perspective, begin, end, weights)
        copy(grad, (start + begin) * channels, line, begin * channels, (end - begin) * channels)
        for column in range(begin, end):
            f = np.intp(get(face_id, start + column))
            if f < 0:
                continue
            w0, w1, w2 = get(weights, column), get(weights, n + column), get(weights, 2 * n + column)
            i, j, k = get(faces, 3 * f) * stride, get(faces, 3 * f + 1) * stride, get(faces, 3 * f + 2) * stride
            g0, g1, g2 = splat(_ZERO), splat(_ZERO), splat(_ZERO)
            for c in range(0, channels, WIDTH):
                mine = ramp(np.float32(c)) < np.float32(channels)  # beyond lies the next pixel
                g = select(mine, load(line, column * channels + c), splat(_ZERO))
                if len(d_attributes):
                    store(d_attributes, i + c, load(d_attributes, i + c) + g * w0)
                    store(d_attributes, j + c, load(d_attributes, j + c) + g * w1)
                    store(d_attributes, k + c, load(d_attributes, k + c) + g * w2)
                g0 = g0 + g * load(attributes, i + c)
                g1 = g1 + g * load(attributes, j + c)
                g2 = g2 + g * load(attributes, k + c)
            # From here on the weights themselves are not needed, only their gradients.
            put(weights, column, total(g0))
            put(weights, n + column, total(g1))
            put(weights, 2 * n + column, total(g2))
        if len(d_vertices):
            _differentiate(corners, row, size, perspective, begin, end, weights)
            for column in range(begin, end):
                f = np.intp(get(face_id, start + column))
                if f < 0:
                    continue
                for corner in range(3):
                    v = 3 * np.intp(get(faces, 3 * f + corner))
                    at = corner * n + column
                    put(d_vertices, v, get(d_vertices, v) + get(corners, at))
                    put(d_vertices, v + 1, get(d_vertices, v + 1) + get(corners, at + 3 * n))
                    if perspective:
                        put(d_vertices, v + 2, get(d_vertices, v + 2) + get(corners, at + 6 * n))
    return False


@njit(error_model="numpy")
def _differentiate(corners, row, size, perspective, first, last, weights):  # type: ignore[no-untyped-def]
    """Replaces a row's corners in columns first ... last - 1 by their gradients, given those of the weights (in the
    weights' place).

    c_k = x_{k+1} y_{k+2} - y_{k+1} x_{k+2},  u_k = c_k / z_k,  m_k = max(t u_k, 0),  M = sum m,  w_k = m_k / M
    dm_k = (dw_k - sum_j w_j dw_j) / M,  du_k = t dm_k where m_k > 0,  dc_k = du_k / z_k,  dz_k = -du_k u_k / z_k
    """
    n = len(corners) // 9
    for column in range(first - first % WIDTH, last, WIDTH):
        x0, x1, x2, y0, y1, y2 = _relative(corners, column, row, size)
        u0, u1, u2 = x1 * y2 - y1 * x2, x2 * y0 - y2 * x0, x0 * y1 - y0 * x1
        r0, r1, r2 = splat(_ONE), splat(_ONE), splat(_ONE)
        if perspective:
            r0 = _ONE / load(corners, 6 * n + column)
            r1 = _ONE / load(corners, 7 * n + column)
            r2 = _ONE / load(corners, 8 * n + column)
            u0, u1, u2 = u0 * r0, u1 * r1, u2 * r2
        turned = u0 + u1 + u2 < _ZERO
        m0, m1, m2 = _positive(u0, turned), _positive(u1, turned), _positive(u2, turned)
        total = m0 + m1 + m2
        inverse = _ONE / select(total == _ZERO, splat(_ONE), total)
        g0, g1, g2 = load(weights, column), load(weights, n + column), load(weights, 2 * n + column)
        mean = (m0 * g0 + m1 * g1 + m2 * g2) * inverse
        d0 = _gate((g0 - mean) * inverse, m0, turned)
        d1 = _gate((g1 - mean) * inverse, m1, turned)
        d2 = _gate((g2 - mean) * inverse, m2, turned)
        if perspective:
            d0, d1, d2 = d0 * r0, d1 * r1, d2 * r2
            store(corners, 6 * n + column, _ZERO - d0 * u0)
            store(corners, 7 * n + column, _ZERO - d1 * u1)
            store(corners, 8 * n + column, _ZERO - d2 * u2)
        store(corners, column, d2 * y1 - d1 * y2)
        store(corners, n + column, d0 * y2 - d2 * y0)
        store(corners, 2 * n + column, d1 * y0 - d0 * y1)
        store(corners, 3 * n + column, d1 * x2 - d2 * x1)
        store(corners, 4 * n + column, d2 * x0 - d0 * x2)
        store(corners, 5 * n + column, d0 * x1 - d1 * x0)


@njit(error_model="numpy")
def _gate(d, m, turned):  # type: ignore[no-untyped-def]
    """t d where m > 0, else 0."""
    return select(m > _ZERO, select(turned, _ZERO - d, d), splat(_ZERO))


@kernel("b1(i4[::1],f4[::1],i4[::1],b1,UniTuple(i8,2),i8,i8,f4[::1],f4[::1],f4[::1])")
def _barycentrics(  # type: ignore[no-untyped-def]
    face_id, vertices, faces, perspective, size, top, bottom, image, corners, weights
):
    """Rows top ... bottom - 1 of one image of weights; returns whether an id was out of range."""
    width = size[1]
    n = len(weights) // 3
    for row in range(top, bottom):
        bad, first, last = _gather(vertices, faces, face_id, row * width, width, perspective, corners)
        if bad:
            return True
        _weigh(corners, row, size, perspective, first, last, weights)
        for column in range(width):
            at = row * width + column
            for k in range(3):
                put(image, 3 * at + k, get(weights, k * n + column) if get(face_id, at) >= 0 else _ZERO)
    return False
