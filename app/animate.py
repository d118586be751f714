"""Animate a portrait, or a video, with a driving clip: streaming, in memory that does not grow with the length.

driving clip --track, fit--> head parameters --transfer--> target parameters --render, paste--> writer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

from ..fitting.fit import VideoFitter
from ..fitting.track_file import TrackWriter
from ..geom.camera import Camera
from ..geom.head import HeadModel
from ..geom.track import FaceTrack
from ..geom.transfer import TransferOptions, transfer
from ..media.crop import BoxSmoother, Crop
from ..media.errors import InputError
from ..media.files import VIDEO_SUFFIXES, protect, write_error
from ..media.video import VideoReader
from .animator import Animator, Picture, Portrait, Stage, shared_head, whole_pixels
from .driving import HeadMotion
from .models import is_keypoint_model, open_model
from .options import DEFAULTS, AnimateOptions
from .output import Watch, bar, check_paths, finish, open_output


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
    fitted: Path | None = None,
    progress: bool | Watch = False,
) -> Animated:
    """Make the face of `source` follow the one of `driving`.

    Args:
        source: a picture (file or (H, W, 3) uint8 array), a video file, or an `Animator` (whose crop, size and face are
            taken then, and whose model moves it).
        driving: a video, a folder of frames, a picture, a saved track (.safetensors) or an ARKit table (.csv).
        output: a video file, or a folder for PNG frames.
        options: see `AnimateOptions`.
        head: head model, or its name or path; of an `Animator` its own.
        fitted: the driving video's track, where `options.save_motion` wrote it before; spares the fit.
        progress: show a bar on stderr, or who is told of every frame.
    Raises:
        InputError: unreadable input, no face, or the output cannot be written; nothing is left behind then.
    """
    _check(options)
    if is_keypoint_model(open_model(options.model)) and not isinstance(source, Animator):
        from .keypoint import animate_keypoints

        frames, files, problems = animate_keypoints(source, Path(driving), output, options, progress=progress)
        return Animated(files, frames, problems)
    if options.explain:
        raise InputError("--explain shows what a keypoint model does; name one with --model.")
    if isinstance(source, Animator):
        head = source.head
    model = shared_head(head) if isinstance(head, str) else head
    motion = HeadMotion(Path(driving), model, options, fitted)
    if options.save_motion:
        protect([motion.path, *([source] if isinstance(source, str | Path) else [])], options.save_motion)
    file = source if isinstance(source, str | Path) else None
    beside = check_paths(file, motion.path, motion.reader, output, options)
    scene = _scene(source, model, options, motion.fps)
    how = TransferOptions(relative=options.motion == "relative", region=options.region, strength=options.strength)
    frames = asked = unseen = 0
    size = (scene.stage.size, scene.stage.size) if options.crop_only else scene.size
    with (
        open_output(output, size, motion.path, motion.reader, motion.fps, options) as writer,
        _saved(options.save_motion) as keep,
        bar("animate", motion.count, progress) as shown,
    ):
        rest = motion.rest(progress)
        portraits = scene.portraits()
        # A frame counts half when it is read and fitted, which happens for many at once, and half when it is written.
        share = 0.5 if motion.track is None else 1.0
        for piece in motion.pieces(lambda: shown.update(1 - share)):
            # Before the first face is seen a frame holds that face already.
            rest = piece.params[0] if rest is None else rest
            keep(piece)
            still = scene.portrait.params if isinstance(scene, StillSource) else None
            # One call for the piece where the source allows it: a transfer takes as long for one frame as for fifty.
            targets = None if still is None else transfer(model, still, piece.params, rest, how)
            for i, portrait in enumerate(islice(portraits, len(piece))):
                moment = piece.params[i]
                target = transfer(model, portrait.params, moment, rest, how) if targets is None else targets[i]
                picture = scene.stage.render(portrait, target, crop_only=options.crop_only)
                writer.write(picture, float(piece.times[i]))
                shown.frame(picture)
                frames += 1
                unseen += bool(piece.confidence[i] == 0)
                shown.update(share)
            asked += len(piece)
            if frames < asked:  # the source video is the shorter one and ends the result
                break
    files, problems = finish(output, beside, file, motion.path, frames, unseen, options)
    problems = [*motion.problems, *scene.problems, *problems]
    if motion.still and how.relative and options.rest == "first":
        problems.append(
            f"{motion.path} is one picture and so its own rest: nothing moved. "
            "--motion absolute takes its pose and expression."
        )
    return Animated(files, frames, problems)


@contextmanager
def _saved(path: Path | None) -> Iterator[Callable[[FaceTrack], object]]:
    """What takes the pieces of a track; the file is there when the block has ended well."""
    if path is None:
        yield lambda piece: None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TrackWriter(path.parent) as writer:
            yield writer.add
            writer.save(path)
    except OSError as error:
        raise write_error(path, error) from None


def _check(options: AnimateOptions) -> None:
    if options.save_motion and options.save_motion.suffix != ".safetensors":
        raise InputError(f"A saved motion ends in .safetensors, got {options.save_motion}.")
    if not 0 <= options.strength <= 3:
        raise InputError(f"The strength must be from 0 to 3, got {options.strength:g}.")
    if not 0 <= options.smooth <= 100:
        raise InputError(f"The smoothing must be from 0 to 100, got {options.smooth:g}.")
    if options.max_side < 64:
        raise InputError(f"The longer side must be at least 64 pixels, got {options.max_side}.")
    if options.rest not in ("first", "best") and not options.rest.isdecimal():
        raise InputError(f"The rest frame is 'first', 'best' or a frame number, got '{options.rest}'.")


class StillSource:
    """One picture, the same for every frame."""

    def __init__(self, animator: Animator) -> None:
        self.stage, self.portrait, self.problems = animator.stage, animator.portrait, animator.problems

    @property
    def size(self) -> tuple[int, int]:
        return self.portrait.picture.shape[0], self.portrait.picture.shape[1]

    def portraits(self) -> Iterator[Portrait]:
        while True:
            yield self.portrait


class MovingSource:
    """A video as source: every frame is a portrait of its own, in a square that holds still.

    Its frames are taken at the driving clip's rate, so that its own motion keeps its speed; without one at its own.
    """

    def __init__(self, path: Path, head: HeadModel, options: AnimateOptions, fps: Fraction | None = None) -> None:
        self.stage = Stage(head, size=options.size, crop=not options.no_crop, model=options.model)
        self.reader = self._open(path, options, fps)
        self.fps, self.options = fps, options
        self.problems: list[str] = []

    @property
    def size(self) -> tuple[int, int]:
        return self.reader.size

    def portraits(self) -> Iterator[Portrait]:
        return (portrait for portrait, _, _ in self.moments())

    def moments(self) -> Iterator[tuple[Portrait, float, bool]]:
        """Portraits, their times in seconds, and whether the face is seen in them."""
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
                portrait = self.stage.prepare(picture, landmarks, piece.params[i], piece.camera, square)
                yield portrait, float(piece.times[i]), bool(piece.confidence[i] > 0)
        self.problems += self.reader.problems

    @staticmethod
    def _open(path: Path, options: AnimateOptions, fps: Fraction | None) -> VideoReader:
        reader = VideoReader(path, max_side=options.max_side)
        return reader if fps is None or reader.fps == fps else VideoReader(path, max_side=options.max_side, fps=fps)


def _scene(
    source: str | Path | Picture | Animator, head: HeadModel, options: AnimateOptions, fps: Fraction
) -> StillSource | MovingSource:
    if isinstance(source, Animator):
        return StillSource(source)
    if isinstance(source, str | Path) and Path(source).suffix.lower() in VIDEO_SUFFIXES:
        return MovingSource(Path(source), head, options, fps)
    return StillSource(
        Animator(
            source,
            head=head,
            face=options.source_face,
            crop=not options.no_crop,
            size=options.size,
            max_side=options.max_side,
            model=options.model,
        )
    )
