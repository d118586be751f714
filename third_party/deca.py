"""The user's DECA: where its checkpoint is, and the crop that it wants. See deca.md beside this file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..nets.deca import SIDE, DecaEncoder
from .torch_files import read_torch

__all__ = ["DECA_HELP", "SIDE", "crop_of_landmarks", "crop_of_square", "find_deca", "load_encoder"]

DECA_HELP = (
    "DECA's weights need a licence: get deca_model.tar from https://github.com/yfeng95/DECA (its fetch_data.sh asks "
    "for a FLAME account), and put it into ~/.cache/headwarp or set HEADWARP_DECA to it."
)
_INNER = 0.1  # the box of FAN's 68 points is made larger by this, then the crop by 1.25
_CROP = 1.25


def find_deca() -> Path | None:
    """The user's deca_model.tar: the file that HEADWARP_DECA names (or in the folder it names), or the one in
    ~/.cache/headwarp; None when there is none."""
    named = os.environ.get("HEADWARP_DECA")
    place = Path(named).expanduser() if named else Path.home() / ".cache" / "headwarp"
    place = place if place.is_file() else place / "deca_model.tar"
    return place if place.is_file() else None


def load_encoder(path: Path | str | None = None) -> DecaEncoder:
    """DECA's coarse encoder with the official weights; nothing in the file is run (`weights_only`).

    Args:
        path: of deca_model.tar; None looks for it, see `find_deca`.
    Raises:
        FileNotFoundError: it is not there; the message says how to get it. ValueError: it is another file.
    """
    found = find_deca() if path is None else Path(path)
    if found is None or not found.is_file():
        raise FileNotFoundError(f"deca_model.tar was not found{'' if found is None else f' at {found}'}. {DECA_HELP}")
    return DecaEncoder.from_official(read_torch(found, "a checkpoint of DECA"))


def crop_of_landmarks(points: Tensor | NDArray[np.floating] | Sequence[Sequence[float]]) -> Tensor:
    """DECA's crop around landmarks: the crop transform (3,) = scale, tx, ty from the picture to 224 x 224.

        old = 1.1 (w + h) / 2,   side = int(1.25 old),   centre = centre of the box

    The three corners c - side/2, c + side/2 go to the middles of the first and last pixels, 0 and 223.

    Args:
        points: (L, 2) pixels, such as FAN's 68 or MediaPipe's 468.
    """
    points = torch.as_tensor(points, dtype=torch.float32)
    low, high = points.min(0).values, points.max(0).values
    old = (1 + _INNER) * float((high - low).sum()) / 2
    side = max(int(_CROP * old), 1)
    # DECA counts from pixel centres
    return crop_of_square((low + high) / 2 - 0.5, side)


def crop_of_square(centre: Tensor, side: int) -> Tensor:
    """The crop transform (3,) that brings the corners of a square to the middles of the first and last of 224 pixels.

    Args:
        centre: (2,) of the square, as an index of pixels (the middle of the first pixel is 0).
        side: pixels of the picture.
    """
    # index = continuous - 0.5, both in the picture and in the crop
    scale = (SIDE - 1) / side
    start = centre - side / 2
    shift = -scale * start + 0.5 - 0.5 * scale
    return torch.tensor([scale, float(shift[0]), float(shift[1])])
