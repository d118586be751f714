"""Dictionaries of codes, as DECA, EMOCA (INFERNO) and SMIRK make them; in a .pkl, .mat or .npy, or a folder of such.

| here | DECA | EMOCA | SMIRK |
|---|---|---|---|
| shape | shape (T,100) | shapecode | shape_params (T,300) |
| expression | exp (T,50) | expcode | expression_params |
| rotation, jaw | pose (T,6) | posecode, or globalpose and jawpose | pose_params, jaw_params |
| eyelids | - | - | eyelid_params (left, right) |
| camera | cam (T,3): scale, tx, ty on a 224 x 224 crop; tform (T,3,3) from the picture to the crop, if given |

Kept: those. Lost on the way out: neck and eyes (these programs have none), landmarks, times. A perspective camera
becomes the weak-perspective one that agrees with it at the depth of the face.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geom.camera import Camera, WeakPerspective, invert_crop
from ...geom.head import HeadModel
from ...geom.safe_pickle import read_npy, read_pickle
from ...geom.track import FaceTrack
from ...media.errors import InputError
from ...media.files import atomic_write, natural_key
from ...third_party.deca import SIDE, crop_of_landmarks
from .common import Known, head_params, rows, track_of, width_of

_NAMES = {
    "deca": {"shape": "shape", "expression": "exp", "pose": "pose"},
    "emoca": {"shape": "shapecode", "expression": "expcode", "pose": "posecode"},
    "smirk": {
        "shape": "shape_params",
        "expression": "expression_params",
        "rotation": "pose_params",
        "jaw": "jaw_params",
        "eyelids": "eyelid_params",
    },
}
_ALSO = {"rotation": ("globalpose", "global_pose"), "jaw": ("jawpose", "jaw_pose"), "expression": ("expression",)}
_WIDTHS = {"deca": (100, 50), "emoca": (100, 50), "smirk": (300, 50)}
_ENDINGS = (".pkl", ".mat", ".npy")


def read(path: Path, head: HeadModel, known: Known) -> FaceTrack:
    """The track of a dictionary, of a list of dictionaries (one a frame), or of a folder of files (one a frame)."""
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix in _ENDINGS), key=natural_key)
        parts = [part for file in files for part in _dictionaries(file)]
    else:
        parts = _dictionaries(path)
    if not parts:
        raise InputError(f"{path} holds no dictionary of codes.")
    fields = [_fields(part, path) for part in parts]
    merged = {name: torch.cat([field[name] for field in fields]) for name in fields[0]}
    cam, tform = merged.pop("cam"), merged.pop("tform", None)
    params = head_params(head, merged)
    frames = len(params)
    camera = WeakPerspective.from_deca(cam.expand(frames, 3), (SIDE, SIDE))
    if tform is None:
        return track_of(params, camera, head, known, (SIDE, SIDE))
    # tform counts from pixel centres, this package from pixel corners: half a pixel on both sides
    scale = tform[:, 0]
    crop = torch.stack([scale, tform[:, 2] + 0.5 - 0.5 * scale, tform[:, 5] + 0.5 - 0.5 * scale], 1).expand(frames, 3)
    if known.size is None:
        raise InputError(f"{path} was cut from pictures whose size it does not say; give it (--image-size H W).")
    return track_of(params, camera.crop(invert_crop(crop)), head, known, known.size, crop=crop)


def write(track: FaceTrack, path: Path, head: HeadModel, kind: str) -> None:
    """A dictionary in the names of `kind`."""
    params, (n_shape, n_expression) = track.params, _WIDTHS[kind]
    camera, crop = weak_camera(track, head)
    fields = {
        "shape": width_of(params.shape, n_shape),
        "expression": width_of(params.expression, n_expression),
        "pose": torch.cat([params.rotation, params.jaw], 1),
        "rotation": params.rotation,
        "jaw": params.jaw,
        "eyelids": params.eyelids,
    }
    result = {theirs: fields[ours].numpy() for ours, theirs in _NAMES[kind].items()}
    result["cam"] = camera.crop(crop).to_deca((SIDE, SIDE)).numpy()
    tform = np.zeros((len(track), 3, 3), np.float32)
    scale = crop[:, 0].numpy()
    tform[:, 0, 0] = tform[:, 1, 1] = scale
    tform[:, :2, 2] = crop[:, 1:].numpy() - 0.5 + 0.5 * scale[:, None]
    tform[:, 2, 2] = 1
    if track.image_size != (SIDE, SIDE):
        result["tform"] = tform
    _save(path, result)


def weak_camera(track: FaceTrack, head: HeadModel) -> tuple[WeakPerspective, Tensor]:
    """The track's camera in DECA's form, (T,), and DECA's crops (T, 3) of its frames."""
    frames = len(track)
    crop = track.crop
    if track.image_size == (SIDE, SIDE):
        crop = torch.tensor([[1.0, 0.0, 0.0]]).repeat(frames, 1)
    elif bool((track.landmarks != 0).any()):
        crop = torch.stack([crop_of_landmarks(points) for points in track.landmarks[:, :468, :2]])
    if isinstance(track.camera, WeakPerspective):
        camera = track.camera
        return WeakPerspective(camera.scale.expand(frames), camera.principal.expand(frames, 2)), crop
    assert isinstance(track.camera, Camera)
    with torch.no_grad():
        vertices = head(track.params)
    front = vertices[..., 2].amax(1) - 0.03  # the skin of the face lies a few centimetres behind the tip of the nose
    scale = track.camera.focal / -front
    place = track.params.translation
    offset = torch.stack([place[:, 0], -place[:, 1]], 1) * scale[:, None]
    return WeakPerspective(scale, track.camera.principal + offset), crop


