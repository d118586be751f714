"""Landmarks on a head: points given by a triangle and barycentric weights, so that they move with every parameter.

* iBUG's 68 (`static68`): 0-16 face contour from the person's right ear to the left, 17-26 brows, 27-35 nose, 36-47
eyes, 48-67 mouth.
* `Contour`: the 17 contour points by head yaw, as DECA and FLAME's authors do it; the visible contour slides over the
skin.
* MediaPipe's 478 (`mediapipe`): 468 mesh points, then the irises (468-472 the person's right eye, 473-477 the left).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        if barycentric.shape != (count, 3):
            raise ValueError(
                f"Embedding: barycentric must be ({count}, 3) as triangle is ({count},), got {tuple(barycentric.shape)}."
            )
        indices = torch.arange(count) if indices is None else indices
        if indices.shape != (count,):
            raise ValueError(f"Embedding: indices must be ({count},), got {tuple(indices.shape)}.")
        self.register_buffer("triangle", triangle.long())
        self.register_buffer("barycentric", barycentric)
        self.register_buffer("corners", faces[triangle.long()])
        self.register_buffer("indices", indices.long())

    def points(self, vertices: Tensor) -> Tensor:
        """(B, L, 3) points of (B, N, 3) vertices, in the vertices' space (any number of channels works)."""
        return torch.einsum("blkc,lk->blc", vertices[:, self.corners], self.barycentric.to(vertices.dtype))

    def __len__(self) -> int:
        return len(self.triangle)
