"""Which implementation serves a call."""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache

import torch

BACKENDS = ("torch", "numba", "triton", "pytorch3d")
_INSTALLED = {name: importlib.util.find_spec(name) is not None for name in BACKENDS}


def choose(owner: str, backend: str, device: torch.device, *, offered: tuple[str, ...] = BACKENDS) -> str:
    """The backend to use: what was asked for, else $HEADWARP_BACKEND, else the fastest for the device.

    A missing fast backend is replaced by "torch" with one warning when nothing was asked for, and is an error when it
    was.
    """
    asked = backend if backend != "auto" else os.environ.get("HEADWARP_BACKEND", "auto")
    if asked == "auto":
        best = {"cpu": "numba", "cuda": "triton"}.get(device.type, "torch")
        if not _INSTALLED[best]:
            _warn_once(f"{best} is not installed; rendering on {device.type} uses plain torch, which is much slower.")
            return "torch"
        return best
    if asked not in offered:
        raise ValueError(f"{owner}: backend must be 'auto' or one of {', '.join(offered)}, got {asked!r}.")
    if not _INSTALLED[asked]:
        raise ValueError(f"{owner}: backend {asked!r} is not installed here; use 'auto' or install {asked}.")
    if asked == "numba" and device.type != "cpu":
        raise ValueError(f"{owner}: backend 'numba' works on CPU tensors, these are on {device}.")
    if asked == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"{owner}: backend 'triton' works on CUDA tensors, these are on {device}.")
    return asked


@cache
def _warn_once(message: str) -> None:
    warnings.warn(f"headwarp: {message}", stacklevel=4)
