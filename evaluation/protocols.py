"""Protocols: which picture is driven by which, and what the result is held against.

| protocol       | source, driving                                                     | after             |
|----------------|---------------------------------------------------------------------|-------------------|
| reconstruction | first frame of a clip; its other frames in order                    | FOMM              |
| same-identity  | two frames of a clip at random, forward and backward                | PWM, section 4.2  |
| cross-identity | a frame of another person's clip; a frame                           | PWM, DaGAN        |
| scale          | as same-identity, and again with stretched driving frames           | OSTNet, 4.1       |
| yaw            | most frontal frame of a clip; frames turned 0, 30, 60 degrees off it | (ours)           |

Pairs are drawn from the names and lengths of the clips and a seed, for each clip on its own: the same data set gives
the same pairs on every machine, and a clip more or less changes no other clip's pairs (of cross-identity: not its
driving frames). They are written as a CSV of the form that DaGAN's have, so that these can be given as well.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..media.errors import InputError
from ..media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from ..nets.scale import stretch
from .dataset import Clip, Moment, Picture, Ref
from .options import ProtocolName

STRETCH = 0.3
"""Driving frames of the scale protocol are stretched by factors in [1 - STRETCH, 1 + STRETCH], as OSTNet's."""
STRETCHES = 2
"""Stretched versions of a pair: OSTNet's 4,166 pairs are twice DaGAN's 2,083."""
YAW_GAPS = (0.0, 30.0, 60.0)
YAW_SLACK = 7.5
"""Degrees that a frame may be off a gap."""
COLUMNS = ("pair", "source", "driving", "anchor", "group", "sequence", "stretch_width", "stretch_height")


@dataclass(frozen=True)
class Pair:
    """One picture to make."""

    source: Ref
    driving: Ref
    anchor: Ref | None = None
    """The driving person's frame that shows the source's pose, for relative motion; None: whatever the method does."""
    group: str = ""
    """Which table it counts in: `same scale`, `yaw 30` ..."""
    sequence: str = ""
    """Pairs of one name are frames of a video, in order."""
    stretch: tuple[float, float] = (1.0, 1.0)
    """Width and height of the driving frame are changed by these; the truth stays as it is."""

    @property
    def has_truth(self) -> bool:
        """Whether the driving frame is what the result should look like."""
        return self.source.clip == self.driving.clip


class Reenactor(Protocol):
    """A method under test. `app.evaluate` makes them of the animators; anything with this shape can be judged."""

    name: str
    facts: Mapping[str, str]
    """What a reader of the numbers must know: model file and hash, settings, how motion is taken over."""
    fitted: bool
    """Whether it wants the heads of the clips' tracks (`Moment.params`), which are fitted where there are none."""

    def prepare(self, source: Moment) -> Any:
        """What is done once for a source."""

    def reenact(self, prepared: Any, driving: Sequence[Moment], anchor: Moment | None) -> Sequence[Picture]:
        """The source doing what each driving frame does, (size, size, 3) uint8 each.

        Args:
            prepared: what `prepare` gave.
            driving: frames of one clip; in order and without gaps where they are a sequence.
            anchor: of the same clip as `driving`, see `Pair.anchor`.
        """


class Still:
    """The source as it is: what not moving at all is worth."""

    name = "still"
    facts: Mapping[str, str] = {"method": "the source picture, unmoved"}
    fitted = False

    def prepare(self, source: Moment) -> Picture:
        return source.image

    def reenact(self, prepared: Picture, driving: Sequence[Moment], anchor: Moment | None) -> list[Picture]:
        return [prepared for _ in driving]


class Copy:
    """The driving frame: what the metrics say of the truth itself, and of a method that forgets whom it shall show."""

    name = "copy"
    facts: Mapping[str, str] = {"method": "the driving picture"}
    fitted = False

    def prepare(self, source: Moment) -> None:
        return None

    def reenact(self, prepared: None, driving: Sequence[Moment], anchor: Moment | None) -> list[Picture]:
        return [moment.image for moment in driving]


