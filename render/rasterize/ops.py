"""`headwarp::rasterize` for torch's dispatcher, so that compiled programs and CUDA graphs keep it as one node."""

from __future__ import annotations

import torch
from torch import Tensor

library = torch.library.Library("headwarp", "FRAGMENT")
library.define(
    "rasterize(Tensor vertices, Tensor faces, int height, int width, bool cull, bool perspective, str backend)"
    " -> (Tensor, Tensor)"
)


def rasterize(
    vertices: Tensor, faces: Tensor, height: int, width: int, cull: bool, perspective: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Triangle ids (B, H, W) int32 and depths (B, H, W) float32; `vertices` are float32, `faces` int32."""
    vertices, faces = vertices.contiguous(), faces.contiguous()
    if backend == "triton":
        from . import gpu

        return gpu.rasterize(vertices, faces, (height, width), cull=cull, perspective=perspective)
    from . import cpu

    face_id, depth = _fake(vertices, faces, height, width, cull, perspective, backend)
    arrays = (t.numpy() for t in (vertices, faces, face_id, depth))
    cpu.rasterize(*arrays, cull=cull, perspective=perspective, threads=torch.get_num_threads())
    return face_id, depth


def _fake(
    vertices: Tensor, faces: Tensor, height: int, width: int, cull: bool, perspective: bool, backend: str
) -> tuple[Tensor, Tensor]:
    shape = (vertices.shape[0], height, width)
    return vertices.new_empty(shape, dtype=torch.int32), vertices.new_empty(shape)


for _device in ("CPU", "CUDA"):
    library.impl("rasterize", rasterize, _device)
torch.library.register_fake("headwarp::rasterize", _fake, lib=library)
