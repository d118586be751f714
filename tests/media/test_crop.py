"""Crops go there and back; pasting touches nothing but what it must; boxes hold still."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwarp.media.crop import BoxSmoother, Crop, union_box

crops = st.builds(
    Crop,
    st.tuples(st.floats(-200, 800), st.floats(-200, 800)),
    st.floats(5, 3000),
    st.integers(16, 1024),
    st.floats(-4, 4),
)


@given(crops, st.lists(st.tuples(st.floats(-2000, 2000), st.floats(-2000, 2000)), min_size=1, max_size=5))
def test_points_go_to_the_crop_and_back(crop, points):
    points = np.array(points)
    np.testing.assert_allclose(crop.to_image(crop.to_crop(points)), points, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.c_[points, np.ones(len(points))] @ crop.matrix.T, crop.to_crop(points), atol=1e-6)


@given(crops)
def test_the_square_fills_the_crop(crop):
    np.testing.assert_allclose(crop.to_crop(np.array(crop.center)), [crop.size / 2] * 2, atol=1e-6)
    corners = crop.to_image(np.array([(0, 0), (crop.size, 0), (crop.size, crop.size)]))
    np.testing.assert_allclose(np.linalg.norm(np.diff(corners, axis=0), axis=1), crop.side, rtol=1e-9)


def test_angle_turns_clockwise():
    crop = Crop((50, 50), 20, 20, np.pi / 2)
    np.testing.assert_allclose(crop.to_image(np.array([(20.0, 10.0)])), [(50, 60)], atol=1e-9)  # crop's right = down


def test_pixels_that_coincide_are_copied(lab):
    image = lab.picture(40, 60)
    np.testing.assert_array_equal(Crop((30, 20), 16, 16).extract(image), image[12:28, 22:38])
    turned = Crop((30, 20), 16, 16, np.pi / 2).extract(image)
    np.testing.assert_array_equal(turned, np.rot90(image[12:28, 22:38], 1))


def test_beyond_the_edge_the_last_pixels_repeat(lab):
    image = lab.picture(40, 60)
    crop = Crop((0, 20), 16, 16).extract(image)
    np.testing.assert_array_equal(crop[:, 8:], image[12:28, :8])
    np.testing.assert_array_equal(crop[:, :8], np.repeat(image[12:28, :1], 8, 1))
    assert (Crop((-500, -500), 16, 16).extract(image) == image[0, 0]).all()


@pytest.mark.parametrize("side", [20.5, 64, 100, 333, 1000, 2500])
@pytest.mark.parametrize("angle", [0, 0.3])
def test_a_gradient_lands_where_it_should(side, angle):
    """No half-pixel shift at any scale: a linear ramp must be sampled at the pixel centres' own places."""
    image = np.empty((3000, 3100, 3), np.uint8)
    image[..., 0] = np.rint((np.arange(3100) + 0.5) / 3100 * 255)
    image[..., 1] = np.rint((np.arange(3000) + 0.5) / 3000 * 255)[:, None]
    crop = Crop((1500.3, 1499.6), side, 64, angle)
    centres = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5), -1)
    wanted = crop.to_image(centres) / (3100, 3000) * 255
    found = crop.extract(image)[..., :2]
    inside = (np.abs(wanted - 127.5) < 126).all(-1)
    error = (found - wanted)[inside]
    assert np.abs(error.mean()) < 0.05
    assert np.abs(error).max() < 1.1  # rounding


@pytest.mark.parametrize("shrink", [1.5, 2, 3.7, 8, 21])
@pytest.mark.parametrize("angle", [0, 0.5])
def test_reducing_does_not_alias(shrink, angle):
    """Noise of single pixels averages out as the square root of their number says, or nearly so."""
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), np.uint8)
    small = Crop((700, 700), 64 * shrink * 0.7, 45, angle).extract(noise)
    assert abs(small.mean() - 127.5) < 2
    assert small.std() < 1.35 * noise.std() / shrink


def test_bad_crops_are_told():
    for bad in ({"side": 0}, {"side": float("nan")}, {"size": 0}):
        with pytest.raises(ValueError, match="Crop"):
            Crop(**{"center": (1.0, 2.0), "side": 3.0, **bad})
    with pytest.raises(ValueError, match="uint8"):
        Crop((4, 4), 4, 4).extract(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="from_landmarks"):
        Crop.from_landmarks(np.full((5, 2), np.nan))


def test_from_landmarks_scales_and_shifts_with_the_face():
    points = np.array([[100.0, 200, 5], [180, 300, 5], [140, 250, 5]])
    crop = Crop.from_landmarks(points, scale=2.0, shift_up=0.1, size=256)
    assert crop == Crop((140.0, 230.0), 200.0, 256)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])  # the same face, rolled clockwise by atan2(0.6, 0.8)
    rolled = Crop.from_landmarks(points[:, :2] @ turn.T, scale=2.0, size=256, angle=np.arctan2(0.6, 0.8))
    np.testing.assert_allclose(rolled.to_crop(points[:, :2] @ turn.T), crop.to_crop(points[:, :2]), atol=1e-9)


def test_whole_is_the_picture(lab):
    image = lab.picture(48, 48)
    np.testing.assert_array_equal(Crop.whole(image.shape).extract(image), image)
    assert Crop.whole((30, 50), 256).side == 50


paste_cases = pytest.mark.parametrize(
    "crop", [Crop((70, 60), 64, 64), Crop((70.3, 60.8), 91.7, 64, 0.3), Crop((3, 118), 150, 64), Crop((70, 60), 20, 64)]
)