def sample_pairs(
    protocol: ProtocolName,
    clips: Mapping[str, Clip],
    *,
    count: int = 10,
    frames: int = 100,
    seed: int = 0,
    yaws: Callable[[Clip], np.ndarray | None] | None = None,
) -> list[Pair]:
    """The pairs of a protocol on a data set.

    Args:
        protocol: see the table above.
        clips: the data set.
        count: pairs for each clip (same-identity and scale: frame pairs, each in both directions).
        frames: of reconstruction, the most frames for each clip.
        seed: another one gives other pairs.
        yaws: of the yaw protocol, the yaw of each frame of a clip in degrees, nan where it is unknown.
    Raises:
        InputError: the data set has too little for the protocol.
    """
    if protocol == "reconstruction":
        pairs = [pair for clip in clips.values() for pair in _reconstruction(clip, frames)]
    elif protocol == "same-identity":
        pairs = [pair for clip in clips.values() for pair in _same_identity(clip, count, seed)]
    elif protocol == "cross-identity":
        pairs = _cross_identity(clips, count, seed)
    elif protocol == "scale":
        pairs = [pair for clip in clips.values() for pair in _scale(clip, count, seed)]
    else:
        assert yaws is not None
        pairs = [pair for clip in clips.values() for pair in _yaw(clip, yaws(clip), count, seed)]
    if not pairs:
        needs = {
            "cross-identity": "people: at least two clips whose names begin differently",
            "yaw": f"frames that are turned {YAW_GAPS[1]:g} degrees from the most frontal one of their clip",
        }
        raise InputError(
            f"The protocol {protocol} finds no pairs in these {len(clips)} clips; it needs "
            f"{needs.get(protocol, 'clips of more than one frame')}."
        )
    return pairs


def missing_gaps(pairs: Sequence[Pair]) -> list[str]:
    """A sentence for each yaw gap that the pairs of the yaw protocol do not have."""
    there = {pair.group for pair in pairs}
    return [
        f"No clip has a frame that is turned {gap:g} (+- {YAW_SLACK:g}) degrees from its most frontal one."
        for gap in YAW_GAPS
        if f"yaw {gap:g}" not in there
    ]


