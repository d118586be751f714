"""The rule set of `reference` in Triton: triangles lower a z-buffer of (s, triangle) keys, then pixels read it.

    snap     vertices -> X, Y on the sub-pixel grid, s
    scatter  a block of triangles walks through the boxes of all of them at once, 8 pixels a step: atomic_min of the key
    resolve  key -> triangle id, depth

A key orders as rule 4 does, so the smallest one is the same whatever the schedule. Triangles under 64 pixels wide and
high (all of a head at usual sizes) have edge values within int32; a second launch takes the others in int64. Nothing is
asked back by the host, so a CUDA graph can hold the whole.

Compiled with `enable_fp_fusion=False` and divisions rounded to nearest: the bits of s must be those of other backends.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import FAR, LIMIT, NEAR, STEPS

_STEPS = tl.constexpr(STEPS)
_HALF = tl.constexpr(STEPS // 2)
_LIMIT, _NEAR, _FAR = tl.constexpr(LIMIT), tl.constexpr(NEAR), tl.constexpr(FAR)
_REFUSED = tl.constexpr(-(2**30))  # in place of X of a vertex that cannot be drawn
_SMALL = tl.constexpr(64 * STEPS)  # triangles below this many steps have edge values within int32
_EMPTY = torch.iinfo(torch.int64).max
# (triangles, pixels) a step, by whether the triangles are small; chosen by registers and spills, see docs/kernels.md
BLOCKS = {True: (32, 8), False: (16, 8)}


def rasterize(
    vertices: Tensor, faces: Tensor, size: tuple[int, int], *, cull: bool, perspective: bool
) -> tuple[Tensor, Tensor]:
    """Triangle ids (B, H, W) int32 and depths (B, H, W) float32; contiguous float32 vertices, int32 faces.

    Triangles that name no vertex are left out: finding them would need an answer from the device.
    """
    height, width = size
    (batch, count, _), n_faces = vertices.shape, len(faces)
    shape = (batch, height, width)
    face_id = torch.empty(shape, dtype=torch.int32, device=vertices.device)
    depth = torch.empty(shape, dtype=torch.float32, device=vertices.device)
    nearest = torch.full(shape, _EMPTY, dtype=torch.int64, device=vertices.device)
    x, y = (torch.empty((batch, count), dtype=torch.int32, device=vertices.device) for _ in range(2))
    s = torch.empty((batch, count), dtype=torch.float32, device=vertices.device)
    exact: Any = {"enable_fp_fusion": False}
    if batch and count and n_faces:
        snap[(triton.cdiv(batch * count, 256),)](
            vertices, x, y, s, batch * count, float(width * STEPS // 2), float(height * STEPS // 2),
            PERSPECTIVE=perspective, BLOCK=256, **exact,
        )  # fmt: skip
        for small, (triangles, pixels) in BLOCKS.items():
            scatter[(triton.cdiv(n_faces, triangles), batch)](
                x, y, s, faces, nearest, count, n_faces, height, width,
                CULL=cull, IS_SMALL=small, TRIANGLES=triangles, PIXELS=pixels, **exact,
            )  # fmt: skip
    resolve[(triton.cdiv(nearest.numel(), 256),)](
        nearest, face_id, depth, nearest.numel(), PERSPECTIVE=perspective, BLOCK=256, **exact
    )
    return face_id, depth


@triton.jit
def snap(vertices, x, y, s, count, scale_x, scale_y, PERSPECTIVE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    v = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = v < count
    z = tl.load(vertices + 3 * v + 2, mask=there, other=0.0)
    px = tl.floor((tl.load(vertices + 3 * v, mask=there, other=0.0) + 1.0) * scale_x + 0.5)
    py = tl.floor((tl.load(vertices + 3 * v + 1, mask=there, other=0.0) + 1.0) * scale_y + 0.5)
    good = (tl.abs(px) < _LIMIT) & (tl.abs(py) < _LIMIT) & (z > _NEAR) & (z < _FAR)
    tl.store(x + v, tl.where(good, px, _REFUSED).to(tl.int32), mask=there)
    tl.store(y + v, tl.where(good, py, 0.0).to(tl.int32), mask=there)
    z = tl.where(good, z, 1.0)
    tl.store(s + v, -tl.div_rn(1.0, z) if PERSPECTIVE else z, mask=there)


@triton.jit
def set_up(x, y, faces, f, count, n_faces, CULL: tl.constexpr, IS_SMALL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Corner ids in the order that makes the area positive, snapped corners, area, and which triangles to draw."""
    there = f < n_faces
    i = tl.load(faces + 3 * f, mask=there, other=-1)
    j = tl.load(faces + 3 * f + 1, mask=there, other=-1)
    k = tl.load(faces + 3 * f + 2, mask=there, other=-1)
    there = (i >= 0) & (j >= 0) & (k >= 0) & (i < count) & (j < count) & (k < count)
    i, j, k = tl.where(there, i, 0), tl.where(there, j, 0), tl.where(there, k, 0)
    x0, y0 = tl.load(x + i), tl.load(y + i)
    x1, y1 = tl.load(x + j), tl.load(y + j)
    x2, y2 = tl.load(x + k), tl.load(y + k)
    drawn = there & (x0 != _REFUSED) & (x1 != _REFUSED) & (x2 != _REFUSED)
    wide = tl.maximum(tl.maximum(x0, x1), x2) - tl.minimum(tl.minimum(x0, x1), x2)
    high = tl.maximum(tl.maximum(y0, y1), y2) - tl.minimum(tl.minimum(y0, y1), y2)
    small = (wide < _SMALL) & (high < _SMALL)
    if IS_SMALL:
        drawn &= small
        area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
    else:
        drawn &= small == 0
        area = (x1 - x0).to(tl.int64) * (y2 - y0) - (y1 - y0).to(tl.int64) * (x2 - x0)
    front = area < 0
    drawn &= front if CULL else area != 0
    area = tl.where(front, -area, area)
    j, k = tl.where(front, k, j), tl.where(front, j, k)
    x1, x2 = tl.where(front, x2, x1), tl.where(front, x1, x2)
    y1, y2 = tl.where(front, y2, y1), tl.where(front, y1, y2)
    return i, j, k, x0, y0, x1, y1, x2, y2, area, drawn


