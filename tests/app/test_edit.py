"""`headwarp edit` and `frontalize`: does the picture show what was asked? Judged by fitting it again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headwarp.app.animator import Animator
from headwarp.fitting.faces import Face, largest_face
from headwarp.fitting.fit import fit_image
from headwarp.geom.head import HeadParams
from headwarp.geom.rotation import axis_angle_to_matrix, matrix_to_euler
from headwarp.media.image import load_image, save_image
from headwarp.third_party.mediapipe import (
    EYELIDS,
    INNER_LIPS,
    LEFT_EYE_CORNERS,
    LEFT_IRIS,
    RIGHT_EYE_CORNERS,
    RIGHT_IRIS,
)


@pytest.fixture(scope="module")
def large(astronaut) -> np.ndarray:
    """The astronaut's head and shoulders, large enough to be fitted well."""
    return np.ascontiguousarray(astronaut[:400, 20:420])


@pytest.fixture(scope="module")
def animator(large) -> Animator:
    return Animator(large, size=384)


def turn(picture: np.ndarray, rest: HeadParams) -> np.ndarray:
    """Degrees of yaw, pitch, roll from the pose `rest` to the face in the picture."""
    matrix = axis_angle_to_matrix(fit_image(picture).params.rotation) @ axis_angle_to_matrix(rest.rotation).mT
    return matrix_to_euler(matrix)[0].numpy()


@pytest.mark.parametrize("asked", [(15, 0, 0), (-15, 0, 0), (0, 10, 0), (0, -10, 0), (0, 0, 12), (0, 0, -12)])
def test_pose_comes_out_as_asked(animator, asked):
    yaw, pitch, roll = asked
    got = turn(animator.edit(yaw=yaw, pitch=pitch, roll=roll), animator.portrait.params)
    assert got == pytest.approx(asked, abs=4.5)


def test_positive_yaw_turns_to_the_right_and_positive_roll_to_the_left(animator, large):
    """The signs of the documentation, without the head model: nose against cheeks, slope of the eye line."""

    def nose(face: Face) -> float:
        return float((face.landmarks[1, 0] - face.box[0]) / (face.box[2] - face.box[0]))

    def slope(face: Face) -> float:
        across = face.landmarks[LEFT_EYE_CORNERS[0]] - face.landmarks[RIGHT_EYE_CORNERS[0]]
        return math.degrees(math.atan2(across[1], across[0]))

    still = largest_face(large)
    assert nose(largest_face(animator.edit(yaw=12))) > nose(still) + 0.03
    # The top of the head goes left: the eye line falls on the left, y is down.
    assert slope(largest_face(animator.edit(roll=12))) == pytest.approx(slope(still) - 12, abs=3)


def opening(face: Face, pair: tuple[int, int]) -> float:
    """Distance of two landmarks in eye distances."""
    return float(np.linalg.norm(np.subtract(*face.landmarks[list(pair), :2]))) / face.eye_distance


def test_the_jaw_opens(animator):
    still = largest_face(animator.edit())
    wide = largest_face(animator.edit(jaw=14))
    assert opening(wide, INNER_LIPS) > opening(still, INNER_LIPS) + 0.1


def test_eyes_close_one_by_one(animator):
    still = largest_face(animator.edit())
    both = largest_face(animator.edit(expression={"eyeBlinkLeft": 1, "eyeBlinkRight": 1}))
    wink = largest_face(animator.edit(expression={"eyeBlinkLeft": 1}))
    left, right = EYELIDS
    assert opening(both, left) < 0.5 * opening(still, left)
    assert opening(both, right) < 0.5 * opening(still, right)
    assert opening(wink, left) < 0.6 * opening(still, left)
    assert opening(wink, right) > 0.75 * opening(still, right)


def test_the_person_looks_where_asked(animator):
    """Positive gaze: right and down in the picture."""

    def look(face: Face) -> np.ndarray:
        eyes = ((LEFT_IRIS, LEFT_EYE_CORNERS), (RIGHT_IRIS, RIGHT_EYE_CORNERS))
        offsets = [face.landmarks[iris, :2] - face.landmarks[list(corners), :2].mean(0) for iris, corners in eyes]
        return np.mean(offsets, 0) / face.eye_distance

    right, left = (look(largest_face(animator.edit(gaze=(x, 0)))) for x in (20.0, -20.0))
    assert right[0] > left[0] + 0.04
    down, up = (look(largest_face(animator.edit(gaze=(0, y)))) for y in (15.0, -15.0))
    assert down[1] > up[1] + 0.005


def test_a_smile_widens_the_mouth(animator):
    still = largest_face(animator.edit())
    smile = largest_face(animator.edit(expression={"mouthSmileLeft": 0.9, "mouthSmileRight": 0.9}))
    assert opening(smile, (61, 291)) > 1.05 * opening(still, (61, 291))


