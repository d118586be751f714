"""The sums of `reference` in Triton.

forward            per pixel: weights from the corners, then the sum over channels, read and written as vectors
backward           per pixel: gradients added to the corners with atomics, so the order of sums is the schedule's
backward by faces  per triangle: its pixels are summed in order, then per vertex its triangles are: always the same
                   bits; used when `torch.use_deterministic_algorithms` is on
"""

# ruff: noqa: RUF059
# (Device functions return everything that any of their callers needs.)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Block sizes, by registers: see tests/render/test_gpu_compile.py.
_PIXELS, _BACKWARD_PIXELS = 64, 32
_FACES, _FACE_PIXELS = 8, 8
_VERTICES = 32


def interpolate(
    attributes: Tensor,
    face_id: Tensor,
    vertices: Tensor,
    faces: Tensor,
    image: Tensor,
    *,
    perspective: bool,
    background: float,
) -> None:
    """Fills `image` (B, H, W, C) of any float dtype; contiguous attributes (B or 1, V, C) and the rest."""
    batch, height, width = face_id.shape
    channels = attributes.shape[2]
    if image.numel():
        forward[(triton.cdiv(height * width, _PIXELS), batch)](
            attributes, face_id, vertices, faces, image, background,
            0 if len(attributes) == 1 else attributes.shape[1], vertices.shape[1], height, width,
            C=channels, PERSPECTIVE=perspective, BLOCK=_PIXELS, CHANNELS=_channel_block(channels),
        )  # fmt: skip


