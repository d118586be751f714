"""Guidance images: what the head's motion says, drawn for a network (PWM's three kinds).

    displacement   V_i = P(M_s)_i - P(M_d)_i     per vertex i, drawn with the driving mesh M_d
    neural codes   E_i, a learned vector         drawn with M_s for the encoder, with M_d for the decoder
    NMFC           mean-head coordinates in [0, 1], as three fixed codes

P is the projection to NDC, so a displacement is what `warp` consumes: source(p + V(p)) shows at p what the source shows
of the same surface point. Back faces are culled, the background is 0. Everything takes vertices in NDC and any
triangles, so that no head model is named here; leave out triangles whose motion is not known (neck and bust, often) by
passing fewer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .interpolate import interpolate
from .rasterize import Fragments, rasterize


def displacement_map(
    source: Tensor,
    target: Tensor,
    faces: Tensor,
    size: tuple[int, int],
    *,
    perspective: bool = False,
    fragments: Fragments | None = None,
) -> Tensor:
    """Where in the source picture each pixel of the target picture comes from, relative to itself.

    Args:
        source, target: (B, V, 3) NDC and depth of the same mesh in the two poses.
        faces: (F, 3) triangles to draw.
        size: (H, W) pixels of the map.
        perspective: whether a perspective camera made the NDC.
        fragments: of `target`, when they are there already.
    Returns:
        (B, 2, H, W) in NDC, x right and y down, 0 on the background; differentiable in both meshes.
    """
    if source.shape != target.shape:
        raise ValueError(
            f"displacement_map: source and target must be the same mesh, got {tuple(source.shape)} and "
            f"{tuple(target.shape)}."
        )
    moved = source[..., :2] - target[..., :2]
    return code_image(moved, target, faces, size, perspective=perspective, fragments=fragments)


def code_image(
    codes: Tensor,
    vertices: Tensor,
    faces: Tensor,
    size: tuple[int, int],
    *,
    perspective: bool = False,
    fragments: Fragments | None = None,
) -> Tensor:
    """Vertex codes drawn on a mesh: PWM's neural codes when they are learned, NMFC with `nmfc_codes`.

    Args:
        codes: (V, D), or (B, V, D) for one set per mesh.
        vertices: (B, V, 3) NDC and depth; the rest as `displacement_map`.
    Returns:
        (B, D, H, W), 0 on the background; differentiable in codes and vertices.
    """
    if fragments is None:
        fragments = rasterize(vertices, faces, size, perspective=perspective)
    elif fragments.face_id.shape[1:] != tuple(size):
        raise ValueError(f"code_image: fragments are {tuple(fragments.face_id.shape[1:])} pixels, size is {size}.")
    if codes.ndim == 2:
        codes = codes[None]
    return interpolate(codes, fragments, vertices, faces, perspective=perspective)


def nmfc_codes(template: Tensor) -> Tensor:
    """Normalised mean face coordinates (V, 3): the mean head's vertices (V, 3), each axis stretched to [0, 1]."""
    low, high = template.amin(0), template.amax(0)
    return (template - low) / (high - low)


def smooth_codes(template: Tensor, channels: int, *, cycles: float = 12.0) -> Tensor:
    """Codes (V, channels) for learning to start from, that differ little between neighbours: random waves through the
    mean head (V, 3) in metres, of mean 0 and variance 1 (random Fourier features, Rahimi and Recht 2007).

    Codes drawn for each vertex by itself are noise in the picture, with a grain of two pixels at 128 x 128, that a
    network has to learn its way out of first.

    Args:
        cycles: standard deviation of the waves' frequency along each axis, 1/m.
    """
    frequency = torch.randn(3, channels) * cycles
    phase = torch.rand(channels)
    waves = (2 * math.pi * (template.cpu().float() @ frequency + phase)).cos() * math.sqrt(2)
    return waves.to(template.device)


def to_pixels(displacement: Tensor) -> Tensor:
    """(B, 2, H, W) displacement in NDC -> in pixels of its own size."""
    height, width = displacement.shape[-2:]
    return displacement * displacement.new_tensor([width / 2, height / 2])[:, None, None]