def _dictionaries(path: Path) -> list[Mapping[str, Any]]:
    match path.suffix:
        case ".pkl":
            content = read_pickle(path)
        case ".npy":
            content = read_npy(path)
        case ".mat":
            from scipy.io import loadmat
            from scipy.io.matlab import MatReadError

            try:
                content = loadmat(path)
            except MatReadError as error:
                raise InputError(f"{path} is no MATLAB file that can be read ({error}).") from None
        case _:
            raise InputError(f"{path}: dictionaries of codes are .pkl, .mat or .npy files, got '{path.suffix}'.")
    if isinstance(content, np.ndarray) and content.dtype == object:
        content = content.tolist()
    if isinstance(content, Mapping) and content and all(isinstance(value, Mapping) for value in content.values()):
        content = [content[key] for key in sorted(content, key=natural_key)]  # frame name -> codes
    found = [content] if isinstance(content, Mapping) else content
    if not isinstance(found, list) or not all(isinstance(part, Mapping) for part in found):
        raise InputError(f"{path} holds no dictionary of codes, but {type(content).__name__}.")
    return found


def _fields(part: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for names in _NAMES.values():
        found |= {ours: rows(part[theirs]) for ours, theirs in names.items() if theirs in part}
    for ours, others in _ALSO.items():
        name = next((name for name in others if name in part), None)
        if name is not None and ours not in found:
            found[ours] = rows(part[name])
    if "pose" in found:
        pose = found.pop("pose")
        if pose.shape[1] == 6:
            found |= {"rotation": pose[:, :3], "jaw": pose[:, 3:]}
        else:
            found["rotation"] = pose[:, :3]
    if "expression" not in found or "rotation" not in found or "cam" not in part:
        raise InputError(
            f"{path} has no codes of DECA, EMOCA or SMIRK: expression, pose and cam are needed, it has "
            f"{', '.join(str(key) for key in part if not str(key).startswith('__'))}."
        )
    found["cam"] = rows(part["cam"])
    if "tform" in part:
        found["tform"] = torch.as_tensor(np.asarray(part["tform"], np.float32)).reshape(-1, 9)
    return found


def _save(path: Path, content: dict[str, np.ndarray]) -> None:
    with atomic_write(path) as temporary:
        match path.suffix:
            case ".pkl":
                temporary.write_bytes(pickle.dumps(content, protocol=4))
            case ".npy":
                np.save(temporary, np.array(content, dtype=object))
            case ".mat":
                from scipy.io import savemat

                savemat(temporary, content)
            case _:
                raise InputError(f"{path}: dictionaries of codes end in .pkl, .mat or .npy, got '{path.suffix}'.")
