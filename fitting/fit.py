"""Pictures and videos in, head parameters out.

    track = fit_image(image)                 one face of a picture, a FaceTrack of one frame
    track = fit_video("clip.mp4")            one person through a clip
    for piece in VideoFitter(...).run(frames): ...   the same in pieces, in constant memory
    live = LiveFitter(); live.update(frame)  a webcam, frame by frame

Detection and landmarks: `faces`; the optimisation: `solve`. A person's identity is settled on the first frames that
show the face and then kept, so that a clip is solved in one pass and the parameters of a person do not drift.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..geom.camera import Camera
from ..geom.head import HeadModel, load_head
from ..geom.track import FaceTrack
from ..media.crop import BoxSmoother, Crop
from ..media.errors import InputError
from ..media.files import IMAGE_SUFFIXES
from ..media.image import load_image
from ..media.video import Frame, VideoReader
from ..third_party.mediapipe import Picture
from .faces import Face, FaceTracker, NoFaceError, check_picture, largest_face
from .photometric import Glimpse, PhotometricRefiner, glimpse
from .solve import Guess, Identity, Solver, State, View

MakeGuess = Callable[[View], Guess]
Progress = Callable[[int, int | None], None]
"""Called with the frames done and the frames there are (None when unknown)."""

SETTLE_FRAMES = 60
"""Frames with a face after which a video's identity is settled."""
_SETTLED_ON = 16  # of these, the most different ones are solved together
_CHUNK = 64
_LOOKAHEAD = 12  # later frames that are solved along, so that a chunk's last frames know what follows


@cache
def shared_solver(head: str = "open") -> Solver:
    """The solver of a head by name or path, prepared once per process."""
    return Solver(load_head(head))


def fit_image(
    image: Picture,
    *,
    head: HeadModel | str = "open",
    face: Face | None = None,
    index: int = 0,
    name: str = "the picture",
) -> FaceTrack:
    """Fit the head to one face of a picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        head: model, or its name or path.
        face: a face found before; else it is looked for.
        index: which face: 0 = the largest.
        name: how to call the picture in error messages.
    Returns:
        A track of one frame.
    Raises:
        NoFaceError: no such face.
    """
    check_picture(image, "fit_image: image")
    solver = _solver(head)
    face = face or largest_face(image, index=index, name=name)
    seen = Observations.of([face])
    view, state, person = settle(solver, seen, offsets=False, size=(image.shape[0], image.shape[1]))
    crops = _crop_transforms(seen, BoxSmoother())
    return _track(solver, seen, view, state, person, np.zeros(1), 25.0, image.shape[:2], crops)


@dataclass(frozen=True)
class Observation:
    """One frame as the tracker saw it."""

    face: Face | None
    time: float
    glimpse: Glimpse | None = None
    """Of the face, for photometric refinement."""


