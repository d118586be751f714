"""Landmarks on a head: points given by a triangle and barycentric weights, so that they move with every parameter.

* iBUG's 68 (`static68`): 0-16 face contour from the person's right ear to the left, 17-26 brows, 27-35 nose,
  36-47 eyes, 48-67 mouth.
* `Contour`: the 17 contour points by head yaw, as DECA does it; the visible contour slides over the skin.
* MediaPipe's 478 (`mediapipe`): 468 points of its face mesh, then the irises: 468-472 the person's right eye, 473-477
  the left, each as centre, picture right, top, picture left, bottom.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor, nn

from .rotation import axis_angle_to_matrix

IRIS_RADIUS = 0.0058
"""Metres; human irises are 11.7 mm wide with little variation."""
RIGHT_IRIS, LEFT_IRIS = 468, 473
"""MediaPipe's first point of each iris, its centre."""


class Embedding(nn.Module):
    """L points on a mesh.

    Buffers: triangle (L,) int64 face ids, barycentric (L, 3) weights of the face's corners (sum 1), corners (L, 3)
    int64 vertex ids, indices (L,) int64 what the points are called in the landmark set (0 ... 67 or 0 ... 477).
    """

    triangle: Tensor
    barycentric: Tensor
    corners: Tensor
    indices: Tensor

    def __init__(self, triangle: Tensor, barycentric: Tensor, faces: Tensor, indices: Tensor | None = None) -> None:
        """Args: triangle (L,), barycentric (L, 3), faces (F, 3) of the mesh, indices (L,) or None for 0 ... L-1."""
        super().__init__()
        count = len(triangle)
        indices = torch.arange(count, device=triangle.device) if indices is None else indices
        if barycentric.shape != (count, 3) or indices.shape != (count,):
            raise ValueError(
                f"Embedding: for {count} triangles barycentric must be ({count}, 3) and indices ({count},), "
                f"got {tuple(barycentric.shape)} and {tuple(indices.shape)}."
            )
        self.register_buffer("triangle", triangle.long())
        self.register_buffer("barycentric", barycentric)
        self.register_buffer("corners", faces[triangle.long()])
        self.register_buffer("indices", indices.long())

    def points(self, vertices: Tensor) -> Tensor:
        """(B, L, C) values at the points of (B, N, C) vertex values: positions, normals, colours."""
        return _weighted(vertices[:, self.corners], self.barycentric)

    def __len__(self) -> int:
        return len(self.triangle)


class Contour(nn.Module):
    """The 17 points of the visible face contour for a turned head.

    Row r < 40 of the tables is for a yaw of r degrees (face to the person's left), row 39 + r for -r degrees; beyond
    39 degrees the last row holds. Yaw here is DECA's, the angle between the head's x axis and the picture plane. Rows
    are chosen by rounding, so there is no gradient through the choice.

    Buffers: triangle (79, 17), barycentric (79, 17, 3), corners (79, 17, 3) vertex ids.
    """

    triangle: Tensor
    barycentric: Tensor
    corners: Tensor

    def __init__(self, triangle: Tensor, barycentric: Tensor, faces: Tensor) -> None:
        super().__init__()
        if triangle.shape != (79, 17) or barycentric.shape != (79, 17, 3):
            raise ValueError(
                "Contour: triangle must be (79, 17) and barycentric (79, 17, 3), "
                f"got {tuple(triangle.shape)} and {tuple(barycentric.shape)}."
            )
        self.register_buffer("triangle", triangle.long())
        self.register_buffer("barycentric", barycentric)
        self.register_buffer("corners", faces[triangle.long()])

    @staticmethod
    def rows(rotation: Tensor, neck: Tensor) -> Tensor:
        """(B,) table rows of (B, 3) axis-angle rotations of head and neck; jaw and eyes play no part."""
        turn = axis_angle_to_matrix(rotation) @ axis_angle_to_matrix(neck)
        yaw = torch.atan2(-turn[:, 2, 0], torch.hypot(turn[:, 0, 0], turn[:, 1, 0]))
        degrees = torch.rad2deg(yaw).clamp(-39, 39).round().long()
        return torch.where(degrees >= 0, degrees, 39 - degrees)

    def points(self, vertices: Tensor, rotation: Tensor, neck: Tensor) -> Tensor:
        """(B, 17, 3) contour points of (B, N, 3) vertices of heads turned by `rotation` and `neck`, (B, 3) each."""
        rows = self.rows(rotation, neck)
        batch = torch.arange(len(vertices), device=vertices.device)[:, None, None]
        return _weighted(vertices[batch, self.corners[rows]], self.barycentric[rows])


def landmarks68(vertices: Tensor, static: Embedding, contour: Contour, rotation: Tensor, neck: Tensor) -> Tensor:
    """(B, 68, 3) iBUG landmarks of (B, N, 3) vertices: the contour by yaw, the inner 51 from `static` (68 points)."""
    return torch.cat([contour.points(vertices, rotation, neck), static.points(vertices)[:, 17:]], 1)


