"""Models made ready to be used: the same numbers in less time, and nothing to train."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from .generator import Attention
from .layers import fold_spectral_norm
from .winograd import WinogradConv

Model = TypeVar("Model", bound=nn.Module)
_WIDE = 64
"""Channels in and out from which Winograd's transforms are worth their time."""


def optimise(model: Model, *, bfloat16: bool = False) -> Model:
    """A copy of a model for inference; outputs agree to about 1e-5.

    Batch and spectral norms go into the weights, modules that have a faster equal (`folded()`) give way to it, wide
    3 x 3 convolutions become Winograd's on a CPU, and weights are stored channels_last.

    Args:
        bfloat16: the convolutions of a keypoint model's `generator` compute with 8 bits of mantissa, for processors
            that do so faster; pictures then change by about a grey level. Keypoints, attention and deformation stay
            float32.
    """
    copy = deepcopy(model).eval()
    fold_spectral_norm(copy)
    copy.requires_grad_(False)
    _fold(copy)
    if bfloat16:
        generator = copy.generator
        assert isinstance(generator, nn.Module)
        _to_bfloat16(generator)
    else:
        _to_winograd(copy)
    return copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fold(module: nn.Module) -> None:
    for name, child in module.named_children():
        folded = getattr(child, "folded", None)
        if callable(folded):
            setattr(module, name, folded())
        else:
            _fold(child)


def _to_winograd(module: nn.Module) -> None:
    for name, child in module.named_children():
        if not isinstance(child, nn.Conv2d):
            _to_winograd(child)
        elif WinogradConv.fits(child) and min(child.in_channels, child.out_channels) >= _WIDE:
            setattr(module, name, WinogradConv(child))


class _BFloat16(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.module(x.bfloat16())
        return result


def _to_bfloat16(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, _BFloat16(child))
        elif not isinstance(child, Attention):  # its logits are exponents
            _to_bfloat16(child)