def stretched(picture: Picture, width: float, height: float) -> Picture:
    """OSTNet's expression-preserved augmentation (`nets.scale.stretch`) of a picture (S, S, 3)."""
    if (width, height) == (1.0, 1.0):
        return picture
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    moved = stretch(image, torch.tensor([width]), torch.tensor([height]))[0]
    return np.ascontiguousarray(moved.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def write_pairs(pairs: Sequence[Pair], clips: Mapping[str, Clip]) -> str:
    """The text of a pair file; frames of folders go by their own names."""

    def name(ref: Ref) -> str:
        names = clips[ref.clip].frame_names
        return f"{ref.clip}/{names[ref.index]}.png" if ref.index < len(names) else str(ref)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, pair in enumerate(pairs):
        stretch = ["" if factor == 1 else repr(factor) for factor in pair.stretch]
        anchor = name(pair.anchor) if pair.anchor else ""
        start = [f"{number:05d}", name(pair.source), name(pair.driving), anchor]
        writer.writerow([*start, pair.group, pair.sequence, *stretch])
    return text.getvalue()


def read_pairs(
    path: Path | str, clips: Mapping[str, Clip], *, stride: int = 1, frames: int = 100
) -> tuple[list[Pair], list[str]]:
    """The pairs of a CSV that this data set has, and a sentence for each row that it has not.

    Reads what `write_pairs` writes and the files of DaGAN and FOMM: source, driving and perhaps best_frame are paths of
    frames (.../CLIP.mp4/0000075.png), or source_frame and driving_video, or two videos, of which the first frame of
    the source is driven by the whole of the other. Only the ends of the paths count: whatever stands before the
    clip's name is someone else's folder.

    Args:
        path: the file.
        clips: the data set.
        stride, frames: which frames of whole driving videos: every `stride`-th one, at most `frames`.
    Raises:
        InputError: the file is no such table, or the data set has none of its rows.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The table of pairs {path} cannot be read: {error}.") from None
    source_column = next((n for n in ("source", "source_frame") if n in names), None)
    driving_column = next((n for n in ("driving", "driving_video") if n in names), None)
    if source_column is None or driving_column is None:
        raise InputError(f"{path} is no table of pairs: it needs the columns source and driving, it has {names}.")
    finder = _Finder(clips)
    pairs: list[Pair] = []
    missing: list[str] = []
    for number, row in enumerate(rows, 2):
        try:
            source = finder.find(row[source_column] or "")
            driving = finder.find(row[driving_column] or "")
            anchor_text = row.get("anchor") or row.get("best_frame") or ""
            anchor = finder.find(anchor_text) if anchor_text else None
            factors = (float(row.get("stretch_width") or 1), float(row.get("stretch_height") or 1))
        except (LookupError, ValueError) as error:
            missing.append(f"line {number}: {error.args[0]}")
            continue
        start = Ref(source[0].name, source[1] or 0)
        rest = None if anchor is None else Ref(anchor[0].name, anchor[1] or 0)
        clip, index = driving
        if index is None:
            name = f"{start}>{clip.name}"
            some = range(0, clip.length, stride)[:frames]
            first = rest or Ref(clip.name, 0)
            pairs += [Pair(start, Ref(clip.name, i), first, sequence=name) for i in some]
        else:
            group, sequence = row.get("group") or "", row.get("sequence") or ""
            pairs.append(Pair(start, Ref(clip.name, index), rest, group, sequence, factors))
    if not pairs:
        raise InputError(
            f"None of the {len(rows)} pairs of {path} is in this data set; the first one: {(missing or ['no rows'])[0]}"
        )
    return pairs, missing


class _Finder:
    """Clips and frames by the end of a path."""

    def __init__(self, clips: Mapping[str, Clip]) -> None:
        self.by_name: dict[str, list[Clip]] = {}
        for clip in clips.values():
            parts = clip.name.split("/")
            for first in range(len(parts)):
                self.by_name.setdefault("/".join(parts[first:]), []).append(clip)

    def find(self, text: str) -> tuple[Clip, int | None]:
        """The clip and, where the path ends in a picture inside it, the frame's number."""
        parts = [part for part in text.replace("\\", "/").split("/") if part]
        if not parts:
            raise LookupError("an empty path")
        clip = self._clip(parts)
        if clip is not None:
            return clip, 0 if clip.is_still else None
        clip = self._clip(parts[:-1])
        if clip is None:
            raise LookupError(f"no clip {text}")
        stem, _, ending = parts[-1].rpartition(".")
        index = clip.index_of(stem) if f".{ending.lower()}" in IMAGE_SUFFIXES else None
        if index is None:
            raise LookupError(f"no frame {parts[-1]} in {clip.name}, which has {clip.length}")
        return clip, index

    def _clip(self, parts: Sequence[str]) -> Clip | None:
        if not parts:
            return None
        stem, dot, ending = parts[-1].rpartition(".")
        last = stem if dot and f".{ending.lower()}" in VIDEO_SUFFIXES | IMAGE_SUFFIXES else parts[-1]
        for first in range(len(parts)):  # the longest end that is a name
            for end in (parts[-1], last):
                found = self.by_name.get("/".join([*parts[first:-1], end]), [])
                if len(found) == 1:
                    return found[0]
        return None


def _random(seed: int, *what: str) -> np.random.Generator:
    digest = hashlib.sha256("\n".join([str(seed), *what]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _reconstruction(clip: Clip, frames: int) -> Iterable[Pair]:
    start = Ref(clip.name, 0)
    for index in range(1, min(clip.length, frames + 1)):
        yield Pair(start, Ref(clip.name, index), start, sequence=clip.name)


def _same_identity(clip: Clip, count: int, seed: int) -> Iterable[Pair]:
    if clip.length < 2:
        return
    random = _random(seed, "same-identity", clip.name)
    for _ in range(count):
        first, second = (Ref(clip.name, int(i)) for i in random.choice(clip.length, 2, replace=False))
        yield Pair(first, second, first, "forward")
        yield Pair(second, first, second, "backward")


def _cross_identity(clips: Mapping[str, Clip], count: int, seed: int) -> list[Pair]:
    pairs = []
    for clip in clips.values():
        if clip.is_still:
            continue
        others = [other for other in clips.values() if other.identity != clip.identity]
        random = _random(seed, "cross-identity", clip.name)
        frames = random.integers(clip.length, size=count).tolist()
        for index in frames if others else ():
            other = others[int(random.integers(len(others)))]
            source = Ref(other.name, int(random.integers(other.length)))
            pairs.append(Pair(source, Ref(clip.name, index), Ref(clip.name, 0)))
    return pairs


def _scale(clip: Clip, count: int, seed: int) -> Iterable[Pair]:
    random = _random(seed, "scale", clip.name)
    for pair in _same_identity(clip, count, seed):
        yield Pair(pair.source, pair.driving, pair.anchor, "same scale")
        for _ in range(STRETCHES):
            width, height = (round(float(x), 4) for x in random.uniform(1 - STRETCH, 1 + STRETCH, 2))
            yield Pair(pair.source, pair.driving, pair.anchor, "different scale", stretch=(width, height))


def _yaw(clip: Clip, yaws: np.ndarray | None, count: int, seed: int) -> Iterable[Pair]:
    if yaws is None or len(yaws) < 2 or np.isnan(yaws).all():
        return
    random = _random(seed, "yaw", clip.name)
    start = int(np.nanargmin(np.abs(yaws)))
    gaps = np.abs(yaws - yaws[start])
    for gap in YAW_GAPS:
        near = np.flatnonzero(np.abs(gaps - gap) <= YAW_SLACK)
        near = near[near != start]
        for index in sorted(random.permutation(near)[:count].tolist()):
            source = Ref(clip.name, start)
            yield Pair(source, Ref(clip.name, index), source, f"yaw {gap:g}")
