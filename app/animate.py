"""Animate a portrait, or a video, with a driving clip: streaming, in memory that does not grow with the length.

driving clip --track, fit--> head parameters --transfer--> target parameters --render, paste--> writer
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from ..fitting.fit import VideoFitter
from ..geom.camera import Camera
from ..geom.head import HeadModel, HeadParams, load_head
from ..geom.rotation import axis_angle_to_matrix, matrix_to_euler
from ..geom.track import FaceTrack
from ..geom.transfer import Region, TransferOptions, transfer
from ..media.crop import BoxSmoother, Crop
from ..media.errors import InputError
from ..media.files import VIDEO_SUFFIXES
from ..media.sheet import side_by_side_video
from ..media.video import VideoReader, open_writer
from .animator import Animator, Picture, Portrait, Stage, whole_pixels

MARK = {"comment": "AI-generated: a portrait animated by headwarp"}
"""Written into every animated file."""


@dataclass(frozen=True)
class AnimateOptions:
    """How a portrait is animated; the command line's flags carry the same names."""

    motion: Literal["relative", "absolute"] = "relative"
    """relative: the source's own pose and expression are the neutral; absolute: the driver's values as they are."""
    region: Region = "all"
    """all, pose, expression, eyes or mouth."""
    strength: float = 1.0
    """Multiplies the motion relative to the rest frame."""
    rest: str = "first"
    """Driving frame that counts as rest: first (with a face), best (most neutral and frontal), or its number."""
    smooth: float = 1.0
    """Strength of the fit's temporal smoothing; 0 = none."""
    crop_only: bool = False
    """Write the animated square without pasting it back."""
    no_crop: bool = False
    """The source is a face crop already: the whole picture moves."""
    size: int = 512
    """Pixels of the working square, and of the result of `crop_only`."""
    max_side: int = 1920
    """Longer side of the written picture at most."""
    source_face: int = 0
    """Which face of the source, 0 = largest."""
    driving_face: int = 0
    """Which face of the driving clip, 0 = largest in its first frame."""
    audio: bool = True
    """Keep the driving clip's sound."""
    side_by_side: bool = False
    """Also write source, driving and result next to each other, as OUT_concat.EXT."""


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
    options: AnimateOptions = AnimateOptions(),
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
    if not 0 <= options.strength <= 3:
        raise InputError(f"The strength must be from 0 to 3, got {options.strength:g}.")
    if isinstance(source, Animator):
        head = source.head
    model = load_head(head) if isinstance(head, str) else head
    motion = _Motion(Path(driving), model, options)
    scene = _scene(source, model, options)
    how = TransferOptions(relative=options.motion == "relative", region=options.region, strength=options.strength)
    sound = motion.path if options.audio and motion.has_audio else None
    frames = asked = unseen = 0
    rest = motion.rest()
    size = (options.size, options.size) if options.crop_only else scene.size
    with (
        open_writer(output, size, motion.fps, audio_from=sound, metadata=MARK) as writer,
        tqdm(total=motion.count, unit="frame", desc="animate", disable=not progress, dynamic_ncols=True) as bar,
    ):
        portraits = scene.portraits()
        for piece in motion.pieces():
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
                bar.update()
            asked += len(piece)
            if frames < asked:  # the source video is the shorter one and ends the result
                break
    files = [Path(output)]
    if options.side_by_side and isinstance(source, str | Path):
        files.append(_side_by_side(Path(source), motion.path, Path(output)))
    problems = [*motion.problems, *scene.problems]
    if unseen:
        problems.append(f"{unseen} of {frames} driving frames show no face; the motion was carried over them.")
    return Animated(files, frames, problems)


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
            try:
                self.track = FaceTrack.load(path)
                self.track.check(head)
            except (ValueError, FileNotFoundError) as error:
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

    def pieces(self) -> Iterator[FaceTrack]:
        if self.reader is None:
            yield self.track_of_file
            return
        yield from VideoFitter(
            head=self.head,
            fps=float(self.reader.fps),
            index=self.options.driving_face,
            smooth=self.options.smooth,
            name=self.path.name,
        ).run(self.reader)
        self.problems = list(self.reader.problems)

    def steps(self) -> Generator[_Step]:
        for piece in self.pieces():
            for i in range(len(piece)):
                yield _Step(piece.params[i], float(piece.times[i]), bool(piece.confidence[i] > 0))

    def rest(self) -> HeadParams | None:
        """Parameters (B = 1) of the frame that counts as rest; None: the first one, without looking ahead."""
        wanted = self.options.rest
        if wanted == "first":
            return None
        if wanted == "best":
            return min((step for step in self.steps() if step.seen), key=_restlessness).params
        if not wanted.isdecimal():
            raise InputError(f"The rest frame is 'first', 'best' or a frame number, got '{wanted}'.")
        with closing(self.steps()) as steps:
            for number, step in enumerate(steps):
                if number >= int(wanted) and step.seen:
                    return step.params
        raise InputError(f"{self.path} shows no face from frame {wanted} on, so no such frame can count as rest.")


