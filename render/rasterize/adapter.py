"""pytorch3d's rasteriser behind our conventions, for comparison; nothing else needs pytorch3d.

It decides coverage in float32 without a rule for edges, so pixels whose centre lies on one may differ or stay empty.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rasterize(
    vertices: Tensor, faces: Tensor, size: tuple[int, int], *, cull: bool, perspective: bool
) -> tuple[Tensor, Tensor]:
    """Triangle ids (B, H, W) int32 and depths (B, H, W) float32 by `pytorch3d.renderer.mesh.rasterize_meshes`."""
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    height, width = size
    # Its NDC has x to the left, y up, and [-1, 1] over the shorter side; seen on screen, fronts turn the same way.
    shorter = min(size)
    flip = vertices.new_tensor([-width / shorter, -height / shorter, 1.0])
    meshes = Meshes(vertices * flip, faces.long().expand(len(vertices), -1, -1))
    face_id, depth, _, _ = rasterize_meshes(
        meshes,
        image_size=size,
        blur_radius=0.0,
        faces_per_pixel=1,
        bin_size=None if vertices.is_cuda else 0,
        perspective_correct=perspective,
        cull_backfaces=cull,
    )
    face_id, depth = face_id[..., 0], depth[..., 0]
    # It numbers the triangles of all meshes through.
    first = torch.arange(len(vertices), device=faces.device)[:, None, None] * len(faces)
    hit = face_id >= 0
    return torch.where(hit, face_id - first, -1).int(), torch.where(hit, depth, torch.inf)
