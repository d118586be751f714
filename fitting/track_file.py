"""Face tracks written and read piece by piece, for clips that do not fit into memory.

with TrackWriter(folder) as writer:            a file of the layout of FaceTrack.save, of any length
    for piece in fitter.run(frames):
        writer.add(piece)
    writer.save("clip.safetensors")
for piece in read_pieces("clip.safetensors"): ...
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..geom.track import FaceTrack
from ..media.files import atomic_write

_KINDS = {torch.float32: "F32", torch.float64: "F64"}


class TrackWriter:
    """Collects consecutive pieces of one track in temporary files and joins them into a safetensors file."""

    def __init__(self, folder: Path | str) -> None:
        """Args: folder: for the temporary files, on a disk with room; they are removed at the end of the `with`."""
        self._folder = Path(tempfile.mkdtemp(prefix=".track-", dir=folder))
        self._files: dict[str, BinaryIO] = {}
        self._rows: dict[str, tuple[str, tuple[int, ...], int]] = {}  # dtype, shape and bytes of one row
        self._same: dict[str, bytes | None] = {}  # the one row of cameras that stand still
        self.metadata: dict[str, str] = {}
        """Of the latest piece."""
        self.frames = 0

    def add(self, piece: FaceTrack) -> None:
        """Append a piece."""
        tensors, self.metadata = piece.pack()
        if self.frames and tensors.keys() != self._rows.keys():
            raise ValueError("TrackWriter.add: the pieces of a track must have the same kind of camera.")
        for name, value in tensors.items():
            if name.startswith("camera_"):
                value = value.expand(len(piece), *value.shape[1:]).contiguous()
                self._watch(name, value)
            row = (_KINDS[value.dtype], tuple(value.shape[1:]), value[:1].nbytes)
            if self._rows.setdefault(name, row) != row:
                raise ValueError(f"TrackWriter.add: {name} has rows of {row}, before they were {self._rows[name]}.")
            if name not in self._files:
                self._files[name] = open(self._folder / name, "wb")  # noqa: SIM115 - open until `close`
            self._files[name].write(value.numpy().tobytes())
        self.frames += len(piece)

    def save(
        self,
        path: Path | str,
        *,
        frames: int | None = None,
        crop: np.ndarray | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write the track, whole or not at all.

        Args:
            path: the .safetensors file.
            frames: how many frames to keep, from the start; None keeps all.
            crop: (3,) crop transform of all frames, in place of the pieces' own.
            metadata: further entries.
        """
        count = self.frames if frames is None else frames
        if not 0 < count <= self.frames:
            raise ValueError(f"TrackWriter.save: frames must be from 1 to {self.frames}, got {count}.")
        given = {name: row for name, row in self._same.items() if row is not None}
        if len(given) < len(self._same):  # a camera stands still as a whole or not at all
            given = {}
        if crop is not None:
            given["crop"] = np.tile(np.asarray(crop, np.float32), (count, 1)).tobytes()
        header: dict[str, object] = {"__metadata__": {**(metadata or {}), **self.metadata}}
        end = 0
        names = sorted(
            self._rows, key=lambda name: (self._rows[name][0] != "F64", name)
        )  # float64 aligned, then the rest
        for name in names:
            kind, shape, size = self._rows[name]
            rows = len(given[name]) // size if name in given else count
            header[name] = {"dtype": kind, "shape": [rows, *shape], "data_offsets": [end, end + rows * size]}
            end += rows * size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with atomic_write(path) as temporary, open(temporary, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                if name in given:
                    out.write(given[name])
                    continue
                self._files[name].flush()
                with open(self._folder / name, "rb") as spool:
                    _copy(spool, out, count * self._rows[name][2])

    def close(self) -> None:
        """Remove the temporary files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self, name: str, value: Tensor) -> None:
        row = value[:1].numpy().tobytes()
        same = row if bool((value == value[:1]).all()) and self._same.get(name, row) == row else None
        self._same[name] = same

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def read_pieces(path: Path | str, length: int = 256) -> Iterator[FaceTrack]:
    """A track file as consecutive tracks of at most `length` frames."""
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        metadata = dict(file.metadata() or {})
        frames = parts["times"].get_shape()[0]
        for start in range(0, frames, length):
            tensors = {}
            for name, part in parts.items():
                alone = name.startswith("camera_") and part.get_shape()[0] == 1
                tensors[name] = part[:] if alone else part[start : start + length]
            yield FaceTrack.unpack(tensors, metadata, path)


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        block = source.read(min(size, 1 << 20))
        if not block:
            raise OSError("a temporary file is shorter than it was written")
        target.write(block)
        size -= len(block)
