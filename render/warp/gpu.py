"""The warp of `reference` in Triton: resizing the field, sampling and writing to a slice of channels in one launch.

Coordinates and sums are float32 whatever the features are. Weights are the hats of `cpu._corners`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .reference import Axis

# Pixels x channels of a program, by registers: see tests/render/test_gpu_compile.py.
_FORWARD_ELEMENTS, _BACKWARD_ELEMENTS = 2048, 512


def warp(features: Tensor, field: Tensor, image: Tensor, axes: list[float], *, zeros: bool) -> None:
    """Fills `image` (B, C, H, W); features and image have the channels of a pixel side by side, `field` is float32."""
    batch, channels, height, width = features.shape
    pixels, block = blocks(channels, _FORWARD_ELEMENTS)
    if image.numel():
        forward[(triton.cdiv(height * width, pixels), triton.cdiv(channels, block), batch)](
            features, field, image, *axes, *_strides(features), *_strides(image), *field.stride(),
            *field.shape[2:], height, width,
            C=channels, ZEROS=zeros, PIXELS=pixels, CHANNELS=block,
        )  # fmt: skip


def warp_backward(
    grad: Tensor, features: Tensor, field: Tensor, axes: list[float], *, zeros: bool
) -> tuple[Tensor, Tensor]:
    """Gradients (B, C, H, W) to the features, float32, and (B, 2, H, W) to the field after its resizing.

    The features' gradient is added up with atomics. Where the same bits are asked for, the reference's autograd serves.
    """
    batch, channels, height, width = features.shape
    if torch.are_deterministic_algorithms_enabled():
        return _deterministic(grad, features, field, axes, zeros)
    d_features = torch.zeros((batch, height, width, channels), device=grad.device).permute(0, 3, 1, 2)
    d_field = torch.empty((batch, 2, height, width), device=grad.device)
    pixels, block = blocks(channels, _BACKWARD_ELEMENTS)
    if grad.numel():
        backward[(triton.cdiv(height * width, pixels), batch)](
            grad, features, field, d_features, d_field, *axes, *_strides(grad), *_strides(features),
            *_strides(d_features), *field.stride(), *field.shape[2:], height, width,
            C=channels, ZEROS=zeros, PIXELS=pixels, CHANNELS=block,
        )  # fmt: skip
    return d_features, d_field


def _deterministic(
    grad: Tensor, features: Tensor, field: Tensor, axes: list[float], zeros: bool
) -> tuple[Tensor, Tensor]:
    size = features.shape[2:]
    with torch.enable_grad():
        if field.shape[2:] != size:
            field = torch.nn.functional.interpolate(field, size, mode="bilinear", align_corners=False)
        inputs = features.detach().float().requires_grad_(), field.detach().requires_grad_()
        image = reference.sample(*inputs, Axis(*axes[:3]), Axis(*axes[3:]), zeros=zeros)
    d_features, d_field = torch.autograd.grad(image, inputs, grad.float())
    return d_features, d_field


def blocks(channels: int, elements: int) -> tuple[int, int]:
    """Pixels and channels that a program of so many elements takes at a time."""
    block = min(triton.next_power_of_2(channels), elements // 16)
    return elements // block, block


def _strides(pixels: Tensor) -> tuple[int, int, int]:
    return pixels.stride(0), pixels.stride(2), pixels.stride(3)


@triton.jit
def resized(field, sy, sx, rows, columns, i, j, height, width, mask):  # type: ignore[no-untyped-def]
    """The field at output pixels (i, j): bilinear, half-pixel centres, clamped. Of the same size it is the field."""
    v = (i.to(tl.float32) + 0.5) * (rows / height) - 0.5
    u = (j.to(tl.float32) + 0.5) * (columns / width) - 0.5
    same = (rows == height) & (columns == width)
    v = tl.where(same, i.to(tl.float32), tl.minimum(tl.maximum(v, 0.0), rows - 1.0))
    u = tl.where(same, j.to(tl.float32), tl.minimum(tl.maximum(u, 0.0), columns - 1.0))
    top, left = v.to(tl.int32), u.to(tl.int32)
    bottom, right = tl.minimum(top + 1, rows - 1), tl.minimum(left + 1, columns - 1)
    v, u = v - top.to(tl.float32), u - left.to(tl.float32)
    a = tl.load(field + top * sy + left * sx, mask=mask, other=0.0)
    b = tl.load(field + top * sy + right * sx, mask=mask & (u > 0), other=0.0)
    c = tl.load(field + bottom * sy + left * sx, mask=mask & (v > 0), other=0.0)
    d = tl.load(field + bottom * sy + right * sx, mask=mask & (u > 0) & (v > 0), other=0.0)
    return (a * (1.0 - u) + b * u) * (1.0 - v) + (c * (1.0 - u) + d * u) * v


@triton.jit
def hats(place, length, ZEROS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A pixel p, the weights of p and p + 1 at a place along one axis, and the weights' derivatives."""
    if ZEROS:
        low, high = -2.0, length + 1.0
    else:
        low, high = 0.0, length - 1.0
    moves = (place > low) & (place < high)
    place = tl.where(place > low, place, low)
    place = tl.where(place < high, place, high)
    first = tl.maximum(tl.minimum(place.to(tl.int32), length - 2), 0)
    after = place - first.to(tl.float32)
    before = 1.0 - after
    w0, w1 = tl.maximum(1.0 - tl.abs(after), 0.0), tl.maximum(1.0 - tl.abs(before), 0.0)
    w1 = tl.where(length > 1, w1, 0.0)
    slope = tl.where(moves, 1.0, 0.0)
    # At a kink, which is where zero displacement stands, the derivative is that to the right, as of the reference.
    d0 = tl.where((after >= -1) & (before > 0), tl.where(after < 0, slope, -slope), 0.0)
    d1 = tl.where((after >= 0) & (before > -1) & (length > 1), tl.where(before > 0, slope, -slope), 0.0)
    return first, w0, w1, d0, d1


