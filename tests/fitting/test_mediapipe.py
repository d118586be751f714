"""The models' readers: box decoding and merging, regions, and that coordinates mean what they say."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwarp.third_party import mediapipe
from headwarp.third_party.mediapipe import Detections, MediaPipe, Region, decode_detections, merge_overlapping


@pytest.fixture(scope="module")
def models():
    return MediaPipe()


@pytest.mark.parametrize(("model", "count", "side"), [("short", 896, 128), ("full", 2304, 192)])
def test_anchors_are_cell_centres(model, count, side):
    anchors = mediapipe._anchors(model)
    assert anchors.shape == (count, 2)
    np.testing.assert_allclose(anchors.mean(0), side / 2)
    assert np.unique(anchors, axis=0).shape[0] == {"short": 256 + 64, "full": 2304}[model]


def test_decoding_turns_codes_at_an_anchor_into_pixels():
    anchors = np.array([[10.0, 20.0], [50.0, 60.0]], np.float32)
    codes = np.zeros((2, 16), np.float32)
    codes[1, :4] = [3, -2, 8, 6]  # centre at (53, 58), 8 wide, 6 high
    codes[1, 4:6] = [1, 2]
    logits = np.array([[-5.0], [2.0]], np.float32)
    found = decode_detections(codes, logits, 128, anchors, 0.5, 0.3)
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes[0], [49, 55, 57, 61])
    np.testing.assert_allclose(found.keypoints[0, :2], [[51, 62], [50, 60]])
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-2)), rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 10_000))
def test_merging_leaves_separate_boxes_best_first(count, seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 100, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (count, 2))], 1).astype(np.float32)
    found = Detections(boxes, rng.uniform(0, 100, (count, 6, 2)).astype(np.float32), rng.random(count, np.float32))
    merged = merge_overlapping(found, 0.3)
    assert len(merged) <= count
    assert bool(count) == bool(len(merged))
    assert (np.diff(merged.scores) <= 0).all()
    assert not count or merged.scores[0] == found.scores.max()
    if count:  # means of boxes lie inside of their hull
        assert (merged.boxes >= boxes.min(0) - 1e-3).all()
        assert (merged.boxes <= boxes.max(0) + 1e-3).all()


def test_equal_boxes_merge_to_themselves():
    box = np.array([[1.0, 2.0, 11.0, 22.0]], np.float32).repeat(3, 0)
    found = Detections(box, np.ones((3, 6, 2), np.float32), np.array([0.5, 0.9, 0.7], np.float32))
    merged = merge_overlapping(found, 0.3)
    np.testing.assert_allclose(merged.boxes, box[:1], rtol=1e-6)
    np.testing.assert_allclose(merged.scores, [0.9])


@pytest.mark.parametrize("angle", [0.0, 0.6, -2.0])
@pytest.mark.parametrize("size", [100.0, 500.0])  # below and far above the cut's side: plain and area sampling
def test_a_cut_shows_the_region_upright(angle, size):
    height, width = 900, 1100
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.stack([x / width * 255, y / height * 255, np.full_like(x, 50)], -1).round().astype(np.uint8)
    region = Region(520.0, 430.0, size, angle)
    cut = region.cut(image, 64).astype(np.float64)
    rows, columns = np.mgrid[:64, :64] + 0.5
    expected = region.to_picture(np.stack([columns, rows], -1) / 64)
    np.testing.assert_allclose(cut[..., 0] * width / 255, expected[..., 0], atol=4)
    np.testing.assert_allclose(cut[..., 1] * height / 255, expected[..., 1], atol=4)


def test_a_cut_outside_of_the_picture_is_black():
    image = np.full((50, 60, 3), 200, np.uint8)
    assert not Region(1000.0, 1000.0, 30.0, 0.3).cut(image, 32).any()
    assert not Region(5000.0, 1000.0, 900.0, 0.3).cut(image, 32).any()


def test_landmarks_follow_the_picture(models, astronaut):
    """Moving and enlarging the picture moves the landmarks alike: crops and letterboxes lose no pixel."""
    import cv2

    region = Region(222.0, 122.0, 180.0, 0.0)
    reference, presence = models.landmarks(astronaut, region)
    assert presence > 0.9
    shifted = np.roll(astronaut, (30, 40), (0, 1))
    moved, _ = models.landmarks(shifted, Region(262.0, 152.0, 180.0, 0.0))
    np.testing.assert_allclose(moved[:, :2], reference[:, :2] + [40, 30], atol=1e-3)
    twice = cv2.resize(astronaut, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    large, _ = models.landmarks(twice, Region(444.0, 244.0, 360.0, 0.0))
    assert np.abs(large[:, :2] / 2 - reference[:, :2]).mean() < 0.5


def test_mirrored_pictures_have_mirrored_units(models, astronaut):
    from headwarp.geom import arkit

    region = Region(222.0, 122.0, 180.0, 0.0)
    plain = models.face_units(models.landmarks(astronaut, region)[0])
    flipped = np.ascontiguousarray(astronaut[:, ::-1])
    mirrored = models.face_units(models.landmarks(flipped, Region(512 - 222.0, 122.0, 180.0, 0.0))[0])
    left, right = arkit.INDEX["mouthSmileLeft"], arkit.INDEX["mouthSmileRight"]
    assert plain[[left, right]].min() > 0.4, "the astronaut smiles"
    np.testing.assert_allclose(mirrored[[left, right]], plain[[right, left]], atol=0.15)


def test_face_units_do_not_depend_on_scale_and_place(models, astronaut):
    landmarks, _ = models.landmarks(astronaut, Region(222.0, 122.0, 180.0, 0.0))
    np.testing.assert_allclose(models.face_units(landmarks), models.face_units(landmarks * 3 + 50), atol=0.02)


def test_person_mask_covers_the_person(models, astronaut):
    mask = models.person_mask(astronaut)
    assert mask.shape == (512, 512)
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert mask[90:170, 190:260].mean() > 0.9  # the face
    assert mask[20:120, 20:80].mean() < 0.2  # the flag and the wall


def test_threads_share_one_instance(models, astronaut):
    region = Region(222.0, 122.0, 180.0, 0.0)
    expected = models.landmarks(astronaut, region)[0]
    results: list[np.ndarray] = []
    work = [
        threading.Thread(target=lambda: results.append(models.landmarks(astronaut, region)[0])),
        threading.Thread(target=lambda: models.detect(astronaut)),
        threading.Thread(target=lambda: results.append(models.landmarks(astronaut, region)[0])),
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(results) == 2
    for result in results:
        np.testing.assert_array_equal(result, expected)
