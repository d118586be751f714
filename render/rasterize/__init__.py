"""Rasterising meshes: which triangle each pixel shows, and how far away it is.

`reference` states the rules (read it first), `cpu` and `gpu` follow them bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backend import choose
from . import ops as _ops  # noqa: F401  (registers the operator)
from . import reference


@dataclass(frozen=True)
class Fragments:
    """What the pixels of B pictures show. face_id[b, y, x] = f: triangle f of mesh b covers that pixel's centre."""

    face_id: Tensor
    """(B, H, W) int32, -1 on the background."""
    depth: Tensor
    """(B, H, W) float32, in the units of z; +inf on the background. It is the depth of the triangle snapped to 1/256
    pixel; interpolate z for the exact one, and for gradients."""


def rasterize(
    vertices: Tensor,
    faces: Tensor,
    size: tuple[int, int],
    *,
    cull: bool = True,
    perspective: bool = False,
    backend: str = "auto",
) -> Fragments:
    """Nearest triangle of every pixel.

    Args:
        vertices: (B, V, 3) NDC x (right) and y (down), [-1, 1] over the picture, and depth z > 0 (`Camera.ndc`).
        faces: (F, 3) integers, shared by the batch.
        size: (H, W) pixels.
        cull: drop triangles that show their back. The front is where the corners run counter-clockwise as seen on
            screen (a negative area in coordinates with y down), as for heads of FLAME's layout seen from outside.
        perspective: 1/z, not z, is linear over the screen. Say the same to `interpolate`.
        backend: "torch", "numba" (CPU), "triton" (CUDA), "pytorch3d"; "auto" takes the fastest that is there.
    Returns:
        Fragments. The same bits for the same input, whatever the backend, thread count and schedule. No gradient.
    Raises:
        ValueError: wrong shapes or dtypes, or (on the CPU) a face that names no vertex.
    """
    check_mesh("rasterize", vertices, faces)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"rasterize: size must be (H, W), both at least 1, got {size}.")
    chosen = choose("rasterize", backend, vertices.device)
    vertices, faces = vertices.detach().float(), faces.int()
    if chosen == "torch":
        return Fragments(*reference.rasterize(vertices, faces, size, cull=cull, perspective=perspective))
    if chosen == "pytorch3d":
        from . import adapter

        return Fragments(*adapter.rasterize(vertices, faces, size, cull=cull, perspective=perspective))
    return Fragments(*torch.ops.headwarp.rasterize(vertices, faces, *size, cull, perspective, chosen))


def check_mesh(owner: str, vertices: Tensor, faces: Tensor) -> None:
    """Raises ValueError unless `vertices` is (B, V, 3) floats and `faces` (F, 3) integers on the same device."""
    if vertices.ndim != 3 or vertices.shape[-1] != 3 or not vertices.is_floating_point():
        raise ValueError(
            f"{owner}: vertices must be (B, V, 3) floats, NDC and depth, got {tuple(vertices.shape)} {vertices.dtype}."
        )
    if faces.ndim != 2 or faces.shape[-1] != 3 or faces.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{owner}: faces must be (F, 3) int32 or int64, got {tuple(faces.shape)} {faces.dtype}.")
    if vertices.device != faces.device:
        raise ValueError(f"{owner}: vertices are on {vertices.device}, faces on {faces.device}; move one of them.")
