"""The example clip: its truth is about its pictures."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from headwarp.fitting.faces import find_faces
from headwarp.geom.head import load_head
from headwarp.geom.track import FaceTrack

EXAMPLES = Path(__file__).parents[2] / "assets" / "examples"


@pytest.fixture(scope="module")
def head():
    return load_head()


@pytest.fixture(scope="module")
def track():
    return FaceTrack.load(EXAMPLES / "driving.safetensors")


@pytest.fixture(scope="module")
def frames():
    with av.open(str(EXAMPLES / "driving.mp4")) as clip:
        return [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]


def test_the_clip_is_small_and_has_sound():
    assert (EXAMPLES / "driving.mp4").stat().st_size < 1.5e6
    with av.open(str(EXAMPLES / "driving.mp4")) as clip:
        assert clip.streams.video[0].codec_context.name == "h264"
        samples = np.concatenate([frame.to_ndarray().ravel() for frame in clip.decode(audio=0)])
    assert np.abs(samples).max() > 0.05


def test_one_truth_per_frame(head, track, frames):
    track.check(head)
    assert len(track) == len(frames) == 200
    assert track.fps == 25
    assert track.image_size == frames[0].shape[:2] == (512, 512)


def test_landmarks_are_the_projected_head(head, track):
    points = track.camera.project(head.embeddings["mediapipe"].points(head(track.params)))
    away = (track.landmarks[..., :2].float() - points[..., :2]).abs().max()
    assert away < 0.15, "the head's landmarks have moved: run `python assets/make_examples.py --only truth`"


def test_the_story_is_in_the_track(track):
    turn = track.params.neck.rad2deg()
    assert turn[:, 1].max() > 12
    assert turn[:, 1].min() < -12
    assert turn[:, 0].max() > 8, "nod"
    assert track.params.eyelids[:, 0].max() > 0.95, "blink"
    assert track.params.jaw[:, 0].max() > np.radians(12), "open mouth"
    for quiet in (0, -1):
        assert turn[quiet].abs().max() < 1.5
        assert track.params.expression[quiet].abs().max() < 0.05


@pytest.mark.parametrize("number", [0, 30, 56, 112, 150, 168, 185])
def test_the_detector_sees_what_the_truth_says(track, frames, number):
    face = find_faces(frames[number])[0]
    truth = track.landmarks[number, :, :2].float().numpy()
    # The oval slides over the skin; eyes, brows, nose and mouth are judged.
    inner = [33, 133, 159, 145, 263, 362, 386, 374, 70, 105, 336, 334, 1, 4, 168, 61, 291, 0, 17, 13, 14]
    error = np.linalg.norm(face.landmarks[inner, :2] - truth[inner], axis=1) / face.eye_distance
    assert np.median(error) < 0.03
    assert error.max() < 0.12


def test_the_portrait_shows_one_face():
    picture = np.array(Image.open(EXAMPLES / "portrait.png"))
    assert picture.shape == (512, 512, 3)
    assert len(find_faces(picture)) == 1
