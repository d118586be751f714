"""Animate a portrait, or a video, with a driving clip: streaming, in memory that does not grow with the length.

driving clip --track, fit--> head parameters --transfer--> target parameters --render, paste--> writer
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from ..fitting.fit import VideoFitter
from ..geom.camera import Camera
from ..geom.head import HeadModel, HeadParams
from ..geom.rotation import axis_angle_to_matrix, matrix_to_euler
from ..geom.track import FaceTrack
from ..geom.transfer import TransferOptions, transfer
from ..media.crop import BoxSmoother, Crop
from ..media.errors import InputError
from ..media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, protect, read_error
from ..media.image import check_picture_ending, save_image
from ..media.sheet import side_by_side_video
from ..media.video import Frame, FramesWriter, VideoReader, VideoWriter, open_writer
from ..media.writer import names_a_folder
from .animator import MARK, Animator, Picture, Portrait, Stage, shared_head, whole_pixels
from .options import DEFAULTS, AnimateOptions


@dataclass(frozen=True)
class Animated:
    """What `animate` did."""

    files: list[Path]
    frames: int
    problems: list[str]
    """Sentences about what was not as it should be: damaged input, frames without a face."""


def animate(
    source: str | Path | Picture | Animator,
    driving: str | Path,
    output: str | Path,
    options: AnimateOptions = DEFAULTS,
    *,
    head: HeadModel | str = "open",
    progress: bool = False,
) -> Animated:
    """Make the face of `source` follow the one of `driving`.

    Args:
        source: a picture (file or (H, W, 3) uint8 array), a video file, or an `Animator` (whose crop, size and face are
            taken then).
        driving: a video, a folder of frames, a picture, or a saved track (.safetensors).
        output: a video file, or a folder for PNG frames.
        options: see `AnimateOptions`.
        head: head model, or its name or path; of an `Animator` its own.
        progress: show a bar on stderr.
    Raises:
        InputError: unreadable input, no face, or the output cannot be written; nothing is left behind then.
    """
    _check(options)
    if isinstance(source, Animator):
        head = source.head
    model = shared_head(head) if isinstance(head, str) else head
    motion = _Motion(Path(driving), model, options)
    beside = _check_paths(source, motion, output, options)
    scene = _scene(source, model, options, motion.fps)
    how = TransferOptions(relative=options.motion == "relative", region=options.region, strength=options.strength)
    frames = asked = unseen = 0
    size = (scene.stage.size, scene.stage.size) if options.crop_only else scene.size
    with (
        _writer(output, size, motion, options) as writer,
        _bar("animate", motion.count, progress) as bar,
    ):
        rest = motion.rest(progress)
        portraits = scene.portraits()
        # A frame counts half when it is read and fitted, which happens for many at once, and half when it is written.
        share = 0.5 if motion.reader else 1.0
        for piece in motion.pieces(lambda: bar.update(1 - share)):
            # Before the first face is seen a frame holds that face already.
            rest = piece.params[0] if rest is None else rest
            still = scene.portrait.params if isinstance(scene, _Still) else None
            # One call for the piece where the source allows it: a transfer takes as long for one frame as for fifty.
            targets = None if still is None else transfer(model, still, piece.params, rest, how)
            for i, portrait in enumerate(islice(portraits, len(piece))):
                moment = piece.params[i]
                target = transfer(model, portrait.params, moment, rest, how) if targets is None else targets[i]
                writer.write(scene.stage.render(portrait, target, crop_only=options.crop_only), float(piece.times[i]))
                frames += 1
                unseen += bool(piece.confidence[i] == 0)
                bar.update(share)
            asked += len(piece)
            if frames < asked:  # the source video is the shorter one and ends the result
                break
    files = [Path(output)]
    if beside:
        inputs = [Path(str(source)), motion.path, Path(output)]
        labels = ["source", "driving", "result"]
        side_by_side_video(inputs, beside, labels=labels, audio_from=output, metadata=MARK)
        files.append(beside)
    problems = [*motion.problems, *scene.problems]
    if unseen:
        problems.append(f"{unseen} of {frames} driving frames show no face; the motion was carried over them.")
    if motion.still and how.relative and options.rest == "first":
        problems.append(
            f"{motion.path} is one picture and so its own rest: nothing moved. "
            "--motion absolute takes its pose and expression."
        )
    return Animated(files, frames, problems)


def _check(options: AnimateOptions) -> None:
    if not 0 <= options.strength <= 3:
        raise InputError(f"The strength must be from 0 to 3, got {options.strength:g}.")
    if not 0 <= options.smooth <= 100:
        raise InputError(f"The smoothing must be from 0 to 100, got {options.smooth:g}.")
    if options.max_side < 64:
        raise InputError(f"The longer side must be at least 64 pixels, got {options.max_side}.")
    if options.rest not in ("first", "best") and not options.rest.isdecimal():
        raise InputError(f"The rest frame is 'first', 'best' or a frame number, got '{options.rest}'.")


def _check_paths(
    source: str | Path | Picture | Animator, motion: _Motion, output: str | Path, options: AnimateOptions
) -> Path | None:
    """Refuses outputs that cannot be written or would destroy an input; gives the side-by-side video's path."""
    inputs = [motion.path, *([source] if isinstance(source, str | Path) else [])]
    folder = False
    if motion.still and Path(output).suffix.lower() in IMAGE_SUFFIXES:
        check_picture_ending(output)
    else:
        folder = names_a_folder(output)
    protect(inputs, output)
    if not options.side_by_side:
        return None
    if folder or motion.reader is None or len(inputs) < 2:
        raise InputError("Side by side needs files as source and driving, and a video as output; no folder, no track.")
    beside = Path(output).with_stem(f"{Path(output).stem}_concat")
    protect(inputs, beside)
    return beside


