"""Cameras: from the head's world (metres, x right, y up, z towards the viewer) to pixels (x right, y down).

    camera at the origin, looking along -z          picture, W x H
        y                                            (0,0) ----------> x = W
        |   heads stand at z ~ -0.9                    |   pixel (i, j) covers [i, i+1) x [j, j+1)
        +---- x                                        v   and has its centre at (i + .5, j + .5)
       /                                              y = H
      z

    depth = -z_world > 0 (metres)
    NDC:  x_ndc = 2 x_px / W - 1,  y_ndc = 2 y_px / H - 1   (x right, y down, [-1, 1] over the picture), z = depth

Both cameras have the same methods. A camera of batch 1 serves points of any batch.

A *crop transform* is three numbers (scale, tx, ty): x' = scale * x + tx, y' = scale * y + ty, in the continuous pixel
coordinates above. It maps full-picture pixels to crop pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Size = tuple[int, int]
"""(H, W) in pixels."""

_C = TypeVar("_C", "Camera", "WeakPerspective")


@dataclass(frozen=True)
class Camera:
    """Perspective camera with square pixels and no lens distortion.

    x_px = principal_x + focal * x / depth,   y_px = principal_y - focal * y / depth,   depth = -z
    """

    focal: Tensor
    """(B,) pixels."""
    principal: Tensor
    """(B, 2) x, y in pixels: where the optical axis meets the picture."""

    def __post_init__(self) -> None:
        _check_fields("Camera", "focal", self.focal, "principal", self.principal)

    @staticmethod
    def portrait(size: Size, *, field_of_view: float = 25.0, batch: int = 1) -> Camera:
        """Camera with its axis through the middle of the picture.

        Args:
            size: (H, W) pixels.
            field_of_view: degrees across the longer side.
            batch: B.
        """
        height, width = size
        focal = 0.5 * max(height, width) / math.tan(math.radians(field_of_view) / 2)
        return Camera(torch.full((batch,), focal), torch.tensor([[width / 2, height / 2]]).repeat(batch, 1))

    def project(self, points: Tensor) -> Tensor:
        """Pixels and depth of world points.

        Args:
            points: (B, N, 3) metres. Points at or behind the camera (z >= 0) get depth <= 0 and meaningless pixels.
        Returns:
            (B, N, 3): x and y in pixels, depth in metres.
        """
        _check_points(points, len(self))
        depth = -points[..., 2:]
        scaled = points[..., :2] * (self.focal[:, None, None] / depth)
        return torch.cat([_flip_y(scaled) + self.principal[:, None], depth], -1)

    def unproject(self, pixels: Tensor) -> Tensor:
        """World points (B, N, 3) metres of (B, N, 3) x, y in pixels and depth in metres; the inverse of `project`."""
        _check_points(pixels, len(self))
        depth = pixels[..., 2:]
        offset = (pixels[..., :2] - self.principal[:, None]) * (depth / self.focal[:, None, None])
        return torch.cat([_flip_y(offset), -depth], -1)

    def ndc(self, points: Tensor, size: Size) -> Tensor:
        """(B, N, 3) world points -> (B, N, 3) NDC x, y over a picture of `size` (H, W), and depth in metres."""
        return pixels_to_ndc(self.project(points), size)

    def crop(self, transform: Tensor | Sequence[float]) -> Camera:
        """The camera of the picture after a crop transform (scale, tx, ty): (3,), or (B, 3) for one per camera."""
        scale, shift = _split_transform(transform, self.principal)
        return Camera(self.focal * scale, self.principal * scale[:, None] + shift)

    def __len__(self) -> int:
        return len(self.focal)

    def __getitem__(self, index: Any) -> Camera:
        """Part of the batch; a single number keeps the batch axis."""
        index = _keep_axis(index)
        return Camera(self.focal[index], self.principal[index])

    def to(self, *args: Any, **kwargs: Any) -> Camera:
        """As `torch.Tensor.to`, for every field."""
        return Camera(self.focal.to(*args, **kwargs), self.principal.to(*args, **kwargs))


@dataclass(frozen=True)
class WeakPerspective:
    """Orthographic camera with a scale, as DECA, EMOCA and SMIRK use.

    x_px = principal_x + scale * x,   y_px = principal_y - scale * y,   depth = distance - z
    """

    scale: Tensor
    """(B,) pixels per metre."""
    principal: Tensor
    """(B, 2) x, y in pixels: where the world's origin lands."""
    distance: float = 10.0
    """Metres added to the depth so that it is positive for any head near the origin; it moves no pixel."""

    def __post_init__(self) -> None:
        _check_fields("WeakPerspective", "scale", self.scale, "principal", self.principal)

    @staticmethod
    def from_deca(cam: Tensor, size: Size) -> WeakPerspective:
        """Camera of DECA's (B, 3) `cam` = scale, tx, ty over a picture of `size` (H, W).

        DECA: x_ndc = s (x + tx), y_ndc = -s (y + ty), on a square crop (224 x 224).
        """
        height, width = size
        if height != width:
            raise ValueError(f"WeakPerspective.from_deca: DECA's camera belongs to a square crop, got size {size}.")
        half = width / 2
        scale, tx, ty = cam.unbind(-1)
        return WeakPerspective(half * scale, torch.stack([half * (1 + scale * tx), half * (1 - scale * ty)], -1))

    def to_deca(self, size: Size) -> Tensor:
        """The (B, 3) DECA `cam` of this camera over a square picture of `size`; the inverse of `from_deca`."""
        half = size[1] / 2
        tx, ty = _flip_y((self.principal - half) / self.scale[:, None]).unbind(-1)
        return torch.stack([self.scale / half, tx, ty], -1)

    def project(self, points: Tensor) -> Tensor:
        """(B, N, 3) world metres -> (B, N, 3) x and y in pixels, depth in metres."""
        _check_points(points, len(self))
        scaled = points[..., :2] * self.scale[:, None, None]
        return torch.cat([_flip_y(scaled) + self.principal[:, None], self.distance - points[..., 2:]], -1)

    def unproject(self, pixels: Tensor) -> Tensor:
        """(B, N, 3) x, y in pixels and depth in metres -> (B, N, 3) world metres; the inverse of `project`."""
        _check_points(pixels, len(self))
        offset = (pixels[..., :2] - self.principal[:, None]) / self.scale[:, None, None]
        return torch.cat([_flip_y(offset), self.distance - pixels[..., 2:]], -1)

    def ndc(self, points: Tensor, size: Size) -> Tensor:
        """(B, N, 3) world points -> (B, N, 3) NDC x, y over a picture of `size` (H, W), and depth in metres."""
        return pixels_to_ndc(self.project(points), size)

    def crop(self, transform: Tensor | Sequence[float]) -> WeakPerspective:
        """The camera of the picture after a crop transform (scale, tx, ty): (3,), or (B, 3) for one per camera."""
        scale, shift = _split_transform(transform, self.principal)
        return WeakPerspective(self.scale * scale, self.principal * scale[:, None] + shift, self.distance)

    def __len__(self) -> int:
        return len(self.scale)

    def __getitem__(self, index: Any) -> WeakPerspective:
        """Part of the batch; a single number keeps the batch axis."""
        index = _keep_axis(index)
        return WeakPerspective(self.scale[index], self.principal[index], self.distance)

    def to(self, *args: Any, **kwargs: Any) -> WeakPerspective:
        """As `torch.Tensor.to`, for every tensor."""
        return WeakPerspective(self.scale.to(*args, **kwargs), self.principal.to(*args, **kwargs), self.distance)


