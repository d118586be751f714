"""VHAP's tracked_flame_params_*.npz: FLAME over time, one focal length.

shape (S,), expr (T,E), rotation, translation, neck_pose, jaw_pose (T,3), eyes_pose (T,6: left, right), focal_length
(1,) in units of the longer side, timestep_id (T,). The camera stands at (0, 0, 1) and looks along -z, its axis through
the middle of the picture. A `principal` (2,) in pixels is added where the axis is elsewhere; VHAP ignores it.

Kept: all parameters but eyelids. Lost: eyelids, landmarks; a camera that changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...geom.camera import Camera
from ...geom.head import HeadModel
from ...geom.track import FaceTrack
from ...media.errors import InputError
from ...media.files import atomic_write
from .common import Known, head_params, perspective, rows, track_of

_FIELDS = {
    "expression": "expr",
    "rotation": "rotation",
    "neck": "neck_pose",
    "jaw": "jaw_pose",
    "eyes": "eyes_pose",
    "translation": "translation",
}
_CAMERA_Z = 1.0  # metres: where VHAP's camera stands, for which this package's stands at 0


def read(path: Path, head: HeadModel, known: Known) -> FaceTrack:
    """The track of a tracked_flame_params file."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if file[name].dtype.kind in "fiu"}
    missing = [name for name in ("shape", *_FIELDS.values()) if name not in arrays]
    if missing:
        raise InputError(f"{path} is no file of VHAP: it lacks {', '.join(missing)}.")
    if known.size is None:
        raise InputError(f"{path} does not say how large the pictures are; give it (--image-size H W).")
    height, width = known.size
    values = {ours: rows(arrays[theirs]) for ours, theirs in _FIELDS.items()}
    params = head_params(head, {**values, "shape": rows(arrays["shape"])})
    place = params.translation - torch.tensor([0.0, 0.0, _CAMERA_Z])
    focal = float(np.ravel(arrays.get("focal_length", [1.0]))[0]) * max(height, width)
    principal = np.ravel(arrays.get("principal", [width / 2, height / 2]))
    camera = Camera(torch.tensor([focal]), torch.tensor(principal, dtype=torch.float32)[None])
    return track_of(params.replace(translation=place), camera, head, known, known.size)


def write(track: FaceTrack, path: Path) -> None:
    """A tracked_flame_params file."""
    focal, principal = perspective(track, "VHAP's file")
    if bool((focal != focal[0]).any()) or bool((principal != principal[0]).any()):
        raise InputError("VHAP's file holds one camera for the clip, and this track's camera changes.")
    height, width = track.image_size
    arrays = {theirs: getattr(track.params, ours).numpy() for ours, theirs in _FIELDS.items()}
    arrays["translation"] = arrays["translation"] + np.array([0, 0, _CAMERA_Z], np.float32)
    arrays["shape"] = track.params.shape[0].numpy()
    arrays["focal_length"] = focal[:1].numpy() / max(height, width)
    arrays["timestep_id"] = np.array([f"{k:05d}" for k in range(len(track))])
    arrays["n_processed_frames"] = np.array(len(track))
    if (width / 2, height / 2) != tuple(principal[0].tolist()):
        arrays["principal"] = principal[0].numpy()
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
