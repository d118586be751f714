"""Interpolating vertex attributes over rasterised triangles.

`reference` states the sums (read it first), `cpu` and `gpu` compute them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import choose
from ..rasterize import Fragments, check_mesh
from . import ops, reference


def interpolate(
    attributes: Tensor,
    fragments: Fragments,
    vertices: Tensor,
    faces: Tensor,
    *,
    perspective: bool = False,
    background: float = 0.0,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attribute images of rasterised meshes.

    Args:
        attributes: (B or 1, V, C) floats, any C >= 1.
        fragments: from `rasterize` with the same vertices, faces and `perspective`.
        vertices: (B, V, 3) NDC and depth.
        faces: (F, 3) integers.
        perspective: divide by depth, as `rasterize` did.
        background: value of pixels that show no triangle.
        out: (B, C, H, W) channels_last tensor to write into. Fresh pages cost more than the arithmetic on CPUs, so keep
            one when calling in a loop without gradients.
    Returns:
        (B, C, H, W) in the dtype of `attributes`, stored channels_last. Differentiable in attributes and vertices (not
        through silhouettes: which triangle a pixel shows is taken as given).
    """
    check_mesh("interpolate", vertices, faces)
    face_id = fragments.face_id
    batch, height, width = face_id.shape
    if attributes.ndim != 3 or len(attributes) not in (1, batch) or attributes.shape[1] != vertices.shape[1]:
        raise ValueError(
            f"interpolate: attributes must be (B or 1, V, C) with B = {batch} and V = {vertices.shape[1]}, "
            f"got {tuple(attributes.shape)}."
        )
    if len(vertices) != batch:
        raise ValueError(f"interpolate: fragments show {batch} meshes, vertices have {len(vertices)}.")
    if attributes.device != vertices.device or face_id.device != vertices.device:
        raise ValueError(
            f"interpolate: attributes are on {attributes.device}, fragments on {face_id.device}, vertices on "
            f"{vertices.device}; move them together."
        )
    shape = (batch, attributes.shape[2], height, width)
    if out is not None and (out.shape != shape or not out.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError(f"interpolate: out must be {shape} in channels_last memory, got {tuple(out.shape)}.")
    gradient = torch.is_grad_enabled() and (attributes.requires_grad or vertices.requires_grad)
    if out is not None and gradient:
        raise ValueError("interpolate: out cannot be used where gradients are recorded; use torch.no_grad().")

    chosen = choose("interpolate", backend, vertices.device)
    if chosen in ("torch", "pytorch3d"):
        image = reference.interpolate(
            attributes, face_id, vertices, faces, perspective=perspective, background=background
        )
    elif out is not None:
        mesh = face_id, vertices.detach().float(), faces.int()
        ops.interpolate(attributes.detach(), *mesh, perspective, background, chosen, out.permute(0, 2, 3, 1))
        return out
    else:
        mesh = face_id, vertices.float(), faces.int()
        image = torch.ops.headwarp.interpolate(attributes, *mesh, perspective, background, chosen)
    image = image.permute(0, 3, 1, 2)
    return image if out is None else out.copy_(image)


def barycentrics(
    fragments: Fragments, vertices: Tensor, faces: Tensor, *, perspective: bool = False, backend: str = "auto"
) -> Tensor:
    """Weights (B, 3, H, W), stored channels_last, of the three corners in each pixel; 0 on the background.

    They lie in [0, 1], sum to 1, and belong to the corners in the order of `faces`. Arguments as `interpolate`.
    """
    check_mesh("barycentrics", vertices, faces)
    batch, height, width = fragments.face_id.shape
    gradient = torch.is_grad_enabled() and vertices.requires_grad
    if choose("barycentrics", backend, vertices.device) == "numba" and not gradient:
        from . import cpu

        weights = torch.empty((batch, 3, height, width), memory_format=torch.channels_last)
        cpu.barycentrics(
            fragments.face_id.contiguous().numpy(),
            vertices.detach().float().contiguous().numpy(),
            faces.int().contiguous().numpy(),
            weights.permute(0, 2, 3, 1).numpy(),
            perspective=perspective,
            threads=torch.get_num_threads(),
        )
        return weights
    return reference.barycentrics(fragments.face_id, vertices, faces, perspective=perspective).permute(0, 3, 1, 2)