def pixels_to_ndc(points: Tensor, size: Size) -> Tensor:
    """(..., 2 or more) x, y in pixels -> NDC over a picture of `size` (H, W); further columns (depth) stay."""
    height, width = size
    factor = points.new_tensor([2 / width, 2 / height])
    return torch.cat([points[..., :2] * factor - 1, points[..., 2:]], -1)


def ndc_to_pixels(points: Tensor, size: Size) -> Tensor:
    """(..., 2 or more) x, y in NDC -> pixels of a picture of `size` (H, W); further columns (depth) stay."""
    height, width = size
    factor = points.new_tensor([width / 2, height / 2])
    return torch.cat([(points[..., :2] + 1) * factor, points[..., 2:]], -1)


def apply_crop(transform: Tensor | Sequence[float], points: Tensor) -> Tensor:
    """Full-picture points (..., N, 2 or 3) px -> crop pixels; a third column is a depth in pixels and scales along.

    `transform` is (3,), or (..., 3) with the leading shape of `points`.
    """
    transform = torch.as_tensor(transform, dtype=points.dtype, device=points.device)
    moved = points * transform[..., None, :1]
    return torch.cat([moved[..., :2] + transform[..., None, 1:], moved[..., 2:]], -1)


def invert_crop(transform: Tensor | Sequence[float]) -> Tensor:
    """The crop transform (..., 3) that leads from crop pixels back to full-picture pixels."""
    transform = torch.as_tensor(transform)
    scale = transform[..., :1].reciprocal()
    return torch.cat([scale, -transform[..., 1:] * scale], -1)


def _flip_y(points: Tensor) -> Tensor:
    return points * points.new_tensor([1.0, -1.0])


def _keep_axis(index: Any) -> Any:
    if isinstance(index, int):
        return slice(index, index + 1) if index != -1 else slice(-1, None)
    return index


def _split_transform(transform: Tensor | Sequence[float], like: Tensor) -> tuple[Tensor, Tensor]:
    transform = torch.as_tensor(transform, dtype=like.dtype, device=like.device)
    if transform.shape[-1:] != (3,) or transform.ndim > 2:
        raise ValueError(f"crop: the transform must be (3,) or (B, 3) = scale, tx, ty, got {tuple(transform.shape)}.")
    rows = transform.reshape(-1, 3)
    return rows[:, 0], rows[:, 1:]


def _check_fields(owner: str, scalar_name: str, scalar: Tensor, pair_name: str, pair: Tensor) -> None:
    if scalar.ndim != 1 or pair.shape != (len(scalar), 2):
        raise ValueError(
            f"{owner}: {scalar_name} must be (B,) and {pair_name} (B, 2), "
            f"got {tuple(scalar.shape)} and {tuple(pair.shape)}."
        )


def _check_points(points: Tensor, batch: int) -> None:
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"camera: points must be (B, N, 3), got {tuple(points.shape)}.")
    if 1 not in (batch, len(points)) and batch != len(points):
        raise ValueError(f"camera: {batch} cameras cannot serve {len(points)} sets of points; use 1 camera or as many.")
