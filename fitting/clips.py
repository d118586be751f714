"""One source into its clips: found, fitted, cropped and written, in memory that does not grow with the length.

    first reading:   faces -> tubes -> fitted parameters, spooled to the disk
    second reading:  cropped frames -> clip.mp4

A clip is a folder NAME with clip.mp4 (size x size), clip.safetensors (`FaceTrack`, in pixels of the source; its `crop`
leads to the pixels of clip.mp4) and, if asked for, overlay.mp4 and sheet.jpg. NAME is the source's name where the clip
is all of it, else NAME#first#last in frames, as VoxCeleb's clips are called.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..media.crop import Crop
from ..media.errors import InputError
from ..media.image import load_image
from ..media.video import Frame, VideoInfo, VideoReader, VideoWriter
from .faces import Face, FaceTracker, NoFaceError, largest_face
from .ledger import Failure, Report, parts_folder, publish
from .options import Refine, Regressor
from .overlay import draw_overlay
from .regress import Choice, open_fitter
from .sources import Source, Window
from .track_file import TrackWriter
from .tubes import Tube, TubeFinder, inside, square_crop
from .workers import Beat, Stop


@dataclass(frozen=True)
class Recipe:
    """What decides the content of the files."""

    head: str = "open"
    regressor: Regressor = "none"
    weights: str | None = None
    refine: Refine = "landmarks"
    smooth: float = 1.0
    fps: float | None = None
    face: int = 0
    crop: bool = True
    size: int = 256
    increase: float = 0.1
    min_frames: int = 64
    visualize: bool = False


def fit_source(source: Source, beat: Beat, *, recipe: Recipe, output: Path, tracks: bool) -> Report | Stop:
    """Fit one source and put what it gives into the output folder; a task for `workers`.

    Args:
        source: what to fit.
        beat: called for every frame.
        recipe: see there.
        output: folder of the data set.
        tracks: write NAME.safetensors for the whole source instead of clip folders.
    Returns:
        Its clips and what failed, and Stop when the output folder takes no more. Nothing is raised.
    """
    report = Report(source.name)
    try:
        with parts_folder(output) as parts:
            shoot = _whole_track if tracks else _picture if source.is_image else _video
            takes = shoot(source, recipe, parts, beat, report)
            for take in takes:
                if tracks:
                    _publish_files(take, output)
                else:
                    publish(take.part, output / take.name)
                report.clips.append(take.row)
    except (InputError, OSError) as error:
        if is_disk_full(error):
            return Stop(
                f"Cannot write to {output}: the disk is full or its quota used up. Free some space and run the command "
                "again; what is finished is kept."
            )
        report.failures.append(Failure(source.name, str(error)))
    except MemoryError:
        report.failures.append(Failure(source.name, "there was not enough memory", "next run"))
    except Exception as error:  # one odd file must not stop the night's run; the log says where it happened
        logging.getLogger(__name__).exception("Fitting %s failed.", source.path)
        report.failures.append(Failure(source.name, f"{type(error).__name__}: {error}"))
    return report


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that no more can be written."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__
    return False


@dataclass
class _Take:
    """A clip in the making."""

    name: str
    first: int
    """Frame of the source."""
    frames: int
    faces: int
    """Frames in which the face was seen."""
    crop: Crop | None
    recording: _Recording
    part: Path
    """Folder for its files."""
    row: dict[str, Any] = field(default_factory=dict)
    """Of the index."""


class _Recording:
    """The fit of one face, spooled to the disk as the frames come."""

    def __init__(self, recipe: Recipe, fps: float, name: str, folder: Path) -> None:
        choice = Choice(recipe.head, recipe.regressor, recipe.refine, recipe.weights)
        self._fitter = open_fitter(choice, smooth=recipe.smooth, fps=fps, name=name)
        self.writer = TrackWriter(folder)
        self.start = 0.0
        """Seconds of its first frame in the source."""
        self.presence = 0.0
        """Sum over the frames."""
        self._begun = False

    def add(self, face: Face | None, frame: Frame) -> None:
        if not self._begun:
            self._begun, self.start = True, frame.time
        self.presence += face.presence if face else 0.0
        for piece in self._fitter.see(face, frame.image, frame.time - self.start):
            self.writer.add(piece)

    def finish(self) -> None:
        for piece in self._fitter.finish():
            self.writer.add(piece)


def _video(source: Source, recipe: Recipe, parts: Path, beat: Beat, report: Report) -> list[_Take]:
    """The clips of a video or of a folder of frames."""
    if not source.path.exists():
        raise InputError(f"{source.path} does not exist; the table names it, but it is not among the videos.")
    reader = VideoReader(source.path, fps=recipe.fps)
    if source.windows:
        takes = _from_windows(reader, source.windows, recipe, parts, beat, report)
    elif recipe.crop:
        takes = _from_tubes(reader, source, recipe, parts, beat)
    else:
        takes = [_whole(reader, source, recipe, parts, beat)]
    problems = " ".join(reader.problems)
    _cut(reader, takes, beat)
    for take in takes:
        _write_track(take, source, reader.info, problems)
        if recipe.visualize:
            draw_overlay(take.part / "clip.mp4", take.part / "clip.safetensors", take.part, recipe.head, beat)
    return takes


def _from_tubes(reader: VideoReader, source: Source, recipe: Recipe, parts: Path, beat: Beat) -> list[_Take]:
    """A clip of each face that stays long enough, or through all of the video."""
    finder = TubeFinder()
    recordings: dict[int, _Recording] = {}
    ended: list[Tube] = []
    longest = total = 0

    def close(tubes: Sequence[Tube]) -> None:
        nonlocal longest
        for tube in tubes:
            longest = max(longest, tube.frames)
            if tube.frames >= recipe.min_frames or tube.frames + tube.lost == total:
                recordings[id(tube)].finish()
                ended.append(tube)
            else:
                recordings.pop(id(tube)).writer.close()

    for frame in reader:
        beat()
        close(finder.update(frame.image))
        total += 1
        for tube in finder.open:
            if id(tube) not in recordings:
                recordings[id(tube)] = _Recording(recipe, float(reader.fps), reader.path.name, parts)
            recordings[id(tube)].add(tube.latest, frame)
    close(finder.open)
    if not longest:
        raise NoFaceError(f"No face found in any frame of {reader.path.name}.")
    if not ended:
        raise NoFaceError(
            f"No face stays long enough in {reader.path.name}: {longest} of {total} frames at most, "
            f"{recipe.min_frames} are wanted (--min-frames)."
        )
    ended.sort(key=lambda tube: (tube.first, *tube.anchor))
    takes = []
    names: dict[str, int] = {}
    for number, tube in enumerate(ended):
        name = source.name
        if len(ended) > 1 or tube.frames + tube.lost < total:
            name = f"{source.name}#{tube.first:06d}#{tube.first + tube.frames:06d}"
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:  # two people who come and go together
            name = f"{name}#{names[name]}"
        crop = square_crop(tube.union, recipe.size, reader.size, recipe.increase)
        recording, part = recordings[id(tube)], parts / str(number)
        takes.append(_Take(name, tube.first, tube.frames, tube.faces, crop, recording, part))
    return takes


def _from_windows(
    reader: VideoReader, windows: Sequence[Window], recipe: Recipe, parts: Path, beat: Beat, report: Report
) -> list[_Take]:
    """The clips that a table asks for."""
    height, width = reader.size
    takes: dict[int, _Take] = {}
    trackers: dict[int, FaceTracker] = {}
    close = 1e-3  # seconds; containers round times to their clocks
    for position, frame in enumerate(reader):
        beat()
        if all(frame.time >= window.end - close for window in windows):
            break
        for number, window in enumerate(windows):
            if not window.start - close <= frame.time < window.end - close:
                continue
            if number not in takes:
                left, top, right, bottom = np.array(window.box) * (width, height, width, height)
                center, side = ((left + right) / 2, (top + bottom) / 2), max(right - left, bottom - top)
                crop = inside(Crop(center, side, recipe.size), reader.size)
                recording = _Recording(recipe, float(reader.fps), window.name, parts)
                takes[number] = _Take(window.name, position, 0, 0, crop, recording, parts / str(number))
                trackers[number] = FaceTracker(point=crop.center)
            face = trackers[number].track(frame.image)
            take = takes[number]
            take.recording.add(face, frame)
            take.frames, take.faces = take.frames + 1, take.faces + (face is not None)
    for number, window in enumerate(windows):
        if number not in takes:
            reason = f"{reader.path.name} ends before {window.start:.1f} s, where this clip begins."
        elif not takes[number].faces:
            takes.pop(number).recording.writer.close()
            reason = f"No face found in the frames of {reader.path.name} that this clip is made of."
        else:
            takes[number].recording.finish()
            continue
        report.failures.append(Failure(window.name, reason))
    return [takes[number] for number in sorted(takes)]


def _whole(reader: VideoReader, source: Source, recipe: Recipe, parts: Path, beat: Beat) -> _Take:
    """One clip of everything, without looking for a crop."""
    recording = _Recording(recipe, float(reader.fps), reader.path.name, parts)
    tracker = FaceTracker(index=recipe.face)
    frames = faces = 0
    for frame in reader:
        beat()
        face = tracker.track(frame.image)
        recording.add(face, frame)
        frames, faces = frames + 1, faces + (face is not None)
    recording.finish()
    return _Take(source.name, 0, frames, faces, Crop.whole(reader.size, recipe.size), recording, parts / "0")


def _picture(source: Source, recipe: Recipe, parts: Path, beat: Beat, report: Report) -> list[_Take]:
    """A portrait as a clip of one frame."""
    take, image = _portrait(source, recipe, parts)
    assert take.crop is not None
    take.part.mkdir()
    with VideoWriter(take.part / "clip.mp4", (recipe.size, recipe.size), 25) as writer:
        writer.write(take.crop.extract(image))
    _write_track(take, source, VideoReader(source.path).info, "")
    if recipe.visualize:
        draw_overlay(take.part / "clip.mp4", take.part / "clip.safetensors", take.part, recipe.head, beat)
    return [take]


def _portrait(source: Source, recipe: Recipe, parts: Path) -> tuple[_Take, np.ndarray]:
    image = load_image(source.path)
    face = largest_face(image, index=recipe.face, name=source.path.name)
    recording = _Recording(recipe, 25.0, source.path.name, parts)
    recording.add(face, Frame(image, 0.0, 0))
    recording.finish()
    size, box = (image.shape[0], image.shape[1]), face.box.astype(np.float64)
    crop = square_crop(box, recipe.size, size, recipe.increase) if recipe.crop else Crop.whole(size, recipe.size)
    return _Take(source.name, 0, 1, 1, crop, recording, parts / "0"), image


def _whole_track(source: Source, recipe: Recipe, parts: Path, beat: Beat, report: Report) -> list[_Take]:
    """The track of everything, without a clip."""
    reader = VideoReader(source.path, fps=recipe.fps)
    if source.is_image:
        take, _ = _portrait(source, recipe, parts)
    else:
        take = _whole(reader, source, recipe, parts, beat)
    take.crop = None
    take.part.mkdir()
    _write_track(take, source, reader.info, " ".join(reader.problems))
    if recipe.visualize:
        draw_overlay(source.path, take.part / "clip.safetensors", take.part, recipe.head, beat, fps=recipe.fps)
    return [take]


def _cut(reader: VideoReader, takes: Sequence[_Take], beat: Beat) -> None:
    """Write the clips' pictures, all of a source in one reading, and the sound of each one's time."""
    until = max((take.first + take.frames for take in takes), default=0)
    with ExitStack() as stack:
        writers: dict[str, VideoWriter] = {}
        for position, frame in enumerate(reader):
            if position >= until:
                break
            beat()
            for take in takes:
                if not take.first <= position < take.first + take.frames:
                    continue
                assert take.crop is not None
                if take.name not in writers:
                    take.part.mkdir()
                    writer = VideoWriter(
                        take.part / "clip.mp4",
                        (take.crop.size, take.crop.size),
                        reader.fps,
                        audio_from=reader.path if reader.has_audio else None,
                        audio_start=take.recording.start,
                    )
                    writers[take.name] = stack.enter_context(writer)
                writers[take.name].write(take.crop.extract(frame.image), frame.time - take.recording.start)
                if position == take.first + take.frames - 1:
                    writers[take.name].close()  # so that as many are open as faces are in the picture


def _write_track(take: _Take, source: Source, info: VideoInfo, problems: str) -> None:
    """The track file of a take, and its row of the index."""
    writer, crop = take.recording.writer, take.crop
    metadata = {"source": source.path.name} | ({"problems": problems} if problems else {})
    transform = None if crop is None else crop.matrix[[0, 0, 1], [0, 2, 2]]
    writer.save(take.part / "clip.safetensors", frames=take.frames, crop=transform, metadata=metadata)
    writer.close()
    fps = float(info.fps)
    x, y, side, size = (*crop.center, crop.side, crop.size) if crop else (None, None, None, None)
    folder, name = os.path.split(take.name)
    take.row = {
        "name": take.name,
        "split": folder.split("/")[0],
        "identity": name.split("#")[0],
        "source": str(source.path),
        "first_frame": take.first,
        "frames": take.frames,
        "start": take.recording.start,
        "duration": take.frames / fps,
        "fps": fps,
        "size": size,
        "x": x,
        "y": y,
        "side": side,
        "height": info.size[0],
        "width": info.size[1],
        "found": take.faces / take.frames,
        "confidence": take.recording.presence / take.frames,
        "head": writer.metadata["head_name"],
        "head_sha256": writer.metadata["head_sha256"],
        "problems": problems,
    }


def _publish_files(take: _Take, output: Path) -> None:
    """NAME.safetensors, and what else was made under NAME; the track, which counts as the sign of success, last."""
    for path in sorted(take.part.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        ending = path.suffix if path.stem == "clip" else f".{path.name}"
        target = output / f"{take.name}{ending}"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
