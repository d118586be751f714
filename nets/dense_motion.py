"""Dense motion from keypoints (Siarohin et al. 2019, section 3.2): where in the source each pixel comes from.

Near keypoint k the source position of a driving position z is, to first order,

    T_k(z) = value_source_k + J_source_k J_driving_k^-1 (z - value_driving_k),     T_0(z) = z for the background.

The source picture is warped by each of the K + 1 motions; an hourglass sees them beside the heat maps of the keypoints
and decides pixel by pixel how the motions mix, and what cannot be seen in the source (occlusion).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geom.precision import exact
from ..render.warp import sample
from .keypoints import Motion, gaussian
from .layers import AntiAlias, Hourglass, corner_grid


@dataclass(frozen=True)
class DenseMotionConfig:
    """`dense_motion_params` of FOMM's YAML files."""

    block_expansion: int = 64
    max_features: int = 1024
    num_blocks: int = 5
    scale_factor: float = 0.25
    kp_variance: float = 0.01


@dataclass
class DenseMotion:
    """Everything at 1 / `scale_factor` of the picture's size, h x w."""

    deformation: Tensor
    """(B, h, w, 2) x, y in the source, in [-1, 1]."""
    occlusion: Tensor | None
    """(B, 1, h, w) in [0, 1]; 0 where the source shows nothing. None where a network estimates none."""
    mask: Tensor
    """(B, K + 1, h, w) share of each motion; the background comes first."""
    sparse_motion: Tensor
    """(B, K + 1, h, w, 2) T_k of every pixel."""
    sparse_deformed: Tensor
    """(B, K + 1, C, h, w) the source warped by each T_k."""


class DenseMotionNetwork(nn.Module):
    """FOMM's dense motion, official names."""

    def __init__(
        self,
        num_kp: int,
        num_channels: int = 3,
        *,
        estimate_occlusion_map: bool = True,
        align_corners: bool = False,
        config: DenseMotionConfig = DenseMotionConfig(),
    ) -> None:
        super().__init__()
        self.variance = config.kp_variance
        self.align_corners = align_corners
        channels = (num_kp + 1) * (num_channels + 1)
        self.hourglass = Hourglass(config.block_expansion, channels, config.num_blocks, config.max_features)
        self.mask = nn.Conv2d(self.hourglass.channels_out, num_kp + 1, 7, padding=3)
        self.occlusion: nn.Conv2d | None = None
        if estimate_occlusion_map:
            self.occlusion = nn.Conv2d(self.hourglass.channels_out, 1, 7, padding=3)
        self.down = AntiAlias(num_channels, config.scale_factor)

    def forward(self, small: Tensor, driving: Motion, source: Motion) -> DenseMotion:
        """The motion from the source to the driving keypoints.

        Args:
            small: (B, C, h, w) the source picture made small, `self.down(picture)`: done once per source.
            driving, source: (B) keypoints, the driving ones normalised for animation.
        """
        batch, _, height, width = small.shape
        heat = gaussian(driving.value, height, width, self.variance)
        heat = heat - gaussian(source.value, height, width, self.variance)
        heat = torch.cat([torch.zeros_like(heat[:, :1]), heat], 1)  # (B, K + 1, h, w)
        motions = sparse_motion(driving, source, height, width)
        count = motions.shape[1]
        copies = small[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        deformed = sample(copies, motions.flatten(0, 1), align_corners=self.align_corners)
        deformed = deformed.unflatten(0, (batch, count))  # (B, K + 1, C, h, w)
        features = self.hourglass(torch.cat([heat[:, :, None], deformed], 2).flatten(1, 2))
        mask = self.mask(features).float().softmax(1)
        deformation = _blend(mask, motions)
        occlusion = None if self.occlusion is None else self.occlusion(features).float().sigmoid()
        return DenseMotion(deformation, occlusion, mask, motions, deformed)

    def deformed(self, image: Tensor, dense: DenseMotion) -> Tensor:
        """(B, 3, H, W): the source picture itself (1 or B), warped; for looking at."""
        image = image.expand(len(dense.deformation), -1, -1, -1)
        return sample(image, dense.deformation, align_corners=self.align_corners)


@exact
def _blend(mask: Tensor, motions: Tensor) -> Tensor:
    """(B, H, W, 2) sum over k of mask (B, K, H, W) times motions (B, K, H, W, 2)."""
    return torch.einsum("bkhw,bkhwc->bhwc", mask, motions)


@exact
def sparse_motion(driving: Motion, source: Motion, height: int, width: int) -> Tensor:
    """(B, K + 1, H, W, 2): T_0 = identity, then T_k of the keypoints, for every pixel."""
    grid = corner_grid(height, width, driving.value)
    away = grid - driving.value[:, :, None, None]  # (B, K, H, W, 2)
    if driving.jacobian is not None and source.jacobian is not None:
        affine = source.jacobian @ torch.linalg.inv(driving.jacobian)
        away = torch.einsum("bkij,bkhwj->bkhwi", affine, away)
    moved = away + source.value[:, :, None, None]
    return torch.cat([grid.expand(len(moved), 1, -1, -1, -1), moved], 1)


def warp_features(features: Tensor, dense: DenseMotion, *, align_corners: bool = False) -> Tensor:
    """(B, C, H, W) features of the source moved by the deformation and dimmed by the occlusion, as FOMM does; both are
    resized bilinearly where their size differs."""
    moved = sample(features, dense.deformation, align_corners=align_corners)
    if dense.occlusion is None:
        return moved
    return moved * resized(dense.occlusion, features).to(moved.dtype)


def resized(image: Tensor, like: Tensor) -> Tensor:
    """`image` in the size of `like`, bilinear (align_corners=False)."""
    size = like.shape[2:]
    return image if image.shape[2:] == size else F.interpolate(image, size, mode="bilinear", align_corners=False)
