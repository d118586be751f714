"""The warp of `reference` as numba loops over channels-last pixels, a row at a time.

Positions and weights of a row are computed eight pixels per step; the sums over channels take as many channels per step
as there are. Fields are read where they lie, whatever their memory order, and resized on the way.

What is slow about a warp is memory: rows of the features are asked for one row before they are needed, since no
processor foresees a displacement.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import threads as _threads
from ..lanes import (
    WIDTH,
    add_product,
    copy,
    get,
    kernel,
    least,
    load,
    load_like,
    most,
    nothing,
    pointer,
    prefetch,
    put,
    ramp,
    ramp_like,
    select,
    splat,
    store,
    total,
    truncate,
    widen,
    write,
)
from ..memory import empty_array, goes_past
from .reference import Axis, displacement_axis

_SHARE = 1 << 20
"""Numbers in the features that are worth a thread of their own: waking one costs as much as warping some 300,000."""
_BANDS = 4
"""Bands that a batch is cut into for gradients, at most: what belongs to two of them is added twice."""
_WIDE = 16
"""Channels at a time where there are as many: a line of memory, and half the instructions with AVX-512."""
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
    Raises:
        ValueError: shapes that do not fit, an empty field, a picture that spans 2^31 numbers or more.
    """
    batch, height, width, _ = _check(features, field, image)
    x, y = axes or (displacement_axis(width), displacement_axis(height))
    meaning = (*x, *y)
    forward = _FORWARD[features.dtype]
    past = goes_past(image)

    def fill(b: int, top: int, bottom: int) -> None:
        forward(features, field, image, b, top, bottom, meaning, zeros, past, *_room(features, field))

    threads = _worthwhile(features, threads)
    _threads.run(fill, _threads.bands(batch, height, threads) if features.size else (), threads)


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

    Large pictures of small batches are cut into bands of rows. Rows of the features belong to the first band that
    touches them or a row after them; a band adds to those of others in a strip of its own, and the strips are added
    afterwards, in order. So nothing is written by two threads, smooth fields need little extra memory, and the result
    does not depend on the number of threads. A band's own rows are set to 0 just before they are added to, while they
    are near.
    """
    batch, height, width, channels = _check(features, field, grad)
    if not features.size:
        return np.zeros(features.shape, np.float32), np.zeros((batch, height, width, 2), np.float32)
    n_bands = min(max(_worthwhile(features, _BANDS) // batch, 1), height)
    threads = _worthwhile(features, threads)
    edges = [height * k // n_bands for k in range(n_bands + 1)]
    pieces = [(b, k) for b in range(batch) for k in range(n_bands)]
    meaning = (*axes[0], *axes[1])
    backward = _BACKWARD[features.dtype]
    touched = dict.fromkeys(pieces, (0, height - 1))

    def measure(b: int, k: int) -> None:
        room = _room(features, field)
        touched[b, k] = _extent(field, b, edges[k], edges[k + 1], height, width, meaning, zeros, *room)

    if n_bands > 1:
        _threads.run(measure, pieces, threads)
    # Rows before `start` belong to bands before this one; of them it touches those from `first` on, in its strip.
    places, strips, total_rows, end = {}, {}, batch * height, 0
    for b, k in pieces:
        start = end if k else 0
        first, last = touched[b, k]
        end = height if k == n_bands - 1 else max(start, last + 1)
        rows = max(start - first, 0)
        places[b, k] = b * height, start, end, total_rows - first
        strips[b, k] = slice(total_rows, total_rows + rows), slice(b * height + first, b * height + first + rows)
        total_rows += rows
    buffer = empty_array((total_rows, width * channels), np.float32)
    d_field = np.empty((batch, height, width, 2), np.float32)

    def fill(b: int, k: int) -> None:
        buffer[strips[b, k][0]] = 0
        rest = edges[k], edges[k + 1], places[b, k], meaning, zeros, *_room(features, field)
        backward(grad, features, field, buffer, d_field, b, *rest)

    _threads.run(fill, pieces, threads)
    for strip, home in strips.values():
        buffer[home] += buffer[strip]
    return buffer[: height * batch].reshape(features.shape), d_field


def _check(features: NDArray[Any], field: NDArray[np.float32], image: NDArray[Any]) -> tuple[int, int, int, int]:
    """The shape of the features, if all fits: kernels believe what they are told."""
    batch, height, width, channels = features.shape
    if image.shape != features.shape or field.shape[0] != batch or field.shape[3] != 2:
        raise ValueError(f"warp: features {features.shape}, field {field.shape}, image {image.shape} do not fit.")
    if features.size and not field.size:
        raise ValueError(f"warp: a field of {field.shape[1]} x {field.shape[2]} says nothing.")
    if abs(features.strides[1]) * height + abs(features.strides[2]) * width >= features.itemsize << 31:  # int32 places
        raise ValueError("warp: a picture of features spans 2^31 numbers or more; copy it, or take it in parts.")
    return batch, height, width, channels


def _worthwhile(features: NDArray[Any], most: int) -> int:
    """How many threads or bands, at most `most`, so much is worth."""
    return max(1, min(most, features.size // _SHARE))


def _room(features: NDArray[Any], field: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Where a kernel keeps what it knows of one row, see `_locate`; numba takes long to compile an allocation."""
    width, channels = features.shape[2:]
    n = -(-width // WIDTH) * WIDTH
    line = width * channels + WIDTH if channels < WIDTH else 0
    return np.empty(15 * n + field.shape[2] + 1 + line, np.float32), np.empty(2 * n, np.int32)


def _inlined(function: Any) -> Any:
    """Part of a kernel: compiled into it, so that handing it a picture costs nothing."""
    return njit(error_model="numpy", forceinline=True)(function)


@_inlined
def _whole(width):  # type: ignore[no-untyped-def]
    """The width up to a whole step."""
    return (width + WIDTH - 1) // WIDTH * WIDTH


@_inlined
def _strides(picture):  # type: ignore[no-untyped-def]
    """Entries from one row, column and channel of (B, H, W, C) to the next."""
    size = picture.itemsize
    return picture.strides[1] // size, picture.strides[2] // size, picture.strides[3] // size


@_inlined
def _beside(room, corners, n):  # type: ignore[no-untyped-def]
    """`lefts` and `shares` of `_stretch`, and room for a row of the field as it is and one entry more."""
    return pointer(corners, n), pointer(room, 14 * n), pointer(room, 15 * n)


@_inlined
def _stretch(shape, size, room, corners):  # type: ignore[no-untyped-def]
    """For every column, the column to its left in a field of another size, and the share of the one after that."""
    if shape[0] == size[0] and shape[1] == size[1]:
        return
    lefts, shares, _ = _beside(room, corners, _whole(size[1]))
    ratio, last = np.float32(shape[1]) / np.float32(size[1]), np.float32(shape[1] - 1)
    for column in range(size[1]):
        u = least(most((np.float32(column) + _HALF) * ratio - _HALF, _ZERO), last)
        left = np.int32(u)
        put(lefts, column, left)
        put(shares, column, u - np.float32(left))


@_inlined
def _resize(field, at, strides, shape, size, row, lefts, shares, coarse, line):  # type: ignore[no-untyped-def]
    """One row, at the size of the features, of the plane of a field that begins at entry `at`.

    lefts, shares: of `_stretch`, for fields of another size; coarse: room for a row of such a field and one entry more.
    """
    height, width = size[0], size[1]
    rows, columns = shape
    if rows == height and columns == width:
        at += row * strides[0]
        if strides[1] == 1:
            copy(field, at, line, 0, width)
        else:
            for column in range(width):
                put(line, column, get(field, at + column * strides[1]))
        return
    v = (np.float32(row) + _HALF) * (np.float32(rows) / np.float32(height)) - _HALF
    v = least(most(v, _ZERO), np.float32(rows - 1))
    above = np.intp(v)
    below = at + least(above + 1, rows - 1) * strides[0]
    v -= np.float32(above)
    above = at + above * strides[0]
    for column in range(columns):
        k = column * strides[1]
        put(coarse, column, get(field, above + k) * (_ONE - v) + get(field, below + k) * v)
    put(coarse, columns, get(coarse, columns - 1))
    for column in range(width):
        left, u = np.intp(get(lefts, column)), get(shares, column)
        put(line, column, get(coarse, left) * (_ONE - u) + get(coarse, left + 1) * u)


@_inlined
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


@_inlined
def _locate(  # type: ignore[no-untyped-def]
    field, strides, shape, axes, zeros, size, pixel, row, room, corners, derivatives
):
    """Everything about one row, in planes n = _whole(width) long.

    room: the field's x and y (n each); the weights of the top left, top right, bottom left and bottom right pixels;
    their derivatives by the field's x, then by its y, if asked for; `shares` and `coarse` of `_resize`.
    corners: positions (entries of the features) of the top left pixels; `lefts` of `_resize`.
    """
    n = _whole(size[1])
    x_line, y_line, weights, slopes = room, pointer(room, n), pointer(room, 2 * n), pointer(room, 6 * n)
    lefts, shares, coarse = _beside(room, corners, n)
    _resize(field, 0, strides, shape, size, row, lefts, shares, coarse, x_line)
    _resize(field, strides[2], strides, shape, size, row, lefts, shares, coarse, y_line)
    base_x, offset_x, scale_x, base_y, offset_y, scale_y = axes
    start_y = base_y * np.float32(row) + offset_y
    for column in range(0, n, WIDTH):
        x = ramp(np.float32(column)) * base_x + offset_x + load(x_line, column) * scale_x
        y = load(y_line, column) * scale_y + start_y
        left, x0, x1, dx0, dx1 = _corners(x, size[1], zeros)
        top, y0, y1, dy0, dy1 = _corners(y, size[0], zeros)
        store(corners, column, top * np.int32(pixel[0]) + left * np.int32(pixel[1]))
        store(weights, column, y0 * x0)
        store(weights, n + column, y0 * x1)
        store(weights, 2 * n + column, y1 * x0)
        store(weights, 3 * n + column, y1 * x1)
        if derivatives:
            store(slopes, column, y0 * dx0 * scale_x)
            store(slopes, n + column, y0 * dx1 * scale_x)
            store(slopes, 2 * n + column, y1 * dx0 * scale_x)
            store(slopes, 3 * n + column, y1 * dx1 * scale_x)
            store(slopes, 4 * n + column, dy0 * x0 * scale_y)
            store(slopes, 5 * n + column, dy0 * x1 * scale_y)
            store(slopes, 6 * n + column, dy1 * x0 * scale_y)
            store(slopes, 7 * n + column, dy1 * x1 * scale_y)


@_inlined
def _steps(size, pixel):  # type: ignore[no-untyped-def]
    """From a pixel to its right and lower neighbours; to itself in pictures that are one pixel long."""
    return pixel[1] if size[1] > 1 else 0, pixel[0] if size[0] > 1 else 0


@_inlined
def _mix(  # type: ignore[no-untyped-def]
    features, places, shares, image, at, start, stop, last, step, ahead, past, like
):
    """Channels start ... stop - 1 of one pixel of the image, `step` at a time, which is the width of `like`.

    places, shares: where the four pixels lie and their weights; last: the largest start of a step, to which the final
    one is moved back; ahead: from the lower pixels to those that the next row of the image will need.
    """
    a, b, c, d = places
    wa, wb, wc, wd = shares
    for block in range(start, stop, step):
        k = least(block, last)
        value = add_product(load_like(features, a + k, like) * wa, load_like(features, b + k, like), wb)
        value = add_product(value, load_like(features, c + k, like), wc)
        value = add_product(value, load_like(features, d + k, like), wd)
        prefetch(features, c + ahead + k, like)
        write(image, at + k, value, past)


def _warp(  # type: ignore[no-untyped-def]
    features, field, image, item, top, bottom, axes, zeros, past, floats, integers
):
    """Rows top ... bottom - 1 of one picture; `floats` and `integers` are of `_room`, `past` tells how to write."""
    size, shape = features.shape[1:], field.shape[1:3]
    pixel, strides, target = _strides(features), _strides(field), _strides(image)
    source, vectors, result = pointer(features, item), pointer(field, item), pointer(image, item)
    room, corners = pointer(floats, 0), pointer(integers, 0)
    height, width, channels = size
    n = _whole(width)
    weights, line = pointer(room, 2 * n), pointer(room, 15 * n + shape[1] + 1)
    across, down = _steps(size, pixel)
    whole = channels - channels % _WIDE
    span = (height - 1) * pixel[0] + (width - 1) * pixel[1] + channels
    wide, few = nothing(_WIDE), nothing(WIDTH)
    _stretch(shape, size, room, corners)
    for row in range(top, bottom):
        _locate(vectors, strides, shape, axes, zeros, size, pixel, row, room, corners, False)
        at = row * target[0]
        for column in range(width):
            a = np.intp(get(corners, column))
            b, c, d = a + across, a + down, a + down + across
            wa, wb = get(weights, column), get(weights, n + column)
            wc, wd = get(weights, 2 * n + column), get(weights, 3 * n + column)
            if channels >= WIDTH:
                places, shares = (a, b, c, d), (wa, wb, wc, wd)
                _mix(source, places, shares, result, at, 0, whole, whole, _WIDE, down, past, wide)
                _mix(source, places, shares, result, at, whole, channels, channels - WIDTH, WIDTH, down, False, few)
            elif d + WIDTH <= span:
                # All channels and some of the next pixels', which are written over in their turn.
                value = add_product(load(source, a) * wa, load(source, b), wb)
                value = add_product(value, load(source, c), wc)
                store(line, column * channels, add_product(value, load(source, d), wd))
            else:
                for k in range(channels):
                    value = get(source, a + k) * wa + get(source, b + k) * wb
                    value += get(source, c + k) * wc + get(source, d + k) * wd
                    put(line, column * channels + k, value)
            at += target[1]
        if channels < WIDTH and target[1] == channels:
            copy(line, 0, result, row * target[0], width * channels)
        elif channels < WIDTH:
            for column in range(width):
                copy(line, column * channels, result, row * target[0] + column * target[1], channels)


@_inlined
def _spread(  # type: ignore[no-untyped-def]
    grad, at, features, places, d_features, homes, shares, start, stop, last, step, ahead, like
):
    """Adds channels start ... stop - 1 of the gradient to one pixel of the image to the four pixels it was mixed from.

    homes: where their gradients lie; like: lanes of 0; the rest as `_mix`. Returns the products of the gradient and
    each of the four.
    """
    a, b, c, d = places
    ha, hb, hc, hd = homes
    wa, wb, wc, wd = shares
    xa, xb, xc, xd = like, like, like, like
    for block in range(start, stop, step):
        k = least(block, last)
        g = load_like(grad, at + k, like)
        if k < block:  # the last lanes again: those that were taken already add nothing
            g = select(ramp_like(np.float32(k), like) < np.float32(block), like, g)
        xa = add_product(xa, g, load_like(features, a + k, like))
        xb = add_product(xb, g, load_like(features, b + k, like))
        xc = add_product(xc, g, load_like(features, c + k, like))
        xd = add_product(xd, g, load_like(features, d + k, like))
        prefetch(features, c + ahead + k, like)
        # Loads before stores: the rows often lie a multiple of 4 KB apart, and processors take a load that follows such
        # a store for one of the same place. In pictures one pixel long places do coincide; the one with a weight is
        # written last.
        va = add_product(load_like(d_features, ha + k, like), g, wa)
        vb = add_product(load_like(d_features, hb + k, like), g, wb)
        vc = add_product(load_like(d_features, hc + k, like), g, wc)
        vd = add_product(load_like(d_features, hd + k, like), g, wd)
        store(d_features, hd + k, vd)
        store(d_features, hc + k, vc)
        store(d_features, hb + k, vb)
        store(d_features, ha + k, va)
    return xa, xb, xc, xd


@_inlined
def _along(products, slopes, at, n):  # type: ignore[no-untyped-def]
    """The gradient to one pixel of the field along one axis."""
    xa, xb, xc, xd = products
    upper = add_product(xa * get(slopes, at), xb, get(slopes, at + n))
    return total(add_product(add_product(upper, xc, get(slopes, at + 2 * n)), xd, get(slopes, at + 3 * n)))


@_inlined
def _clear(target, at, stop):  # type: ignore[no-untyped-def]
    """target[at:stop] = 0."""
    whole = stop - (stop - at) % _WIDE
    for k in range(at, whole, _WIDE):
        store(target, k, nothing(_WIDE))
    for k in range(whole, stop):
        put(target, k, _ZERO)


def _backward(  # type: ignore[no-untyped-def]
    grad, features, field, d_features, d_field, item, top, bottom, own, axes, zeros, floats, integers
):
    """Gradients by way of rows top ... bottom - 1 of one picture.

    own: base, start, end, strip. Row y of the features has its gradient in row base + y of d_features, and rows start
    ... end - 1 are set to 0 before that; but for y < start it is in row strip + y, which is 0 to begin with.
    """
    size, shape = features.shape[1:], field.shape[1:3]
    given, pixel, strides = _strides(grad), _strides(features), _strides(field)
    arriving, source, vectors = pointer(grad, item), pointer(features, item), pointer(field, item)
    sums, shifts = pointer(d_features, 0), pointer(d_field, item)
    room, corners = pointer(floats, 0), pointer(integers, 0)
    _, width, channels = size
    n, pitch = _whole(width), d_features.shape[1]
    weights, slopes = pointer(room, 2 * n), pointer(room, 6 * n)
    across, down = _steps(size, pixel)
    whole = channels - channels % _WIDE
    wide, few = nothing(_WIDE), nothing(WIDTH)
    base, start, end, strip = own[0] * pitch, own[1] * pitch, own[2] * pitch, own[3] * pitch
    fresh = start
    _stretch(shape, size, room, corners)
    for row in range(top, bottom):
        _locate(vectors, strides, shape, axes, zeros, size, pixel, row, room, corners, True)
        at = row * given[0]
        for column in range(width):
            a = np.intp(get(corners, column))
            b, c, d = a + across, a + down, a + down + across
            upper = base if a >= start else strip
            lower = base if c >= start else strip
            while c >= fresh:
                _clear(sums, base + fresh, base + fresh + pitch)
                fresh += pitch
            wa, wb = get(weights, column), get(weights, n + column)
            wc, wd = get(weights, 2 * n + column), get(weights, 3 * n + column)
            dx, dy = _ZERO, _ZERO
            if channels >= WIDTH:
                places, shares = (a, b, c, d), (wa, wb, wc, wd)
                homes = (upper + a, upper + b, lower + c, lower + d)
                if whole:
                    products = _spread(
                        arriving, at, source, places, sums, homes, shares, 0, whole, whole, _WIDE, down, wide
                    )
                    dx += _along(products, slopes, column, n)
                    dy += _along(products, slopes, column + 4 * n, n)
                if whole < channels:
                    last = channels - WIDTH
                    products = _spread(
                        arriving, at, source, places, sums, homes, shares, whole, channels, last, WIDTH, down, few
                    )
                    dx += _along(products, slopes, column, n)
                    dy += _along(products, slopes, column + 4 * n, n)
            else:
                ga, gb, gc, gd = _ZERO, _ZERO, _ZERO, _ZERO
                for k in range(channels):
                    g = get(arriving, at + k)
                    ga += g * get(source, a + k)
                    gb += g * get(source, b + k)
                    gc += g * get(source, c + k)
                    gd += g * get(source, d + k)
                    put(sums, upper + a + k, get(sums, upper + a + k) + g * wa)
                    put(sums, upper + b + k, get(sums, upper + b + k) + g * wb)
                    put(sums, lower + c + k, get(sums, lower + c + k) + g * wc)
                    put(sums, lower + d + k, get(sums, lower + d + k) + g * wd)
                dx = ga * get(slopes, column) + gb * get(slopes, column + n)
                dx += gc * get(slopes, column + 2 * n) + gd * get(slopes, column + 3 * n)
                dy = ga * get(slopes, column + 4 * n) + gb * get(slopes, column + 5 * n)
                dy += gc * get(slopes, column + 6 * n) + gd * get(slopes, column + 7 * n)
            put(shifts, 2 * (row * width + column), dx)
            put(shifts, 2 * (row * width + column) + 1, dy)
            at += given[1]
    _clear(sums, base + fresh, base + end)


@kernel("UniTuple(i8,2)(f4[:,:,:,:],i8,i8,i8,i8,i8,UniTuple(f4,6),b1,f4[::1],i4[::1])")
def _extent(field, item, top, bottom, height, width, axes, zeros, floats, integers):  # type: ignore[no-untyped-def]
    """First and last row of the features that rows top ... bottom - 1 of the output touch, with weight or without."""
    size, shape, strides = (height, width), field.shape[1:3], _strides(field)
    vectors, room, corners = pointer(field, item), pointer(floats, 0), pointer(integers, 0)
    n = _whole(width)
    line, (lefts, shares, coarse) = pointer(room, n), _beside(room, corners, n)
    _stretch(shape, size, room, corners)
    first, last = height, 0
    for row in range(top, bottom):
        _resize(vectors, strides[2], strides, shape, size, row, lefts, shares, coarse, line)
        start = axes[3] * np.float32(row) + axes[4]
        for column in range(0, width, WIDTH):
            upper, _, _, _, _ = _corners(load(line, column) * axes[5] + start, height, zeros)
            store(corners, 0, upper)
            for k in range(least(WIDTH, width - column)):
                first, last = least(first, np.intp(get(corners, k))), most(last, np.intp(get(corners, k)))
    return first, least(last + 1, height - 1)


_ROOM = "f4[::1],i4[::1]"
_KINDS = {np.dtype(np.float32): "f4", np.dtype(np.uint16): "u2", np.dtype(np.int16): "i2"}
_FORWARD = {
    dtype: kernel(f"void({kind}[:,:,:,:],f4[:,:,:,:],{kind}[:,:,:,:],i8,i8,i8,UniTuple(f4,6),b1,b1,{_ROOM})")(_warp)
    for dtype, kind in _KINDS.items()
}
_BACKWARD = {
    dtype: kernel(
        f"void({kind}[:,:,:,:],{kind}[:,:,:,::1],f4[:,:,:,:],f4[:,::1],f4[:,:,:,::1],i8,i8,i8,UniTuple(i8,4),"
        f"UniTuple(f4,6),b1,{_ROOM})"
    )(_backward)
    for dtype, kind in _KINDS.items()
}
