"""Decoded frames on the disk, because a video cannot be entered in the middle at a good price.

A clip is decoded once, reduced to the size of training, into a file of raw RGB in the cache folder, and from then on a
frame is a read of H x W x 3 bytes (through the system's page cache, so small sets live in memory). Beyond the cache's
limit a clip is decoded each time it is asked for, with the same pixels. The cache may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ...media.errors import InputError
from ...media.video import VideoReader

_SPARE = 2e9
"""Bytes of the disk that the cache leaves free."""


@dataclass(frozen=True)
class FrameStore:
    """Random access to the frames of videos."""

    size: tuple[int, int]
    """(H, W) of the frames; others are scaled, without regard to their aspect, as FOMM does."""
    folder: Path
    """Of the cache."""
    limit: float
    """Bytes that the cache may hold; 0: no cache."""

    def count(self, video: Path) -> int:
        """Number of frames; of a video that is not cached, as its header claims."""
        cached = self._cached(video)
        if cached.exists():
            return cached.stat().st_size // self._frame_bytes
        return max(1, VideoReader(video).frame_count)

    def read(self, video: Path, indices: Sequence[int]) -> list[np.ndarray]:
        """Frames (H, W, 3) uint8; an index beyond the end of a cut-off file gives its last frame.

        Raises:
            InputError: the video cannot be read.
        """
        cached = self._cached(video)
        with suppress(FileNotFoundError):  # also when the cache is deleted meanwhile
            return self._from_cache(cached, indices)
        if self._has_room(self.count(video)):
            try:
                self._decode(video, cached)
                return self._from_cache(cached, indices)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and not video.exists():
                    raise InputError(f"{video} does not exist any more.") from None
        return self._decode_some(video, indices)

    @property
    def _frame_bytes(self) -> int:
        return self.size[0] * self.size[1] * 3

    def _cached(self, video: Path) -> Path:
        """The file of a video's frames; another one when the video changes."""
        try:
            state = video.stat()
        except OSError as error:
            raise InputError(f"{video} cannot be read ({error.strerror}).") from None
        key = f"{video.resolve()} {state.st_size} {state.st_mtime_ns} {self.size}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.rgb"

    def _has_room(self, frames: int) -> bool:
        wanted = frames * self._frame_bytes
        if wanted > self.limit:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            used = sum(entry.stat().st_size for entry in os.scandir(self.folder))
        except OSError:
            return False
        return used + wanted <= self.limit and free - wanted > _SPARE

    def _decode(self, video: Path, cached: Path) -> None:
        part = cached.with_name(f".{cached.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                for frame in VideoReader(video):
                    file.write(resize(frame.image, self.size).tobytes())
            os.replace(part, cached)
        finally:
            part.unlink(missing_ok=True)

    def _from_cache(self, cached: Path, indices: Sequence[int]) -> list[np.ndarray]:
        with cached.open("rb") as file:
            count = os.fstat(file.fileno()).st_size // self._frame_bytes
            frames = []
            for index in indices:
                file.seek(min(index, count - 1) * self._frame_bytes)
                frames.append(np.fromfile(file, np.uint8, self._frame_bytes).reshape(*self.size, 3))
            return frames

    def _decode_some(self, video: Path, indices: Sequence[int]) -> list[np.ndarray]:
        wanted = set(indices)
        found: dict[int, np.ndarray] = {}
        last = None
        for frame in VideoReader(video):
            last = frame
            if frame.index in wanted:
                found[frame.index] = resize(frame.image, self.size)
            if frame.index >= max(wanted):
                break
        if last is None:
            raise InputError(f"{video} holds no frame that can be decoded.")
        return [found[i] if i in found else resize(last.image, self.size) for i in indices]


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8 -> (H, W, 3) of `size`, by area averaging where it gets smaller."""
    if image.shape[:2] == size:
        return np.ascontiguousarray(image)
    smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
    scaled: np.ndarray = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return scaled
