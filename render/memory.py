"""Memory for large results on the CPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LINE = 64
"""Bytes of a line of the caches, which processors read and write as a whole."""
_LARGE = 1 << 22  # bytes from which numpy asks for huge pages
_PAST = 1 << 23  # bytes from which `goes_past`


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """`torch.empty(shape, dtype=dtype)`, by way of numpy when it is large.

    Large blocks come fresh from the system each time, and their first touch costs more than our arithmetic: a fault per
    4 KB page with torch's allocator, per 2 MB with numpy's, which asks Linux for huge pages.
    """
    entries = math.prod(shape)
    size = dtype.itemsize
    if entries * size < _LARGE or size not in (2, 4):
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(empty_array(shape, np.int16 if size == 2 else np.int32)).view(dtype)


def empty_array(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """`np.empty(shape, dtype)` that begins on a line of memory.

    torch's tensors do and numpy's arrays do not: accesses that are as wide as a line would each touch two.
    """
    entries = math.prod(shape)
    room = np.empty(entries + LINE // np.dtype(dtype).itemsize, dtype)
    at = -room.ctypes.data % LINE // room.itemsize
    return room[at : at + entries].reshape(shape)


def goes_past(image: NDArray[Any]) -> bool:
    """Whether a kernel had better write an image (B, H, W, C) past the caches, and may.

    Large ones throw out of the caches what a kernel reads, and little of them is left there when they are read in their
    turn: from 8 MB on, a warp and the operator after it take less time together so. Pixels have to begin on lines.
    """
    return image.nbytes >= _PAST and not any(x % LINE for x in (image.ctypes.data, *image.strides[:3]))
