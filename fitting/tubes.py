"""Tubes: where one face is in a video, from frame to frame, as FOMM's crop-video cuts clips.

A tube begins with a face that no other tube has, follows it, and ends when its box overlaps the tube's first box by no
more than a quarter (`OVERLAP`), or when it has not been seen for `PATIENCE` frames. The crop of a tube is the union of
its boxes with a margin (`square_crop`), fixed for the clip, so that the head moves in it and not the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..media.crop import Crop, union_box
from ..third_party.mediapipe import Picture, Region, region_of_landmarks
from .faces import Face, find_faces, follow_face, glance

OVERLAP = 0.25
"""Intersection over union with the first box below which a tube ends; FOMM's `--iou_with_initial`."""
PATIENCE = 10
"""Frames that a face may be hidden inside a tube."""
_LOOK = 10  # frames between two looks for further people
_THOROUGH = 50  # frames without any face between two searches that cost more


@dataclass
class Tube:
    """One face over consecutive frames."""

    first: int
    """Number of its first frame."""
    anchor: NDArray[np.float64]
    """(4,) its first box: left, top, right, bottom in pixels."""
    union: NDArray[np.float64]
    """(4,) of all its boxes."""
    region: Region
    """Where to look for the face in the next frame."""
    frames: int = 0
    """From the first to the last frame in which the face was seen."""
    lost: int = 0
    """Frames since then."""
    faces: int = 0
    """Frames in which the face was seen."""
    latest: Face | None = None
    """The face in the newest frame; None where it was not seen."""
    box: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    """(4,) its last box."""

    @classmethod
    def of(cls, face: Face, frame: int) -> Tube:
        box = face.box.astype(np.float64)
        tube = cls(frame, box, box, region_of_landmarks(face.landmarks))
        tube.add(face)
        return tube

    def add(self, face: Face | None) -> None:
        """The next frame."""
        self.latest = face
        if face is None:
            self.lost += 1
            return
        self.frames += self.lost + 1
        self.lost = 0
        self.faces += 1
        self.box = face.box.astype(np.float64)
        self.union = np.concatenate([np.minimum(self.union, self.box)[:2], np.maximum(self.union, self.box)[2:]])
        self.region = region_of_landmarks(face.landmarks)


class TubeFinder:
    """All tubes of a video, frame by frame.

    finder = TubeFinder()
    for image in frames:
        ended = finder.update(image)     # tubes that this frame is no part of
        finder.open                      # the tubes it belongs to
    """

    def __init__(self) -> None:
        self.open: list[Tube] = []
        """Tubes that go on, oldest first."""
        self._frame = -1
        self._empty = 0

    def update(self, image: Picture) -> list[Tube]:
        """Take the next frame, (H, W, 3) uint8 RGB; returns the tubes that have ended before it."""
        self._frame += 1
        followed = {id(tube): follow_face(image, tube.region) for tube in self.open if not tube.lost}
        missing = [tube for tube in self.open if followed.get(id(tube)) is None]
        found: list[Face] = []
        if missing or not self.open or self._frame % _LOOK == 0:
            found = self._look(image)
        ended: list[Tube] = []
        going: list[Tube] = []
        for tube in self.open:
            face = followed.get(id(tube)) or self._again(tube, found)
            if face is not None and any(overlap(face.box, other.box) > 0.5 for other in going if other.latest):
                ended.append(tube)  # two tubes on one face: the older one has it
                continue
            if face is not None and overlap(face.box, tube.anchor) <= OVERLAP:
                ended.append(tube)
                going.append(Tube.of(face, self._frame))
                continue
            tube.add(face)
            (ended if tube.lost > PATIENCE else going).append(tube)
        for face in found:
            if all(overlap(face.box, tube.box) <= OVERLAP for tube in going):
                going.append(Tube.of(face, self._frame))
        self.open = going
        return ended

    def _look(self, image: Picture) -> list[Face]:
        if self.open:
            return glance(image)
        thorough = self._empty % _THOROUGH == 0
        found = find_faces(image) if thorough else glance(image)
        self._empty = 0 if found else self._empty + 1
        return found

    @staticmethod
    def _again(tube: Tube, found: list[Face]) -> Face | None:
        near = [face for face in found if overlap(face.box, tube.box) > OVERLAP]
        return max(near, key=lambda face: overlap(face.box, tube.box), default=None)


def square_crop(box: NDArray[np.float64], size: int, picture: tuple[int, int], increase: float = 0.1) -> Crop:
    """The crop of a tube: FOMM's square around the union of its boxes, moved and, if need be, shrunk to show only the
    picture.

    (FOMM clips what reaches over the edge and then stretches the rest to a square; here faces keep their shape.)

    Args:
        box: (4,) left, top, right, bottom in pixels.
        size: side of the crop in pixels.
        picture: (H, W).
        increase: margin on each side, in units of the box's longer side.
    """
    return inside(union_box(box[None], increase, size), picture)


def inside(crop: Crop, picture: tuple[int, int]) -> Crop:
    """The crop moved, and shrunk where it must be, into a picture of (H, W)."""
    height, width = picture
    side = min(crop.side, height, width)
    x = min(max(crop.center[0], side / 2), width - side / 2)
    y = min(max(crop.center[1], side / 2), height - side / 2)
    return Crop((x, y), side, crop.size)


def overlap(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Intersection over union of two boxes (4,)."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    total = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / total if total > 0 else 0.0
