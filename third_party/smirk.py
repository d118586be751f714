"""The user's SMIRK: where its checkpoint is, and the crop that it wants. See smirk.md beside this file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..nets.smirk import SmirkEncoder
from .deca import crop_of_square
from .torch_files import fill, read_torch, state_of

__all__ = ["SMIRK_HELP", "crop_of_landmarks", "find_smirk", "load_encoder"]

SMIRK_HELP = (
    "SMIRK's weights are the user's: get SMIRK_em1.pt as https://github.com/georgeretsi/smirk says (its "
    "quick_install.sh), and put it into ~/.cache/headwarp or set HEADWARP_SMIRK to it."
)
_CROP = 1.4


def find_smirk() -> Path | None:
    """The user's SMIRK_em1.pt: the file that HEADWARP_SMIRK names (or in the folder it names), or the one in
    ~/.cache/headwarp; None when there is none."""
    named = os.environ.get("HEADWARP_SMIRK")
    place = Path(named).expanduser() if named else Path.home() / ".cache" / "headwarp"
    place = place if place.is_file() else place / "SMIRK_em1.pt"
    return place if place.is_file() else None


def load_encoder(path: Path | str | None = None) -> SmirkEncoder:
    """SMIRK's encoder with the official weights; nothing in the file is run (`weights_only`).

    Args:
        path: of SMIRK_em1.pt; None looks for it, see `find_smirk`.
    Raises:
        FileNotFoundError: it is not there; the message says how to get it. ValueError: it is another file.
    """
    found = find_smirk() if path is None else Path(path)
    if found is None or not found.is_file():
        raise FileNotFoundError(f"SMIRK_em1.pt was not found{'' if found is None else f' at {found}'}. {SMIRK_HELP}")
    state = state_of(read_torch(found, "a checkpoint of SMIRK"), "smirk_encoder.")
    if not state:
        raise ValueError(f"{found} is not a checkpoint of SMIRK: no parameter in it begins with 'smirk_encoder.'.")
    model = SmirkEncoder()
    fill(model, state, found, "SMIRK's encoder")
    return model.eval()


def crop_of_landmarks(points: Tensor | NDArray[np.floating] | Sequence[Sequence[float]]) -> Tensor:
    """SMIRK's crop around landmarks: the crop transform (3,) = scale, tx, ty from the picture to 224 x 224.

        side = int(1.4 (w + h) / 2),   centre = centre of the box

    The corners c - side/2, c + side/2 go to the middles of the first and last pixels, 0 and 223. SMIRK takes
    MediaPipe's coordinates, which count from the corners of pixels, for indices of pixels; so does this.

    Args:
        points: (L, 2) pixels, MediaPipe's 468 or 478.
    """
    points = torch.as_tensor(points, dtype=torch.float32)
    low, high = points.min(0).values, points.max(0).values
    side = max(int(_CROP * float((high - low).sum()) / 2), 1)
    return crop_of_square((low + high) / 2, side)