@dataclass
class Observations:
    """What the tracker saw in T frames."""

    landmarks: NDArray[np.float32]
    """(T, 478, 3) pixels; a frame without a face repeats its predecessor's."""
    units: NDArray[np.float32]
    """(T, 52)"""
    confidence: NDArray[np.float32]
    """(T,) presence of the face; 0 = not seen."""

    @staticmethod
    def of(faces: Sequence[Face | None], before: Observations | None = None) -> Observations:
        """Observations of consecutive frames; gaps hold the last face seen, or the first one to come."""
        seen = [face for face in faces if face]
        if before is not None:
            last_landmarks, last_units = before.landmarks[-1], before.units[-1]
        elif seen:
            last_landmarks, last_units = seen[0].landmarks, seen[0].units
        else:
            last_landmarks, last_units = np.zeros((478, 3), np.float32), np.zeros(52, np.float32)
        landmarks, units, confidence = [], [], []
        for face in faces:
            if face:
                last_landmarks, last_units = face.landmarks, face.units
            landmarks.append(last_landmarks)
            units.append(last_units)
            confidence.append(face.presence if face else 0.0)
        return Observations(np.stack(landmarks), np.stack(units), np.asarray(confidence, np.float32))

    def __len__(self) -> int:
        return len(self.confidence)

    def __getitem__(self, index: Any) -> Observations:
        return Observations(self.landmarks[index], self.units[index], self.confidence[index])

    @staticmethod
    def cat(parts: Sequence[Observations]) -> Observations:
        names = ("landmarks", "units", "confidence")
        return Observations(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class VideoFitter:
    """Fits a video as its frames come, in memory that does not grow with the length.

        fitter = VideoFitter(fps=25)
        for frame in reader:
            for piece in fitter.push(frame.image, frame.time):
                ...                      # FaceTracks of consecutive frames
        for piece in fitter.finish(): ...

    Frames without a face (hidden, turned away) are carried over by the temporal term and have confidence 0.

    Args:
        head: model, or its name or path.
        fps: nominal frames per second, for the temporal term and the track.
        index, point: which face to follow, see `FaceTracker`.
        smooth: strength of the temporal term; 0 = frames are independent.
        photometric: refine the poses by what the frames look like, see `photometric`.
        cropped: the frames are face crops already, see `FaceTracker`.
        name: how to call the video in error messages.
    """

    def __init__(
        self,
        *,
        head: HeadModel | str = "open",
        fps: float = 25.0,
        index: int = 0,
        point: tuple[float, float] | None = None,
        smooth: float = 1.0,
        photometric: bool = False,
        cropped: bool = False,
        name: str = "the video",
    ) -> None:
        self.solver = _solver(head)
        self._refiner = PhotometricRefiner(self.solver) if photometric else None
        self.tracker = FaceTracker(index=index, point=point, cropped=cropped)
        self.fps, self.smooth, self.name = fps, smooth, name
        self._size: tuple[int, int] | None = None
        self._waiting: list[Observation] = []
        self._settled: tuple[View, Identity] | None = None
        self._last: State | None = None
        self._seen = 0
        self._last_seen: Observations | None = None
        self._crops = BoxSmoother()

    def push(self, image: Picture, time: float) -> Iterator[FaceTrack]:
        """Take the next frame; yields what is ready.

        Args:
            image: (H, W, 3) uint8 RGB, all of one size.
            time: seconds, increasing.
        """
        check_picture(image, f"VideoFitter.push: a frame of {self.name}")
        yield from self.observe(self.tracker.track(image), time, (image.shape[0], image.shape[1]), image)

    def observe(
        self, face: Face | None, time: float, size: tuple[int, int], image: Picture | None = None
    ) -> Iterator[FaceTrack]:
        """As `push`, for a face that was found before.

        Args:
            face: in the next frame; None where it is not seen.
            time: seconds, increasing.
            size: (H, W) of the frame, the same for all.
            image: the frame, if poses are refined photometrically; frames without stay as landmarks have them.
        """
        if self._size is not None and size != self._size:
            raise InputError(f"The frames of {self.name} change size, from {self._size} to {size} (height, width).")
        self._size = size
        self._seen += face is not None
        seen = glimpse(image, face.landmarks) if self._refiner and face and image is not None else None
        self._waiting.append(Observation(face, time, seen))
        if self._settled is None and self._seen >= SETTLE_FRAMES:
            self._settle()
        while self._settled is not None and len(self._waiting) >= _CHUNK + _LOOKAHEAD:
            yield self._solve(_CHUNK)

    def finish(self) -> Iterator[FaceTrack]:
        """The rest, after the last frame.

        Raises:
            NoFaceError: when no frame had a face. InputError: when there was no frame.
        """
        if self._size is None:
            raise InputError(f"There are no frames in {self.name}.")
        if self._seen == 0:
            raise NoFaceError(
                f"No face found in any frame of {self.name}. A human face is needed that is not turned away."
            )
        if self._settled is None:
            self._settle()
        while self._waiting:
            yield self._solve(min(_CHUNK, len(self._waiting)))

    def run(self, frames: Iterable[Frame]) -> Iterator[FaceTrack]:
        """All pieces of a video."""
        for frame in frames:
            yield from self.push(frame.image, frame.time)
        yield from self.finish()

    @property
    def settled(self) -> bool:
        """Whether it is known who the person is."""
        return self._settled is not None

    def _settle(self) -> None:
        seen = Observations.of([o.face for o in self._waiting if o.face])
        chosen = _most_different(seen, _SETTLED_ON)
        view, _, person = settle(self.solver, seen[chosen], offsets=True, size=self._size, guess=self._guess(chosen))
        self._settled = view, person

    def _guess(self, chosen: NDArray[np.int64]) -> MakeGuess | None:
        """What is known, before landmarks are looked at, of the person and of some of the frames with faces so far."""
        return None

    def _solve(self, count: int) -> FaceTrack:
        """Solve the next `count` frames, and some more to look ahead, and hand out the former."""
        assert self._settled is not None
        assert self._size is not None
        view, person = self._settled
        ahead = self._waiting[: count + _LOOKAHEAD]
        seen = Observations.of([o.face for o in ahead], self._last_seen)
        _, state = self.solver.start(seen.landmarks, seen.units, view)
        solve = self.solver.solve
        state, _ = solve(seen.landmarks, seen.units, view, state, person, pose_only=True, iterations=2)
        state, _ = solve(
            seen.landmarks,
            seen.units,
            view,
            state,
            person,
            confidence=seen.confidence,
            before=self._last,
            smooth=self.smooth * self.fps / 25,
            iterations=5,
        )
        if self._refiner:
            state = self._refiner.refine(
                [o.glimpse for o in ahead],
                seen.landmarks,
                view,
                state,
                person,
                smooth=self.smooth * self.fps / 25,
                keep=count,
            )
        self._last = state[count - 1 : count]
        self._last_seen = seen[count - 1 : count]
        times = np.array([o.time for o in ahead[:count]])
        self._waiting = self._waiting[count:]
        seen = seen[:count]
        crops = _crop_transforms(seen, self._crops)
        return _track(self.solver, seen, view, state[:count], person, times, self.fps, self._size, crops)


class LiveFitter:
    """Fits a live picture, frame by frame, without looking ahead: about 10 ms per frame.

    The identity is a first guess from the first face and settled once `SETTLE_FRAMES` frames have been seen, which
    takes as long as some ten frames.

    Args: see `VideoFitter`; and
        background: settle the identity in another thread, so that no frame waits for it.
    Attributes:
        settled: whether it is.
    """

    def __init__(
        self,
        *,
        head: HeadModel | str = "open",
        fps: float = 25.0,
        index: int = 0,
        point: tuple[float, float] | None = None,
        smooth: float = 1.0,
        background: bool = False,
    ) -> None:
        self.solver = _solver(head)
        self.tracker = FaceTracker(index=index, point=point)
        self.fps, self.smooth, self.background = fps, smooth, background
        self.settled = False
        self._settling: Future[tuple[View, State, Identity]] | None = None
        self._faces: list[Face] = []
        self._settled: tuple[View, Identity] | None = None
        self._last: State | None = None
        self._last_seen: Observations | None = None
        self._crops = BoxSmoother()

    def again(self, track: FaceTrack) -> FaceTrack:
        """A track of this fitter, solved by what is known of the person by now: the person's parameters shift when the
        identity settles, and frames are comparable only within one identity."""
        assert self._settled is not None
        seen = Observations(track.landmarks.numpy(), track.blendshapes.numpy(), track.confidence.numpy())
        return dataclasses.replace(track, params=self.solver.params(self._alone(seen), self._settled[1]))

    def _settle(self, size: tuple[int, int]) -> Future[tuple[View, State, Identity]]:
        seen = Observations.of(self._faces)
        chosen = seen[_most_different(seen, _SETTLED_ON)]
        worker = ThreadPoolExecutor(1)
        future = worker.submit(settle, self.solver, chosen, offsets=True, size=size)
        worker.shutdown(wait=False)
        return future

    def _alone(self, seen: Observations) -> State:
        """Frames solved without their neighbours."""
        assert self._settled is not None
        view, person = self._settled
        _, state = self.solver.start(seen.landmarks, seen.units, view)
        state, _ = self.solver.solve(seen.landmarks, seen.units, view, state, person, pose_only=True, iterations=4)
        state, _ = self.solver.solve(seen.landmarks, seen.units, view, state, person, iterations=10)
        return state

    def update(self, image: Picture, time: float = 0.0) -> FaceTrack | None:
        """The fit of the newest frame: a track of one frame; None as long as no face has been seen.

        While the face is lost the last fit is held with confidence 0.
        """
        face = self.tracker.track(image)
        if face is None and self._last is None:
            return None
        seen = Observations.of([face], self._last_seen)
        if self._settled is None:
            view, self._last, person = settle(self.solver, seen, offsets=False, size=(image.shape[0], image.shape[1]))
            self._settled = view, person
        elif face:
            view, person = self._settled
            assert self._last is not None
            smooth = self.smooth * self.fps / 25
            last, units, landmarks = self._last, seen.units, seen.landmarks
            self._last, _ = self.solver.solve(
                landmarks, units, view, last, person, before=last, smooth=smooth, iterations=3
            )
        if face and len(self._faces) < SETTLE_FRAMES:
            self._faces.append(face)
            if len(self._faces) == SETTLE_FRAMES:
                self._settling = self._settle((image.shape[0], image.shape[1]))
        if self._settling is not None and (self._settling.done() or not self.background):
            view, _, person = self._settling.result()
            self._settled, self._settling, self.settled = (view, person), None, True
            self._last = self._alone(seen)  # the state so far belongs to the first guess
        view, person = self._settled
        assert self._last is not None
        self._last_seen = seen
        crops = _crop_transforms(seen, self._crops)
        size = image.shape[:2]
        return _track(self.solver, seen, view, self._last, person, np.array([time]), self.fps, size, crops)


def fit_video(
    video: Path | str | VideoReader,
    *,
    head: HeadModel | str = "open",
    index: int = 0,
    point: tuple[float, float] | None = None,
    smooth: float = 1.0,
    photometric: bool = False,
    progress: Progress | None = None,
) -> FaceTrack:
    """Fit the head to one person of a video (or a folder of frames).

    Args:
        video: path, or a reader (for a frame rate or a size of your choice).
        head, index, point, smooth, photometric: see `VideoFitter`.
        progress: called after every frame.
    Raises:
        InputError: the file cannot be read or has no frames. NoFaceError: no face in it.
    """
    reader = video if isinstance(video, VideoReader) else VideoReader(video)
    fitter = VideoFitter(
        head=head,
        fps=float(reader.fps),
        index=index,
        point=point,
        smooth=smooth,
        photometric=photometric,
        name=reader.path.name,
    )
    total = reader.info.frame_count or None

    def counted() -> Iterator[Frame]:
        for frame in reader:
            yield frame
            if progress:
                progress(frame.index + 1, total)

    return FaceTrack.cat(fitter.run(counted()))


def fit(
    source: Path | str | Picture, *, head: HeadModel | str = "open", index: int = 0, progress: Progress | None = None
) -> FaceTrack:
    """Fit the head to a picture (array or file) or a video (file, or folder of frames).

    Args:
        source: (H, W, 3) uint8 RGB, or a path.
        head: "open", "flame", or a head file.
        index: which face: 0 = the largest (of the first frame with faces).
        progress: called after every frame of a video.
    """
    if not isinstance(source, str | Path):
        return fit_image(source, head=head, index=index)
    path = Path(source)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return fit_image(load_image(path), head=head, index=index, name=path.name)
    return fit_video(path, head=head, index=index, progress=progress)


def settle(
    solver: Solver,
    seen: Observations,
    *,
    offsets: bool,
    size: tuple[int, int] | None = None,
    guess: MakeGuess | None = None,
) -> tuple[View, State, Identity]:
    """Camera, identity and the states of some frames of one person that all show the face.

    Args:
        solver: for the head.
        seen: frames with faces; the first fixes the camera.
        offsets: whether to learn where this person's landmarks sit beside the model's (needs several frames).
        size: (H, W) of the frames, see `Solver.start`.
        guess: called with the camera; what to stay close to.
    """
    view, state = solver.start(seen.landmarks, seen.units, size=size)
    person, known = solver.person(), guess(view) if guess else None
    landmarks, units = seen.landmarks, seen.units
    state, person = solver.solve(landmarks, units, view, state, person, pose_only=True, iterations=4)
    state, person = solver.solve(landmarks, units, view, state, person, shared_shape=True, guess=known, iterations=10)
    if offsets:
        person = solver.personal_offsets(seen.landmarks, view, state, person)
        state, person = solver.solve(landmarks, units, view, state, person, guess=known, iterations=4)
    return view, state, person


def _most_different(seen: Observations, count: int) -> NDArray[np.int64]:
    """Up to `count` frames that differ most in pose and expression, in order, the first one among them."""
    points = seen.landmarks[:, :468, :2].astype(np.float64)
    points = points - points.mean(1, keepdims=True)
    looks = (points / np.sqrt(np.square(points).sum((1, 2), keepdims=True))).reshape(len(seen), -1)
    chosen = [0]
    nearest = np.square(looks - looks[0]).sum(1)
    while len(chosen) < min(count, len(seen)):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(looks - looks[chosen[-1]]).sum(1))
    return np.array(sorted(set(chosen)))


