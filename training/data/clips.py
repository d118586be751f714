"""Clips on the disk as a source: folders of `headwarp fit`, FOMM's folders, and tar shards.

    DIR/train/NAME/clip.mp4, clip.safetensors     headwarp fit; also without train/ and test/, and one clip alone
    DIR/test/NAME/truth.safetensors               headwarp synth --truth; validation judges by it
    DIR/train/NAME.mp4, NAME.gif, NAME/0000.png   FOMM; pictures only

Clips below `test/` are never trained on; `hold_out` keeps more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ...media.errors import InputError
from ...media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, list_images, natural_key
from ...media.image import load_image
from ...media.video import VideoReader
from ..batch import Batch, View
from ..config import DatasetParams, HoldOut
from .augment import augment
from .frames import FrameStore, resize
from .moments import draw_moments, split_frames
from .source import Request
from .tracks import TrackFile, TruthFile, views_of

HEAD_FIELDS = frozenset({"params", "camera", "landmarks"})
"""What a track tells of a frame."""


class Frames(Protocol):
    """The pictures of a clip."""

    def __len__(self) -> int: ...

    def native(self) -> tuple[int, int]:
        """(H, W) of the frames as they are stored."""
        ...

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Frames, (H, W, 3) uint8 of the size of training."""
        ...


@dataclass(frozen=True)
class Clip:
    name: str
    """Path below the data set, without ending."""
    frames: Frames
    track: TrackFile | None = None
    truth: TruthFile | None = None

    @property
    def identity(self) -> str:
        """Who it shows, by FOMM's rule: the name up to the first #."""
        return self.name.rsplit("/", 1)[-1].split("#")[0]

    def __len__(self) -> int:
        return len(self.frames) if self.track is None else len(self.track)

    def usable(self, frames: np.ndarray, min_confidence: float) -> np.ndarray:
        """Those of the frames in which the face was seen."""
        if self.track is None:
            return frames
        return frames[self.track.confidence()[frames] >= min_confidence]

    def views(self, indices: Sequence[int], request: Request) -> list[View]:
        """Frames with what is known about them, in the order of `indices` (all different)."""
        images = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in self.frames.read(indices)]
        if self.track is None:
            return [View(image=image) for image in images]
        if request.head is not None:
            check_head(self, request.head)
        rising = sorted(indices)
        known = views_of(self.track.frames(rising), self.frames.native(), request.size)
        if self.truth is not None and request.truth:
            truth = self.truth.fields(rising, sorted(request.truth), request.size)
            for t, view in enumerate(known):
                for name, field in truth.items():
                    setattr(view, name, field[t : t + 1])
        places = [rising.index(i) for i in indices]
        return [replace(known[place], image=image) for place, image in zip(places, images, strict=True)]


@dataclass(frozen=True)
class VideoFrames:
    path: Path
    store: FrameStore

    def __len__(self) -> int:
        return self.store.count(self.path)

    def native(self) -> tuple[int, int]:
        return _video_size(self.path)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        return self.store.read(self.path, indices)


@lru_cache(maxsize=65536)
def _video_size(path: Path) -> tuple[int, int]:
    return VideoReader(path).size


@dataclass(frozen=True)
class PictureFrames:
    folder: Path
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(_pictures(self.folder))

    def native(self) -> tuple[int, int]:
        height, width = load_image(_pictures(self.folder)[0]).shape[:2]
        return height, width

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        return [resize(load_image(_pictures(self.folder)[i]), self.size) for i in indices]


@lru_cache(maxsize=1024)
def _pictures(folder: Path) -> list[Path]:
    return list_images(folder)


class TrainingClips:
    """Random moments of clips. Item = clip, or with `id_sampling` a person, of whom a random clip is taken."""

    def __init__(self, clips: Sequence[Clip], params: DatasetParams, request: Request, where: str) -> None:
        """
        Args:
            clips: to train on.
            params: how moments are drawn, and what is held out.
            request: what the method wants.
            where: the data set, for messages.
        """
        groups: dict[str, list[Clip]] = {}
        for clip in clips:
            groups.setdefault(clip.identity if params.id_sampling else clip.name, []).append(clip)
        self._groups, self._params, self._request, self._where = list(groups.values()), params, request, where

    def __len__(self) -> int:
        return len(self._groups)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """See `Source`. A clip with too few usable frames gives way to the next one."""
        params, request = self._params, self._request
        for turn in range(len(self)):
            group = self._groups[(index + turn) % len(self)]
            clip = group[int(rng.integers(len(group)))]
            frames = clip.usable(split_frames(len(clip), params.hold_out)["train"], params.min_confidence)
            moments = draw_moments(
                frames, request.moments, rng, order=params.pairs, min_gap=params.min_gap, max_gap=params.max_gap
            )
            if moments is not None:
                sample = Batch(clip.views(moments, request), [clip.name])
                return augment(sample, params.augmentation_params, rng)
        raise InputError(
            f"No clip of {self._where} has {request.moments} frames to train on, {params.min_gap} or more apart, "
            f"in which the face was seen with a confidence of {params.min_confidence} "
            "(dataset_params.min_gap, max_gap, min_confidence, hold_out)."
        )


