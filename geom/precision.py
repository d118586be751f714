"""Geometry in the precision it was written in, whatever a training step around it computes in."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_LOW = (torch.bfloat16, torch.float16)


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Switches autocast off inside a function, and makes half-precision tensors among its arguments float32.

    Autocast takes every matrix product for a layer of a network. A vertex, a keypoint or a camera with eight bits of
    mantissa is off by half a pixel of 256.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
        if not devices:
            return function(*args, **kwargs)
        with contextlib.ExitStack() as off:
            for device in devices:
                off.enter_context(torch.autocast(device, enabled=False))
            whole: Any = [_full(value) for value in args]
            return function(*whole, **{name: _full(value) for name, value in kwargs.items()})

    return run


def _full(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _LOW:
        return value.float()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        low = {name: held.float() for name, held in fields.items() if isinstance(held, Tensor) and held.dtype in _LOW}
        return dataclasses.replace(value, **low) if low else value
    return value
