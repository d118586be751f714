"""Where animations go: video files, folders of frames or pictures, with the manners all commands share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..media.errors import InputError
from ..media.files import IMAGE_SUFFIXES, protect
from ..media.image import check_picture_ending, save_image
from ..media.sheet import side_by_side_video
from ..media.video import FramesWriter, VideoReader, VideoWriter, open_writer
from ..media.writer import names_a_folder
from .options import AnimateOptions
from .provenance import marks, sign

Picture = NDArray[np.uint8]


def check_paths(
    source: str | Path | None, driving: Path, reader: VideoReader | None, output: str | Path, options: AnimateOptions
) -> Path | None:
    """Refuses outputs that cannot be written or would destroy an input; gives the side-by-side video's path.

    Args:
        source: its file; None when it is no file.
        driving: its file or folder.
        reader: of the driving clip; None for a saved track.
    """
    inputs = [driving, *([] if source is None else [source])]
    folder = False
    if _is_still(reader) and Path(output).suffix.lower() in IMAGE_SUFFIXES:
        check_picture_ending(output)
    else:
        folder = names_a_folder(output)
    protect(inputs, output)
    if not options.side_by_side:
        return None
    if folder or reader is None or source is None:
        raise InputError("Side by side needs files as source and driving, and a video as output; no folder, no track.")
    beside = Path(output).with_stem(f"{Path(output).stem}_concat")
    protect(inputs, beside)
    return beside


def open_output(
    output: str | Path,
    size: tuple[int, int],
    driving: Path,
    reader: VideoReader | None,
    fps: Fraction,
    options: AnimateOptions,
) -> VideoWriter | FramesWriter | PictureFile:
    """The writer for an animation of (H, W) pictures; the driving clip's sound goes along if it is wanted."""
    if _is_still(reader) and Path(output).suffix.lower() in IMAGE_SUFFIXES:
        return PictureFile(output, marks(options.provenance))
    sound = driving if options.audio and reader is not None and reader.has_audio else None
    return open_writer(output, size, fps, audio_from=sound, metadata=marks(options.provenance))


def finish(
    output: str | Path,
    beside: Path | None,
    source: str | Path | None,
    driving: Path,
    frames: int,
    unseen: int,
    options: AnimateOptions,
) -> tuple[list[Path], list[str]]:
    """The side-by-side video where one is wanted: the files that were written, and what there is to say."""
    files, problems = [Path(output)], []
    if beside:
        inputs = [Path(str(source)), driving, Path(output)]
        labels = ["source", "driving", "result"]
        side_by_side_video(inputs, beside, labels=labels, audio_from=output, metadata=marks(options.provenance))
        files.append(beside)
    if options.provenance:
        problems += sign(files)
    if unseen:
        problems.append(f"{unseen} of {frames} driving frames show no face; the motion was carried over them.")
    return files, problems


def _is_still(reader: VideoReader | None) -> bool:
    return reader is not None and reader.info.kind == "image"


class PictureFile:
    """One frame as a picture file, with the manners of a video writer."""

    def __init__(self, path: str | Path, metadata: Mapping[str, str]) -> None:
        self.path, self.metadata = path, metadata

    def __enter__(self) -> Self:
        return self

    def write(self, image: Picture, time: float) -> None:
        self.image = image

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            save_image(self.path, self.image, metadata=self.metadata)


class Watch(Protocol):
    """Who looks on while frames are made. What its methods raise ends the run; nothing half-written stays."""

    def beat(self, what: str, done: float, total: int) -> None:
        """So many of so many frames are done; `total` is an estimate."""

    def frame(self, picture: Picture) -> None:
        """A finished frame, (H, W, 3)."""


class Bar(tqdm):
    """Progress on a terminal, which shows no pictures."""

    def frame(self, picture: Picture) -> None:
        pass


class _Told:
    """Progress for a `Watch`."""

    def __init__(self, what: str, count: int, watch: Watch) -> None:
        self.what, self.count, self.done, self.frame = what, count, 0.0, watch.frame
        self._watch = watch

    def __enter__(self) -> Self:
        self.update(0)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float = 1) -> None:
        self.done += count
        self._watch.beat(self.what, self.done, self.count)


def bar(what: str, count: int, show: bool | Watch) -> Bar | _Told:
    """Progress over frames: told to who looks on, or a bar on stderr; in log files it writes a line now and then."""
    if not isinstance(show, bool):
        return _Told(what, count, show)
    return Bar(
        total=count,
        desc=what,
        disable=not show,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
        bar_format="{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total} frames [{elapsed}, {remaining} left, {rate_fmt}]",
        unit=" frames",
    )
