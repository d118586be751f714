"""How wrong a depth map is, whatever its scale: SIDE and MAD of Unsup3D's table (Wu et al. 2020, section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def side(depth: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Scale-invariant depth error of each picture.

        e = log depth - log truth,   SIDE = sqrt(mean((e - mean e)^2))   over the mask

    Args:
        depth, truth: (B, 1, H, W) positive inside the mask; anything, infinity too, outside.
        mask: (B, 1, H, W) bool.
    Returns:
        (B,); 0 for a depth that is right up to a factor; nan where the mask is empty. Tables show it times 100.
    """
    inside = mask.bool()
    one = depth.new_ones(())
    error = torch.where(inside, depth, one).log() - torch.where(inside, truth, one).log()
    count = inside.sum((1, 2, 3))
    mean = error.sum((1, 2, 3)) / count
    off = (error - mean[:, None, None, None]).where(inside, one * 0)
    return (off.square().sum((1, 2, 3)) / count).sqrt()


def mad(normals: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean angle deviation of each picture's normals, degrees (B,); nan where the mask is empty.

    Args:
        normals, truth: (B, 3, H, W) unit vectors.
        mask: (B, 1, H, W) bool.
    """
    angle = (normals * truth).sum(1, keepdim=True).clamp(-1, 1).arccos().rad2deg()
    inside = mask.bool()
    return angle.where(inside, angle.new_zeros(())).sum((1, 2, 3)) / inside.sum((1, 2, 3))


def erode(mask: Tensor) -> Tensor:
    """(B, 1, H, W) bool: pixels whose 3 x 3 neighbours lie all in the mask (outside the picture nothing does)."""
    return F.avg_pool2d(mask.float(), 3, stride=1, padding=1) > 0.99
