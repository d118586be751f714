"""What FOMM's family trains keypoints with besides the pictures: equivariance under a known transformation (Siarohin et
al. 2019, section 3.1 and its supplement), and a distance between keypoints.

Positions are x, y in [-1, 1] as of `nets.keypoints`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geom.precision import exact
from ..nets.keypoints import Motion
from ..nets.layers import corner_grid


@dataclass(frozen=True)
class TransformParams:
    """`transform_params` of FOMM's YAML files."""

    sigma_affine: float = 0.05
    sigma_tps: float = 0.005
    points_tps: int = 5
    """Control points each way."""


class RandomTransform:
    """A random affine map and thin-plate spline for each picture, as the official code has it:

        T(p) = A p + t + sum_c w_c r_c^2 log(r_c + 1e-6),   r_c = |x - x_c| + |y - y_c|

    with A = I + N(0, sigma_affine), t of the same spread, w_c of N(0, sigma_tps); the sum is added to x and y alike.
    """

    def __init__(self, batch: int, params: TransformParams, device: torch.device | str = "cpu") -> None:
        """Numbers are drawn on the CPU."""
        side = params.points_tps
        affine = torch.randn(batch, 2, 3) * params.sigma_affine + torch.eye(2, 3)
        self.affine = affine.to(device)
        self.weights = (torch.randn(batch, side * side) * params.sigma_tps).to(device)
        self.controls = corner_grid(side, side, self.affine).flatten(0, 1)  # (C, 2)

    @exact
    def __call__(self, places: Tensor) -> Tensor:
        """T of (B, N, 2)."""
        r = (places[:, :, None] - self.controls).abs().sum(-1)  # (B, N, C)
        bent = (self.weights[:, None] * r.square() * torch.log(r + 1e-6)).sum(-1, keepdim=True)
        return places @ self.affine[:, :, :2].mT + self.affine[:, None, :, 2] + bent

    def jacobian(self, places: Tensor) -> Tensor:
        """(B, N, 2, 2) derivatives of T at (B, N, 2), row by row."""
        away = places[:, :, None] - self.controls
        r = away.abs().sum(-1)
        slope = self.weights[:, None] * (2 * r * torch.log(r + 1e-6) + r.square() / (r + 1e-6))
        bent = (slope[..., None] * away.sign()).sum(2)  # (B, N, 2), the same for x and y
        return self.affine[:, None, :, :2] + bent[:, :, None]

    def picture(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) that shows at p what `image` shows at T(p); mirrored at the border, as the official code."""
        height, width = image.shape[2:]
        places = corner_grid(height, width, image).flatten(0, 1).expand(len(image), -1, -1)
        grid = self(places).unflatten(1, (height, width))
        return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


@exact
def equivariance(motion: Motion, moved: Motion, transform: RandomTransform) -> tuple[Tensor, Tensor | None]:
    """mean |value - T(value_t)| and mean |I - J^-1 T'(value_t) J_t|; the second is None without local maps.

    Args:
        motion: keypoints of pictures.
        moved: keypoints of `transform.picture(pictures)`.
    """
    places = (motion.value - transform(moved.value)).abs().mean()
    if motion.jacobian is None or moved.jacobian is None:
        return places, None
    maps = torch.linalg.solve(motion.jacobian, transform.jacobian(moved.value) @ moved.jacobian)
    return places, (torch.eye(2).to(maps) - maps).abs().mean()


def crowding(value: Tensor, threshold: float) -> Tensor:
    """Mean over ordered pairs of different keypoints of max(0, 1 - distance / threshold): 1 where all coincide.

    The papers (face-vid2vid, DaGAN, OSTNet) count pairs that are too near with sign(threshold - distance), which has no
    gradient; this has the same support and pushes them apart.
    """
    count = value.shape[1]
    away = value[:, :, None] - value[:, None]
    distance = (away.square().sum(-1) + 1e-8).sqrt()
    other = 1 - torch.eye(count).to(value)
    return (F.relu(1 - distance / threshold) * other).sum() / (len(value) * max(count * (count - 1), 1))
