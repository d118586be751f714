"""The driving clip as head parameters: a video that is fitted as it is read, a saved track or an ARKit table."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..fitting.fit import VideoFitter
from ..fitting.formats import import_track
from ..geom.head import HeadModel, HeadParams
from ..geom.rotation import axis_angle_to_matrix, matrix_to_euler
from ..geom.track import FaceTrack
from ..media.errors import InputError
from ..media.files import read_error
from ..media.video import Frame, VideoReader
from .options import AnimateOptions
from .output import Watch, bar

TRACK_SUFFIXES = (".safetensors", ".csv")
"""Motion without pictures."""
_PIECE = 64


@dataclass(frozen=True)
class Step:
    """The driving face at one moment."""

    params: HeadParams
    time: float
    seen: bool


class HeadMotion:
    """The driving clip as head parameters, frame by frame; can be read more than once.

    Args:
        path: a video, a folder of frames, a picture, a track (.safetensors) or an ARKit table (.csv).
        head: the model that moves.
        options: see `AnimateOptions`.
        fitted: the track of the video, from an earlier `save_motion`; spares the fit.
    """

    def __init__(self, path: Path, head: HeadModel, options: AnimateOptions, fitted: Path | None = None) -> None:
        self.path, self.head, self.options = path, head, options
        self.problems: list[str] = []
        self.reader: VideoReader | None = None
        self.track: FaceTrack | None = None
        file = fitted or path
        suffix = file.suffix.lower()
        if suffix in TRACK_SUFFIXES:
            if fault := read_error(file):
                raise fault
            try:
                self.track = FaceTrack.load(file) if suffix == ".safetensors" else import_track(file, head)
                self.track.check(head)
            except ValueError as error:
                raise InputError(str(error)) from None
        if path.suffix.lower() not in TRACK_SUFFIXES:
            self.reader = VideoReader(path, max_side=1280)

    @property
    def fps(self) -> Fraction:
        return self.reader.fps if self.reader else Fraction(self.track_of_file.fps).limit_denominator(1000)

    @property
    def count(self) -> int:
        """An estimate, for the progress bar."""
        return self.reader.frame_count if self.reader else len(self.track_of_file)

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
        if self.track is not None:
            for start in range(0, len(self.track), _PIECE):
                piece = self.track[start : start + _PIECE]
                for _ in range(len(piece)):
                    beat()
                yield piece
            return
        assert self.reader is not None
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

    def steps(self, progress: bool | Watch) -> Generator[Step]:
        with bar("look for rest", self.count, progress) as shown:
            yield from self._steps(shown.update)

    def _steps(self, beat: Callable[[], object]) -> Iterator[Step]:
        for piece in self.pieces(beat):
            for i in range(len(piece)):
                yield Step(piece.params[i], float(piece.times[i]), bool(piece.confidence[i] > 0))

    def rest(self, progress: bool | Watch) -> HeadParams | None:
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


def _restlessness(step: Step) -> float:
    """How far a driving frame is from a neutral face that looks at the camera; smaller is better."""
    angles = matrix_to_euler(axis_angle_to_matrix(step.params.rotation)).abs().sum()
    return float(
        step.params.expression.norm() + 0.1 * angles + 10 * step.params.jaw.norm() + 2 * step.params.eyelids.abs().sum()
    )
