"""What warping means, in plain torch with autograd; also the judge of the kernels and the fallback on any device.

Pixel (i, j) of the output takes the bilinear value of the features at pixel-centre coordinates

    x = j + d_x W / 2,   y = i + d_y H / 2              (displacement; zero is exactly the identity)
    x = (g_x + 1) W / 2 - 1/2,          likewise y      (grid with align_corners=False)
    x = (g_x + 1) (W - 1) / 2,          likewise y      (grid with align_corners=True)

where x = 0 is the centre of the first column. All three are x = base j + offset + scale g. A field of another size than
the features is first resized bilinearly (half-pixel centres, clamped at the border), as
`F.interpolate(align_corners=False)` does. Outside the features lies 0, or the nearest border pixel; NaN lies outside.
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
    field = field.to(torch.promote_types(field.dtype, torch.float32))
    if field.shape[-2:] != (height, width):
        field = F.interpolate(field, (height, width), mode="bilinear", align_corners=False)
    columns = torch.arange(width, device=field.device, dtype=field.dtype)
    rows = torch.arange(height, device=field.device, dtype=field.dtype)[:, None]
    along_x = _corners(x.base * columns + x.offset + x.scale * field[:, 0], width, zeros)
    along_y = _corners(y.base * rows + y.offset + y.scale * field[:, 1], height, zeros)

    place = torch.arange(len(features), device=field.device)[:, None, None]
    pixels = features.permute(0, 2, 3, 1).to(field.dtype)
    image = torch.zeros_like(pixels)
    for row, weight_y in along_y:
        for column, weight_x in along_x:
            image = image + pixels[place, row, column] * (weight_y * weight_x)[..., None]
    return image.permute(0, 3, 1, 2).to(features.dtype)


def _corners(place: Tensor, length: int, zeros: bool) -> list[tuple[Tensor, Tensor]]:
    """The two pixels around each place along one axis (within the features) and their weights."""
    if zeros:
        place = torch.where((place > -2) & (place < length + 1), place, -2.0)
    else:
        place = torch.where(place > 0, torch.where(place < length - 1, place, length - 1.0), 0.0)
    first = place.detach().floor()
    fraction = place - first
    corners = []
    for index, weight in ((first.long(), 1 - fraction), (first.long() + 1, fraction)):
        inside = (index >= 0) & (index < length)
        corners.append((index.clamp(0, length - 1), torch.where(inside, weight, 0) if zeros else weight))
    return corners