def _crop_transforms(seen: Observations, smoother: BoxSmoother) -> torch.Tensor:
    """(T, 3) scale, tx, ty of steady crops around the face."""
    rows = []
    for points in seen.landmarks[:, :468]:
        matrix = smoother.update(Crop.from_landmarks(points)).matrix
        rows.append([matrix[0, 0], matrix[0, 2], matrix[1, 2]])
    return torch.tensor(np.array(rows), dtype=torch.float32)


def _solver(head: HeadModel | str) -> Solver:
    return shared_solver(head) if isinstance(head, str) else _prepared(head)


@lru_cache(maxsize=4)
def _prepared(head: HeadModel) -> Solver:
    return Solver(head)


def _track(
    solver: Solver,
    seen: Observations,
    view: View,
    state: State,
    person: Identity,
    times: NDArray[Any],
    fps: float,
    size: Sequence[int],
    crops: torch.Tensor,
) -> FaceTrack:
    return FaceTrack(
        params=solver.params(state, person),
        camera=Camera(torch.tensor([view.focal]), torch.tensor([view.principal])),
        landmarks=torch.from_numpy(seen.landmarks),
        confidence=torch.from_numpy(seen.confidence),
        blendshapes=torch.from_numpy(seen.units),
        times=torch.as_tensor(times, dtype=torch.float64),
        crop=crops,
        fps=fps,
        image_size=(int(size[0]), int(size[1])),
        head_name=solver.head.name,
        head_sha256=solver.head.sha256,
    )
