"""Animating with keypoint models (FOMM, DaGAN, G3FA, OSTNet): the motion is read from the driver's pictures.

driving frame --face, still crop--> 256 x 256 --read_motion--> keypoints --normalise--> render --paste--> picture
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..fitting.faces import FaceTracker, check_picture, choose_face, face_of_crop, find_faces
from ..media.crop import BoxSmoother, Crop
from ..media.errors import InputError
from ..media.files import VIDEO_SUFFIXES
from ..media.image import load_image, save_image
from ..media.video import VideoReader
from ..nets.generator import Output
from ..nets.keypoints import Motion, best_frame, normalise
from ..nets.ostnet import OstNet
from .driving import TRACK_SUFFIXES
from .explain import explain, explained
from .models import open_model
from .options import DEFAULTS, AnimateOptions
from .output import Picture, Watch, bar, check_paths, finish, open_output

SIDE = 256
"""Pixels: all published keypoint models work at this size."""
SCALE, SHIFT = 1.9, 0.06
"""Crops in face sizes, and how far their centre stands above the face's: the framing of VoxCeleb, which they know."""


class KeypointAnimator:
    """One portrait and a keypoint model.

    Args:
        source: a picture file, or an (H, W, 3) uint8 RGB array.
        model: with the verbs of `nets.keypoints` models.
        face: which face, 0 = the largest.
        crop: find the face and move a square around it; False: the whole picture is that square already.
        max_side: larger files are reduced to this longer side.
    Raises:
        InputError: the file cannot be read, or has no such face.
    """

    def __init__(
        self, source: str | Path | Picture, model: Any, *, face: int = 0, crop: bool = True, max_side: int = 1920
    ) -> None:
        self.model = model
        self.rectifies = isinstance(model, OstNet)
        """The model brings the driver to the source's proportions: there is no rest, and no relative motion."""
        self.problems: list[str] = []
        name = "the picture" if isinstance(source, np.ndarray) else str(source)
        self.picture = source if isinstance(source, np.ndarray) else load_image(source, max_side=max_side)
        check_picture(self.picture, "KeypointAnimator: source")
        self.landmarks: NDArray[np.float32] | None = None
        if crop:
            faces = find_faces(self.picture)
            found = choose_face(faces, self.picture, index=face, name=name)
            if len(faces) > 1 and face == 0:
                self.problems.append(
                    f"{name} shows {len(faces)} faces; the largest moves, --source-face 1 is the next."
                )
            self.landmarks = found.landmarks
            self.square = Crop.from_landmarks(found.landmarks[:468], SCALE, SHIFT, SIDE)
        else:
            self.square = Crop.whole(self.picture.shape, SIDE)
            only = face_of_crop(self.picture)
            self.landmarks = None if only is None else only.landmarks
        self.crop = crop
        with torch.inference_mode():
            self.state = model.encode_source(tensor(self.square.extract(self.picture)))

    def read(self, image: Picture) -> Motion:
        """The motion of a driving crop, (256, 256, 3)."""
        with torch.inference_mode():
            frame = tensor(image)
            motion: Motion = (
                self.model.read_motion(frame, self.state) if self.rectifies else self.model.read_motion(frame)
            )
        return motion

    def move(self, motion: Motion) -> Output:
        """What the network makes of a motion (B = 1) in the source's terms."""
        with torch.inference_mode():
            output: Output = self.model.render(self.state, motion)
        return output

    def render(self, motion: Motion, *, crop_only: bool = False) -> Picture:
        """The picture under a motion (B = 1) in the source's terms, or only its square, (256, 256, 3)."""
        return self.picture_of(self.move(motion), crop_only=crop_only)

    def picture_of(self, output: Output, *, crop_only: bool = False) -> Picture:
        """The whole picture, or only its square, (256, 256, 3)."""
        image = output.image[0]
        moved = (image.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        if crop_only or (self.picture.shape == moved.shape and not self.crop):
            return moved
        return self.square.paste(self.picture, moved, feather=0.06 if self.crop else 1e-6)


@dataclass(frozen=True)
class _Sight:
    """The driver at one moment."""

    image: Picture
    """(256, 256, 3)"""
    time: float
    landmarks: NDArray[np.float32] | None
    """(478, 3) px of the frame; None where no face is seen."""


def animate_keypoints(
    source: str | Path | Picture,
    driving: Path,
    output: str | Path,
    options: AnimateOptions,
    *,
    progress: bool | Watch = False,
) -> tuple[int, list[Path], list[str]]:
    """Make `source` follow `driving`; arguments and errors as of `app.animate.animate`.

    Returns:
        The number of frames, the files that were written, and what there is to say.
    """
    _check(source, driving, options)
    reader = VideoReader(driving, max_side=1280)
    file = source if isinstance(source, str | Path) else None
    beside = check_paths(file, driving, reader, output, options)
    model: Any = open_model(options.model)
    animator = KeypointAnimator(
        source, model, face=options.source_face, crop=not options.no_crop, max_side=options.max_side
    )
    relative = options.motion == "relative" and not animator.rectifies
    first = _rest(reader, animator, options, progress) if relative else None
    size = (SIDE, SIDE) if options.crop_only else (animator.picture.shape[0], animator.picture.shape[1])
    frames = unseen = 0
    with (
        open_output(output, size, driving, reader, reader.fps, options) as writer,
        bar("animate", reader.frame_count, progress) as shown,
        closing(_sights(reader, options, animator.problems)) as sights,
    ):
        for sight in sights:
            seen = animator.read(sight.image)
            first = seen if first is None else first
            motion = normalise(
                seen,
                first,
                animator.state.motion,
                relative=relative,
                jacobian=options.jacobian,
                adapt_scale=options.adapt_scale,
            )
            made = animator.move(motion)
            picture = animator.picture_of(made, crop_only=options.crop_only)
            writer.write(picture, sight.time)
            shown.frame(picture)
            if options.explain:
                told = explain(
                    model.generator,
                    animator.state,
                    motion,
                    made,
                    driving=tensor(sight.image),
                    seen=seen,
                    query=options.explain_at,
                )
                save_image(options.explain / f"{frames:07d}.png", explained(told))
            frames += 1
            unseen += sight.landmarks is None and not options.no_crop
            shown.update(1)
    files, problems = finish(output, beside, file, driving, frames, unseen, options)
    return frames, files, [*reader.problems, *animator.problems, *problems]


def _check(source: str | Path | Picture, driving: Path, options: AnimateOptions) -> None:
    name = options.model
    if driving.suffix.lower() in TRACK_SUFFIXES:
        raise InputError(f"{name} is a keypoint model: it needs the driver's pictures, {driving.name} has none.")
    if options.save_motion:
        raise InputError(f"{name} is a keypoint model: it fits no head, so there is no motion to save.")
    if isinstance(source, str | Path) and Path(source).suffix.lower() in VIDEO_SUFFIXES:
        raise InputError(f"{name} is a keypoint model: its source is a picture; videos move with --model geometric.")
    for flag, given, default in (
        ("--region", options.region, DEFAULTS.region),
        ("--strength", options.strength, DEFAULTS.strength),
    ):
        if given != default:
            raise InputError(
                f"{name} is a keypoint model: its motion cannot be taken apart by {flag}; --model geometric can."
            )

    at = options.explain_at
    if at and not (0 <= at[0] < SIDE and 0 <= at[1] < SIDE):
        raise InputError(f"--explain-at must be a pixel of {SIDE} x {SIDE}, got {at[0]:g} {at[1]:g}.")


def _sights(reader: VideoReader, options: AnimateOptions, problems: list[str]) -> Generator[_Sight]:
    """The driving clip in crops that hold still around the face."""
    tracker = FaceTracker(index=options.driving_face, cropped=options.no_crop)
    holding = BoxSmoother()
    waiting: list[tuple[Picture, float]] = []  # frames before the first face
    square: Crop | None = None
    told = False
    for frame in reader:
        if options.no_crop:
            whole = Crop.whole(frame.image.shape, SIDE)
            found = tracker.track(frame.image) if options.rest == "best" else None
            yield _Sight(whole.extract(frame.image), frame.time, None if found is None else found.landmarks)
            continue
        face = tracker.track(frame.image)
        if face is not None:
            square = holding.update(Crop.from_landmarks(face.landmarks[:468], SCALE, SHIFT, SIDE))
        if tracker.faces > 1 and options.driving_face == 0 and not told:
            problems.append(
                f"{reader.path} shows {tracker.faces} faces; the largest drives, --driving-face 1 is the next."
            )
            told = True
        if square is None:
            waiting.append((frame.image, frame.time))
            if len(waiting) > 250:
                break
            continue
        for image, time in waiting:
            yield _Sight(square.extract(image), time, None)
        waiting.clear()
        yield _Sight(square.extract(frame.image), frame.time, None if face is None else face.landmarks)
    if waiting:
        raise InputError(
            f"No face found in the first {len(waiting)} frames of {reader.path}. Crop closer around it if it is small, "
            "or pass --no-crop if the frames are face crops already."
        )


def _rest(
    reader: VideoReader, animator: KeypointAnimator, options: AnimateOptions, progress: bool | Watch
) -> Motion | None:
    """Keypoints of the driving frame that counts as rest; None: the first one, without looking ahead."""
    if options.rest == "first":
        return None
    landmarks = []
    with (
        bar("look for rest", reader.frame_count, progress) as shown,
        closing(_sights(reader, options, [])) as all_sights,
    ):
        for number, sight in enumerate(all_sights):
            shown.update(1)
            if options.rest != "best":
                if number == int(options.rest):
                    return animator.read(sight.image)
                continue
            seen = sight.landmarks
            landmarks.append(np.full((478, 2), np.nan, np.float32) if seen is None else seen[:, :2])
    if options.rest != "best":
        raise InputError(f"Frame {options.rest} cannot count as rest: {reader.path} has fewer frames.")
    if animator.landmarks is None:
        raise InputError("No face found in the source, so no driving frame can be most like it; use --rest first.")
    try:
        best = best_frame(animator.landmarks, np.stack(landmarks))
    except ValueError as error:
        raise InputError(str(error)) from None
    with closing(_sights(reader, options, [])) as all_sights:
        for number, sight in enumerate(all_sights):
            if number == best:
                return animator.read(sight.image)
    return None


def tensor(image: Picture) -> Tensor:
    """(H, W, 3) uint8 as (1, 3, H, W) float32 in [0, 1], channels_last."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
