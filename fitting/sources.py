"""What there is to fit: pictures, videos, folders of frames, FOMM's data folders, VoxCeleb's table of crops.

    DIR/*.mp4, .webm, .avi, .gif ...               videos, in subfolders too (train/ and test/ stay apart)
    DIR/train/NAME.mp4/0000000.png ...             FOMM's layout: a folder of frames is one clip
    vox-metadata.csv                               crops of local videos by given boxes and frame ranges

A folder counts as the frames of one clip when its name ends like a video's, or when all its pictures are named by a
number (0000000.png, frame_0001.png); pictures of other names are single portraits.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..media.errors import InputError
from ..media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, list_images, natural_key

_NUMBERED = re.compile(r"(frame|image|img)?[-_]?\d+", re.IGNORECASE)
_METADATA = ("video_id", "start", "end", "bbox", "fps", "width", "height")


@dataclass(frozen=True)
class Window:
    """A crop that a table asks for: a stretch of a video and a box in it."""

    name: str
    """Of the clip, with its folder, such as train/id10005#WMh3ye5tBsE#003657#003994."""
    start: float
    """Seconds, included."""
    end: float
    """Seconds, not included."""
    box: tuple[float, float, float, float]
    """left, top, right, bottom as shares of the video's width and height."""


@dataclass(frozen=True)
class Source:
    """One file, or folder of frames, to be read once."""

    path: Path
    name: str
    """What its results are called, with the folder below the input: train/NAME, or NAME."""
    windows: tuple[Window, ...] = ()
    """Crops to cut, where a table gives them; else the tubes are looked for."""

    @property
    def is_image(self) -> bool:
        return self.path.suffix.lower() in IMAGE_SUFFIXES and not self.path.is_dir()


def find_sources(inputs: Iterable[Path | str], videos: Path | str | None = None) -> tuple[list[Source], bool]:
    """Everything below the inputs, in natural order, and whether they are a data set (a folder or a table).

    Folders are listed once and no file is opened, so that 10,000 clips are listed in a fraction of a second.

    Args:
        inputs: pictures, videos, folders of frames, folders of those, or a vox-metadata.csv.
        videos: folder with the videos that a table names; default: the table's own folder.
    Raises:
        InputError: an input does not exist, or holds nothing to fit.
    """
    sources: list[Source] = []
    is_data_set = False
    for item in inputs:
        path = Path(item)
        if path.suffix.lower() == ".csv" and path.is_file():
            found, is_data_set = _from_table(path, Path(videos) if videos else path.parent), True
        elif path.is_dir() and not _is_frames(path):
            found, is_data_set = _below(path), True
            if not found:
                raise InputError(
                    f"There is nothing to fit in {path}: no video (mp4, webm, avi, gif, ...), no folder of PNG frames "
                    "and no picture."
                )
        elif path.exists():
            found = [Source(path, _stem(path.name))]
        else:
            raise InputError(f"{path} does not exist; check the spelling (the current folder is {Path.cwd()}).")
        sources += found
    return _distinct(sources), is_data_set


def shard_of(sources: Sequence[Source], shard: str) -> list[Source]:
    """The part `i/n` of the sources, i from 1 to n: every n-th one, so that parts have about the same work.

    Raises:
        InputError: not of that form.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard takes i/n with 1 <= i <= n, as in --shard 2/8; got '{shard}'.")
    return list(sources[int(match[1]) - 1 :: int(match[2])])


def _below(root: Path) -> list[Source]:
    found: list[Source] = []
    for folder, names, files in os.walk(root):
        here = Path(folder)
        below = here.relative_to(root)
        media = [name for name in files if not name.startswith(".")]
        pictures = [name for name in media if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        movies = [name for name in media if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        if pictures and not movies and here != root and _are_frames(pictures):
            found.append(Source(here, (below.parent / _stem(here.name)).as_posix()))
            names.clear()
            continue
        found += [Source(here / name, (below / _stem(name)).as_posix()) for name in movies + pictures]
        # FOMM's folders of frames are called NAME.mp4; they are taken unseen, listing each would cost seconds
        frames = [name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        found += [Source(here / name, (below / _stem(name)).as_posix()) for name in frames]
        names[:] = [name for name in names if name not in set(frames) and not name.startswith(".")]
    return sorted(found, key=lambda s: (natural_key(s.name), s.name, str(s.path)))


def _is_frames(folder: Path) -> bool:
    if folder.suffix.lower() in VIDEO_SUFFIXES:
        return True
    pictures = [path.name for path in list_images(folder)]
    return bool(pictures) and _are_frames(pictures)


def _are_frames(pictures: Sequence[str]) -> bool:
    return all(_NUMBERED.fullmatch(Path(name).stem) for name in pictures)


def _from_table(table: Path, videos: Path) -> list[Source]:
    """Sources of a vox-metadata.csv: one for each video, with its windows.

    Frame numbers are at the table's own rate, boxes `left-top-right-bottom` in pixels of the table's own picture size;
    clips are named person#video#start#end as FOMM's loader does.
    """
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in _METADATA if not rows or name not in rows[0]]
    if missing:
        raise InputError(f"{table} is no table of crops like vox-metadata.csv: it lacks {', '.join(missing)}.")
    local = {path.stem: path for path in sorted(videos.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES}
    windows: dict[str, list[Window]] = {}
    for number, row in enumerate(rows, 2):
        try:
            left, top, right, bottom = (float(value) for value in row["bbox"].split("-"))
            width, height, fps = float(row["width"]), float(row["height"]), float(row["fps"])
            start, end = int(row["start"]), int(row["end"])
            if not (start < end and left < right and top < bottom and min(width, height, fps) > 0):
                raise ValueError("empty range or box")
        except ValueError as error:
            raise InputError(f"{table}, line {number}: cannot be read as a crop ({error}).") from None
        parts = [row.get("person_id") or "", *reversed(row["video_id"].split("#")), f"{start:06d}", f"{end:06d}"]
        name = (Path(row.get("partition") or "") / "#".join(part for part in parts if part)).as_posix()
        box = (left / width, top / height, right / width, bottom / height)
        windows.setdefault(row["video_id"].split("#")[0], []).append(Window(name, start / fps, end / fps, box))
    return [
        Source(local.get(video, videos / f"{video}.mp4"), video, tuple(sorted(found, key=lambda w: (w.start, w.name))))
        for video, found in windows.items()
    ]


def _stem(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return name[: -len(suffix)] if suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES else name


def _distinct(sources: list[Source]) -> list[Source]:
    """Sources with names of their own: a.mp4 beside a.avi keep their endings."""
    count = Counter(source.name for source in sources)
    named = [
        replace(source, name=source.name + source.path.suffix) if count[source.name] > 1 else source
        for source in sources
    ]
    count = Counter(source.name for source in named)
    for name, number in count.items():
        if number > 1:
            paths = [str(source.path) for source in named if source.name == name]
            raise InputError(f"{' and '.join(paths)} would both be written as {name}; give them different names.")
    return named
