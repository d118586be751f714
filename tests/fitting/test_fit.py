"""Pictures, videos and live frames into tracks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headwarp.fitting import fit as fitting
from headwarp.fitting.faces import NoFaceError
from headwarp.fitting.fit import LiveFitter, VideoFitter, fit, fit_image, fit_video
from headwarp.geom.rotation import axis_angle_to_euler
from headwarp.geom.track import FaceTrack
from headwarp.media.errors import InputError
from headwarp.media.image import save_image


def pan(astronaut, frames, step=2):
    """The picture's crop around the face wanders to the left, so that the face moves to the right."""
    return [np.ascontiguousarray(astronaut[:360, 60 - step * (i % 20) : 420 - step * (i % 20)]) for i in range(frames)]


@pytest.fixture(scope="module")
def frames(astronaut):
    return pan(astronaut, 30)


def run(frames, **options):
    fitter = VideoFitter(**options)
    pieces = [piece for i, image in enumerate(frames) for piece in fitter.push(image, i / 25)]
    return FaceTrack.cat([*pieces, *fitter.finish()])


def landmarks_error(track):
    """(T,) mean distance in % of the eye distance between the model's inner points and the landmarks."""
    solver = fitting.shared_solver()
    seen = track.landmarks[:, solver.index, :2].numpy()
    embedding = solver.head.embeddings["mediapipe"]
    model = track.camera.project(embedding.points(solver.head(track.params)))[:, : len(solver.index), :2].numpy()
    eye = np.linalg.norm(seen[:, 33] - seen[:, 263], axis=-1)
    inner = solver.base_weight >= np.median(solver.base_weight)
    return np.linalg.norm(seen - model, axis=-1)[:, inner].mean(1) / eye * 100


def test_the_astronaut_smiles_at_the_camera(astronaut):
    track = fit_image(astronaut)
    assert len(track) == 1
    assert landmarks_error(track)[0] < 3.0
    yaw, pitch, roll = axis_angle_to_euler(track.params.rotation)[0].tolist()
    assert abs(yaw) < 20
    assert abs(pitch) < 20
    assert abs(roll) < 15
    assert track.params.eyelids.max() < 0.5
    assert -1.1 < track.params.translation[0, 2] < -0.7
    assert track.image_size == (512, 512)
    assert track.head_name == "open"
    scale, tx, ty = track.crop[0].tolist()
    x, y = (track.landmarks[0, 1, :2] * scale + torch.tensor([tx, ty])).tolist()
    assert 150 < x < 362  # the nose stands in the middle part of the 512 px crop
    assert 150 < y < 400


def test_smile_is_found(astronaut):
    from headwarp.geom import arkit

    solver = fitting.shared_solver()
    units = fit_image(astronaut).params.expression[0].numpy() @ np.linalg.pinv(solver.rows[: len(solver.unit_index)])
    smile = [int(np.flatnonzero(solver.unit_index == arkit.INDEX[f"mouthSmile{s}"])[0]) for s in ("Left", "Right")]
    assert units[smile].min() > 0.4


def test_no_face_says_so(tmp_path):
    with pytest.raises(NoFaceError, match="No face found"):
        fit_image(np.full((200, 200, 3), 90, np.uint8))
    path = tmp_path / "wall.png"
    save_image(path, np.full((200, 200, 3), 90, np.uint8))
    with pytest.raises(NoFaceError, match=r"wall\.png"):
        fit(path)
    fitter = VideoFitter(name="empty.mp4")
    list(fitter.push(np.zeros((64, 64, 3), np.uint8), 0.0))
    with pytest.raises(NoFaceError, match=r"any frame of empty\.mp4"):
        list(fitter.finish())
    with pytest.raises(InputError, match="no frames"):
        list(VideoFitter().finish())


