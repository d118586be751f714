"""The geometric animator as a whole: what must hold for any portrait."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from headwarp.geom import arkit
from headwarp.geom.head import HeadParams
from headwarp.geom.rotation import compose, euler_to_axis_angle
from headwarp.render.geometric import GeometricRenderer

from .conftest import paint


def turned(params: HeadParams, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> HeadParams:
    return params.replace(rotation=compose(euler_to_axis_angle(yaw, pitch, roll)[None].float(), params.rotation))


def posed(head, params: HeadParams, **units: float) -> HeadParams:
    added = head.arkit(arkit.weights_from_names(units))
    return params.replace(**{name: getattr(params, name) + value for name, value in added.items()})


def test_no_motion_gives_the_source(renderer, state, observation, params):
    result = renderer.render(state, params)
    np.testing.assert_array_equal(result.image, observation.image)
    assert np.abs(result.displacement).max() < 1e-3


@pytest.mark.parametrize("factor", [0.75, 1.5, 2.0])
def test_no_motion_gives_the_source_at_its_own_resolution(renderer, observation, params, factor):
    side = int(192 * factor)
    fine = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    state = renderer.encode_source(dataclasses.replace(observation, fine=fine))
    np.testing.assert_array_equal(renderer.render(state, params).image, fine)


def test_a_shifted_head_shifts_the_face_by_as_much(renderer, state, observation, params, camera):
    step = 0.012
    moved = params.replace(translation=params.translation + torch.tensor([[step, 0.0, 0.0]]))
    result = renderer.render(state, moved)
    nose, brow = observation.landmarks[1], observation.landmarks[9]
    for place in (nose, brow, observation.landmarks[50], observation.landmarks[280]):
        depth = 0.9 - 0.06  # the face lies a hand before the root
        wanted = float(camera.focal[0]) * step / depth
        x, y = int(place[0] + wanted), int(place[1])
        np.testing.assert_allclose(result.displacement[y, x], [-wanted, 0], atol=0.35)


def test_the_face_follows_the_mesh(renderer, state, head, params, camera, skin, wall):
    """Against the truth, a drawing of the moved head: much closer than the picture before the motion."""
    target = posed(head, turned(params, 8, 4), mouthSmileLeft=0.6, mouthSmileRight=0.6)
    truth, mask = paint(head, target, camera, skin, wall)
    still, _ = paint(head, params, camera, skin, wall)
    result = renderer.render(state, target).image
    face = ndimage.binary_erosion(mask > 0, iterations=6)
    face[120:] = False  # the neck does not turn with the head, by design
    error = np.abs(result.astype(float) - truth)[face].mean()
    assert error < 0.6 * np.abs(still.astype(float) - truth)[face].mean()


@pytest.mark.parametrize("motion", ["turn", "nod", "shift", "near"])
def test_the_border_never_moves(renderer, state, observation, params, motion):
    target = {
        "turn": turned(params, 25, 0, 10),
        "nod": turned(params, 0, 20),
        "shift": params.replace(translation=params.translation + torch.tensor([[0.05, 0.03, 0.0]])),
        "near": params.replace(translation=params.translation * 0.8),
    }[motion]
    result = renderer.render(state, target)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        assert np.abs(result.displacement[edge]).max() == 0
        np.testing.assert_array_equal(result.image[edge], observation.image[edge])


@pytest.mark.parametrize("yaw", [-25.0, 15.0, 25.0])
@pytest.mark.parametrize("landmark", [1, 234, 454])  # nose tip, both cheeks before the ears
def test_nothing_is_seen_twice(renderer, head, params, camera, observation, skin, wall, yaw, landmark):
    """A coloured spot on the skin stays one spot: hidden pixels do not show what covers them."""
    spot = head.embeddings["mediapipe"].points(head.v_template[None])[0]
    spot = spot[head.embeddings["mediapipe"].indices == landmark]
    distance = (head.v_template - spot).norm(dim=1)
    colours = torch.where((distance < 0.010)[:, None], torch.tensor([[0.0, 0.9, 0.1]]), skin)
    image, _ = paint(head, params, camera, colours, wall)
    state = renderer.encode_source(dataclasses.replace(observation, image=image))

    result = renderer.render(state, turned(params, yaw)).image.astype(int)
    green = result[..., 1] - np.maximum(result[..., 0], result[..., 2]) > 40
    labels, _ = ndimage.label(green, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    assert (sizes > 3).sum() <= 1


@pytest.mark.parametrize("mask", ["none", "empty", "full", "bald"])
def test_extreme_motion_and_poor_masks_stay_finite(renderer, observation, params, head, mask):
    person = {
        "none": None,
        "empty": np.zeros(observation.image.shape[:2], np.float32),
        "full": np.ones(observation.image.shape[:2], np.float32),
        "bald": observation.person * (np.arange(192)[:, None] > 60),
    }[mask]
    state = renderer.encode_source(dataclasses.replace(observation, person=person))
    np.testing.assert_array_equal(renderer.render(state, params).image, observation.image)
    extremes = [
        turned(params, 90),
        turned(params, 0, -80),
        turned(params, 180),
        params.replace(jaw=torch.tensor([[math.radians(60), 0.3, 0.0]])),
        params.replace(translation=torch.tensor([[0.0, 0.0, 0.5]])),
        params.replace(translation=torch.tensor([[5.0, 0.0, -0.9]])),
        params.replace(eyes=torch.full((1, 6), 2.0), eyelids=torch.tensor([[3.0, -3.0]])),
        params.replace(expression=10 * torch.ones_like(params.expression)),
    ]
    for motion in extremes:
        result = renderer.render(state, motion)
        assert result.image.dtype == np.uint8
        assert np.isfinite(result.displacement).all()


def test_a_grey_portrait_stays_grey(renderer, head, params, observation):
    grey = np.repeat(observation.image.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    state = renderer.encode_source(dataclasses.replace(observation, image=grey))
    motion = posed(head, turned(params, 12, -6), jawOpen=0.8, eyeBlinkLeft=0.7, mouthSmileLeft=0.5)
    motion = motion.replace(eyes=torch.tensor([[0.1, 0.25, 0, 0.1, 0.25, 0]]))
    result = renderer.render(state, motion).image.astype(int)
    assert np.ptp(result, axis=-1).max() <= 2


def test_the_same_motion_gives_the_same_bits(renderer, state, head, params):
    motion = posed(head, turned(params, 14, 5), jawOpen=0.5, eyeBlinkRight=0.6)
    first = renderer.render(state, motion).image
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        second = renderer.render(state, motion).image
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(first, second)


def test_small_steps_make_small_changes(renderer, state, head, params):
    """No mask may switch: along a slow motion no pixel jumps from one frame to the next."""
    frames = []
    for step in range(7):
        motion = posed(head, turned(params, 6 + 0.1 * step, 3), jawOpen=0.02 * step, eyeBlinkLeft=0.02 * step)
        frames.append(renderer.render(state, motion).image.astype(int))
    jumps = np.abs(np.diff(frames, axis=0)).max((0, 3))
    assert np.percentile(jumps, 99.5) < 30
    assert jumps.max() < 110  # edges of teeth and lids that pass over a pixel


def test_an_open_jaw_shows_the_mouth_and_a_closed_one_does_not(renderer, state, head, params, observation):
    x, y = observation.landmarks[[13, 14]].mean(0).astype(int)
    closed = renderer.render(state, turned(params, 3)).image[y, x].astype(int)
    opened = renderer.render(state, posed(head, params, jawOpen=1.0)).image[y + 8, x].astype(int)
    assert np.abs(closed - observation.image[y, x]).max() < 40
    assert opened.sum() < 0.7 * closed.sum()


def test_closed_lids_hide_the_eye(renderer, head, params, camera, observation, skin, wall):
    weights = head.weights[:, -2:].sum(1, keepdim=True)
    image, _ = paint(head, params, camera, torch.where(weights > 0.5, torch.tensor([[0.1, 0.2, 0.9]]), skin), wall)
    state = renderer.encode_source(dataclasses.replace(observation, image=image))

    def blue(picture: np.ndarray) -> int:
        picture = picture.astype(int)
        return int((picture[..., 2] - picture[..., 0] > 60)[55:85, 65:130].sum())

    closed = renderer.render(state, params.replace(eyelids=torch.ones(1, 2))).image
    half = renderer.render(state, params.replace(eyelids=torch.full((1, 2), 0.5))).image
    assert blue(image) > 40
    assert blue(closed) < 0.2 * blue(image)
    assert blue(closed) < blue(half) < blue(image)


def test_a_head_without_landmarks_is_refused(head):
    bare = copy.copy(head)
    bare._modules = {"embeddings": torch.nn.ModuleDict()}
    with pytest.raises(ValueError, match="landmark"):
        GeometricRenderer(bare)
