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
        drawn = [
            torch.stack([pose_head(head, params[k], mesh).drawn for k in range(len(params))])
            for params in (here, there)
        ]
        ndc = [camera.ndc(points, size) for points, camera in zip(drawn, cameras, strict=True)]
        seen, other = (rasterize(vertices, faces, size, perspective=True) for vertices in ndc)
        on = seen.face_id >= 0  # (B, H, W)
        place = interpolate(torch.cat(drawn, 2), seen, ndc[0], faces, perspective=True)
        place = place.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H W, 6)
        place = torch.where(on.flatten(1)[..., None], place, place.new_tensor([0.0, 0.0, -1.0] * 2))
        # Both ends from the same weights, so that what does not move has no motion.
        start, target = (camera.project(place[..., 3 * k : 3 * k + 3]) for k, camera in enumerate(cameras))
        height, width = size
        step = (target - start)[..., :2].mT.reshape(-1, 2, height, width)
        displacement = step * on[:, None]

        # The furthest of the four pixels around the target: at slanted and at curved places the nearest one may lie
        # in front of it.
        depth = F.max_pool2d(_finite(other.depth)[:, None], 2, stride=1, padding=1)
        x, y, far = (v.reshape(-1, height, width) for v in target.unbind(-1))
        column, row = x.round().long().clamp(0, width), y.round().long().clamp(0, height)
        front = depth[torch.arange(len(depth), device=faces.device)[:, None, None], 0, row, column]
        inside = (x > 0) & (x < width) & (y > 0) & (y < height)
        visible = on & inside & (far < front + _TOLERANCE)
    return Flow(displacement, visible[:, None])


def _finite(depth: Tensor) -> Tensor:
    """Depth with the background at 0, so that the furthest of some pixels is a surface."""
    return torch.where(torch.isfinite(depth), depth, torch.zeros_like(depth))
