"""`headwarp::interpolate` and its gradient for torch's dispatcher: autograd, compiled programs, CUDA graphs.

Images are (B, H, W, C) here. Only the inputs and the triangle ids are saved for the gradient; weights are made again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..memory import empty
from ..rasterize.ops import library

_MESH = "Tensor attributes, Tensor face_id, Tensor vertices, Tensor faces, bool perspective"
library.define(f"interpolate({_MESH}, float background, str backend) -> Tensor")
library.define(
    f"interpolate_backward(Tensor grad, {_MESH}, bool to_attributes, bool to_vertices, str backend) -> (Tensor, Tensor)"
)


def interpolate(
    attributes: Tensor,
    face_id: Tensor,
    vertices: Tensor,
    faces: Tensor,
    perspective: bool,
    background: float,
    backend: str,
    out: Tensor | None = None,
) -> Tensor:
    """Images (B, H, W, C) in the dtype of `attributes`, into `out` (contiguous) when it is given."""
    shape = (*face_id.shape, attributes.shape[2])
    mesh = face_id.contiguous(), vertices.contiguous(), faces.contiguous()
    if backend == "triton":
        from . import gpu

        image = attributes.new_empty(shape) if out is None else out
        gpu.interpolate(attributes.contiguous(), *mesh, image, perspective=perspective, background=background)
        return image
    from . import cpu

    image = empty(shape, attributes.dtype) if out is None else out
    wide = image if image.dtype == torch.float32 else torch.empty_like(image, dtype=torch.float32)
    cpu.interpolate(
        *(t.numpy() for t in (attributes.float().contiguous(), *mesh, wide)),
        perspective=perspective,
        background=background,
        threads=torch.get_num_threads(),
    )
    return image if wide is image else image.copy_(wide)


def interpolate_backward(
    grad: Tensor,
    attributes: Tensor,
    face_id: Tensor,
    vertices: Tensor,
    faces: Tensor,
    perspective: bool,
    to_attributes: bool,
    to_vertices: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients to attributes and vertices, in their dtypes; an empty tensor for one that is not asked for."""
    mesh = face_id.contiguous(), vertices.contiguous(), faces.contiguous()
    if backend == "triton":
        from . import gpu

        return gpu.interpolate_backward(
            grad.contiguous(),
            attributes.contiguous(),
            *mesh,
            perspective=perspective,
            to_attributes=to_attributes,
            to_vertices=to_vertices,
        )
    from . import cpu

    d_attributes, d_vertices = cpu.interpolate_backward(
        *(t.numpy() for t in (grad.float().contiguous(), attributes.float().contiguous(), *mesh)),
        perspective=perspective,
        to_attributes=to_attributes,
        to_vertices=to_vertices,
        threads=torch.get_num_threads(),
    )
    return (
        attributes.new_empty(0) if d_attributes is None else torch.from_numpy(d_attributes).to(attributes.dtype),
        vertices.new_empty(0) if d_vertices is None else torch.from_numpy(d_vertices),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    attributes, face_id, vertices, faces, ctx.perspective, _, ctx.backend = inputs
    ctx.save_for_backward(attributes, face_id, vertices, faces)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    to_attributes, to_vertices = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    saved = ctx.saved_tensors
    d_attributes, d_vertices = torch.ops.headwarp.interpolate_backward(
        grad, *saved, ctx.perspective, to_attributes, to_vertices, ctx.backend
    )
    return d_attributes if to_attributes else None, None, d_vertices if to_vertices else None, None, None, None, None


def _fake(
    attributes: Tensor,
    face_id: Tensor,
    vertices: Tensor,
    faces: Tensor,
    perspective: bool,
    background: float,
    backend: str,
) -> Tensor:
    return attributes.new_empty((*face_id.shape, attributes.shape[2]))


def _fake_backward(
    grad: Tensor,
    attributes: Tensor,
    face_id: Tensor,
    vertices: Tensor,
    faces: Tensor,
    perspective: bool,
    to_attributes: bool,
    to_vertices: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return (
        attributes.new_empty(attributes.shape if to_attributes else 0),
        vertices.new_empty(vertices.shape if to_vertices else 0),
    )


for _device in ("CPU", "CUDA"):
    library.impl("interpolate", interpolate, _device)
    library.impl("interpolate_backward", interpolate_backward, _device)
torch.library.register_fake("headwarp::interpolate", _fake, lib=library)
torch.library.register_fake("headwarp::interpolate_backward", _fake_backward, lib=library)
torch.library.register_autograd("headwarp::interpolate", _backward, setup_context=_setup, lib=library)
