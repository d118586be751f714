"""Pictures and videos in, head parameters out.

    track = fit_image(image)                 one face of a picture, a FaceTrack of one frame
    track = fit_video("clip.mp4")            one person through a clip
    for piece in VideoFitter(...).run(frames): ...   the same in pieces, in constant memory
    live = LiveFitter(); live.update(frame)  a webcam, frame by frame

Detection and landmarks: `faces`; the optimisation: `solve`. A person's identity is settled on the first frames that
show the face and then kept, so that a clip is solved in one pass and the parameters of a person do not drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..geom.camera import Camera
from ..geom.head import HeadModel, load_head
from ..geom.track import FaceTrack
from ..third_party.mediapipe import Picture
from .faces import Face, check_picture, largest_face
from .solve import Identity, Solver, State, View


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
    view, state, person = settle(solver, seen, offsets=False)
    return _track(solver, seen, view, state, person, np.zeros(1), 25.0, image.shape[:2])


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


def settle(solver: Solver, seen: Observations, *, offsets: bool) -> tuple[View, State, Identity]:
    """Camera, identity and the states of some frames of one person that all show the face.

    Args:
        solver: for the head.
        seen: frames with faces; the first fixes the camera.
        offsets: whether to learn where this person's landmarks sit beside the model's (needs several frames).
    """
    view, state = solver.start(seen.landmarks)
    person = solver.person()
    state, person = solver.solve(seen.landmarks, seen.units, view, state, person, pose_only=True, iterations=4)
    state, person = solver.solve(seen.landmarks, seen.units, view, state, person, shared_shape=True, iterations=10)
    if offsets:
        person = solver.personal_offsets(seen.landmarks, view, state, person)
        state, person = solver.solve(seen.landmarks, seen.units, view, state, person, iterations=4)
    return view, state, person


def _solver(head: HeadModel | str) -> Solver:
    return shared_solver(head) if isinstance(head, str) else Solver(head)


def _track(
    solver: Solver,
    seen: Observations,
    view: View,
    state: State,
    person: Identity,
    times: NDArray[Any],
    fps: float,
    size: Sequence[int],
) -> FaceTrack:
    frames = len(seen)
    return FaceTrack(
        params=solver.params(state, person),
        camera=Camera(torch.tensor([view.focal]), torch.tensor([view.principal])),
        landmarks=torch.from_numpy(seen.landmarks),
        confidence=torch.from_numpy(seen.confidence),
        blendshapes=torch.from_numpy(seen.units),
        times=torch.as_tensor(times, dtype=torch.float64),
        crop=torch.tensor([[1.0, 0.0, 0.0]]).repeat(frames, 1),
        fps=fps,
        image_size=(int(size[0]), int(size[1])),
        head_name=solver.head.name,
        head_sha256=solver.head.sha256,
    )
