"""metrical-tracker's checkpoint/NNNNN.frame: one torch file a frame, a dictionary of numpy arrays.

flame: exp (1,100), shape (1,300), eyes (1,12), jaw (1,6) as first two rows of rotation matrices, eyelids (1,2), tex,
sh; opencv: R (1,3,3), t (1,3), K (1,3,3), camera = R vertex + t with x right, y down, z forward; camera: the same for
pytorch3d; img_size (H, W), frame_id. The head stands still there, and the camera moves about it.

Files are zip archives with a pickle, which is read by `geom.safe_pickle`: nothing in it is run.

Kept: all parameters but the neck (that program has none), a camera a frame. Lost: neck, landmarks.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geom.camera import Camera
from ...geom.head import HeadModel
from ...geom.rotation import axis_angle_to_matrix
from ...geom.safe_pickle import read_pickle
from ...geom.track import FaceTrack
from ...media.errors import InputError
from ...media.files import natural_key
from .common import (
    Known,
    from_6d,
    head_params,
    perspective,
    rebased,
    root,
    rows,
    to_6d,
    track_of,
    whole_folder,
    width_of,
)

_FLIP = torch.tensor([1.0, -1.0, -1.0])  # OpenCV's camera axes and ours


def read(path: Path, head: HeadModel, known: Known) -> FaceTrack:
    """The track of a folder of .frame files (or of one file)."""
    files = [path] if path.is_file() else sorted(path.glob("*.frame"), key=natural_key)
    if not files:
        raise InputError(f"{path} holds no .frame files.")
    frames = [_content(file) for file in files]
    flame = [frame["flame"] for frame in frames]

    def stacked(name: str) -> Tensor:
        return torch.cat([rows(part[name]) for part in flame])

    eyes = stacked("eyes")
    values = {
        "shape": stacked("shape"),
        "expression": stacked("exp"),
        "jaw": from_6d(stacked("jaw")),
        "eyes": torch.cat([from_6d(eyes[:, :6]), from_6d(eyes[:, 6:])], 1),
    }
    if "eyelids" in flame[0]:
        values["eyelids"] = stacked("eyelids")
    params = head_params(head, values)
    views = [frame["opencv"] for frame in frames]
    turn, shift, matrix = (
        torch.stack([torch.as_tensor(np.asarray(view[name], np.float32)).reshape(shape) for view in views])
        for name, shape in (("R", (3, 3)), ("t", (3,)), ("K", (3, 3)))
    )
    params = rebased(head, params, _FLIP[:, None] * turn, _FLIP * shift)
    camera = Camera(matrix[:, 0, 0], matrix[:, :2, 2])
    height, width = (int(n) for n in np.ravel(frames[0]["img_size"])[:2])
    return track_of(params, camera, head, known, (height, width))


def write(track: FaceTrack, path: Path, head: HeadModel) -> None:
    """A folder of .frame files."""
    focal, principal = perspective(track, "metrical-tracker's file")
    params = track.params
    joint = root(head, params)
    # vertex = R (x - J) + J + t in our axes; the head at rest is x itself
    turn = axis_angle_to_matrix(params.rotation)
    shift = joint + params.translation - (turn @ joint[..., None])[..., 0]
    turn, shift = _FLIP[:, None] * turn, _FLIP * shift
    height, width = track.image_size
    matrix = torch.zeros(len(track), 3, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = focal
    matrix[:, :2, 2] = principal
    matrix[:, 2, 2] = 1
    eyes = torch.cat([to_6d(params.eyes[:, :3]), to_6d(params.eyes[:, 3:])], 1)
    jaw = to_6d(params.jaw)
    shape, expression = width_of(params.shape, 300), width_of(params.expression, 100)
    # pytorch3d: row vectors, x left and y up, lengths in halves of the shorter side
    flip = torch.tensor([-1.0, -1.0, 1.0])
    turn3d, shift3d = turn.mT * flip, shift * flip
    half = min(height, width) / 2
    centre = torch.tensor([width / 2, height / 2])

    def one(values: Tensor, k: int) -> np.ndarray:
        return values[k : k + 1].contiguous().numpy()

    with whole_folder(path) as folder:
        for k in range(len(track)):
            content = {
                "flame": {
                    "exp": one(expression, k),
                    "shape": one(shape, k),
                    "tex": np.zeros((1, 140), np.float32),
                    "sh": np.zeros((1, 9, 3), np.float32),
                    "eyes": one(eyes, k),
                    "eyelids": one(params.eyelids, k),
                    "jaw": one(jaw, k),
                },
                "camera": {
                    "R": one(turn3d[:, :2].flatten(1), k),
                    "t": one(shift3d, k),
                    "fl": one(focal[:, None] / half, k),
                    "pp": one(-(principal - centre) / half, k),
                },
                "opencv": {"R": one(turn, k), "t": one(shift, k), "K": one(matrix, k)},
                "img_size": np.array([height, width]),
                "frame_id": f"{k:05d}",
                "global_step": 0,
            }
            torch.save(content, folder / f"{k:05d}.frame")


def _content(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            data = archive.read(name)
    except (zipfile.BadZipFile, StopIteration):
        raise InputError(f"{path} is no .frame file of metrical-tracker (a torch archive).") from None
    with tempfile.TemporaryDirectory() as folder:
        pickled = Path(folder) / "data.pkl"
        pickled.write_bytes(data)
        content = read_pickle(pickled)
    if not isinstance(content, dict) or not {"flame", "opencv", "img_size"} <= content.keys():
        raise InputError(f"{path} is no .frame file of metrical-tracker: flame, opencv and img_size are needed.")
    return content
