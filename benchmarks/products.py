"""How many products a network takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..nets.generator import Attention
from ..nets.winograd import WinogradConv


@contextmanager
def products(model: nn.Module) -> Iterator[list[float]]:
    """The products of every convolution and attention that is computed in the block."""
    found: list[float] = []

    def convolution(module: nn.Module, _: Any, result: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        found.append(result.numel() * module.weight[0].numel())

    def winograd(module: nn.Module, _: Any, result: Tensor) -> None:
        assert isinstance(module.conv, nn.Conv2d)
        found.append(result[:, 0].numel() * module.conv.weight.numel())

    def attending(module: nn.Module, _: Any, result: Tensor) -> None:
        batch, channels, height, width = result.shape
        found.append(batch * (height * width) ** 2 * (channels + channels // 8))

    hooks = []
    inner = {id(module.conv) for module in model.modules() if isinstance(module, WinogradConv)}
    for module in model.modules():
        if id(module) in inner:
            continue
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(convolution))
        elif isinstance(module, WinogradConv):
            hooks.append(module.register_forward_hook(winograd))
        elif isinstance(module, Attention):
            hooks.append(module.register_forward_hook(attending))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