def interpolate_backward(
    grad: Tensor,
    attributes: Tensor,
    face_id: Tensor,
    vertices: Tensor,
    faces: Tensor,
    *,
    perspective: bool,
    to_attributes: bool,
    to_vertices: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients to attributes and vertices; an empty tensor for one that is not asked for."""
    batch, height, width = face_id.shape
    (sets, count, channels), n_faces = attributes.shape, len(faces)
    corner_stride = 0 if sets == 1 else count
    by_faces = torch.are_deterministic_algorithms_enabled()
    # Per vertex, or per triangle and corner.
    rows = 3 * n_faces if by_faces else count
    d_attributes = torch.zeros(
        (batch if by_faces else sets, rows, channels) if to_attributes else 0, device=grad.device
    )
    d_vertices = torch.zeros((batch, rows, 3) if to_vertices else 0, device=grad.device)
    block = _channel_block(channels)
    if grad.numel() and n_faces and by_faces:
        backward_by_faces[(triton.cdiv(n_faces, _FACES), batch)](
            grad, attributes, face_id, vertices, faces, d_attributes, d_vertices,
            corner_stride, count, n_faces, height, width,
            C=channels, PERSPECTIVE=perspective, TO_ATTRIBUTES=to_attributes, TO_VERTICES=to_vertices,
            FACES=_FACES, PIXELS=_FACE_PIXELS, CHANNELS=block,
        )  # fmt: skip
    elif grad.numel() and n_faces:
        backward[(triton.cdiv(height * width, _BACKWARD_PIXELS), batch)](
            grad, attributes, face_id, vertices, faces, d_attributes, d_vertices,
            corner_stride, count, height, width,
            C=channels, PERSPECTIVE=perspective, TO_ATTRIBUTES=to_attributes, TO_VERTICES=to_vertices,
            BLOCK=_BACKWARD_PIXELS, CHANNELS=block,
        )  # fmt: skip
    if by_faces:
        corners = faces.flatten().long()
        order = corners.argsort(stable=True)
        ends = torch.searchsorted(corners[order], torch.arange(count, device=grad.device), right=True)
        if to_attributes:
            d_attributes = _collect(d_attributes, order, ends)
            d_attributes = d_attributes.sum(0, keepdim=True) if sets == 1 else d_attributes
        if to_vertices:
            d_vertices = _collect(d_vertices, order, ends)
    return d_attributes.to(attributes.dtype), d_vertices


def _collect(corners: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    """Sums (B, 3 F, C) over corners into (B, V, C), each vertex's corners in ascending order."""
    batch, rows, channels = corners.shape
    result = torch.empty((batch, len(ends), channels), device=corners.device)
    if result.numel():
        collect[(triton.cdiv(len(ends), _VERTICES), batch)](
            corners, order, ends, result, rows, len(ends),
            C=channels, BLOCK=_VERTICES, CHANNELS=triton.next_power_of_2(channels),
        )  # fmt: skip
    return result


def _channel_block(channels: int) -> int:
    return min(triton.next_power_of_2(channels), 32)


@triton.jit
def weigh(  # type: ignore[no-untyped-def]
    vertices, faces, f, column, row, width, height, PERSPECTIVE: tl.constexpr
):
    """Corner ids, places of the corners seen from the pixels' centres, 1 / z, signed areas u, and the sum's sign."""
    i, j, k = tl.load(faces + 3 * f), tl.load(faces + 3 * f + 1), tl.load(faces + 3 * f + 2)
    px = (2 * column + 1).to(tl.float32) * (1.0 / width) - 1.0
    py = (2 * row + 1).to(tl.float32) * (1.0 / height) - 1.0
    x0, y0 = tl.load(vertices + 3 * i) - px, tl.load(vertices + 3 * i + 1) - py
    x1, y1 = tl.load(vertices + 3 * j) - px, tl.load(vertices + 3 * j + 1) - py
    x2, y2 = tl.load(vertices + 3 * k) - px, tl.load(vertices + 3 * k + 1) - py
    u0, u1, u2 = x1 * y2 - y1 * x2, x2 * y0 - y2 * x0, x0 * y1 - y0 * x1
    r0 = tl.full(u0.shape, 1.0, tl.float32)
    r1, r2 = r0, r0
    if PERSPECTIVE:
        r0 = 1.0 / tl.load(vertices + 3 * i + 2)
        r1 = 1.0 / tl.load(vertices + 3 * j + 2)
        r2 = 1.0 / tl.load(vertices + 3 * k + 2)
        u0, u1, u2 = u0 * r0, u1 * r1, u2 * r2
    turn = tl.where(u0 + u1 + u2 < 0, -1.0, 1.0)
    return i, j, k, x0, y0, x1, y1, x2, y2, r0, r1, r2, u0, u1, u2, turn


@triton.jit
def normalise(u0, u1, u2, turn):  # type: ignore[no-untyped-def]
    m0, m1, m2 = tl.maximum(turn * u0, 0.0), tl.maximum(turn * u1, 0.0), tl.maximum(turn * u2, 0.0)
    total = m0 + m1 + m2
    flat = total == 0
    inverse = 1.0 / tl.where(flat, 1.0, total)
    return tl.where(flat, 1.0, m0 * inverse), m1 * inverse, m2 * inverse, inverse


@triton.jit
def forward(  # type: ignore[no-untyped-def]
    attributes, face_id, vertices, faces, image, background, attribute_rows, count, height, width,
    C: tl.constexpr, PERSPECTIVE: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mesh = tl.program_id(1).to(tl.int64)
    there = p < height * width
    face_id += mesh * height * width
    image += mesh * height * width * C
    attributes += mesh * attribute_rows * C
    f = tl.load(face_id + p, mask=there, other=-1)
    hit = f >= 0
    i, j, k, x0, y0, x1, y1, x2, y2, r0, r1, r2, u0, u1, u2, turn = weigh(
        vertices + mesh * count * 3, faces, tl.maximum(f, 0), p % width, p // width, width, height, PERSPECTIVE
    )
    w0, w1, w2, inverse = normalise(u0, u1, u2, turn)
    for start in tl.static_range(0, C, CHANNELS):
        c = start + tl.arange(0, CHANNELS)[None, :]
        mask = hit[:, None] & (c < C)
        value = w0[:, None] * tl.load(attributes + i[:, None] * C + c, mask=mask, other=0.0).to(tl.float32)
        value += w1[:, None] * tl.load(attributes + j[:, None] * C + c, mask=mask, other=0.0).to(tl.float32)
        value += w2[:, None] * tl.load(attributes + k[:, None] * C + c, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(hit[:, None], value, background)
        tl.store(image + p[:, None] * C + c, value, mask=there[:, None] & (c < C))


@triton.jit
def differentiate(x0, y0, x1, y1, x2, y2, r0, r1, r2, u0, u1, u2, turn, w0, w1, w2, inverse, g0, g1, g2):  # type: ignore[no-untyped-def]
    """Gradients of the corners' x, y and z, given those of the weights; the formula stands in `cpu._differentiate`."""
    mean = w0 * g0 + w1 * g1 + w2 * g2
    d0 = tl.where(turn * u0 > 0, turn * (g0 - mean) * inverse, 0.0)
    d1 = tl.where(turn * u1 > 0, turn * (g1 - mean) * inverse, 0.0)
    d2 = tl.where(turn * u2 > 0, turn * (g2 - mean) * inverse, 0.0)
    d0, d1, d2 = d0 * r0, d1 * r1, d2 * r2
    return (
        d2 * y1 - d1 * y2, d0 * y2 - d2 * y0, d1 * y0 - d0 * y1,
        d1 * x2 - d2 * x1, d2 * x0 - d0 * x2, d0 * x1 - d1 * x0,
        -d0 * u0, -d1 * u1, -d2 * u2,
    )  # fmt: skip


@triton.jit
def backward(  # type: ignore[no-untyped-def]
    grad, attributes, face_id, vertices, faces, d_attributes, d_vertices, attribute_rows, count, height, width,
    C: tl.constexpr, PERSPECTIVE: tl.constexpr, TO_ATTRIBUTES: tl.constexpr, TO_VERTICES: tl.constexpr,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mesh = tl.program_id(1).to(tl.int64)
    face_id += mesh * height * width
    grad += mesh * height * width * C
    attributes += mesh * attribute_rows * C
    d_attributes += mesh * attribute_rows * C
    d_vertices += mesh * count * 3
    f = tl.load(face_id + p, mask=p < height * width, other=-1)
    hit = f >= 0
    i, j, k, x0, y0, x1, y1, x2, y2, r0, r1, r2, u0, u1, u2, turn = weigh(
        vertices + mesh * count * 3, faces, tl.maximum(f, 0), p % width, p // width, width, height, PERSPECTIVE
    )
    w0, w1, w2, inverse = normalise(u0, u1, u2, turn)
    g0, g1, g2 = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in tl.static_range(0, C, CHANNELS):
        c = start + tl.arange(0, CHANNELS)[None, :]
        mask = hit[:, None] & (c < C)
        g = tl.load(grad + p[:, None] * C + c, mask=mask, other=0.0).to(tl.float32)
        if TO_ATTRIBUTES:
            tl.atomic_add(d_attributes + i[:, None] * C + c, w0[:, None] * g, mask=mask, sem="relaxed")
            tl.atomic_add(d_attributes + j[:, None] * C + c, w1[:, None] * g, mask=mask, sem="relaxed")
            tl.atomic_add(d_attributes + k[:, None] * C + c, w2[:, None] * g, mask=mask, sem="relaxed")
        if TO_VERTICES:
            g0 += tl.sum(g * tl.load(attributes + i[:, None] * C + c, mask=mask, other=0.0).to(tl.float32), 1)
            g1 += tl.sum(g * tl.load(attributes + j[:, None] * C + c, mask=mask, other=0.0).to(tl.float32), 1)
            g2 += tl.sum(g * tl.load(attributes + k[:, None] * C + c, mask=mask, other=0.0).to(tl.float32), 1)
    if TO_VERTICES:
        dx0, dx1, dx2, dy0, dy1, dy2, dz0, dz1, dz2 = differentiate(
            x0, y0, x1, y1, x2, y2, r0, r1, r2, u0, u1, u2, turn, w0, w1, w2, inverse, g0, g1, g2
        )
        tl.atomic_add(d_vertices + 3 * i, dx0, mask=hit, sem="relaxed")
        tl.atomic_add(d_vertices + 3 * i + 1, dy0, mask=hit, sem="relaxed")
        tl.atomic_add(d_vertices + 3 * j, dx1, mask=hit, sem="relaxed")
        tl.atomic_add(d_vertices + 3 * j + 1, dy1, mask=hit, sem="relaxed")
        tl.atomic_add(d_vertices + 3 * k, dx2, mask=hit, sem="relaxed")
        tl.atomic_add(d_vertices + 3 * k + 1, dy2, mask=hit, sem="relaxed")
        if PERSPECTIVE:
            tl.atomic_add(d_vertices + 3 * i + 2, dz0, mask=hit, sem="relaxed")
            tl.atomic_add(d_vertices + 3 * j + 2, dz1, mask=hit, sem="relaxed")
            tl.atomic_add(d_vertices + 3 * k + 2, dz2, mask=hit, sem="relaxed")


@triton.jit
def span(a, b, c, length):  # type: ignore[no-untyped-def]
    """First pixel and number of pixels, along one axis, that a triangle can have been drawn on: a pixel more than its
    box in NDC all around, for the snapping."""
    low = tl.floor((tl.minimum(tl.minimum(a, b), c) + 1.0) * (0.5 * length)) - 1.0
    high = tl.floor((tl.maximum(tl.maximum(a, b), c) + 1.0) * (0.5 * length)) + 1.0
    # NaN and far corners: min and max with a number give the number.
    low = tl.minimum(tl.maximum(low, 0.0), 1.0 * length)
    high = tl.minimum(tl.maximum(high, -1.0), length - 1.0)
    return low.to(tl.int32), tl.maximum(high.to(tl.int32) - low.to(tl.int32) + 1, 0)


@triton.jit
def backward_by_faces(  # type: ignore[no-untyped-def]
    grad, attributes, face_id, vertices, faces, d_attributes, d_vertices,
    attribute_rows, count, n_faces, height, width,
    C: tl.constexpr, PERSPECTIVE: tl.constexpr, TO_ATTRIBUTES: tl.constexpr, TO_VERTICES: tl.constexpr,
    FACES: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * FACES + tl.arange(0, FACES)
    mesh = tl.program_id(1).to(tl.int64)
    there = f < n_faces
    f = tl.where(there, f, 0)
    vertices += mesh * count * 3
    face_id += mesh * height * width
    grad += mesh * height * width * C
    attributes += mesh * attribute_rows * C
    d_attributes += mesh * n_faces * 3 * C
    d_vertices += mesh * n_faces * 9
    i, j, k = tl.load(faces + 3 * f), tl.load(faces + 3 * f + 1), tl.load(faces + 3 * f + 2)
    left, columns = span(tl.load(vertices + 3 * i), tl.load(vertices + 3 * j), tl.load(vertices + 3 * k), width)
    top, rows = span(
        tl.load(vertices + 3 * i + 1), tl.load(vertices + 3 * j + 1), tl.load(vertices + 3 * k + 1), height
    )
    pixels = tl.where(there, columns * rows, 0)
    columns = tl.maximum(columns, 1)
    steps = tl.max(pixels, 0)

    # One pass per block of channels; the dot products for the weights are needed over all of them, so the vertices'
    # gradients come from a pass of their own, whose inner loop runs over the channels.
    for start in tl.static_range(0, C, CHANNELS):
        if TO_ATTRIBUTES:
            c = start + tl.arange(0, CHANNELS)[None, None, :]
            a0 = tl.zeros((FACES, CHANNELS), tl.float32)
            a1 = tl.zeros((FACES, CHANNELS), tl.float32)
            a2 = tl.zeros((FACES, CHANNELS), tl.float32)
            for first in range(0, steps, PIXELS):
                place = first + tl.arange(0, PIXELS)[None, :]
                row = top[:, None] + place // columns[:, None]
                column = left[:, None] + place % columns[:, None]
                p = row * width + column
                mine = tl.load(face_id + p, mask=place < pixels[:, None], other=-1) == f[:, None]
                _i, _j, _k, x0, y0, x1, y1, x2, y2, r0, r1, r2, u0, u1, u2, turn = weigh(
                    vertices, faces, f[:, None] + place * 0, column, row, width, height, PERSPECTIVE
                )
                w0, w1, w2, inverse = normalise(u0, u1, u2, turn)
                mask = mine[:, :, None] & (c < C)
                g = tl.load(grad + p[:, :, None] * C + c, mask=mask, other=0.0).to(tl.float32)
                a0 += tl.sum(w0[:, :, None] * g, 1)
                a1 += tl.sum(w1[:, :, None] * g, 1)
                a2 += tl.sum(w2[:, :, None] * g, 1)
            channel = start + tl.arange(0, CHANNELS)[None, :]
            to = d_attributes + f[:, None] * (3 * C) + channel
            wanted = there[:, None] & (channel < C)
            tl.store(to, a0, mask=wanted)
            tl.store(to + C, a1, mask=wanted)
            tl.store(to + 2 * C, a2, mask=wanted)
    if TO_VERTICES:
        zero = tl.zeros((FACES,), tl.float32)
        sx0, sx1, sx2, sy0, sy1, sy2, sz0, sz1, sz2 = zero, zero, zero, zero, zero, zero, zero, zero, zero
        for first in range(0, steps, PIXELS):
            place = first + tl.arange(0, PIXELS)[None, :]
            row = top[:, None] + place // columns[:, None]
            column = left[:, None] + place % columns[:, None]
            p = row * width + column
            mine = tl.load(face_id + p, mask=place < pixels[:, None], other=-1) == f[:, None]
            _i, _j, _k, x0, y0, x1, y1, x2, y2, r0, r1, r2, u0, u1, u2, turn = weigh(
                vertices, faces, f[:, None] + place * 0, column, row, width, height, PERSPECTIVE
            )
            w0, w1, w2, inverse = normalise(u0, u1, u2, turn)
            g0 = tl.zeros((FACES, PIXELS), tl.float32)
            g1 = tl.zeros((FACES, PIXELS), tl.float32)
            g2 = tl.zeros((FACES, PIXELS), tl.float32)
            for start in tl.static_range(0, C, CHANNELS):
                c = start + tl.arange(0, CHANNELS)[None, None, :]
                mask = mine[:, :, None] & (c < C)
                g = tl.load(grad + p[:, :, None] * C + c, mask=mask, other=0.0).to(tl.float32)
                known = there[:, None, None] & (c < C)
                g0 += tl.sum(
                    g * tl.load(attributes + i[:, None, None] * C + c, mask=known, other=0.0).to(tl.float32), 2
                )
                g1 += tl.sum(
                    g * tl.load(attributes + j[:, None, None] * C + c, mask=known, other=0.0).to(tl.float32), 2
                )
                g2 += tl.sum(
                    g * tl.load(attributes + k[:, None, None] * C + c, mask=known, other=0.0).to(tl.float32), 2
                )
            dx0, dx1, dx2, dy0, dy1, dy2, dz0, dz1, dz2 = differentiate(
                x0, y0, x1, y1, x2, y2, r0, r1, r2, u0, u1, u2, turn, w0, w1, w2, inverse, g0, g1, g2
            )
            sx0 += tl.sum(tl.where(mine, dx0, 0.0), 1)
            sx1 += tl.sum(tl.where(mine, dx1, 0.0), 1)
            sx2 += tl.sum(tl.where(mine, dx2, 0.0), 1)
            sy0 += tl.sum(tl.where(mine, dy0, 0.0), 1)
            sy1 += tl.sum(tl.where(mine, dy1, 0.0), 1)
            sy2 += tl.sum(tl.where(mine, dy2, 0.0), 1)
            sz0 += tl.sum(tl.where(mine, dz0, 0.0), 1)
            sz1 += tl.sum(tl.where(mine, dz1, 0.0), 1)
            sz2 += tl.sum(tl.where(mine, dz2, 0.0), 1)
        to = d_vertices + 9 * f
        tl.store(to, sx0, mask=there)
        tl.store(to + 1, sy0, mask=there)
        tl.store(to + 3, sx1, mask=there)
        tl.store(to + 4, sy1, mask=there)
        tl.store(to + 6, sx2, mask=there)
        tl.store(to + 7, sy2, mask=there)
        if PERSPECTIVE:
            tl.store(to + 2, sz0, mask=there)
            tl.store(to + 5, sz1, mask=there)
            tl.store(to + 8, sz2, mask=there)


@triton.jit
def collect(  # type: ignore[no-untyped-def]
    corners, order, ends, result, rows, count, C: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr
):
    v = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mesh = tl.program_id(1).to(tl.int64)
    corners += mesh * rows * C
    result += mesh * count * C
    end = tl.load(ends + v, mask=v < count, other=0)
    begin = tl.load(ends + v - 1, mask=(v < count) & (v > 0), other=0)
    c = tl.arange(0, CHANNELS)[None, :]
    total = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for step in range(tl.max(end - begin, 0)):
        mine = begin + step < end
        corner = tl.load(order + begin + step, mask=mine, other=0)
        total += tl.load(corners + corner[:, None] * C + c, mask=mine[:, None] & (c < C), other=0.0)
    tl.store(result + v[:, None] * C + c, total, mask=(v < count)[:, None] & (c < C))
