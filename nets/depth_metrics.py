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


def in_units_of(depth: Tensor, mask: Tensor, focal: Tensor, own: Tensor) -> Tensor:
    """True depth as a network sees it that has a camera of its own: what a perfect reconstruction would be.

    A picture is as wide at depth 1 as its metres at the mean true depth, and steps in depth are scaled alike, so that
    shapes stay what they are.

    Args:
        depth: (B, 1, H, W) metres inside the mask.
        mask: (B, 1, H, W) bool.
        focal: (B,) of the true camera, px. own: (B,) or one number: of the network's camera.
    Returns:
        (B, 1, H, W) with mean 1 in the mask; 1 outside.
    """
    metres = torch.where(mask, depth, 0)
    middle = metres.sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)
    scale = focal.to(middle) / (own * middle)  # 1 / own = width of a pixel at depth 1, middle / focal = its metres
    middle, scale = middle[:, None, None, None], scale[:, None, None, None]
    return torch.where(mask, 1 + (metres - middle) * scale, 1)


def erode(mask: Tensor) -> Tensor:
    """(B, 1, H, W) bool: pixels whose 3 x 3 neighbours lie all in the mask (outside the picture nothing does)."""
    return F.avg_pool2d(mask.float(), 3, stride=1, padding=1) > 0.99
