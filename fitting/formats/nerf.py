"""transforms.json with flame_param/NNNNN.npz beside it, as VHAP exports them and GaussianAvatars reads them.

Every frame: transform_matrix (4 x 4, world from camera; the camera looks along its -z, y up, as in NeRF), fl_x, fl_y,
cx, cy, w, h in pixels, camera_angle_x, file_path, timestep_index, flame_param_path. The npz has shape (S,) and the
frame's expr, rotation, translation, neck_pose, jaw_pose, eyes_pose (1, n), and eyelids where they are not open. The
head is moved near the origin, where NeRF code looks for it. Pictures are not written.

Kept: all parameters, a camera a frame. Lost: landmarks.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geom.camera import Camera
from ...geom.head import HeadModel
from ...geom.track import FaceTrack
from ...media.errors import InputError
from .common import Known, head_params, perspective, rebased, rows, track_of, whole_folder

_FIELDS = {
    "expression": "expr",
    "rotation": "rotation",
    "neck": "neck_pose",
    "jaw": "jaw_pose",
    "eyes": "eyes_pose",
    "translation": "translation",
    "eyelids": "eyelids",
}


def read(path: Path, head: HeadModel, known: Known) -> FaceTrack:
    """The track of a transforms.json (or of its folder), of the first camera where there are several."""
    path = path / "transforms.json" if path.is_dir() else path
    content = json.loads(path.read_text())
    frames = [frame for frame in content["frames"] if frame.get("camera_index", 0) == 0]
    frames.sort(key=lambda frame: frame.get("timestep_index", 0))
    if not frames or "flame_param_path" not in frames[0]:
        raise InputError(f"{path} has no frames with flame_param_path; cameras alone are no face track.")
    arrays = [_arrays(path.parent / frame["flame_param_path"]) for frame in frames]
    values = {
        ours: torch.cat([rows(part[theirs]) for part in arrays])
        for ours, theirs in _FIELDS.items()
        if all(theirs in part for part in arrays)
    }
    params = head_params(head, {**values, "shape": rows(arrays[0]["shape"])})
    pose = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float32)
    turn = pose[:, :3, :3].mT
    params = rebased(head, params, turn, -(turn @ pose[:, :3, 3:])[..., 0])

    def number(name: str) -> Tensor:
        return torch.tensor([float(frame.get(name, content.get(name))) for frame in frames])

    camera = Camera(number("fl_x"), torch.stack([number("cx"), number("cy")], 1))
    size = (int(number("h")[0]), int(number("w")[0]))
    return track_of(params, camera, head, known, size)


def write(track: FaceTrack, path: Path) -> None:
    """A folder with transforms.json and flame_param/."""
    focal, principal = perspective(track, "transforms.json")
    params = track.params
    middle = params.translation.mean(0)
    params = params.replace(translation=params.translation - middle)
    pose = torch.eye(4)
    pose[:3, 3] = -middle  # the camera, which stood at the origin
    height, width = track.image_size
    frames: list[dict[str, Any]] = []
    with whole_folder(path) as folder:
        (folder / "flame_param").mkdir()
        for k in range(len(track)):
            name = f"flame_param/{k:05d}.npz"
            fields = {theirs: getattr(params, ours)[k : k + 1].numpy() for ours, theirs in _FIELDS.items()}
            np.savez(folder / name, **fields, shape=params.shape[k].numpy())
            frames.append(
                {
                    "timestep_index": k,
                    "timestep_id": f"{k:05d}",
                    "camera_index": 0,
                    "camera_id": "0",
                    "cx": float(principal[k, 0]),
                    "cy": float(principal[k, 1]),
                    "fl_x": float(focal[k]),
                    "fl_y": float(focal[k]),
                    "h": height,
                    "w": width,
                    "camera_angle_x": 2 * math.atan(width / (2 * float(focal[k]))),
                    "camera_angle_y": 2 * math.atan(height / (2 * float(focal[k]))),
                    "transform_matrix": pose.tolist(),
                    "file_path": f"images/{k:05d}_00.png",
                    "flame_param_path": name,
                }
            )
        shared = {name: frames[0][name] for name in ("cx", "cy", "fl_x", "fl_y", "h", "w")} if frames else {}
        content = {"frames": frames, **shared, "timestep_indices": list(range(len(track))), "camera_indices": [0]}
        (folder / "transforms.json").write_text(json.dumps(content, indent=1))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