@paste_cases
def test_an_unchanged_crop_gives_the_picture_back_exactly(lab, crop):
    image = np.random.default_rng(0).integers(0, 256, (120, 140, 3), np.uint8)
    face = crop.extract(image)
    np.testing.assert_array_equal(crop.paste(image, face, reference=face), image)
    np.testing.assert_array_equal(crop.paste(image, 255 - face, np.zeros((64, 64))), image)
    aligned = Crop((70, 60), 64, 64)
    np.testing.assert_array_equal(aligned.paste(image, aligned.extract(image)), image)


@paste_cases
def test_pasting_changes_the_inside_only(lab, crop):
    image = lab.picture(120, 140)
    before = image.copy()
    result = crop.paste(image, np.full((64, 64, 3), (255, 0, 255), np.uint8))
    np.testing.assert_array_equal(image, before)
    y, x = np.mgrid[0:120, 0:140] + 0.5
    place = crop.to_crop(np.stack([x, y], -1))
    outside = ((place < -1) | (place > 65)).any(-1)
    inside = ((place > 8) & (place < 56)).all(-1)
    np.testing.assert_array_equal(result[outside], image[outside])
    assert (result[inside] == (255, 0, 255)).all()
    step = np.abs(np.diff(result.astype(int), axis=0)).max()
    assert step < 255 / max(0.06 * crop.side * 0.5, 1) + 40  # a ramp, not an edge


def test_only_what_changed_is_taken_from_the_crop(lab):
    """A large picture keeps its own sharp pixels beside a changed mouth."""
    image = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    crop = Crop((300, 300), 512, 128)
    face = crop.extract(image)
    changed = face.copy()
    changed[90:110, 50:80] = (200, 60, 60)
    result = crop.paste(image, changed, reference=face)
    np.testing.assert_array_equal(result[:340], image[:340])
    assert np.abs(result[44 + 4 * 94 : 44 + 4 * 106, 44 + 4 * 54 : 44 + 4 * 76].astype(int) - (200, 60, 60)).max() <= 1


def test_a_crop_outside_the_picture_changes_nothing(lab):
    image = lab.picture(40, 60)
    np.testing.assert_array_equal(Crop((500, 500), 64, 64).paste(image, np.zeros((64, 64, 3), np.uint8)), image)


def test_pasting_small_does_not_alias():
    checker = (
        np.kron(np.indices((256, 256)).sum(0) % 2 * 255, np.ones((1, 1))).astype(np.uint8)[..., None].repeat(3, -1)
    )
    result = Crop((50, 50), 60, 256).paste(np.zeros((100, 100, 3), np.uint8), checker)
    middle = result[35:65, 35:65].astype(int)
    assert np.abs(middle - 127.5).max() < 30


def test_paste_tells_wrong_shapes(lab):
    image, crop = lab.picture(40, 60), Crop((30, 20), 16, 16)
    with pytest.raises(ValueError, match="paste"):
        crop.paste(image, np.zeros((15, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="mask"):
        crop.paste(image, np.zeros((16, 16, 3), np.uint8), np.ones((8, 8)))


def test_a_box_under_jitter_comes_to_rest():
    rng = np.random.default_rng(0)
    smoother = BoxSmoother()
    crops = []
    for _ in range(600):
        direction, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0, 15)  # the zone is 16 wide
        center = (300 + radius * np.cos(direction), 300 + radius * np.sin(direction))
        crops.append(smoother.update(Crop(center, 200 * (1 + rng.uniform(-0.06, 0.06)), 256)))
    late = crops[300:]
    assert sum(a != b for a, b in pairwise(late)) <= 3
    assert late[0].side == late[-1].side
    assert np.hypot(*np.subtract(late[-1].center, (300, 300))) < 2  # centred on the face, not on its first position


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.97, 1.03)), min_size=20, max_size=60))
def test_a_box_follows_without_jumps_and_never_loses_the_face(steps):
    smoother = BoxSmoother()
    x, y, side = 300.0, 200.0, 150.0
    before = smoother.update(Crop((x, y), side, 256))
    for dx, dy, growth in steps:
        x, y, side = x + 12 * dx, y + 12 * dy, side * growth
        crop = smoother.update(Crop((x, y), side, 256))
        assert np.hypot(crop.center[0] - x, crop.center[1] - y) <= 0.08 * crop.side + 1e-9
        assert 1 / 1.15 - 1e-9 <= side / crop.side <= 1.15 + 1e-9
        # A box moves no farther than the face did, but for the zone that shrinks with it.
        moved = np.hypot(*np.subtract(crop.center, before.center))
        assert moved <= np.hypot(12 * dx, 12 * dy) + 0.08 * abs(crop.side - before.side) + 1e-9
        assert crop.side / before.side == pytest.approx(1, abs=0.031)
        before = crop


def test_a_cut_starts_afresh():
    smoother = BoxSmoother()
    smoother.update(Crop((100, 100), 100, 256))
    assert smoother.update(Crop((300, 100), 100, 256)).center == (300, 100)
    assert smoother.update(Crop((300, 100), 250, 256)).side == 250


def test_union_box_holds_all_boxes_with_fomms_margin():
    boxes = np.array([(10, 20, 50, 80), (20, 25, 70, 70)])
    crop = union_box(boxes, increase=0.1)
    assert crop.center == (40, 50)
    assert crop.side == pytest.approx(1.2 * 60)
    with pytest.raises(ValueError, match="union_box"):
        union_box(np.zeros((0, 4)))


@pytest.mark.slow
def test_pasting_is_fast():
    """A 512 crop into 1000 x 1000 pixels of a 12-megapixel photo: 30 ms of processor time were measured."""
    image = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    crop = Crop((2000, 1500), 1000, 512, 0.1)
    face = crop.extract(image)
    start = time.process_time()
    for _ in range(5):
        crop.paste(image, face)
    assert (time.process_time() - start) / 5 < 0.1