@triton.jit
def box(a, b, c, length):  # type: ignore[no-untyped-def]
    """First pixel whose centre may be inside, and how many follow, along one axis."""
    first = (tl.minimum(tl.minimum(a, b), c) + (_STEPS - 1 - _HALF)) >> 8
    after = ((tl.maximum(tl.maximum(a, b), c) - _HALF) >> 8) + 1
    first = tl.minimum(tl.maximum(first, 0), length)
    return first, tl.maximum(tl.minimum(tl.maximum(after, 0), length) - first, 0)


@triton.jit
def inside(px, py, ax, ay, bx, by, IS_SMALL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Edge function from a to b at the pixels, as float32, and whether it lets them in."""
    dx, dy = bx - ax, by - ay
    if IS_SMALL:
        edge = dx * (py - ay) - dy * (px - ax)
    else:
        edge = dx.to(tl.int64) * (py - ay) - dy.to(tl.int64) * (px - ax)
    top_left = (dy < 0) | ((dy == 0) & (dx > 0))
    return edge.to(tl.float32), (edge > 0) | ((edge == 0) & top_left)


@triton.jit
def scatter(  # type: ignore[no-untyped-def]
    x, y, s, faces, nearest, count, n_faces, height, width,
    CULL: tl.constexpr, IS_SMALL: tl.constexpr, TRIANGLES: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0) * TRIANGLES + tl.arange(0, TRIANGLES)
    mesh = tl.program_id(1).to(tl.int64)
    x, y, s = x + mesh * count, y + mesh * count, s + mesh * count
    nearest += mesh * height * width
    i, j, k, x0, y0, x1, y1, x2, y2, area, drawn = set_up(x, y, faces, f, count, n_faces, CULL, IS_SMALL)
    left, columns = box(x0, x1, x2, width)
    top, rows = box(y0, y1, y2, height)
    pixels = tl.where(drawn, columns * rows, 0)
    inverse = tl.div_rn(1.0, tl.where(drawn, area, 1).to(tl.float32))
    s0, s1, s2 = tl.load(s + i) * inverse, tl.load(s + j) * inverse, tl.load(s + k) * inverse

    columns = tl.maximum(columns, 1)
    x0, y0, x1, y1, x2, y2 = x0[:, None], y0[:, None], x1[:, None], y1[:, None], x2[:, None], y2[:, None]
    for start in range(0, tl.max(pixels, 0), PIXELS):
        place = start + tl.arange(0, PIXELS)[None, :]
        row = top[:, None] + place // columns[:, None]
        column = left[:, None] + place % columns[:, None]
        px, py = column * _STEPS + _HALF, row * _STEPS + _HALF
        e0, in0 = inside(px, py, x1, y1, x2, y2, IS_SMALL)
        e1, in1 = inside(px, py, x2, y2, x0, y0, IS_SMALL)
        e2, in2 = inside(px, py, x0, y0, x1, y1, IS_SMALL)
        value = e0 * s0[:, None] + e1 * s1[:, None] + e2 * s2[:, None]
        bits = value.to(tl.int32, bitcast=True)
        bits ^= (bits >> 31) & 0x7FFFFFFF
        key = (bits.to(tl.int64) << 32) | f[:, None].to(tl.int64)
        covered = in0 & in1 & in2 & (place < pixels[:, None])
        tl.atomic_min(nearest + row * width + column, key, mask=covered, sem="relaxed")


@triton.jit
def resolve(nearest, face_id, depth, count, PERSPECTIVE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = p < count
    key = tl.load(nearest + p, mask=there, other=0x7FFFFFFFFFFFFFFF)
    hit = key != 0x7FFFFFFFFFFFFFFF
    bits = (key >> 32).to(tl.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    value = bits.to(tl.float32, bitcast=True)
    if PERSPECTIVE:
        value = -tl.div_rn(1.0, tl.where(hit, value, 1.0))
    tl.store(depth + p, tl.where(hit, value, float("inf")), mask=there)
    tl.store(face_id + p, tl.where(hit, (key & 0xFFFFFFFF).to(tl.int32), -1), mask=there)
