"""Single frames of face tracks and of the truth of synthetic clips, without reading the rest of the file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geom.camera import Camera, apply_crop
from ...geom.track import FaceTrack
from ...media.errors import InputError
from ..batch import View

_KINDS: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}


@dataclass(frozen=True)
class RowFile:
    """Tensors of T frames each in a safetensors file, alone or inside a tar file."""

    path: Path
    offset: int = 0
    """Bytes before it in the file."""

    def rows(self, name: str, indices: Sequence[int] | None) -> Tensor:
        """Some frames of a tensor, or all.

        Raises:
            InputError: the file is damaged.
        """
        entry = _header(self)[name]
        kind, (count, *tail) = _KINDS[entry["dtype"]], entry["shape"]
        width = math.prod(tail) * kind.itemsize
        with self.path.open("rb") as file:
            pieces = []
            for index in range(1) if indices is None else indices:
                file.seek(entry["start"] + index * width)
                pieces.append(file.read(width * (count if indices is None else 1)))
        content = b"".join(pieces)
        if len(content) != width * (count if indices is None else len(indices)):
            raise InputError(f"{self.path} is cut off; make the clip again.")
        values = np.frombuffer(content, kind).reshape(-1, *tail)
        return torch.from_numpy(values.astype(kind.newbyteorder("=")))


@dataclass(frozen=True)
class TrackFile(RowFile):
    """A track, see `geom.track`."""

    def __len__(self) -> int:
        """Frames."""
        return int(_header(self)["times"]["shape"][0])

    def confidence(self) -> np.ndarray:
        """(T,) in [0, 1].

        Raises:
            InputError: the track is damaged.
        """
        return self.rows("confidence", None).numpy()

    def head(self) -> tuple[str, str]:
        """Name and sha256 of the head model that it belongs to."""
        metadata = _header(self)["__metadata__"]
        return metadata["head_name"], metadata["head_sha256"]

    def frames(self, indices: Sequence[int]) -> FaceTrack:
        """Some frames, in increasing order.

        Raises:
            InputError: the track is damaged.
        """
        header = _header(self)
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                single = name.startswith("camera_") and entry["shape"][0] == 1
                tensors[name] = self.rows(name, [0] if single else indices)
        try:
            return FaceTrack.unpack(tensors, header["__metadata__"], self.path)
        except ValueError as error:
            raise InputError(str(error)) from None


@dataclass(frozen=True)
class TruthFile(RowFile):
    """What `headwarp synth --truth` knows of a clip, see `training.synthetic_set.TRUTH`."""

    def fields(self, indices: Sequence[int], names: Iterable[str], size: tuple[int, int]) -> dict[str, Tensor]:
        """Fields of `View` for some frames, T at a time; none where the pictures are scaled to another size."""
        height, width = _header(self)["depth"]["shape"][1:]
        if (height, width) != size:
            return {}
        known = {name: self.rows(name, indices) for name in names}
        if "depth" in known:
            known["depth"] = known["depth"][:, None].float()
        if "normals" in known:
            known["normals"] = known["normals"].float() / 127
        return known


@lru_cache(maxsize=4096)
def _header(track: RowFile) -> dict[str, Any]:
    """Tensor name -> dtype, shape and place in the file; "__metadata__" -> texts."""
    try:
        with track.path.open("rb") as file:
            file.seek(track.offset)
            length = int.from_bytes(file.read(8), "little")
            if length > 1_000_000:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                entry["start"] = track.offset + 8 + length + entry["data_offsets"][0]
        for needed in ("times", "confidence", "__metadata__") if isinstance(track, TrackFile) else ("depth",):
            header[needed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "face track" if isinstance(track, TrackFile) else "truth of a synthetic clip"
        raise InputError(f"{track.path} is no readable {what} ({error}); make the clip again.") from None
    return dict(header)


def views_of(track: FaceTrack, native: tuple[int, int], size: tuple[int, int]) -> list[View]:
    """What a track knows of the frames of its clip, as views of batch 1 without their pictures.

    Args:
        track: T frames; its crop leads to the clip's pixels.
        native: (H, W) of the clip.
        size: (H, W) that its frames are scaled to.
    Raises:
        InputError: the track cannot say where its heads are in such pictures.
    """
    scale = size[0] / native[0]
    if abs(size[1] / native[1] / scale - 1) > 0.01:
        raise InputError(
            f"The fitted clips have {native[1]} x {native[0]} pixels; dataset_params.frame_shape {size[0]} x {size[1]} "
            "would distort their heads, it must have the same proportion."
        )
    if not isinstance(track.camera, Camera):
        raise InputError(
            "The clips' tracks have weak-perspective cameras, and training draws heads in perspective; fit the clips "
            "with `headwarp fit`."
        )
    to_size = (scale, 0.0, 0.0)
    camera = track.camera
    if len(camera) == 1:
        camera = Camera(camera.focal.expand(len(track)), camera.principal.expand(len(track), 2))
    camera = camera.crop(track.crop).crop(to_size)
    landmarks = apply_crop(to_size, apply_crop(track.crop, track.landmarks))
    return [
        View(image=_NO_PICTURE, params=track.params[t], camera=camera[t], landmarks=landmarks[t : t + 1])
        for t in range(len(track))
    ]


_NO_PICTURE = torch.empty(1, 3, 0, 0, dtype=torch.uint8)