def _writer(
    output: str | Path, size: tuple[int, int], motion: _Motion, options: AnimateOptions
) -> VideoWriter | FramesWriter | _PictureFile:
    if motion.still and Path(output).suffix.lower() in IMAGE_SUFFIXES:
        return _PictureFile(output)
    sound = motion.path if options.audio and motion.has_audio else None
    return open_writer(output, size, motion.fps, audio_from=sound, metadata=MARK)


class _PictureFile:
    """One frame as a picture file, with the manners of a video writer."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        return self

    def write(self, image: Picture, time: float) -> None:
        self.image = image

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            save_image(self.path, self.image, metadata=MARK)


def _bar(what: str, count: int, show: bool) -> tqdm[Any]:
    """A progress bar over frames on stderr; in log files it writes a line now and then."""
    return tqdm(
        total=count,
        desc=what,
        disable=not show,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
        bar_format="{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total} frames [{elapsed}, {remaining} left, {rate_fmt}]",
        unit=" frames",
    )


@dataclass(frozen=True)
class _Step:
    """The driving face at one moment."""

    params: HeadParams
    time: float
    seen: bool


class _Motion:
    """The driving clip as head parameters, frame by frame; can be read more than once."""

    def __init__(self, path: Path, head: HeadModel, options: AnimateOptions) -> None:
        self.path, self.head, self.options = path, head, options
        self.problems: list[str] = []
        self.reader: VideoReader | None = None
        self.track: FaceTrack | None = None
        if path.suffix.lower() == ".safetensors":
            if fault := read_error(path):
                raise fault
            try:
                self.track = FaceTrack.load(path)
                self.track.check(head)
            except ValueError as error:
                raise InputError(str(error)) from None
        else:
            self.reader = VideoReader(path, max_side=1280)

    @property
    def fps(self) -> Fraction:
        return self.reader.fps if self.reader else Fraction(self.track_of_file.fps).limit_denominator(1000)

    @property
    def count(self) -> int:
        """An estimate, for the progress bar."""
        return self.reader.frame_count if self.reader else len(self.track_of_file)

    @property
    def has_audio(self) -> bool:
        return self.reader is not None and self.reader.has_audio

    @property
    def track_of_file(self) -> FaceTrack:
        assert self.track is not None
        return self.track

    @property
    def still(self) -> bool:
        """Whether it is one picture."""
        return self.reader is not None and self.reader.info.kind == "image"

    def pieces(self, beat: Callable[[], object]) -> Iterator[FaceTrack]:
        """The fitted clip, some frames at a time; `beat` is called for every frame that was read."""
        if self.reader is None:
            yield self.track_of_file
            return
        fitter = VideoFitter(
            head=self.head,
            fps=float(self.reader.fps),
            index=self.options.driving_face,
            smooth=self.options.smooth,
            cropped=self.options.no_crop,
            name=str(self.path),
        )
        yield from fitter.run(_beating(self.reader, beat))
        self.problems = list(self.reader.problems)
        several = fitter.tracker.faces
        if several > 1 and self.options.driving_face == 0:
            self.problems.append(
                f"{self.path} shows {several} faces; the largest drives, --driving-face 1 is the next."
            )

    def steps(self, progress: bool) -> Generator[_Step]:
        with _bar("look for rest", self.count, progress) as bar:
            yield from self._steps(bar.update)

    def _steps(self, beat: Callable[[], object]) -> Iterator[_Step]:
        for piece in self.pieces(beat):
            for i in range(len(piece)):
                yield _Step(piece.params[i], float(piece.times[i]), bool(piece.confidence[i] > 0))

    def rest(self, progress: bool) -> HeadParams | None:
        """Parameters (B = 1) of the frame that counts as rest; None: the first one, without looking ahead."""
        wanted = self.options.rest
        if wanted == "first" or self.options.motion == "absolute":
            return None
        with closing(self.steps(progress)) as steps:
            if wanted == "best":
                calmest = min((step for step in steps if step.seen), key=_restlessness, default=None)
                return calmest.params if calmest else None
            number = -1
            for number, step in enumerate(steps):
                if number >= int(wanted) and step.seen:
                    return step.params
        raise InputError(
            f"Frame {wanted} cannot count as rest: {self.path} has {number + 1} frames, and no face from there on."
        )


def _beating(frames: Iterable[Frame], beat: Callable[[], object]) -> Iterator[Frame]:
    for frame in frames:
        yield frame
        beat()


def _restlessness(step: _Step) -> float:
    """How far a driving frame is from a neutral face that looks at the camera; smaller is better."""
    angles = matrix_to_euler(axis_angle_to_matrix(step.params.rotation)).abs().sum()
    return float(
        step.params.expression.norm() + 0.1 * angles + 10 * step.params.jaw.norm() + 2 * step.params.eyelids.abs().sum()
    )


class _Still:
    """One picture, the same for every frame."""

    def __init__(self, animator: Animator) -> None:
        self.stage, self.portrait, self.problems = animator.stage, animator.portrait, animator.problems

    @property
    def size(self) -> tuple[int, int]:
        return self.portrait.picture.shape[0], self.portrait.picture.shape[1]

    def portraits(self) -> Iterator[Portrait]:
        while True:
            yield self.portrait


class _Moving:
    """A video as source: every frame is a portrait of its own, in a square that holds still.

    Its frames are taken at the driving clip's rate, so that its own motion keeps its speed.
    """

    def __init__(self, path: Path, head: HeadModel, options: AnimateOptions, fps: Fraction) -> None:
        self.stage = Stage(head, size=options.size, crop=not options.no_crop)
        self.reader = self._open(path, options, fps)
        self.fps, self.options = fps, options
        self.problems: list[str] = []

    @property
    def size(self) -> tuple[int, int]:
        return self.reader.size

    def portraits(self) -> Iterator[Portrait]:
        path = self.reader.path
        fitter = VideoFitter(
            head=self.stage.head,
            fps=float(self.reader.fps),
            index=self.options.source_face,
            smooth=self.options.smooth,
            cropped=self.options.no_crop,
            name=str(path),
        )
        holding = BoxSmoother()
        # The fit runs ahead of the pictures by a piece; a second pass over the file keeps memory flat.
        frames = iter(self._open(path, self.options, self.fps))
        told = False
        for piece in fitter.run(self.reader):
            assert isinstance(piece.camera, Camera)
            if fitter.tracker.faces > 1 and self.options.source_face == 0 and not told:
                self.problems.append(
                    f"{path} shows {fitter.tracker.faces} faces; the largest moves, --source-face 1 is the next."
                )
                told = True
            for i in range(len(piece)):
                picture = next(frames).image
                landmarks = piece.landmarks[i].numpy()
                square = self.stage.square(picture, landmarks)
                if self.stage.crop:
                    held = holding.update(Crop(square.center, square.side, self.stage.size))
                    square = whole_pixels(held)
                yield self.stage.prepare(picture, landmarks, piece.params[i], piece.camera, square)
        self.problems += self.reader.problems

    @staticmethod
    def _open(path: Path, options: AnimateOptions, fps: Fraction) -> VideoReader:
        reader = VideoReader(path, max_side=options.max_side)
        return reader if reader.fps == fps else VideoReader(path, max_side=options.max_side, fps=fps)


def _scene(
    source: str | Path | Picture | Animator, head: HeadModel, options: AnimateOptions, fps: Fraction
) -> _Still | _Moving:
    if isinstance(source, Animator):
        return _Still(source)
    if isinstance(source, str | Path) and Path(source).suffix.lower() in VIDEO_SUFFIXES:
        return _Moving(Path(source), head, options, fps)
    return _Still(
        Animator(
            source,
            head=head,
            face=options.source_face,
            crop=not options.no_crop,
            size=options.size,
            max_side=options.max_side,
        )
    )
