"""Moving features by a displacement: the one definition of a warp in this project.

`reference` states it (read it first), `cpu` and `gpu` compute it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import choose
from . import ops, reference
from .reference import Axis, displacement_axis, grid_axis


def warp(
    features: Tensor,
    displacement: Tensor,
    *,
    padding: str = "border",
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Backward warp: output(p) = features(p + displacement(p)), bilinear. Zero displacement is exactly the identity.

    Args:
        features: (B, C, H, W) floats; channels_last is fastest.
        displacement: (B, 2, h, w) x, y in NDC (2 = the whole picture's width or height), x right, y down. Enlarged
            bilinearly (align_corners=False) inside the kernel when h x w is not H x W.
        padding: "border" repeats the edge, "zeros" puts 0 outside.
        out: (B, C, H, W) tensor to write into, channels_last or a channel slice of such a tensor: `out=both[:, C:]`
            writes one half of a concatenation. No gradients then.
    Returns:
        (B, C, H, W), dtype of `features`, stored channels_last. Coordinates are float32 whatever the features are.
    """
    height, width = _check("warp", features, displacement, "displacement", displacement.shape[1:2], padding)
    axes = displacement_axis(width), displacement_axis(height)
    return _sample("warp", features, displacement, axes, padding, out, backend)


def sample(
    features: Tensor,
    grid: Tensor,
    *,
    align_corners: bool = False,
    padding: str = "zeros",
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`F.grid_sample` for the published models' absolute grids: output(p) = features(grid(p)), bilinear.

    Args:
        features: (B, C, H, W) floats.
        grid: (B, h, w, 2) x, y in [-1, 1]; enlarged bilinearly to H x W when coarser, as those models do.
        align_corners: -1 and 1 are the centres of the border pixels (True) or the picture's edges (False).
        padding, out, backend: as `warp`, but zeros by default as there.
    """
    height, width = _check("sample", features, grid, "grid", grid.shape[3:], padding)
    axes = grid_axis(width, align_corners), grid_axis(height, align_corners)
    return _sample("sample", features, grid.permute(0, 3, 1, 2), axes, padding, out, backend)


def _check(owner: str, features: Tensor, field: Tensor, name: str, vector: torch.Size, padding: str) -> tuple[int, int]:
    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(
            f"{owner}: features must be (B, C, H, W) floats, got {tuple(features.shape)} {features.dtype}."
        )
    if field.ndim != 4 or tuple(vector) != (2,) or len(field) != len(features):
        wanted = "(B, h, w, 2)" if name == "grid" else "(B, 2, h, w)"
        raise ValueError(f"{owner}: {name} must be {wanted} with B = {len(features)}, got {tuple(field.shape)}.")
    if features.numel() and not field.numel():
        raise ValueError(f"{owner}: {name} {tuple(field.shape)} is empty and says nothing of {tuple(features.shape)}.")
    if field.device != features.device:
        raise ValueError(f"{owner}: features are on {features.device}, {name} on {field.device}; move one of them.")
    if padding not in ("border", "zeros"):
        raise ValueError(f"{owner}: padding must be 'border' or 'zeros', got {padding!r}.")
    return features.shape[2], features.shape[3]


def _sample(
    owner: str,
    features: Tensor,
    field: Tensor,
    axes: tuple[Axis, Axis],
    padding: str,
    out: Tensor | None,
    backend: str,
) -> Tensor:
    gradient = torch.is_grad_enabled() and (features.requires_grad or field.requires_grad)
    if out is not None and gradient:
        raise ValueError(f"{owner}: out cannot be used where gradients are recorded; use torch.no_grad().")
    if out is not None and out.shape != features.shape:
        raise ValueError(f"{owner}: out must be {tuple(features.shape)} like the features, got {tuple(out.shape)}.")
    zeros = padding == "zeros"
    chosen = choose(owner, backend, features.device, offered=("torch", "numba", "triton"))
    if chosen == "torch":
        image = reference.sample(features, field, *axes, zeros=zeros).contiguous(memory_format=torch.channels_last)
        return image if out is None else out.copy_(image)
    numbers = [*axes[0], *axes[1]]
    if out is None:
        return torch.ops.headwarp.warp(features, field, numbers, zeros, chosen)
    if out.stride(1) != 1 or out.dtype != features.dtype:
        return out.copy_(ops.warp(features.detach(), field.detach(), numbers, zeros, chosen))
    return ops.warp(features.detach(), field.detach(), numbers, zeros, chosen, out)
