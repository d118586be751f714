"""What interpolation means, in plain torch with autograd; also the judge of the kernels and the fallback on any device.

At the centre p of a pixel that shows the triangle with corners v_0, v_1, v_2 (NDC, not snapped):

    u_k = (v_{k+1} - p) x (v_{k+2} - p) r_k,    r_k = 1, or 1 / z_k with perspective
    w_k = max(t u_k, 0) / sum_j max(t u_j, 0),  t = sign of u_0 + u_1 + u_2

Coverage is decided on vertices snapped to 1/256 pixel, so p may lie outside by that much, and slivers may even be
turned over. The max keeps the weights of such pixels between 0 and 1; gradients are those of the formula, through the
corners that remain.
"""

from __future__ import annotations

import torch
from torch import Tensor


def barycentrics(face_id: Tensor, vertices: Tensor, faces: Tensor, *, perspective: bool) -> Tensor:
    """Weights (B, H, W, 3) of the corners, 0 on the background."""
    batch, height, width = face_id.shape
    corner = faces.long()[face_id.clamp_min(0).long()]  # (B, H, W, 3)
    place = torch.arange(batch, device=face_id.device)[:, None, None, None]
    x, y, z = vertices[place, corner].unbind(-1)  # each (B, H, W, 3)
    x = x - _centres(width, x)[:, None]
    y = y - _centres(height, y)[:, None, None]
    u = x.roll(-1, -1) * y.roll(-2, -1) - y.roll(-1, -1) * x.roll(-2, -1)
    if perspective:
        u = u / z
    u = (u * torch.where(u.sum(-1, keepdim=True) < 0, -1.0, 1.0)).clamp_min(0)
    total = u.sum(-1, keepdim=True)
    drawn = (face_id >= 0)[..., None]
    flat = drawn & (total == 0)  # a triangle without area: the first corner
    first = torch.tensor([1.0, 0.0, 0.0], dtype=u.dtype, device=u.device)
    return torch.where(flat, first, torch.where(drawn, u / torch.where(total == 0, 1, total), 0))


def interpolate(
    attributes: Tensor, face_id: Tensor, vertices: Tensor, faces: Tensor, *, perspective: bool, background: float
) -> Tensor:
    """Images (B, H, W, C) of `attributes` (B or 1, V, C)."""
    weights = barycentrics(face_id, vertices, faces, perspective=perspective)
    corner = faces.long()[face_id.clamp_min(0).long()]
    place = torch.arange(len(face_id), device=face_id.device)[:, None, None, None]
    values = attributes.expand(len(face_id), -1, -1)[place, corner]  # (B, H, W, 3, C)
    image = (weights[..., None].to(values.dtype) * values).sum(-2)
    return torch.where((face_id >= 0)[..., None], image, background)


def _centres(length: int, like: Tensor) -> Tensor:
    """NDC of pixel centres (length,)."""
    return (torch.arange(length, dtype=like.dtype, device=like.device) * 2 + 1) * (1 / length) - 1