class HeldOutClips:
    """Moments of clips that are never trained on: the clip's first frame and a held-out one; or, for methods of three
    and more moments, a held-out frame amid its neighbours."""

    def __init__(self, clips: Sequence[Clip], kind: str, params: DatasetParams, request: Request) -> None:
        """
        Args:
            clips: few enough to be looked into.
            kind: "test": all frames of the clips; "every" or "future": what `hold_out` keeps of them.
            params, request: as in training.
        """
        self._request, self._items = request, []
        for clip in clips:
            hold_out = HoldOut() if kind == "test" else params.hold_out
            by_use = split_frames(len(clip), hold_out)
            usable = clip.usable(np.arange(len(clip)), params.min_confidence)
            drivers = usable if kind == "test" else np.intersect1d(usable, by_use[kind])
            for driver in drivers.tolist():
                moments = _around(usable, driver, request.moments, params.min_gap)
                if len(set(moments)) == request.moments:
                    self._items.append((clip, moments))

    def __len__(self) -> int:
        return len(self._items)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """See `Source`."""
        clip, moments = self._items[index]
        return Batch(clip.views(moments, self._request), [f"{clip.name} {moments[-1]}"])


def _around(usable: np.ndarray, driver: int, moments: int, gap: int) -> list[int]:
    if moments == 2:
        return [int(usable[0]), driver]
    place = int(np.searchsorted(usable, driver)) + gap * (np.arange(moments) - moments // 2)
    inside = place[(place >= 0) & (place < len(usable))]
    return usable[inside].tolist() if len(inside) == moments else []


def find_clips(root: Path, store: FrameStore) -> list[Clip]:
    """The clips of a data set, in natural order of their names.

    Raises:
        InputError: the folder does not exist or has none.
    """
    if not root.is_dir():
        raise InputError(f"dataset_params.root_dir {root} is no folder.")
    clips = [replace(clip, name=clip.name or root.name) for clip in _walk(root, "", store)]
    if not clips:
        raise InputError(
            f"{root} has no clips. A data set holds folders with clip.mp4 (made by `headwarp fit VIDEOS -o {root}`), "
            "or as FOMM's train/ and test/ with .mp4, .gif or folders of pictures."
        )
    return clips


def _walk(folder: Path, name: str, store: FrameStore) -> Iterator[Clip]:
    """Clips below a folder."""
    entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: natural_key(e.name))
    names = {entry.name for entry in entries}
    if "clip.mp4" in names:
        track = TrackFile(folder / "clip.safetensors") if "clip.safetensors" in names else None
        truth = TruthFile(folder / "truth.safetensors") if "truth.safetensors" in names else None
        yield Clip(name, VideoFrames(folder / "clip.mp4", store), track, truth)
        return
    if name not in ("", "train", "test") and any(Path(n).suffix.lower() in IMAGE_SUFFIXES for n in names):
        yield Clip(name, PictureFrames(folder, store.size))
        return
    for entry in entries:
        below = f"{name}/{entry.name}" if name else entry.name
        if entry.is_dir():
            yield from _walk(Path(entry.path), below, store)
        elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
            yield Clip(below[: -len(Path(entry.name).suffix)], VideoFrames(Path(entry.path), store))


def divide(clips: Sequence[Clip], hold_out: HoldOut) -> tuple[list[Clip], list[Clip]]:
    """Clips to train on, and whole clips that are held out.

    Raises:
        InputError: nothing is left to train on.
    """
    wanted = set(_names(hold_out.clips))
    train: list[Clip] = []
    test: list[Clip] = []
    for clip in clips:
        held_out = clip.name.startswith("test/") or wanted.intersection(_aliases(clip))
        (test if held_out else train).append(clip)
    if not train:
        raise InputError("All clips are held out (test/ or dataset_params.hold_out.clips); none is left to train on.")
    return train, test


def check_hold_out(clips: Sequence[Clip], hold_out: HoldOut) -> None:
    """InputError where `hold_out.clips` names a clip that none of the sources has."""
    known = {name for clip in clips for name in _aliases(clip)}
    for name in sorted(set(_names(hold_out.clips)) - known):
        raise InputError(f"dataset_params.hold_out.clips: there is no clip {name} in the data.")


def _aliases(clip: Clip) -> tuple[str, str]:
    return clip.name, clip.name.rsplit("/", 1)[-1]


def _names(clips: tuple[str, ...] | str) -> list[str]:
    if not isinstance(clips, str):
        return list(clips)
    try:
        return [line.strip() for line in Path(clips).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"dataset_params.hold_out.clips: the list {clips} cannot be read ({error}).") from None


def check_clips(clips: Sequence[Clip], request: Request, where: str) -> None:
    """InputError where clips cannot give what a method needs."""
    unknown = request.needs - HEAD_FIELDS
    if unknown:
        raise InputError(
            f"The method needs {', '.join(sorted(unknown))}, which only synthetic people have; clips ({where}) do not."
        )
    for clip in clips if request.needs else ():
        if clip.track is None:
            raise InputError(
                f"The method needs fitted heads, and {clip.name} of {where} has no clip.safetensors. Make a fitted "
                f"data set of the videos with `headwarp fit {where} -o FOLDER`."
            )
    first = clips[0]
    if first.track is not None and request.head is not None:
        check_head(first, request.head)


def check_head(clip: Clip, wanted: str) -> None:
    """InputError unless a clip was fitted with the head model of that sha256."""
    assert clip.track is not None
    name, sha256 = clip.track.head()
    if sha256 != wanted:
        raise InputError(
            f"{clip.name} was fitted with the head '{name}' ({sha256[:12]}...), and the method has another one "
            f"({wanted[:12]}...): name that head in the configuration, or fit the clips again."
        )
