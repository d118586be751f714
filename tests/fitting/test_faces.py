"""Faces in pictures, and one person through a video."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from headwarp.fitting.faces import FaceTracker, NoFaceError, find_faces, largest_face
from headwarp.media.errors import InputError

REAL = Path(os.environ.get("HEADWARP_REAL", Path(__file__).parents[2] / ".." / "shared" / "data" / "real"))


def centre(face):
    return (face.box[:2] + face.box[2:]) / 2


def beside(left, right):
    """Two pictures beside each other, the right one at 3/4 of the size."""
    side = left.shape[0]
    small = cv2.resize(right, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    out = np.zeros((side, side + small.shape[1], 3), np.uint8)
    out[:, :side], out[: small.shape[0], side:] = left, small
    return out


def test_the_astronaut_is_found(astronaut):
    (face,) = find_faces(astronaut)
    x0, y0, x1, y1 = face.box
    assert 165 < x0 < 190
    assert 60 < y0 < 85
    assert 260 < x1 < 285
    assert 165 < y1 < 190
    assert face.presence > 0.95
    assert face.landmarks.shape == (478, 3)
    assert face.units.shape == (52,)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_pictures(astronaut, quarters):
    upright = find_faces(astronaut)[0].landmarks[:468, :2]
    (face,) = find_faces(np.ascontiguousarray(np.rot90(astronaut, quarters)))
    x, y = face.landmarks[:468, 0], face.landmarks[:468, 1]
    back = {1: (512 - y, x), 2: (512 - x, 512 - y), 3: (y, 512 - x)}[quarters]
    assert np.linalg.norm(np.stack(back, 1) - upright, axis=1).mean() < 2


def test_two_faces_come_largest_first(astronaut):
    faces = find_faces(beside(astronaut, astronaut))
    assert len(faces) == 2
    assert faces[0].size > faces[1].size
    assert centre(faces[0])[0] < 512 < centre(faces[1])[0]
    assert largest_face(beside(astronaut, astronaut), index=1).size == faces[1].size


def test_a_small_face_in_a_large_picture(astronaut):
    small = cv2.resize(astronaut, (220, 220), interpolation=cv2.INTER_AREA)
    image = np.full((1400, 1800, 3), 90, np.uint8)
    image[900:1120, 1300:1520] = small
    (face,) = find_faces(image)
    np.testing.assert_allclose(centre(face), [1300 + 226 * 220 / 512, 900 + 125 * 220 / 512], atol=6)


@pytest.mark.parametrize("kind", ["flat", "noise", "tiny"])
def test_no_face(kind):
    rng = np.random.default_rng(0)
    image = {
        "flat": np.full((300, 400, 3), 127, np.uint8),
        "noise": rng.integers(0, 256, (400, 300, 3), dtype=np.uint8),
        "tiny": np.zeros((3, 5, 3), np.uint8),
    }[kind]
    assert find_faces(image) == []
    with pytest.raises(NoFaceError, match=r"No face found in my\.png"):
        largest_face(image, name="my.png")


def test_asking_for_a_face_too_many(astronaut):
    with pytest.raises(NoFaceError, match="Face 3 was asked for"):
        largest_face(astronaut, index=3)


@pytest.mark.parametrize(
    "image", [None, np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3))], ids=str
)
def test_other_things_than_pictures_are_refused(image):
    with pytest.raises(InputError, match=r"uint8 \(H, W, 3\)"):
        find_faces(image)


def test_tracker_follows_and_comes_back(astronaut):
    """A moving face, then none for a while, then the face at another place."""
    tracker = FaceTracker()
    blank = np.full_like(astronaut, 80)
    for step in range(6):
        face = tracker.track(np.roll(astronaut, 6 * step, 1))
        np.testing.assert_allclose(centre(face), [226 + 6 * step, 125], atol=4)
    assert tracker.detections == 1, "a steady face needs no detector"
    for _ in range(4):
        assert tracker.track(blank) is None
    assert tracker.lost == 4
    face = tracker.track(np.roll(astronaut, 150, 1))
    np.testing.assert_allclose(centre(face), [376, 125], atol=4)


def test_tracker_without_any_face():
    tracker = FaceTracker()
    assert [tracker.track(np.zeros((120, 160, 3), np.uint8)) for _ in range(3)] == [None] * 3


def test_tracker_stays_with_its_person(astronaut):
    """Of two people the chosen one is followed, also when the other one is larger or alone for a moment."""
    both = beside(astronaut, astronaut)
    only_left = both.copy()
    only_left[:, 512:] = 80
    left, right = FaceTracker(), FaceTracker(point=(680, 95))
    assert centre(left.track(both))[0] < 512
    assert centre(right.track(both))[0] > 512
    assert centre(FaceTracker(index=1).track(both))[0] > 512
    for _ in range(3):
        assert centre(left.track(both))[0] < 512
        assert centre(right.track(both))[0] > 512
    right.track(np.zeros_like(both))
    assert centre(right.track(both))[0] > 512, "after a gap the person where the face was"
    assert only_left.any()


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real footage")
@pytest.mark.parametrize("name", ["s1", "s7", "s9", "s10", "s11", "body_d30", "expr_d8"])
def test_portraits_paintings_and_a_drawing(name):
    image = np.ascontiguousarray(cv2.imread(str(REAL / "portraits" / f"{name}.jpg"))[..., ::-1])
    assert len(find_faces(image)) == 1


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real footage")
def test_a_dog_is_no_person():
    image = np.ascontiguousarray(cv2.imread(str(REAL / "portraits" / "s33.jpg"))[..., ::-1])
    assert find_faces(image) == []
