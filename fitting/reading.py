"""How MediaPipe's models read a face whose parameters are known: the observation model of the fit.

Landmarks are not points of the skin. Against exact renders they sit beside the embedded points, follow some motions too
little and others too much (the lids' creases stay where the lid moves), and their errors are shared by whole regions of
the face. Face units come out compressed. A `Reading` holds what was measured on synthetic heads
(assets/build_landmark_reading.py):

    landmark_l = project(x_l + offsets_l + units_l e + lids_l c + jaw_l sin(j) + person_l p + frame_l f + noise)

with p, f ~ N(0, 1) unknown. Solving for p (once per person) and f (per frame) beside the head's parameters is the same
as weighting the landmarks by the full covariance of their errors.

Lengths are metres in head space; L = 468 mesh points in MediaPipe's order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from ..geom.head import HeadModel

Floats = NDArray[np.float32]

ASSET = Path(__file__).parent.parent / "assets" / "landmark_reading.safetensors"


@dataclass(frozen=True)
class Reading:
    """Measured for one head model."""

    offsets: Floats
    """(L, 3) mean of landmark minus embedded point."""
    units: Floats
    """(L, 3, 52) change per ARKit unit, on top of the model's own; zero for gaze, eyeBlink, jawOpen, tongueOut."""
    lids: Floats
    """(L, 3, 2) change per eyelid coefficient, left and right."""
    jaw: Floats
    """(L, 3) change per sine of the jaw's opening angle."""
    person_modes: Floats
    """(L, 3, Q) shared errors that a person keeps, per standard deviation."""
    frame_modes: Floats
    """(L, 3, M) shared errors that change from frame to frame, per standard deviation."""
    noise: Floats
    """(L,) what is left, root mean square."""
    irises: Floats
    """(2, 3) mean of iris centre minus the centre on the eyeball; left, right."""
    unit_gain: Floats
    """(52,) and"""
    unit_bias: Floats
    """(52,): the unit's weight is about gain * reading + bias, where the reading says anything."""
    unit_error: Floats
    """(52,) root mean square error of that."""

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the file, whole or not at all."""
        arrays = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(save(arrays, metadata=metadata))
        os.replace(temporary, path)


@cache
def _load() -> tuple[str, Reading]:
    with safe_open(ASSET, framework="np") as file:
        reading = Reading(**{f.name: file.get_tensor(f.name) for f in fields(Reading)})
        return file.metadata()["head_sha256"], reading


def reading_for(head: HeadModel) -> Reading | None:
    """What was measured for this head; None for a head that nothing was measured for."""
    if not ASSET.is_file():
        return None
    sha256, reading = _load()
    return reading if sha256 == head.sha256 else None
