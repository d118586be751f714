"""How MediaPipe's models read a face whose parameters are known: the observation model of the fit.

Landmarks are not points of the skin. Against exact renders they sit beside the embedded points, follow some motions too
little and others too much (the lids' creases stay where the lid moves), and their errors are shared by whole regions of
the face. A `Reading` holds what was measured on synthetic heads
(assets/build_landmark_reading.py):

    landmark_l = project(x_l + offset_l + units_l e + lids_l c + jaw_l sin(j) + person_l p + frame_l f + noise)

with p, f ~ N(0, 1) unknown. Solving for p (once per person) and f (per frame) beside the head's parameters is the same
as weighting the landmarks by the full covariance of their errors.

Lengths are metres in head space; L = 468 mesh points in MediaPipe's order.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from ..geom.head import HeadModel
from ..geom.landmarks import Embedding

Floats = NDArray[np.float32]

ASSET = Path(__file__).parent.parent / "assets" / "landmark_reading.safetensors"


@dataclass(frozen=True)
class Reading:
    """Measured for one head model."""

    places: Floats
    """(L, 3) where the landmarks sit on the neutral mean head: embedded point plus mean offset."""
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

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the file, whole or not at all."""
        arrays = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(save(arrays, metadata=metadata))
        os.replace(temporary, path)


def made_for(head: HeadModel) -> dict[str, str]:
    """What a reading depends on, for the file's metadata: the head's geometry and its landmark embedding."""
    embedding = head.embeddings["mediapipe"]
    assert isinstance(embedding, Embedding)
    digest = hashlib.sha256()
    for values in (embedding.triangle, embedding.barycentric):
        digest.update(np.ascontiguousarray(values.cpu().numpy()).tobytes())
    return {"head_sha256": head.sha256, "embedding_sha256": digest.hexdigest()}


@cache
def _load() -> Reading:
    arrays = load_file(ASSET)
    return Reading(**{f.name: arrays[f.name].astype(np.float32) for f in fields(Reading)})


def reading_for(head: HeadModel) -> Reading | None:
    """What was measured for this head; None for a head that nothing was measured for."""
    return _load() if head.name == "open" and ASSET.is_file() else None
