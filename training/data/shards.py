"""Clips in tar files of WebDataset's layout, for data sets with more files than a file system likes.

    NAME.000000.jpg, NAME.000001.jpg, ..., NAME.track.safetensors     one WebDataset sample a clip

    python -m headwarp.training.data.shards FOLDER OUT      packs a data set into OUT-000000.tar, ...

`webdataset` reads these files; here they are read at random, by the places of their members, which keeps samples pure
functions of their numbers. So shards lie on a disk (local or network); pipes and buckets are for streaming readers.
The places stand in OUT-000000.tar.json beside each file; without it a tar file is searched once when it is opened.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ...media.errors import InputError
from ...media.files import atomic_write
from ...media.video import VideoReader
from .clips import Clip, PictureFrames, VideoFrames, find_clips
from .frames import FrameStore, resize
from .tracks import TrackFile

_QUALITY = 95
_TRACK = "track.safetensors"


@dataclass(frozen=True, eq=False)
class TarFrames:
    """JPEG frames inside a tar file."""

    path: Path
    places: np.ndarray
    """(T, 2) int64: offset and length of each frame's file."""
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.places)

    def native(self) -> tuple[int, int]:
        width, height = Image.open(io.BytesIO(self._bytes(0))).size
        return height, width

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        frames = []
        for index in indices:
            image = cv2.imdecode(np.frombuffer(self._bytes(index), np.uint8), cv2.IMREAD_COLOR_RGB)
            if image is None:
                raise InputError(f"{self.path} is damaged: the frame at byte {self.places[index][0]} is no picture.")
            frames.append(resize(image, self.size))
        return frames

    def _bytes(self, index: int) -> bytes:
        offset, length = self.places[index].tolist()
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


def shard_clips(path: Path, size: tuple[int, int]) -> list[Clip]:
    """The clips of a tar file, their frames scaled to `size` (H, W).

    Raises:
        InputError: the file cannot be read or holds no clips.
    """
    index = path.with_name(f"{path.name}.json")
    if index.exists() and index.stat().st_mtime >= path.stat().st_mtime:
        try:
            places = json.loads(index.read_text())
        except ValueError:
            raise InputError(f"{index} is damaged; delete it, and the tar file is searched instead.") from None
    else:
        places = _search(path)
    if not places:
        raise InputError(f"{path} holds no clips: those are files NAME.000000.jpg, NAME.000001.jpg, ... .")
    clips = []
    for name, entry in places.items():
        track = TrackFile(path, entry["track"][0]) if "track" in entry else None
        clips.append(Clip(name, TarFrames(path, np.array(entry["frames"], np.int64), size), track))
    return clips


def write_shards(folder: Path, output: Path, *, shard_bytes: float = 1e9) -> list[Path]:
    """Pack the clips of a data set.

    Args:
        folder: as `find_clips` takes it.
        output: path and stem of the files, as in data/vox for data/vox-000000.tar.
        shard_bytes: a file is closed when it has grown this long.
    Returns:
        The tar files. Each appears with its index when it is whole.
    Raises:
        InputError: there is nothing to pack, or the system refuses to write.
    """
    clips = iter(find_clips(folder, FrameStore((1, 1), output.parent, 0)))
    clip = next(clips, None)
    written: list[Path] = []
    while clip is not None:
        path = output.with_name(f"{output.name}-{len(written):06d}.tar")
        with atomic_write(path) as part:
            with tarfile.open(part, "w") as tar:
                while clip is not None and part.stat().st_size < shard_bytes:
                    for name, content in _members(clip):
                        entry = tarfile.TarInfo(name)
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
                    clip = next(clips, None)
            places = _search(part)
        with atomic_write(path.with_name(f"{path.name}.json")) as part:
            part.write_text(json.dumps(places))
        written.append(path)
    return written


def _members(clip: Clip) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a clip's files."""
    folder, _, name = clip.name.rpartition("/")
    key = f"{folder}/{name.replace('.', '_')}".lstrip("/")  # WebDataset's key ends at the first dot
    source = clip.frames
    assert isinstance(source, VideoFrames | PictureFrames)
    for frame in VideoReader(source.path if isinstance(source, VideoFrames) else source.folder):
        done, jpeg = cv2.imencode(".jpg", frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        assert done
        yield f"{key}.{frame.index:06d}.jpg", jpeg.tobytes()
    if clip.track is not None:
        yield f"{key}.{_TRACK}", clip.track.path.read_bytes()


def _search(path: Path) -> dict[str, Any]:
    """Clip name -> {"frames": [[offset, length], ...], "track": [offset, length]}."""
    found: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:") as tar:  # not compressed: a compressed file cannot be entered in the middle
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                name, _, ending = base.partition(".")
                entry = found.setdefault(f"{folder}/{name}".lstrip("/"), {"frames": []})
                if ending == _TRACK:
                    entry["track"] = [member.offset_data, member.size]
                elif ending.endswith((".jpg", ".jpeg", ".png")):
                    entry["frames"].append([ending, member.offset_data, member.size])
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read as a tar file without compression ({error}).") from None
    for entry in found.values():
        entry["frames"] = [place for _, *place in sorted(entry["frames"])]
    return {name: entry for name, entry in found.items() if entry["frames"]}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("python -m headwarp.training.data.shards FOLDER OUT")
    try:
        print(*write_shards(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
    except InputError as fault:
        print(f"headwarp: {fault}", file=sys.stderr)
        raise SystemExit(2) from None
