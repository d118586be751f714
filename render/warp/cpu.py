"""The warp of `reference` as numba loops over channels-last pixels, a row at a time.

Positions and weights of a row are computed eight pixels per step; the sums over channels take eight channels per step.
Fields are read where they lie, whatever their memory order, and resized on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import threads as _threads
from ..lanes import (
    WIDE,
    WIDTH,
    add_product,
    copy,
    get,
    kernel,
    least,
    load,
    load_wide,
    most,
    put,
    ramp,
    select,
    splat,
    splat_wide,
    store,
    total,
    truncate,
    widen,
)
from .reference import Axis, displacement_axis

_SHARE = 1 << 20
"""Numbers in the features that are worth a thread of their own: waking one costs as much as warping some 300,000."""
_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)


def warp(
    features: NDArray[Any],
    field: NDArray[np.float32],
    image: NDArray[Any],
    *,
    zeros: bool = False,
    axes: tuple[Axis, Axis] | None = None,
    threads: int = 1,
) -> None:
    """Warps numpy arrays into a given one.

    Args:
        features: (B, H, W, C) float32, the channels of a pixel side by side. uint16 stands for bfloat16 and int16 for
            float16, from 8 channels on.
        field: (B, h, w, 2) float32 in any memory order: a displacement in NDC, unless `axes` say otherwise.
        image: (B, H, W, C), dtype of the features, the channels of a pixel side by side, written.
        zeros: outside the features lies 0; else the nearest border pixel.
        axes: another meaning of the field along x and y, see `reference`.
        threads: at most this many work.
    """
    batch, height, width, channels = features.shape
    x, y = axes or (displacement_axis(width), displacement_axis(height))
    forward = _FORWARD[features.dtype]
    size, shape, meaning = (height, width, channels), field.shape[1:3], (*x, *y)
    flat = [(_flat(f), _flat(d), _flat(i)) for f, d, i in zip(features, field, image, strict=True)]

    def fill(b: int, top: int, bottom: int) -> None:
        pixels, vectors, target = flat[b]
        line = np.empty(width * channels + WIDTH if channels < WIDTH else 0, features.dtype)
        rows = (*_row(width), np.empty(0, np.float32))
        forward(*pixels, *vectors, shape, meaning, zeros, *target, size, top, bottom, line, *rows)

    threads = _worthwhile(features, threads)
    _threads.run(fill, _threads.bands(batch, height, threads), threads)


def warp_backward(
    grad: NDArray[Any],
    features: NDArray[Any],
    field: NDArray[np.float32],
    *,
    zeros: bool,
    axes: tuple[Axis, Axis],
    threads: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Gradients (B, H, W, C) to the features and (B, H, W, 2) to the field after its resizing.

    Args as `warp`; features are C-contiguous, and `grad` (B, H, W, C) to the image has their dtype.

    Small batches are cut into bands of rows. Each band adds to the rows of the features that no band before it touches,
    and to a strip of its own for the others; the strips are added afterwards, in order. So nothing is written by two
    threads, smooth fields need little extra memory, and the result does not depend on the number of threads.
    """
    batch, height, width, channels = features.shape
    threads = _worthwhile(features, threads)
    n_bands = min(max(4 // max(batch, 1), 1), height)
    edges = [height * k // n_bands for k in range(n_bands + 1)]
    pieces = [(b, k) for b in range(batch) for k in range(n_bands)]
    size, shape, meaning = (height, width, channels), field.shape[1:3], (*axes[0], *axes[1])
    flat = [(_flat(g), _flat(f), _flat(d)) for g, f, d in zip(grad, features, field, strict=True)]
    touched = np.zeros((batch, n_bands, 2), np.int64)

    def measure(b: int, k: int) -> None:
        lines, rows, _ = _row(width)
        touched[b, k] = _extent(*flat[b][2], shape, meaning, zeros, size, edges[k], edges[k + 1], lines, rows)

    if n_bands > 1:
        _threads.run(measure, pieces, threads)
    # Rows up to `shared` belong to bands before this one; of them it touches those from `first` on, in its strip.
    first = touched[..., 0]
    before = np.maximum.accumulate(touched[..., 1], 1)
    shared = np.concatenate([np.full((batch, 1), -1), before[:, :-1]], 1)
    rows = np.maximum(shared + 1 - first, 0)
    rows[:, 0] = 0
    ends = height * batch + rows.reshape(-1).cumsum().reshape(rows.shape)
    buffer = np.zeros((height * batch + int(rows.sum()), width * channels), np.float32)
    d_field = np.empty((batch, height, width, 2), np.float32)
    backward = _BACKWARD[features.dtype]

    def fill(b: int, k: int) -> None:
        strip = int(ends[b, k] - rows[b, k] - first[b, k]), int(shared[b, k]) + 1
        source, pixels, vectors = flat[b]
        backward(
            *source, *pixels, *vectors, shape, meaning, zeros,
            buffer.reshape(-1), b * height, strip, d_field[b].reshape(-1), size, edges[k], edges[k + 1],
            *_row(width), np.empty(8 * _whole(width), np.float32),
        )  # fmt: skip

    _threads.run(fill, pieces, threads)
    for b, k in pieces:
        if rows[b, k]:
            start = b * height + first[b, k]
            buffer[start : start + rows[b, k]] += buffer[ends[b, k] - rows[b, k] : ends[b, k]]
    return buffer[: height * batch].reshape(features.shape), d_field


def _worthwhile(features: NDArray[Any], threads: int) -> int:
    """How many threads to use for so much."""
    return max(1, min(threads, features.size // _SHARE))


def _whole(width: int) -> int:
    """The width up to a whole step."""
    return -(-width // WIDTH) * WIDTH


def _row(width: int) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """Room for the field, corners and weights of one row; numba takes long to compile an allocation.

    The field is 0 beyond the row, so that nothing there points outside the features.
    """
    n = _whole(width)
    return np.zeros(2 * n, np.float32), np.empty(n, np.int32), np.empty(4 * n, np.float32)


def _flat(pixels: NDArray[Any]) -> tuple[NDArray[Any], tuple[int, ...]]:
    """One picture (H, W, C) as all the memory it spans, and its strides in entries."""
    strides = tuple(s // pixels.itemsize for s in pixels.strides)
    dense = pixels.transpose(sorted(range(3), key=strides.__getitem__, reverse=True))
    if dense.flags.c_contiguous:  # in some order of the axes; the general way below takes longer than a small warp
        return dense.reshape(-1), strides
    span = 1 + sum(s * (n - 1) for s, n in zip(strides, pixels.shape, strict=True))
    return np.lib.stride_tricks.as_strided(pixels, (span,), (pixels.itemsize,)), strides


@njit(error_model="numpy")
def _resize(field, strides, shape, plane, size, row, line, to):  # type: ignore[no-untyped-def]
    """One row of one plane of the field at the size of the features."""
    height, width = size[0], size[1]
    rows, columns = shape
    at = plane * strides[2]
    if rows == height and columns == width:
        at += row * strides[0]
        for column in range(width):
            put(line, to + column, get(field, at + column * strides[1]))
        return
    v = (np.float32(row) + _HALF) * (np.float32(rows) / np.float32(height)) - _HALF
    v = least(most(v, _ZERO), np.float32(rows - 1))
    above = np.intp(v)
    below = at + least(above + 1, rows - 1) * strides[0]
    v -= np.float32(above)
    above = at + above * strides[0]
    ratio, last = np.float32(columns) / np.float32(width), np.float32(columns - 1)
    for column in range(width):
        u = least(most((np.float32(column) + _HALF) * ratio - _HALF, _ZERO), last)
        left = np.intp(u)
        right = least(left + 1, columns - 1) * strides[1]
        u -= np.float32(left)
        left *= strides[1]
        upper = get(field, above + left) * (_ONE - u) + get(field, above + right) * u
        lower = get(field, below + left) * (_ONE - u) + get(field, below + right) * u
        put(line, to + column, upper * (_ONE - v) + lower * v)


@njit(error_model="numpy")
def _corners(place, length, zeros):  # type: ignore[no-untyped-def]
    """Eight places along one axis: a pixel p, and for p and p + 1 the weights and their derivatives.

    The weight of pixel p is the hat max(0, 1 - |x - p|). With p kept within [0, length - 2] that is bilinear
    interpolation, fades to 0 outside, and the two pixels differ (in a picture one pixel long the second has weight 0).
    """
    low, high = (np.float32(-2), np.float32(length + 1)) if zeros else (_ZERO, np.float32(length - 1))
    moves = (place > low) & (place < high)
    place = select(place > low, place, splat(low))  # NaN too
    place = select(place < high, place, splat(high))
    first = truncate(place)
    first = select(first < np.int32(length - 2), first, splat(np.int32(length - 2)))
    first = select(first > np.int32(0), first, splat(np.int32(0)))
    after = place - widen(first)
    before = _ONE - after  # from p + 1, backwards
    w0 = _ONE - select(after < _ZERO, _ZERO - after, after)
    w1 = _ONE - select(before < _ZERO, _ZERO - before, before)
    slope = select(moves, splat(_ONE), splat(_ZERO))
    d0 = select(after < _ZERO, slope, _ZERO - slope)
    d1 = select(before > _ZERO, slope, _ZERO - slope)
    # At a kink, which is where zero displacement stands, the derivative is that to the right, as of the reference.
    w0, d0 = select(w0 > _ZERO, w0, splat(_ZERO)), select((after >= -_ONE) & (before > _ZERO), d0, splat(_ZERO))
    if length > 1:
        w1, d1 = select(w1 > _ZERO, w1, splat(_ZERO)), select((after >= _ZERO) & (before > -_ONE), d1, splat(_ZERO))
    else:
        w1 = d1 = splat(_ZERO)
    return first, w0, w1, d0, d1


@njit(error_model="numpy")
def _locate(  # type: ignore[no-untyped-def]
    field, strides, shape, axes, zeros, size, pixel, row, lines, corners, weights, slopes
):
    """Everything about one row, in planes as long as `corners`.

    corners: positions (entries of the features) of the top left pixels; weights: those of the top left, top right,
    bottom left and bottom right pixels; slopes: their derivatives by the field's x, then by its y, unless empty.
    """
    n = len(corners)
    _resize(field, strides, shape, 0, size, row, lines, 0)
    _resize(field, strides, shape, 1, size, row, lines, n)
    base_x, offset_x, scale_x, base_y, offset_y, scale_y = axes
    start_y = base_y * np.float32(row) + offset_y
    for column in range(0, size[1], WIDTH):
        x = ramp(np.float32(column)) * base_x + offset_x + load(lines, column) * scale_x
        y = load(lines, n + column) * scale_y + start_y
        left, x0, x1, dx0, dx1 = _corners(x, size[1], zeros)
        top, y0, y1, dy0, dy1 = _corners(y, size[0], zeros)
        store(corners, column, top * np.int32(pixel[0]) + left * np.int32(pixel[1]))
        store(weights, column, y0 * x0)
        store(weights, n + column, y0 * x1)
        store(weights, 2 * n + column, y1 * x0)
        store(weights, 3 * n + column, y1 * x1)
        if len(slopes):
            store(slopes, column, y0 * dx0 * scale_x)
            store(slopes, n + column, y0 * dx1 * scale_x)
            store(slopes, 2 * n + column, y1 * dx0 * scale_x)
            store(slopes, 3 * n + column, y1 * dx1 * scale_x)
            store(slopes, 4 * n + column, dy0 * x0 * scale_y)
            store(slopes, 5 * n + column, dy0 * x1 * scale_y)
            store(slopes, 6 * n + column, dy1 * x0 * scale_y)
            store(slopes, 7 * n + column, dy1 * x1 * scale_y)


@njit(error_model="numpy")
def _steps(size, pixel):  # type: ignore[no-untyped-def]
    """From a pixel to its right and lower neighbours; to itself in pictures that are one pixel long."""
    return pixel[1] if size[1] > 1 else 0, pixel[0] if size[0] > 1 else 0


def _warp(  # type: ignore[no-untyped-def]
    features,
    pixel,
    field,
    strides,
    shape,
    axes,
    zeros,
    image,
    target,
    size,
    top,
    bottom,
    line,
    lines,
    corners,
    weights,
    none,
):
    """Rows top ... bottom - 1 of one picture; `line` is room for one where pixels have fewer channels than a step."""
    width, channels = size[1], size[2]
    n = len(corners)
    across, down = _steps(size, pixel)
    for row in range(top, bottom):
        _locate(field, strides, shape, axes, zeros, size, pixel, row, lines, corners, weights, none)
        at = row * target[0]
        for column in range(width):
            a = np.intp(get(corners, column))
            b, c, d = a + across, a + down, a + down + across
            wa, wb = get(weights, column), get(weights, n + column)
            wc, wd = get(weights, 2 * n + column), get(weights, 3 * n + column)
            if channels >= WIDTH:
                whole = channels - channels % WIDE
                for k in range(0, whole, WIDE):
                    wide = add_product(load_wide(features, a + k) * wa, load_wide(features, b + k), wb)
                    wide = add_product(wide, load_wide(features, c + k), wc)
                    store(image, at + k, add_product(wide, load_wide(features, d + k), wd))
                for block in range(whole, channels, WIDTH):
                    k = least(block, channels - WIDTH)
                    value = add_product(load(features, a + k) * wa, load(features, b + k), wb)
                    value = add_product(value, load(features, c + k), wc)
                    store(image, at + k, add_product(value, load(features, d + k), wd))
            elif d + WIDTH <= len(features):
                # All channels and some of the next pixels', which are written over in their turn.
                value = add_product(load(features, a) * wa, load(features, b), wb)
                value = add_product(value, load(features, c), wc)
                store(line, column * channels, add_product(value, load(features, d), wd))
            else:
                for k in range(channels):
                    value = get(features, a + k) * wa + get(features, b + k) * wb
                    value += get(features, c + k) * wc + get(features, d + k) * wd
                    put(line, column * channels + k, value)
            at += target[1]
        if channels < WIDTH and target[1] == channels:
            copy(line, 0, image, row * target[0], width * channels)
        elif channels < WIDTH:
            for column in range(width):
                copy(line, column * channels, image, row * target[0] + column * target[1], channels)


def _backward(  # type: ignore[no-untyped-def]
    grad,
    source,
    features,
    pixel,
    field,
    strides,
    shape,
    axes,
    zeros,
    d_features,
    base,
    strip,
    d_field,
    size,
    top,
    bottom,
    lines,
    corners,
    weights,
    slopes,
):
    """Gradients by way of rows top ... bottom - 1 of one picture.

    Row y of the features has its gradient in row base + y of d_features, but in strip[0] + y for y < strip[1].
    """
    width, channels = size[1], size[2]
    n = len(corners)
    across, down = _steps(size, pixel)
    own, limit = base * pixel[0], strip[1] * pixel[0]
    other = strip[0] * pixel[0]
    for row in range(top, bottom):
        _locate(field, strides, shape, axes, zeros, size, pixel, row, lines, corners, weights, slopes)
        at = row * source[0]
        for column in range(width):
            a = np.intp(get(corners, column))
            b, c, d = a + across, a + down, a + down + across
            upper = a + (other if a < limit else own)
            lower = c + (other if c < limit else own)
            wa, wb = get(weights, column), get(weights, n + column)
            wc, wd = get(weights, 2 * n + column), get(weights, 3 * n + column)
            ga, gb, gc, gd = _ZERO, _ZERO, _ZERO, _ZERO
            if channels >= WIDTH:
                whole = channels - channels % WIDE
                if whole:
                    xa, xb, xc, xd = splat_wide(_ZERO), splat_wide(_ZERO), splat_wide(_ZERO), splat_wide(_ZERO)
                    for k in range(0, whole, WIDE):
                        wide = load_wide(grad, at + k)
                        xa = add_product(xa, wide, load_wide(features, a + k))
                        xb = add_product(xb, wide, load_wide(features, b + k))
                        xc = add_product(xc, wide, load_wide(features, c + k))
                        xd = add_product(xd, wide, load_wide(features, d + k))
                        # Loads before stores, as below.
                        va = add_product(load_wide(d_features, upper + k), wide, wa)
                        vb = add_product(load_wide(d_features, upper + across + k), wide, wb)
                        vc = add_product(load_wide(d_features, lower + k), wide, wc)
                        vd = add_product(load_wide(d_features, lower + across + k), wide, wd)
                        store(d_features, lower + across + k, vd)
                        store(d_features, lower + k, vc)
                        store(d_features, upper + across + k, vb)
                        store(d_features, upper + k, va)
                    ga, gb, gc, gd = total(xa), total(xb), total(xc), total(xd)
                la, lb, lc, ld = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
                for block in range(whole, channels, WIDTH):
                    k = least(block, channels - WIDTH)
                    g = load(grad, at + k)
                    if k < block:  # the last lanes again: those that were taken already add nothing
                        g = select(ramp(np.float32(k)) < np.float32(block), splat(_ZERO), g)
                    la = add_product(la, g, load(features, a + k))
                    lb = add_product(lb, g, load(features, b + k))
                    lc = add_product(lc, g, load(features, c + k))
                    ld = add_product(ld, g, load(features, d + k))
                    # Loads before stores: the rows often lie a multiple of 4 KB apart, and processors take a load that
                    # follows such a store for one of the same place. In pictures one pixel long places do coincide;
                    # the one with a weight is written last.
                    na = add_product(load(d_features, upper + k), g, wa)
                    nb = add_product(load(d_features, upper + across + k), g, wb)
                    nc = add_product(load(d_features, lower + k), g, wc)
                    nd = add_product(load(d_features, lower + across + k), g, wd)
                    store(d_features, lower + across + k, nd)
                    store(d_features, lower + k, nc)
                    store(d_features, upper + across + k, nb)
                    store(d_features, upper + k, na)
                ga, gb, gc, gd = ga + total(la), gb + total(lb), gc + total(lc), gd + total(ld)
            else:
                for k in range(channels):
                    g = get(grad, at + k)
                    ga += g * get(features, a + k)
                    gb += g * get(features, b + k)
                    gc += g * get(features, c + k)
                    gd += g * get(features, d + k)
                    put(d_features, upper + k, get(d_features, upper + k) + g * wa)
                    put(d_features, upper + across + k, get(d_features, upper + across + k) + g * wb)
                    put(d_features, lower + k, get(d_features, lower + k) + g * wc)
                    put(d_features, lower + across + k, get(d_features, lower + across + k) + g * wd)
            for axis in range(2):
                s = 4 * axis * n + column
                share = ga * get(slopes, s) + gb * get(slopes, s + n)
                share += gc * get(slopes, s + 2 * n) + gd * get(slopes, s + 3 * n)
                put(d_field, 2 * (row * width + column) + axis, share)
            at += source[1]


@kernel("UniTuple(i8,2)(f4[::1],UniTuple(i8,3),UniTuple(i8,2),UniTuple(f4,6),b1,UniTuple(i8,3),i8,i8,f4[::1],i4[::1])")
def _extent(field, strides, shape, axes, zeros, size, top, bottom, line, rows):  # type: ignore[no-untyped-def]
    """First and last row of the features that rows top ... bottom - 1 of the output take something from."""
    height, width = size[0], size[1]
    first, last = height, 0
    for row in range(top, bottom):
        _resize(field, strides, shape, 1, size, row, line, 0)
        start = axes[3] * np.float32(row) + axes[4]
        for column in range(0, width, WIDTH):
            upper, _, _, _, _ = _corners(load(line, column) * axes[5] + start, height, zeros)
            store(rows, 0, upper)
            for k in range(least(WIDTH, width - column)):
                first, last = least(first, np.intp(get(rows, k))), most(last, np.intp(get(rows, k)))
    return first, least(last + 1, height - 1)


_PLACED, _FIELD = "{0}[::1],UniTuple(i8,3)", "f4[::1],UniTuple(i8,3),UniTuple(i8,2),UniTuple(f4,6),b1"
_ROWS = "f4[::1],i4[::1],f4[::1],f4[::1]"
_KINDS = {np.dtype(np.float32): "f4", np.dtype(np.uint16): "u2", np.dtype(np.int16): "i2"}
_FORWARD = {
    dtype: kernel(f"void({_PLACED},{_FIELD},{_PLACED},UniTuple(i8,3),i8,i8,{{0}}[::1],{_ROWS})".format(kind))(_warp)
    for dtype, kind in _KINDS.items()
}
_BACKWARD = {
    dtype: kernel(
        f"void({_PLACED},{_PLACED},{_FIELD},f4[::1],i8,UniTuple(i8,2),f4[::1],UniTuple(i8,3),i8,i8,{_ROWS})".format(
            kind
        )
    )(_backward)
    for dtype, kind in _KINDS.items()
}