@triton.jit
def locate(  # type: ignore[no-untyped-def]
    field, p, mask, base_x, offset_x, scale_x, base_y, offset_y, scale_y,
    field_c, field_y, field_x, rows, columns, height, width, ZEROS: tl.constexpr,
):  # fmt: skip
    i, j = p // width, p % width
    dx = resized(field, field_y, field_x, rows, columns, i, j, height, width, mask)
    dy = resized(field + field_c, field_y, field_x, rows, columns, i, j, height, width, mask)
    left, x0, x1, dx0, dx1 = hats(base_x * j.to(tl.float32) + offset_x + scale_x * dx, width, ZEROS)
    top, y0, y1, dy0, dy1 = hats(base_y * i.to(tl.float32) + offset_y + scale_y * dy, height, ZEROS)
    return left, top, x0, x1, y0, y1, dx0 * scale_x, dx1 * scale_x, dy0 * scale_y, dy1 * scale_y


@triton.jit
def forward(  # type: ignore[no-untyped-def]
    features, field, image, base_x, offset_x, scale_x, base_y, offset_y, scale_y,
    feature_b, feature_y, feature_x, image_b, image_y, image_x, field_b, field_c, field_y, field_x,
    rows, columns, height, width,
    C: tl.constexpr, ZEROS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    picture = tl.program_id(2).to(tl.int64)
    there = p < height * width
    left, top, x0, x1, y0, y1, _dx0, _dx1, _dy0, _dy1 = locate(
        field + picture * field_b, p, there, base_x, offset_x, scale_x, base_y, offset_y, scale_y,
        field_c, field_y, field_x, rows, columns, height, width, ZEROS,
    )  # fmt: skip
    corner = features + picture * feature_b + (top * feature_y + left * feature_x)[:, None] + c
    mask = there[:, None] & (c < C)
    wa, wb, wc, wd = (y0 * x0)[:, None], (y0 * x1)[:, None], (y1 * x0)[:, None], (y1 * x1)[:, None]
    # A neighbour without weight may lie outside.
    value = wa * tl.load(corner, mask=mask, other=0.0).to(tl.float32)
    value += wb * tl.load(corner + feature_x, mask=mask & (wb > 0), other=0.0).to(tl.float32)
    value += wc * tl.load(corner + feature_y, mask=mask & (wc > 0), other=0.0).to(tl.float32)
    value += wd * tl.load(corner + feature_y + feature_x, mask=mask & (wd > 0), other=0.0).to(tl.float32)
    target = (p // width) * image_y + (p % width) * image_x
    tl.store(image + picture * image_b + target[:, None] + c, value, mask=mask)


@triton.jit
def backward(  # type: ignore[no-untyped-def]
    grad, features, field, d_features, d_field, base_x, offset_x, scale_x, base_y, offset_y, scale_y,
    grad_b, grad_y, grad_x, feature_b, feature_y, feature_x, d_b, d_y, d_x,
    field_b, field_c, field_y, field_x, rows, columns, height, width,
    C: tl.constexpr, ZEROS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    picture = tl.program_id(1).to(tl.int64)
    there = p < height * width
    left, top, x0, x1, y0, y1, dx0, dx1, dy0, dy1 = locate(
        field + picture * field_b, p, there, base_x, offset_x, scale_x, base_y, offset_y, scale_y,
        field_c, field_y, field_x, rows, columns, height, width, ZEROS,
    )  # fmt: skip
    # Whether the right and lower neighbours are in the picture.
    across, down = (left + 1 < width) & there, (top + 1 < height) & there
    source = grad + picture * grad_b + ((p // width) * grad_y + (p % width) * grad_x)[:, None]
    corner = features + picture * feature_b + (top * feature_y + left * feature_x)[:, None]
    to = d_features + picture * d_b + (top * d_y + left * d_x)[:, None]
    ga, gb = tl.zeros((PIXELS,), tl.float32), tl.zeros((PIXELS,), tl.float32)
    gc, gd = tl.zeros((PIXELS,), tl.float32), tl.zeros((PIXELS,), tl.float32)
    for start in range(0, C, CHANNELS):
        c = start + tl.arange(0, CHANNELS)[None, :]
        mask = there[:, None] & (c < C)
        mask_b, mask_c = across[:, None] & (c < C), down[:, None] & (c < C)
        mask_d = mask_b & mask_c
        g = tl.load(source + c, mask=mask, other=0.0).to(tl.float32)
        ga += tl.sum(g * tl.load(corner + c, mask=mask, other=0.0).to(tl.float32), 1)
        gb += tl.sum(g * tl.load(corner + feature_x + c, mask=mask_b, other=0.0).to(tl.float32), 1)
        gc += tl.sum(g * tl.load(corner + feature_y + c, mask=mask_c, other=0.0).to(tl.float32), 1)
        gd += tl.sum(g * tl.load(corner + feature_y + feature_x + c, mask=mask_d, other=0.0).to(tl.float32), 1)
        wa, wb, wc, wd = (y0 * x0)[:, None], (y0 * x1)[:, None], (y1 * x0)[:, None], (y1 * x1)[:, None]
        tl.atomic_add(to + c, wa * g, mask=mask & (wa > 0), sem="relaxed")
        tl.atomic_add(to + d_x + c, wb * g, mask=mask_b & (wb > 0), sem="relaxed")
        tl.atomic_add(to + d_y + c, wc * g, mask=mask_c & (wc > 0), sem="relaxed")
        tl.atomic_add(to + d_y + d_x + c, wd * g, mask=mask_d & (wd > 0), sem="relaxed")
    own = d_field + picture * 2 * height * width + p
    tl.store(own, y0 * (dx0 * ga + dx1 * gb) + y1 * (dx0 * gc + dx1 * gd), mask=there)
    tl.store(own + height * width, x0 * (dy0 * ga + dy1 * gc) + x1 * (dy0 * gb + dy1 * gd), mask=there)
