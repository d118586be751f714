"""The 52 ARKit face units over time as Live Link Face writes them.

Columns: Timecode (HH:MM:SS:FF.mmm), BlendShapeCount, the units with a capital (EyeBlinkLeft ... TongueOut), then
HeadYaw, HeadPitch, HeadRoll and LeftEye..., RightEye... in radians with this package's signs (docs/conventions.md).

Written: the units as they were read off the pictures (`FaceTrack.blendshapes`), the fitted head and eye rotations.
Read: the units; for a head with an ARKit map also its expression, jaw, eyes and lids, and the head's rotation. The
face then stands 0.9 m before a camera; the file says nothing about pictures.
"""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...geom import arkit
from ...geom.camera import Camera
from ...geom.head import HeadModel, HeadParams
from ...geom.rotation import axis_angle_to_euler, euler_to_axis_angle
from ...geom.track import FaceTrack
from ...media.errors import InputError
from ...media.files import atomic_write
from .common import Known, track_of

_TURNS = ("Yaw", "Pitch", "Roll")
_UNITS = [name[0].upper() + name[1:] for name in arkit.NAMES]
_COLUMNS = [*_UNITS, *(f"{part}{turn}" for part in ("Head", "LeftEye", "RightEye") for turn in _TURNS)]
_DISTANCE = 0.9
_RATES = (24.0, 25.0, 30.0, 50.0, 60.0, 120.0)


def read(path: Path, head: HeadModel, known: Known) -> FaceTrack:
    """The track of a CSV; its time codes give the frame rate where they rise."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    if not lines or any(name not in lines[0] for name in _UNITS[:-1]):
        raise InputError(f"{path} is no table of ARKit units: its first line must name {_UNITS[0]}, {_UNITS[1]}, ...")

    def column(name: str) -> Tensor:
        return torch.tensor([float(line.get(name) or 0) for line in lines])

    codes = [line.get("Timecode") or "" for line in lines]
    known = replace(known, fps=_rate(codes, known.fps))
    units = torch.stack([column(name) for name in _UNITS], 1)
    angles = torch.stack([column(f"Head{turn}") for turn in _TURNS], 1)
    params = HeadParams.zeros(head, len(lines))
    if head.has_arkit:
        params = params.replace(**head.arkit(units))
    rotation = euler_to_axis_angle(*torch.rad2deg(angles).unbind(1))
    place = torch.tensor([[0.0, 0.0, -_DISTANCE]]).repeat(len(lines), 1)
    size = known.size or (512, 512)
    return track_of(
        params.replace(rotation=rotation, translation=place),
        Camera.portrait(size),
        head,
        known,
        size,
        blendshapes=units,
        times=_times(codes, known.fps),
    )


def write(track: FaceTrack, path: Path) -> None:
    """The CSV of a track."""
    turns = [track.params.rotation, track.params.eyes[:, :3], track.params.eyes[:, 3:]]
    angles = torch.cat([torch.deg2rad(axis_angle_to_euler(turn)) for turn in turns], 1)
    values = torch.cat([track.blendshapes, angles], 1)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Timecode", "BlendShapeCount", *_COLUMNS])
        for time, row in zip(track.times.tolist(), values.tolist(), strict=True):
            writer.writerow([_timecode(time, track.fps), len(_COLUMNS), *(f"{value:.6f}" for value in row)])


def _timecode(time: float, fps: float) -> str:
    """HH:MM:SS:FF.mmm: the frame of the second, and thousandths of a frame."""
    whole = math.floor(time + 1e-9)
    frame = max(0.0, (time - whole) * fps)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}:{frame:06.3f}"


def _rate(codes: list[str], fps: float) -> float:
    """Frames per second: `fps`, or the next usual rate at which a second has all the frames that are counted."""
    try:
        highest = max(float(code.split(":")[3]) for code in codes)
    except (ValueError, IndexError):
        return fps
    return next((rate for rate in (fps, *_RATES) if rate > highest and rate >= fps), fps)


def _times(codes: list[str], fps: float) -> Tensor:
    """(T,) seconds of time codes from the first one; evenly spaced where they do not rise."""
    try:
        parts = [[float(part) for part in code.split(":")] for code in codes]
        times = torch.tensor([3600 * h + 60 * m + s + f / fps for h, m, s, f in parts], dtype=torch.float64)
    except ValueError:
        times = torch.zeros(len(codes), dtype=torch.float64)
    times = times - times[:1]
    even = torch.arange(len(codes), dtype=torch.float64) / fps
    return times if bool((times.diff() > 0).all()) else even
