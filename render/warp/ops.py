"""`headwarp::warp` and its gradient for torch's dispatcher: autograd, compiled programs, CUDA graphs.

`axes` are the six numbers of `reference.Axis` for x and y. Features and images are (B, C, H, W) stored channels_last.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..memory import empty
from ..rasterize.ops import library
from .reference import Axis

_ARGUMENTS = "Tensor features, Tensor field, float[] axes, bool zeros, str backend"
library.define(f"warp({_ARGUMENTS}) -> Tensor")
library.define(f"warp_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor)")

# numba has no 16-bit floats; its kernels take them as these integers.
_STAND_INS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
_FEW = 8  # channels below which the CPU kernel is float32 only


def warp(
    features: Tensor, field: Tensor, axes: list[float], zeros: bool, backend: str, out: Tensor | None = None
) -> Tensor:
    """The warped features, into `out` (channels side by side) when it is given."""
    field = field.float()
    if backend == "triton":
        from . import gpu

        image = torch.empty_like(features, memory_format=torch.channels_last) if out is None else out
        gpu.warp(_packed(features), field, image, axes, zeros=zeros)
        return image
    from . import cpu

    batch, channels, height, width = features.shape
    image = empty((batch, height, width, channels), features.dtype).permute(0, 3, 1, 2) if out is None else out
    wide = _needs_float32(features)
    target = torch.empty_like(features, dtype=torch.float32, memory_format=torch.channels_last) if wide else image
    cpu.warp(
        _pixels(_packed(features.float() if wide else features)),
        _pixels(field),
        _pixels(target),
        zeros=zeros,
        axes=_named(axes),
        threads=torch.get_num_threads(),
    )
    return image.copy_(target) if wide else image


def warp_backward(
    grad: Tensor, features: Tensor, field: Tensor, axes: list[float], zeros: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Gradients to features and field, in their dtypes."""
    grad = _packed(grad.to(features.dtype))
    features = features.contiguous(memory_format=torch.channels_last)
    if backend == "triton":
        from . import gpu

        d_features, d_full = gpu.warp_backward(grad, features, field.float(), axes, zeros=zeros)
    else:
        from . import cpu

        if _needs_float32(features):
            grad, wide = grad.float(), features.float()
        else:
            wide = features
        arrays = cpu.warp_backward(
            _pixels(grad),
            _pixels(wide),
            _pixels(field.float()),
            zeros=zeros,
            axes=_named(axes),
            threads=torch.get_num_threads(),
        )
        d_features, d_full = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in arrays)
    if d_full.shape != field.shape:
        d_full = torch.ops.aten.upsample_bilinear2d_backward(
            d_full.contiguous(), list(features.shape[2:]), list(field.shape), False, None, None
        )
    return d_features.to(features.dtype), d_full.to(field.dtype).contiguous()


def _packed(pixels: Tensor) -> Tensor:
    """The same with the channels of a pixel side by side: as it is when it is so, also as a slice of more channels."""
    return pixels if pixels.stride(1) == 1 else pixels.contiguous(memory_format=torch.channels_last)


def _needs_float32(features: Tensor) -> bool:
    return features.dtype != torch.float32 and (features.dtype not in _STAND_INS or features.shape[1] < _FEW)


def _pixels(pixels: Tensor) -> NDArray[Any]:
    """(B, C, H, W) tensor -> (B, H, W, C) array of the same memory."""
    stand_in = _STAND_INS.get(pixels.dtype)
    return (pixels.view(stand_in) if stand_in else pixels).permute(0, 2, 3, 1).numpy()


def _named(axes: list[float]) -> tuple[Axis, Axis]:
    return Axis(*axes[:3]), Axis(*axes[3:])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, field, ctx.axes, ctx.zeros, ctx.backend = inputs
    ctx.save_for_backward(features, field)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    d_features, d_field = torch.ops.headwarp.warp_backward(grad, *ctx.saved_tensors, ctx.axes, ctx.zeros, ctx.backend)
    return d_features, d_field, None, None, None


def _fake(features: Tensor, field: Tensor, axes: list[float], zeros: bool, backend: str) -> Tensor:
    return torch.empty_like(features, memory_format=torch.channels_last)


def _fake_backward(
    grad: Tensor, features: Tensor, field: Tensor, axes: list[float], zeros: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(features, memory_format=torch.channels_last), field.new_empty(field.shape)


for _device in ("CPU", "CUDA"):
    library.impl("warp", warp, _device)
    library.impl("warp_backward", warp_backward, _device)
torch.library.register_fake("headwarp::warp", _fake, lib=library)
torch.library.register_fake("headwarp::warp_backward", _fake_backward, lib=library)
torch.library.register_autograd("headwarp::warp", _backward, setup_context=_setup, lib=library)
