"""Hair as strands: polylines on the template, carried by the head and drawn as ribbons that face the camera.

    roots on triangles --grow--> points (K, P, 3) on the template --carry--> world --ribbons--> triangles for the
    rasteriser

Head hair is carried rigidly by the head after following the identity's skull; brows, lashes and beards follow the
triangle that they stand on.
K strands, P points per strand, N head vertices.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Strands:
    """Hairs of one kind with their look."""

    points: Tensor
    """(K, P, 3) metres on the template, root first."""
    triangle: Tensor
    """(K,) int64 triangle under the root."""
    width: Tensor
    """(K, P) metres."""
    colour: Tensor
    """(K, 3) linear RGB."""
    depth: Tensor
    """(K, P) in [0, 1]: 0 buried in the hair, 1 on its surface; darkens what is buried."""
    normal: Tensor
    """(K, P, 3) unit: outward direction of the hair's volume, template axes."""

    @property
    def shape(self) -> tuple[int, int]:
        """K, P."""
        return self.points.shape[0], self.points.shape[1]

    def to(self, *args: Any, **kwargs: Any) -> Strands:
        """As `torch.Tensor.to`; integers keep their kind."""
        return replace(self, **{f.name: move_tensor(getattr(self, f.name), *args, **kwargs) for f in fields(self)})


def move_tensor(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`tensor.to(...)`, except that integers keep their kind."""
    moved = tensor.to(*args, **kwargs)
    return moved if tensor.is_floating_point() else moved.long()


@dataclass(frozen=True)
class Posed:
    """Strands in the world."""

    points: Tensor
    """(K, P, 3)"""
    tangent: Tensor
    """(K, P, 3) unit, towards the tip."""
    normal: Tensor
    """(K, P, 3) unit."""


def follow_skull(strands: Strands, template: Tensor, rest: Tensor, neighbours: Tensor) -> Strands:
    """The strands of an identity: every point moves as the skin nearest to it does.

    Args:
        template: (N, 3) vertices on which the strands were grown.
        rest: (N, 3) neutral vertices of the identity, same frame.
        neighbours: (K, P, M) int64 vertices near each point.
    """
    moved = (rest - template)[neighbours].mean(2)
    return replace(strands, points=strands.points + moved)


def carry_rigid(strands: Strands, rotation: Tensor, shift: Tensor) -> Posed:
    """Strands that move with the skull: p -> rotation p + shift; (3, 3) and (3,)."""
    points = strands.points @ rotation.mT + shift
    return Posed(points, tangents(points), strands.normal @ rotation.mT)


def carry_on_skin(strands: Strands, template: Tensor, faces: Tensor, posed: Tensor) -> Posed:
    """Strands that stand on the skin: each follows the frame of its root triangle.

    Args:
        template: (N, 3) vertices on which the strands were grown.
        faces: (F, 3).
        posed: (N, 3) world vertices.
    """
    corners = faces[strands.triangle]
    before, after = _frames(template[corners]), _frames(posed[corners])
    turn = after @ before.mT  # (K, 3, 3)
    origin = template[corners].mean(1)
    # The offset of the root within its triangle stretches with the triangle; along the hair nothing stretches.
    root = strands.points[:, 0] - origin
    weights = _barycentric(strands.points[:, 0], template[corners])
    placed = (weights[..., None] * posed[corners]).sum(1)
    lift = (root * before[:, :, 2]).sum(-1, keepdim=True)
    placed = placed + lift * after[:, :, 2]
    points = torch.einsum("kij,kpj->kpi", turn, strands.points - strands.points[:, :1]) + placed[:, None]
    return Posed(points, tangents(points), torch.einsum("kij,kpj->kpi", turn, strands.normal))


def ribbons(posed: Posed, width: Tensor, *, narrowest: float = 0.0, towards: Tensor | None = None) -> Tensor:
    """Vertices (2 K P, 3) of ribbons that face the viewer: the left rows, then the right rows.

    Args:
        width: (K, P) metres.
        narrowest: ribbons are drawn at least this wide (metres), so that no hair falls between samples.
        towards: (3,) direction of a distant viewer; None is a camera at the origin.
    """
    side = torch.linalg.cross(posed.tangent, posed.points if towards is None else -towards.expand_as(posed.points))
    side = side / side.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    offset = side * (0.5 * width.clamp_min(narrowest))[..., None]
    return torch.cat([posed.points - offset, posed.points + offset]).reshape(-1, 3)


def ribbon_faces(strands: int, points: int) -> Tensor:
    """(2 K (P - 1), 3) triangles over the vertices of `ribbons`."""
    left = (torch.arange(strands)[:, None] * points + torch.arange(points - 1)).reshape(-1)
    right = left + strands * points
    return torch.cat([torch.stack([left, right, right + 1], 1), torch.stack([left, right + 1, left + 1], 1)])


def concatenate(parts: list[Strands]) -> Strands:
    """Several kinds with the same number of points as one."""
    return Strands(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Strands)})


def tangents(points: Tensor) -> Tensor:
    """(K, P, 3) unit tangents of polylines (K, P, 3)."""
    step = points[:, 1:] - points[:, :-1]
    middle = torch.cat([step[:, :1], step[:, 1:] + step[:, :-1], step[:, -1:]], 1)
    return middle / middle.norm(dim=-1, keepdim=True).clamp_min(1e-9)


def _frames(corners: Tensor) -> Tensor:
    """(K, 3, 3) right-handed frames of triangles (K, 3, 3); columns are edge, in-plane normal to it, triangle
    normal."""
    edge = corners[:, 1] - corners[:, 0]
    normal = torch.linalg.cross(edge, corners[:, 2] - corners[:, 0])
    edge = edge / edge.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return torch.stack([edge, torch.linalg.cross(normal, edge), normal], -1)


def _barycentric(points: Tensor, corners: Tensor) -> Tensor:
    """(K, 3) weights of the projections of points (K, 3) in triangles (K, 3, 3)."""
    a, b, c = corners.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    area = (normal * normal).sum(-1).clamp_min(1e-18)
    wb = (torch.linalg.cross(points - a, c - a) * normal).sum(-1) / area
    wc = (torch.linalg.cross(b - a, points - a) * normal).sum(-1) / area
    return torch.stack([1 - wb - wc, wb, wc], -1)
