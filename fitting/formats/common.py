"""What the formats share: numbers into parameters, parameters into a track."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geom.camera import Camera, WeakPerspective
from ...geom.head import HeadModel, HeadParams
from ...geom.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from ...geom.track import FaceTrack
from ...media.errors import InputError
from ...media.files import write_error


@dataclass(frozen=True)
class Known:
    """What files of other programs leave out."""

    fps: float = 25.0
    """Frames per second."""
    size: tuple[int, int] | None = None
    """(H, W) of the picture."""


def rows(value: Any) -> Tensor:
    """(T, n) float32 of a (T, n), (T, 1, n) or (n,) array."""
    array = torch.as_tensor(np.asarray(value, dtype=np.float32))
    return array.reshape(1, -1) if array.ndim <= 1 else array.reshape(array.shape[0], -1)


def head_params(head: HeadModel, values: Mapping[str, Tensor]) -> HeadParams:
    """Parameters from fields of (T, n) or (1, n), padded with zeros or cut to the head's widths.

    Raises:
        InputError: fields of different lengths.
    """
    frames = max(len(value) for value in values.values())
    params = HeadParams.zeros(head, frames)
    found = {}
    for name, value in values.items():
        if len(value) not in (1, frames):
            raise InputError(f"{name} has {len(value)} frames, and others have {frames}.")
        blank = getattr(params, name)
        width = min(blank.shape[1], value.shape[1])
        filled = blank.clone()
        filled[:, :width] = value[:, :width]
        found[name] = filled
    return params.replace(**found)


def track_of(
    params: HeadParams,
    camera: Camera | WeakPerspective,
    head: HeadModel,
    known: Known,
    size: tuple[int, int],
    *,
    crop: Tensor | None = None,
    blendshapes: Tensor | None = None,
    times: Tensor | None = None,
) -> FaceTrack:
    """A track without landmarks."""
    frames = len(params)
    return FaceTrack(
        params=params,
        camera=camera,
        landmarks=torch.zeros(frames, 478, 3),
        confidence=torch.ones(frames),
        blendshapes=torch.zeros(frames, 52) if blendshapes is None else blendshapes,
        times=torch.arange(frames, dtype=torch.float64) / known.fps if times is None else times,
        crop=torch.tensor([[1.0, 0.0, 0.0]]).repeat(frames, 1) if crop is None else crop,
        fps=known.fps,
        image_size=size,
        head_name=head.name,
        head_sha256=head.sha256,
    )


def width_of(values: Tensor, width: int) -> Tensor:
    """(T, n) cut, or padded with zeros, to (T, width)."""
    return torch.nn.functional.pad(values, (0, max(0, width - values.shape[1])))[:, :width]


def to_6d(axis_angle: Tensor) -> Tensor:
    """(T, 6) first two rows of the rotation matrices (Zhou et al. 2019, as pytorch3d lays them out)."""
    return axis_angle_to_matrix(axis_angle)[:, :2].flatten(1)


def from_6d(values: Tensor) -> Tensor:
    """(T, 3) axis-angle of (T, 6); rows that are not quite orthonormal are made so (Gram-Schmidt)."""
    first = torch.nn.functional.normalize(values[:, :3], dim=-1)
    second = values[:, 3:] - (first * values[:, 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return matrix_to_axis_angle(torch.stack([first, second, torch.linalg.cross(first, second)], 1))


def root(head: HeadModel, params: HeadParams) -> Tensor:
    """(T, 3) the joint that the global rotation turns about, before translation."""
    return head.rest_joints(params)[:, 0]


def rebased(head: HeadModel, params: HeadParams, turn: Tensor, shift: Tensor) -> HeadParams:
    """The same heads seen from elsewhere: new vertex = turn @ vertex + shift.

        R' = turn R,   t' = turn (J + t) + shift - J          since vertex = R (x - J) + J + t

    Args:
        params: T heads.
        turn: (T, 3, 3) rotations. shift: (T, 3) metres.
    """
    joint = root(head, params)
    place = (turn @ (joint + params.translation)[..., None])[..., 0] + shift - joint
    rotation = matrix_to_axis_angle(turn @ axis_angle_to_matrix(params.rotation))
    return params.replace(rotation=rotation, translation=place)


def perspective(track: FaceTrack, what: str) -> tuple[Tensor, Tensor]:
    """(T,) focal length and (T, 2) principal point in pixels.

    Raises:
        InputError: the camera is a weak-perspective one.
    """
    if not isinstance(track.camera, Camera):
        raise InputError(
            f"{what} needs a perspective camera, and this track has a weak-perspective one, as DECA's; fit the video "
            "again with landmarks."
        )
    frames = len(track)
    return track.camera.focal.expand(frames), track.camera.principal.expand(frames, 2)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the name `path` when the block ends well. A folder of that name must be empty.

    Raises:
        InputError: there is something at `path`, or nothing can be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is there already; name a new folder.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        if path.exists():
            path.rmdir()
        os.replace(part, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        rmtree(part, ignore_errors=True)
