"""What warping means, in plain torch with autograd; also the judge of the kernels and the fallback on any device.

Pixel (i, j) of the output takes the bilinear value of the features at pixel-centre coordinates

    x = j + d_x W / 2,   y = i + d_y H / 2              (displacement; zero is exactly the identity)
    x = (g_x + 1) W / 2 - 1/2,          likewise y      (grid with align_corners=False)
    x = (g_x + 1) (W - 1) / 2,          likewise y      (grid with align_corners=True)

where x = 0 is the centre of the first column. All three are x = base j + offset + scale g; a field coarser than the
features is first enlarged bilinearly (half-pixel centres, clamped at the border), as
`F.interpolate(align_corners=False)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Axis(NamedTuple):
    """Source coordinate along one axis: base * output index + offset + scale * field."""

    base: float
    offset: float
    scale: float


def displacement_axis(length: int) -> Axis:
    return Axis(1.0, 0.0, length / 2)


def grid_axis(length: int, align_corners: bool) -> Axis:
    half = (length - 1) / 2
    return Axis(0.0, half, half if align_corners else length / 2)


def sample(features: Tensor, field: Tensor, x: Axis, y: Axis, *, zeros: bool) -> Tensor:
    """Samples `features` (B, C, H, W) where `field` (B, 2, h, w) says; fields and coordinates are float32.

    Args:
        x, y: how field values become source coordinates.
        zeros: outside the features lies 0; else the nearest border pixel.
    """
    height, width = features.shape[-2:]
    field = field.float()
    if field.shape[-2:] != (height, width):
        field = F.interpolate(field, (height, width), mode="bilinear", align_corners=False)
    column = torch.arange(width, device=field.device, dtype=field.dtype)
    row = torch.arange(height, device=field.device, dtype=field.dtype)[:, None]
    source_x = x.base * column + x.offset + x.scale * field[:, 0]
    source_y = y.base * row + y.offset + y.scale * field[:, 1]
    grid = torch.stack([(2 * source_x + 1) / width - 1, (2 * source_y + 1) / height - 1], -1)
    mode = "zeros" if zeros else "border"
    return F.grid_sample(features.float(), grid, "bilinear", mode, align_corners=False).to(features.dtype)