def _restlessness(step: _Step) -> float:
    """How far a driving frame is from a neutral face that looks at the camera; smaller is better."""
    angles = matrix_to_euler(axis_angle_to_matrix(step.params.rotation)).abs().sum()
    return float(
        step.params.expression.norm() + 0.1 * angles + 10 * step.params.jaw.norm() + 2 * step.params.eyelids.abs().sum()
    )


class _Still:
    """One picture, the same for every frame."""

    problems: list[str] = []  # noqa: RUF012 - never filled

    def __init__(self, animator: Animator) -> None:
        self.stage, self.portrait = animator.stage, animator.portrait

    @property
    def size(self) -> tuple[int, int]:
        return self.portrait.picture.shape[0], self.portrait.picture.shape[1]

    def portraits(self) -> Iterator[Portrait]:
        while True:
            yield self.portrait


class _Moving:
    """A video as source: every frame is a portrait of its own, in a square that holds still."""

    def __init__(self, path: Path, head: HeadModel, options: AnimateOptions) -> None:
        self.stage = Stage(head, size=options.size, crop=not options.no_crop)
        self.reader = VideoReader(path, max_side=options.max_side)
        self.options = options
        self.problems: list[str] = []

    @property
    def size(self) -> tuple[int, int]:
        return self.reader.size

    def portraits(self) -> Iterator[Portrait]:
        fitter = VideoFitter(
            head=self.stage.head,
            fps=float(self.reader.fps),
            index=self.options.source_face,
            smooth=self.options.smooth,
            name=self.reader.path.name,
        )
        holding = BoxSmoother()
        # The fit runs ahead of the pictures by a piece; a second pass over the file keeps memory flat.
        frames = iter(VideoReader(self.reader.path, max_side=self.options.max_side))
        for piece in fitter.run(self.reader):
            assert isinstance(piece.camera, Camera)
            for i in range(len(piece)):
                picture = next(frames).image
                landmarks = piece.landmarks[i].numpy()
                square = self.stage.square(picture, landmarks)
                if self.stage.crop:
                    held = holding.update(Crop(square.center, square.side, self.stage.size))
                    square = whole_pixels(held)
                yield self.stage.prepare(picture, landmarks, piece.params[i], piece.camera, square)
        self.problems = list(self.reader.problems)


def _scene(source: str | Path | Picture | Animator, head: HeadModel, options: AnimateOptions) -> _Still | _Moving:
    if isinstance(source, Animator):
        return _Still(source)
    if isinstance(source, str | Path) and Path(source).suffix.lower() in VIDEO_SUFFIXES:
        return _Moving(Path(source), head, options)
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


def _side_by_side(source: Path, driving: Path, output: Path) -> Path:
    if output.is_dir() or driving.suffix.lower() == ".safetensors":
        raise InputError("Side by side needs a driving video and a video as output, not a folder or a saved track.")
    path = output.with_stem(f"{output.stem}_concat")
    side_by_side_video([source, driving, output], path, labels=["source", "driving", "result"], audio_from=output)
    return path
