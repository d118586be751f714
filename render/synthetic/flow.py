"""Exact motion between two moments of one synthetic person: where each visible surface point goes.

    pixel -> point on a triangle -> the same point of the moved mesh -> pixel

That is the motion of the solid surface (head and torso). Hair over it moves with the skull, but not exactly so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...geom.camera import Camera
from ...geom.head import HeadModel, HeadParams
from ..interpolate import interpolate
from ..rasterize import rasterize
from .body import body
from .render import pose_head

_TOLERANCE = 0.003
"""Metres by which a point may lie behind what the other picture shows and still count as seen."""


@dataclass
class Flow:
    """B pictures of H x W pixels."""

    displacement: Tensor
    """(B, 2, H, W) pixels, x right and y down, from a pixel's centre to where its surface point is in the other
    picture; 0 on the background."""
    visible: Tensor
    """(B, 1, H, W) bool: the surface point is inside the other picture, and nothing solid hides it there."""


def surface_flow(
    head: HeadModel, here: HeadParams, there: HeadParams, cameras: tuple[Camera, Camera], size: tuple[int, int]
) -> Flow:
    """The motion of a person's surface from one moment to another.

    Args:
        head: as for `render_head`.
        here, there: B heads each, of the same people.
        cameras: of here and there, batch 1 or B.
        size: (H, W) of both pictures.
    """
    with torch.no_grad():
        mesh = body(head)
        faces = mesh.faces.to(head.v_template.device)
        ndc = [
            camera.ndc(torch.stack([pose_head(head, params[k], mesh).drawn for k in range(len(params))]), size)
            for params, camera in zip((here, there), cameras, strict=True)
        ]
        seen, other = (rasterize(vertices, faces, size, perspective=True) for vertices in ndc)
        target = interpolate(ndc[1], seen, ndc[0], faces, perspective=True)  # (B, 3, H, W)
        on = seen.face_id[:, None] >= 0
        height, width = size
        x = (2 * torch.arange(width, device=faces.device) + 1) / width - 1
        y = (2 * torch.arange(height, device=faces.device) + 1) / height - 1
        step_x, step_y = (target[:, 0] - x) * (width / 2), (target[:, 1] - y[:, None]) * (height / 2)
        displacement = torch.stack([step_x, step_y], 1) * on

        # The furthest of the four pixels around the target: at slanted and at curved places the nearest one may lie
        # in front of it.
        depth = F.max_pool2d(_finite(other.depth)[:, None], 2, stride=1, padding=1)
        corner = torch.stack([(target[:, 0] + 1) * width / 2, (target[:, 1] + 1) * height / 2], -1).round().long()
        inside = (target[:, :2].abs() < 1).all(1)
        column, row = corner[..., 0].clamp(0, width), corner[..., 1].clamp(0, height)
        batch = torch.arange(len(depth), device=faces.device)[:, None, None]
        front = depth[batch, 0, row, column]
        visible = inside & (target[:, 2] < front + _TOLERANCE) & on[:, 0]
    return Flow(displacement, visible[:, None])


def _finite(depth: Tensor) -> Tensor:
    """Depth with the background at 0, so that the furthest of some pixels is a surface."""
    return torch.where(torch.isfinite(depth), depth, torch.zeros_like(depth))
