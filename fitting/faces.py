"""Faces in pictures and videos: where they are, their 478 landmarks and face units.

find_faces(image)            every face of a still picture, largest first
FaceTracker().track(frame)   one person through a video, about one landmark run (6 ms) per frame
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..media.errors import InputError
from ..third_party.mediapipe import (
    LEFT_EYE_CORNERS,
    RIGHT_EYE_CORNERS,
    Detections,
    Floats,
    MediaPipe,
    Picture,
    Region,
    region_of_detection,
    region_of_landmarks,
)

MIN_PRESENCE = 0.7
"""Landmark model's presence below which a still picture's candidate is no face (photos: > .99, a dog's muzzle: .56)."""
MIN_TRACKED_PRESENCE = 0.5

_DETECTORS: tuple[Literal["full", "short"], ...] = ("full", "short")


class NoFaceError(InputError):
    """No face where one is needed."""


@dataclass(frozen=True)
class Face:
    """A face in a picture."""

    landmarks: Floats
    """(478, 3): x, y in pixels, z in the same unit (smaller = nearer); 468 mesh points, then the irises."""
    units: Floats
    """(52,) ARKit face units in the order of `geom.arkit.NAMES`, about [0, 1]."""
    score: float
    """Detector's score in [0, 1]; for a tracked face that was not detected anew, the presence."""
    presence: float
    """Landmark model's belief in [0, 1] that this is a face."""

    @property
    def box(self) -> Floats:
        """(4,) x0, y0, x1, y1 pixels: bounds of the mesh points."""
        points = self.landmarks[:468, :2]
        return np.concatenate([points.min(0), points.max(0)])

    @property
    def size(self) -> float:
        """Pixels: longer side of the box."""
        box = self.box
        return float(max(box[2:] - box[:2]))

    @property
    def eye_distance(self) -> float:
        """Pixels between the outer eye corners, the unit of landmark errors."""
        corners = self.landmarks[[RIGHT_EYE_CORNERS[0], LEFT_EYE_CORNERS[0]], :2]
        return float(np.linalg.norm(corners[1] - corners[0]))


@cache
def shared_models() -> MediaPipe:
    """The models that functions use when none are given; loaded once per process."""
    return MediaPipe()


def find_faces(image: Picture, *, models: MediaPipe | None = None) -> list[Face]:
    """All faces of a picture, largest first; an empty list when there is none.

    Looks harder step by step, and stops at the first step that finds a face: the whole picture; again with a low
    threshold (paintings, drawings, odd light); turned by 180, 90 and 270 degrees; in overlapping tiles (small faces in
    large pictures). A candidate counts when the landmark model agrees, twice: on the detector's region and on the one
    of its own landmarks.

    Args:
        image: (H, W, 3) uint8 RGB.
        models: default: one set shared by the process.
    """
    check_picture(image, "find_faces: image")
    models = models or shared_models()
    for candidates in _searches(image, models):
        faces = _distinct(_confirmed(image, candidates, models))
        if faces:
            return faces
    return []


def largest_face(image: Picture, *, index: int = 0, name: str = "the picture", models: MediaPipe | None = None) -> Face:
    """One face of a picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        index: 0 = the largest, 1 = the next ...
        name: how to call the picture in the error message.
    Raises:
        NoFaceError: when there are not more than `index` faces.
    """
    return choose_face(find_faces(image, models=models), image, index=index, name=name)


def choose_face(faces: list[Face], image: Picture, *, index: int = 0, name: str = "the picture") -> Face:
    """One of the faces found in a picture; arguments and errors as of `largest_face`."""
    if not faces:
        raise NoFaceError(
            f"No face found in {name} ({image.shape[1]} x {image.shape[0]} pixels). A human face, at least about 30 "
            "pixels wide and not turned away, is needed; crop closer around it if it is small."
        )
    if not 0 <= index < len(faces):
        raise NoFaceError(f"Face {index} was asked for, but {name} has {len(faces)} (counted from 0, largest first).")
    return faces[index]


def face_of_crop(image: Picture, *, models: MediaPipe | None = None) -> Face | None:
    """The face of a picture that is a face crop already, without a detector; None when it is not like one.

    Args:
        image: (H, W, 3) uint8 RGB.
        models: default: one set shared by the process.
    """
    height, width = image.shape[:2]
    for share in (1.0, 0.7):  # tight crops, crops with hair and shoulders
        region = Region(width / 2, height / 2, share * max(height, width), 0.0)
        face = _confirm(image, region, None, models or shared_models())
        if face:
            return face
    return None


def follow_face(image: Picture, region: Region, *, models: MediaPipe | None = None) -> Face | None:
    """The face in the next frame of a video, looked for where it was; None when it is not there.

    Args:
        image: (H, W, 3) uint8 RGB.
        region: `region_of_landmarks` of the face in the frame before.
        models: default: one set shared by the process.
    """
    models = models or shared_models()
    landmarks, presence = models.landmarks(image, region)
    if presence < MIN_TRACKED_PRESENCE:
        return None
    # A face that moved far stands at the rim of the old region, where the model is less exact: look again.
    moved = region_of_landmarks(landmarks)
    if math.hypot(moved.x - region.x, moved.y - region.y) > 0.08 * region.size:
        landmarks, presence = models.landmarks(image, moved)
        if presence < MIN_TRACKED_PRESENCE:
            return None
    if not _plausible(landmarks, region.size):
        return None
    return Face(landmarks, models.face_units(landmarks), presence, presence)


def glance(image: Picture, *, models: MediaPipe | None = None) -> list[Face]:
    """The faces that one look at the whole picture finds, largest first: for the frames of videos, 30 ms a face.

    Unlike `find_faces` it does not search on when it sees none.
    """
    models = models or shared_models()
    found = Detections.cat([models.detect(image, model) for model in _DETECTORS])
    return _distinct(_confirmed(image, _each(found), models))


def check_picture(image: Any, what: str) -> None:
    """InputError unless `image` is a uint8 (H, W, 3) array."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(
            f"{what} must be a uint8 (H, W, 3) RGB array, got {got}. `headwarp.media` reads any file that way."
        )
    if min(image.shape[:2]) < 2:
        raise InputError(f"{what} is {image.shape[1]} x {image.shape[0]} pixels; too small to hold a face.")


class FaceTracker:
    """Follows one person through a video.

    A frame's landmarks are read in the region of the last frame's landmarks; the detector runs only at the start and
    when the face is lost. With several faces in the picture the person nearest to where the face was is taken; a face
    that turns up elsewhere is taken only when it is alone or after `patience` frames.

    Args:
        index: which face of the first frame with faces to follow: 0 = the largest.
        point: instead of `index`: follow the face nearest to this (x, y) in pixels.
        patience: frames to wait for the person to come back before any face is taken.
        cropped: the frames are face crops already: the face is looked for in the whole first frame, without a detector.
        models: default: one set shared by the process.
    """

    def __init__(
        self,
        *,
        index: int = 0,
        point: tuple[float, float] | None = None,
        patience: int = 25,
        cropped: bool = False,
        models: MediaPipe | None = None,
    ) -> None:
        self.models = models or shared_models()
        self.index, self.point, self.patience, self.cropped = index, point, patience, cropped
        self.faces = 0
        """How many faces there were to choose from in the first frame with faces."""
        self.lost = 0
        """Frames since the face was last seen."""
        self.detections = 0
        """How often the detector had to run."""
        self._region: Region | None = None

    def track(self, image: Picture) -> Face | None:
        """The face in the next frame; None when it is not there (it may come back).

        Raises:
            NoFaceError: the first frame with faces has no face number `index`.
        """
        check_picture(image, "FaceTracker.track: image")
        face = follow_face(image, self._region, models=self.models) if self._region and not self.lost else None
        if face is None:
            face = self._search(image)
        if face is None:
            self.lost += 1
            return None
        self.lost = 0
        self._region = region_of_landmarks(face.landmarks)
        return face

    def _search(self, image: Picture) -> Face | None:
        if self._region is None and self.cropped and self.index == 0:
            face = face_of_crop(image, models=self.models)
            if face is not None:
                self.faces = 1
                return face
        self.detections += 1
        if self._region is None:
            faces = find_faces(image, models=self.models)
            if not faces:
                return None
            self.faces = len(faces)
            if self.point is not None:
                return min(faces, key=lambda f: _distance(f.landmarks, self.point))
            return choose_face(faces, image, index=self.index, name="the first frame with a face")
        # The thorough steps are for pictures; in a video without a face they would cost seconds per second.
        thorough = self.lost > 0 and self.lost % 50 == 0
        faces = find_faces(image, models=self.models) if thorough else glance(image, models=self.models)
        last = self._region
        near = [
            face
            for face in faces
            if _distance(face.landmarks, (last.x, last.y)) < 0.5 * last.size and 0.5 < 1.5 * face.size / last.size < 2
        ]
        if near:
            return min(near, key=lambda f: _distance(f.landmarks, (last.x, last.y)))
        if faces and (len(faces) == 1 or self.lost >= self.patience):
            return faces[0]
        return None


def _searches(image: Picture, models: MediaPipe) -> Iterator[Iterator[Detections]]:
    """Candidates of each step, from easy to thorough; every step is lazy."""

    small, factor = _shrink(image, 768)

    def both(threshold: float, quarters: int = 0) -> Detections:
        turned = np.ascontiguousarray(np.rot90(small, quarters))
        parts = [models.detect(turned, model, threshold=threshold) for model in _DETECTORS]
        found = _turn_back(Detections.cat(parts), small.shape[:2], quarters)
        return Detections(found.boxes * factor, found.keypoints * factor, found.scores)

    yield _each(both(0.5))
    yield _each(both(0.2))
    for quarters in (2, 1, 3):
        yield _each(both(0.5, quarters))
    for fraction in (2, 4, 8):
        if max(image.shape[:2]) >= 256 * fraction:
            yield _each(_in_tiles(image, fraction, lambda tile: models.detect(tile, "full")))


def _each(found: Detections) -> Iterator[Detections]:
    return (found[i : i + 1] for i in range(len(found)))


def _confirmed(image: Picture, candidates: Iterator[Detections], models: MediaPipe) -> Iterator[Face]:
    for candidate in candidates:
        region = region_of_detection(candidate.boxes[0], candidate.keypoints[0])
        face = _confirm(image, region, float(candidate.scores[0]), models)
        if face:
            yield face


def _confirm(image: Picture, region: Region, score: float | None, models: MediaPipe) -> Face | None:
    """The face in a region, refined; None when the landmark model does not see one."""
    landmarks, presence = models.landmarks(image, region)
    # The first reading only has to be good enough to aim the second one.
    if presence < 0.1 or not _plausible(landmarks, region.size):
        return None
    for _ in range(2):
        region = region_of_landmarks(landmarks)
        landmarks, presence = models.landmarks(image, region)
    if presence < MIN_PRESENCE or not _plausible(landmarks, region.size):
        return None
    return Face(landmarks, models.face_units(landmarks), presence if score is None else score, presence)


def _plausible(landmarks: Floats, size: float) -> bool:
    """Whether landmarks have about the extent that their region promised and are finite."""
    if not np.isfinite(landmarks).all():
        return False
    extent = float(np.ptp(landmarks[:468, :2], axis=0).max())
    return 0.25 * size < extent < 1.5 * size


def _distinct(faces: Iterator[Face]) -> list[Face]:
    """Faces, largest first; of two with nearly the same place the one with the better score stays."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -f.score):
        centre = face.landmarks[:468, :2].mean(0)
        if all(_distance(other.landmarks, centre) > 0.4 * min(other.size, face.size) for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda f: -f.size)


def _distance(landmarks: Floats, point: Any) -> float:
    return float(np.linalg.norm(landmarks[:468, :2].mean(0) - np.asarray(point)))


def _shrink(image: Picture, longest: int) -> tuple[Picture, float]:
    """The picture with its longer side at most `longest`, and the factor back to the full size."""
    factor = max(image.shape[:2]) / longest
    if factor <= 1:
        return image, 1.0
    size = (max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), factor  # type: ignore[return-value]


def _turn_back(found: Detections, size: tuple[int, int], quarters: int) -> Detections:
    """Detections in np.rot90(image, quarters) as detections in the image of `size` (H, W)."""
    height, width = size

    def back(points: NDArray[Any]) -> NDArray[Any]:
        x, y = points[..., 0], points[..., 1]
        # rot90 turns against the clock: a point (x, y) of the picture lands on (y, W - x), once per quarter
        mapped = {1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[quarters]
        return np.stack(mapped, -1)

    if not quarters:
        return found
    corners = back(found.boxes.reshape(-1, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    return Detections(boxes, back(found.keypoints), found.scores)


def _in_tiles(image: Picture, fraction: int, detect: Callable[[Picture], Detections]) -> Detections:
    """Detections in square tiles of 1/fraction of the longer side, half overlapping."""
    height, width = image.shape[:2]
    side = -(-max(height, width) // fraction)
    parts = []
    for y in _starts(height, side):
        for x in _starts(width, side):
            found = detect(np.ascontiguousarray(image[y : y + side, x : x + side]))
            offset = np.array([x, y], np.float32)
            parts.append(Detections(found.boxes + np.tile(offset, 2), found.keypoints + offset, found.scores))
    return Detections.cat(parts)


def _starts(length: int, side: int) -> list[int]:
    """Starts of half-overlapping stretches of `side` that cover `length`."""
    count = max(1, math.ceil((length - side) / (side / 2)) + 1)
    return sorted({round(i * max(length - side, 0) / max(count - 1, 1)) for i in range(count)})