def closest_point_on_mesh(
    points: NDArray[np.floating], vertices: NDArray[np.floating], faces: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Where a mesh is nearest to points; exact.

    The triangle with the nearest centroid bounds the distance; a triangle that is nearer has its centroid within that
    bound plus the largest radius of any triangle, and only those are measured.

    Args:
        points: (P, 3). vertices: (N, 3). faces: (F, 3), at least one; triangles without area count as edges or points.
    Returns:
        triangle (P,), barycentric (P, 3) of the nearest point (weights >= 0, sum 1), distance (P,).
    """
    places, corners = np.asarray(points, np.float64), np.asarray(vertices, np.float64)[faces]
    centroids = corners.mean(1)
    radius = np.linalg.norm(corners - centroids[:, None], axis=-1).max()
    tree = cKDTree(centroids)
    nearest = tree.query(places)[1]
    bound = np.linalg.norm(_on_triangle(places, corners[nearest])[1], axis=-1)
    candidates = tree.query_ball_point(places, bound * (1 + 1e-9) + radius * (1 + 1e-9) + 1e-12)
    counts = np.array([len(c) for c in candidates])
    owner = np.repeat(np.arange(len(places)), counts)
    triangle = np.concatenate(candidates).astype(np.int64)
    barycentric, offset = _on_triangle(places[owner], corners[triangle])
    distance = np.linalg.norm(offset, axis=-1)
    # lowest distance, then lowest triangle, for each owner: the first of its run after sorting
    order = np.lexsort((triangle, distance, owner))
    first = order[np.concatenate([[0], np.cumsum(counts)[:-1]])]
    return triangle[first], barycentric[first], distance[first]


def iris_embedding(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    eyeballs: Mapping[int, tuple[NDArray[np.integer], NDArray[np.floating]]],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """MediaPipe's iris points on eyeballs that look straight ahead (along z).

    Each point is where the ray from the eyeball's centre meets the ball at the iris rim; centres are on the axis.

    Args:
        vertices: (N, 3) template, metres. faces: (F, 3).
        eyeballs: first landmark (`RIGHT_IRIS`, `LEFT_IRIS`) -> ids of the eyeball's triangles, centre (3,).
    Returns:
        triangle (L,), barycentric (L, 3), indices (L,); rays that miss their ball are left out.
    """
    triangles, weights, indices = [], [], []
    for start, (ids, centre) in eyeballs.items():
        corners = np.asarray(vertices, np.float64)[faces[ids]] - centre
        hit = _along_ray(np.array([0.0, 0.0, 1.0]), corners)
        if hit is None:
            continue
        ball = float(hit[1] @ corners[hit[0], :, 2])
        forward = np.sqrt(max(ball**2 - IRIS_RADIUS**2, 0.0))
        for k, (x, y) in enumerate(((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))):
            ray = np.array([x * IRIS_RADIUS, y * IRIS_RADIUS, forward if k else ball])
            hit = _along_ray(ray, corners)
            if hit is not None:
                triangles.append(int(ids[hit[0]]))
                weights.append(hit[1])
                indices.append(start + k)
    return np.array(triangles, np.int64), np.array(weights).reshape(-1, 3), np.array(indices, np.int64)


def _weighted(corners: Tensor, barycentric: Tensor) -> Tensor:
    """(B, L, C) from (B, L, 3, C) corner values and (L, 3) or (B, L, 3) weights."""
    return (corners * barycentric.to(corners.dtype)[..., None]).sum(-2)


def _on_triangle(
    points: NDArray[np.float64], corners: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nearest points of (P, 3, 3) triangles to (P, 3) points: barycentric (P, 3), and the offsets (P, 3) to them."""
    a, ab, ac = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    ap = points - a
    d11, d12, d22 = (np.einsum("pc,pc->p", u, v) for u, v in ((ab, ab), (ab, ac), (ac, ac)))
    p1, p2 = np.einsum("pc,pc->p", ap, ab), np.einsum("pc,pc->p", ap, ac)
    area = d11 * d22 - d12 * d12  # 4 * area^2
    flat = area <= 1e-14 * d11 * d22  # no usable plane: one of the edges is the answer
    safe = np.where(flat, 1.0, area)
    v, w = (d22 * p1 - d12 * p2) / safe, (d11 * p2 - d12 * p1) / safe
    inside = ~flat & (v >= 0) & (w >= 0) & (v + w <= 1)
    options = [np.stack([1 - v - w, v, w], -1)]
    for i, j in ((0, 1), (1, 2), (2, 0)):
        edge = corners[:, j] - corners[:, i]
        length = np.einsum("pc,pc->p", edge, edge)
        along = np.einsum("pc,pc->p", points - corners[:, i], edge) / np.where(length > 0, length, 1.0)
        along = np.clip(along, 0, 1)
        weights = np.zeros_like(options[0])
        weights[:, i], weights[:, j] = 1 - along, along
        options.append(weights)
    barycentric = np.stack(options)  # (4, P, 3): in the plane, then on the three edges
    offset = np.einsum("opk,pkc->opc", barycentric, corners) - points
    distance = np.einsum("opc,opc->op", offset, offset)
    distance[0] = np.where(inside, -1.0, np.inf)
    best, rows = distance.argmin(0), np.arange(len(points))
    return barycentric[best, rows], offset[best, rows]


def _along_ray(ray: NDArray[np.float64], corners: NDArray[np.float64]) -> tuple[int, NDArray[np.float64]] | None:
    """The triangle of (F, 3, 3) that the ray from the origin meets, and the barycentric weights there; None if none."""
    # Solve corners^T w = t ray, sum w = 1: with u = corners^-T ray, w = u / sum(u), t = 1 / sum(u) (Moeller's volumes).
    volumes = np.stack([np.cross(corners[:, (k + 1) % 3], corners[:, (k + 2) % 3]) @ ray for k in range(3)], -1)
    total = volumes.sum(-1)
    solid = np.abs(total) > 1e-18
    weights = volumes / np.where(solid, total, 1.0)[:, None]
    ahead = (weights * (corners @ ray)).sum(-1) > 0
    inside = solid & ahead & (weights >= -1e-9).all(-1)
    if not inside.any():
        return None
    first = int(inside.argmax())
    found = weights[first].clip(0)
    return first, found / found.sum()