def test_video_follows_the_motion(frames):
    track = run(frames)
    assert len(track) == 30
    assert (track.confidence > 0.5).all()
    assert np.median(landmarks_error(track)) < 3.0
    nose = track.landmarks[:, 1, 0].numpy()
    head_x = track.camera.project(track.params.translation[:, None])[:, 0, 0].numpy()
    assert np.corrcoef(nose, head_x)[0, 1] > 0.99
    assert float(track.params.shape.std(0).max()) == 0, "one identity"
    np.testing.assert_allclose(track.times.numpy(), np.arange(30) / 25)


def test_missing_faces_are_bridged(frames):
    blank = np.zeros_like(frames[0])
    track = run([*frames[:10], blank, blank, blank, *frames[13:]])
    assert track.confidence[10:13].tolist() == [0, 0, 0]
    assert track.confidence[13] > 0.5
    x = track.params.translation[:, 0].numpy()
    assert x[9] < x[10] < x[13] or x[9] > x[10] > x[13]
    first = run([blank, blank, *frames[:10]])
    assert first.confidence[:2].tolist() == [0, 0]
    assert torch.isfinite(first.params.rotation).all()


def test_pieces_agree_with_the_whole(frames, monkeypatch):
    """Cutting the time line elsewhere changes the result by less than the eye can see."""
    monkeypatch.setattr(fitting, "SETTLE_FRAMES", 12)
    whole = run(frames)
    monkeypatch.setattr(fitting, "_CHUNK", 7)
    pieces = run(frames)
    assert len(pieces) == len(whole)
    np.testing.assert_array_equal(pieces.params.shape, whole.params.shape)
    difference = (pieces.params.rotation - whole.params.rotation).norm(dim=-1)
    assert np.degrees(difference.max().item()) < 0.1
    assert (pieces.params.translation - whole.params.translation).norm(dim=-1).max() < 5e-4
    assert (pieces.params.jaw - whole.params.jaw).abs().max() < np.radians(0.3)


def test_memory_does_not_grow(frames, monkeypatch):
    monkeypatch.setattr(fitting, "SETTLE_FRAMES", 5)
    monkeypatch.setattr(fitting, "_CHUNK", 6)
    fitter = VideoFitter()
    waiting = []
    for i in range(40):
        list(fitter.push(frames[i % 30], i / 25))
        waiting.append(len(fitter._waiting))
    assert max(waiting) <= 6 + fitting._LOOKAHEAD


def test_a_frame_of_another_size_is_refused(frames):
    fitter = VideoFitter()
    list(fitter.push(frames[0], 0.0))
    with pytest.raises(InputError, match="change size"):
        list(fitter.push(frames[0][:100], 0.04))


def test_live_agrees_with_offline(frames):
    live = LiveFitter()
    tracks = [live.update(image, i / 25) for i, image in enumerate(frames)]
    assert all(track is not None and len(track) == 1 for track in tracks)
    online = FaceTrack.cat(tracks)
    offline = run(frames)
    assert np.degrees((online.params.rotation - offline.params.rotation).norm(dim=-1).mean().item()) < 4
    held = live.update(np.zeros_like(frames[0]), 2.0)
    assert held.confidence.item() == 0
    assert (held.params.rotation - tracks[-1].params.rotation).abs().max() < 1e-6
    assert LiveFitter().update(np.zeros((64, 64, 3), np.uint8)) is None


def test_tracks_survive_the_file(frames, tmp_path, head):
    track = run(frames[:5])
    track.save(tmp_path / "a.safetensors")
    loaded = FaceTrack.load(tmp_path / "a.safetensors")
    loaded.check(head)
    torch.testing.assert_close(loaded.params.expression, track.params.expression)
    torch.testing.assert_close(loaded.landmarks, track.landmarks)


def test_fit_video_reports_progress(tmp_path, frames):
    path = tmp_path / "clip.mp4"
    write_video(path, frames[:6])
    seen = []
    track = fit_video(path, progress=lambda done, total: seen.append((done, total)))
    assert len(track) == 6
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1][1] == 6


def write_video(path, frames):
    from headwarp.media.video import VideoWriter

    height, width = frames[0].shape[:2]
    with VideoWriter(path, (height, width), 25) as writer:
        for image in frames:
            writer.write(image)
