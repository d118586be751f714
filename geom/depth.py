"""Depth maps, the points that they show, and their normals, in world axes (docs/conventions.md)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unproject(depth: Tensor, focal: Tensor, principal: Tensor) -> Tensor:
    """(B, 3, H, W) world points of every pixel: x right, y up, z = -depth.

        x = (u - c_x) depth / f,   y = -(v - c_y) depth / f,   (u, v) = pixel index + 0.5

    Args:
        depth: (B, 1, H, W) along the optical axis.
        focal: (B,) px. principal: (B, 2) px.
    """
    height, width = depth.shape[2:]
    x = torch.arange(width, device=depth.device) + 0.5 - principal[:, 0, None]  # (B, W)
    y = torch.arange(height, device=depth.device) + 0.5 - principal[:, 1, None]
    ray = torch.stack([x[:, None].expand(-1, height, -1), -y[:, :, None].expand(-1, -1, width)], 1)
    ray = ray / focal[:, None, None, None]
    return torch.cat([ray, -torch.ones_like(depth)], 1) * depth


def point_normals(points: Tensor) -> Tensor:
    """(B, 3, H, W) unit normals of a map of points, towards the camera; by differences of the neighbours on both sides,
    at the border of the one there is."""
    padded = F.pad(points, (1, 1, 1, 1), mode="replicate")
    along_x = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    along_y = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return F.normalize(torch.linalg.cross(along_y, along_x, dim=1), dim=1, eps=1e-12)