def test_shape_changes_the_face_and_only_there(animator, large, lab):
    narrow, wide = (animator.edit(shape={"jaw-width": value}) for value in (-1.0, 1.0))
    assert lab.psnr(narrow, wide) < 45

    def width(picture: np.ndarray) -> float:
        points = largest_face(picture).landmarks
        return float(np.linalg.norm(points[172, :2] - points[397, :2]))  # corners of the jaw

    assert width(wide) > width(narrow)


def test_no_change_gives_the_portrait_back(animator, large):
    assert np.array_equal(animator.edit(), large)


def test_only_the_square_changes_and_it_has_no_seam(animator, large):
    moved = animator.edit(yaw=12, jaw=8)
    square = animator.portrait.square
    left, top = (round(c - square.side / 2) for c in square.center)
    side = round(square.side)
    inside = np.zeros(large.shape[:2], bool)
    inside[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
    assert np.array_equal(moved[~inside], large[~inside])
    # Across the border of the square neighbours differ as they did before.
    change = np.abs(moved.astype(int) - large.astype(int)).max(-1)
    rim = inside & ~np.pad(inside, 1)[2:, 1:-1] | inside & ~np.pad(inside, 1)[:-2, 1:-1]
    rim |= inside & ~np.pad(inside, 1)[1:-1, 2:] | inside & ~np.pad(inside, 1)[1:-1, :-2]
    rim[[0, -1]], rim[:, [0, -1]] = False, False  # at the edge of the picture nothing meets the rim
    assert rim.any()
    assert change[rim].max() == 0


def test_the_command_writes_what_the_library_makes(lab, portrait, tmp_path):
    out = tmp_path / "deep" / "out.png"
    options = ("--yaw", 12, "--pitch", -5, "--jaw", 6, "--gaze", "-10,3", "--size", 256)
    units = ("--expression", "mouthSmileLeft=0.5", "browInnerUp=0.5", "--expression", "cheekPuff=0.3")
    done = lab.headwarp("edit", "-s", portrait, "-o", out, *options, *units, "--shape", "nose-width=0.5")
    assert (done.code, done.out.strip(), done.err) == (0, str(out), "")
    expected = Animator(portrait, size=256).edit(
        yaw=12,
        pitch=-5,
        jaw=6,
        gaze=(-10, 3),
        expression={"mouthSmileLeft": 0.5, "browInnerUp": 0.5, "cheekPuff": 0.3},
        shape={"nose-width": 0.5},
    )
    assert np.array_equal(load_image(out), expected)
    assert "AI-generated" in Image.open(out).info["comment"]


def test_frontalize_turns_the_face_to_the_camera(lab, animator, tmp_path):
    save_image(tmp_path / "turned.png", animator.edit(yaw=-14))  # the astronaut looks to the left already
    done = lab.headwarp("frontalize", "-s", tmp_path / "turned.png", "-o", tmp_path / "front.png")
    assert done.code == 0, done.err
    before, after = (yaw(tmp_path / name) for name in ("turned.png", "front.png"))
    assert abs(before) > 10
    assert abs(after) < 0.5 * abs(before)


def yaw(path: Path) -> float:
    rotation = axis_angle_to_matrix(fit_image(load_image(path)).params.rotation)
    return float(matrix_to_euler(rotation)[0, 0])


def test_crop_only_has_the_asked_size(lab, portrait, tmp_path):
    for command in ("edit", "frontalize"):
        done = lab.headwarp(command, "-s", portrait, "-o", tmp_path / "out.jpg", "--crop-only", "--size", 192)
        assert done.code == 0, done.err
        assert load_image(tmp_path / "out.jpg").shape == (192, 192, 3)


def test_of_two_faces_the_largest_or_the_asked_one(lab, make_two, tmp_path):
    both = make_two(tmp_path / "two.png")
    before = load_image(both).astype(int)
    middle = 164  # the larger person begins here
    for face, right in ((0, True), (1, False)):
        out = tmp_path / f"{face}.png"
        done = lab.headwarp("edit", "-s", both, "-o", out, "--jaw", 10, "--size", 192, "--source-face", face)
        assert done.code == 0, done.err
        assert ("2 faces" in done.err and "--source-face 1" in done.err) is (face == 0), done.err
        changed = np.abs(load_image(out).astype(int) - before).max(-1) > 20
        share = changed[:, middle:].sum() / changed.sum()
        assert share > 0.9 if right else share < 0.1
    assert "Face 2 was asked for" in lab.refused("edit", "-s", both, "-o", out, "--source-face", 2)
