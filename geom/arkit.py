"""The 52 face units of ARKit: names, order, and MediaPipe's order of the same scores.

Every (..., 52) array of this package is in the order of `NAMES` (Apple's `ARFaceAnchor.BlendShapeLocation` list);
weights run from 0 (neutral) to 1. "Left" and "Right" are the person's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

NAMES: tuple[str, ...] = (
    *(
        f"{unit}Left"
        for unit in ("eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide")
    ),
    *(
        f"{unit}Right"
        for unit in ("eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide")
    ),
    *("jawForward", "jawLeft", "jawRight", "jawOpen"),
    *("mouthClose", "mouthFunnel", "mouthPucker", "mouthLeft", "mouthRight"),
    *("mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight"),
    *("mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight"),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *("mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft", "mouthLowerDownRight"),
    *("mouthUpperUpLeft", "mouthUpperUpRight"),
    *("browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    *("cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut"),
)
"""The 52 names in ARKit's order."""

INDEX: dict[str, int] = {name: i for i, name in enumerate(NAMES)}

MEDIAPIPE_NAMES: tuple[str, ...] = ("_neutral", *sorted(set(NAMES) - {"tongueOut"}))
"""The 52 outputs of MediaPipe's blend-shape model: `_neutral`, then 51 ARKit units in alphabetical order; no
tongueOut."""


def from_mediapipe(scores: Tensor) -> Tensor:
    """MediaPipe's (..., 52) scores -> (..., 52) ARKit weights; `_neutral` is dropped and tongueOut is 0."""
    if scores.shape[-1] != len(MEDIAPIPE_NAMES):
        raise ValueError(f"arkit.from_mediapipe: scores must be (..., 52), got {tuple(scores.shape)}.")
    weights = scores.new_zeros(scores.shape)
    weights[..., [INDEX[name] for name in MEDIAPIPE_NAMES[1:]]] = scores[..., 1:]
    return weights


def weights_from_names(values: Mapping[str, float]) -> Tensor:
    """(1, 52) float32 weights from a mapping such as {"mouthSmileLeft": 0.8}; units not named are 0."""
    weights = torch.zeros(1, len(NAMES))
    for name, value in values.items():
        if name not in INDEX:
            raise ValueError(f"'{name}' is no ARKit face unit{nearest_names(name, NAMES)}")
        weights[0, INDEX[name]] = value
    return weights


def nearest_names(wrong: str, names: Sequence[str]) -> str:
    """The end of a sentence about a wrong name: which ones may have been meant, or all there are."""
    folded = {name.lower(): name for name in names}
    near = [folded[name] for name in get_close_matches(wrong.lower(), folded, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else f"; the names are {', '.join(names) or 'none'}."
