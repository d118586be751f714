from __future__ import annotations

import dataclasses

import pytest
import torch

from headwarp.geom.camera import Camera, WeakPerspective
from headwarp.geom.head import HeadModel, HeadParams
from headwarp.geom.rotation import angle_between, euler_to_axis_angle
from headwarp.geom.track import FaceTrack

FRAMES = 6


@pytest.fixture
def track(head, make_params) -> FaceTrack:
    generator = torch.Generator().manual_seed(1)
    return FaceTrack(
        params=make_params(head, FRAMES),
        camera=Camera(torch.full((FRAMES,), 900.0) + torch.arange(FRAMES), torch.full((FRAMES, 2), 128.0)),
        landmarks=torch.rand(FRAMES, 478, 3, generator=generator) * 256,
        confidence=torch.tensor([1.0, 0.9, 0.0, 0.8, 0.7, 1.0]),
        blendshapes=torch.rand(FRAMES, 52, generator=generator),
        times=torch.tensor([0.0, 0.04, 0.08, 0.13, 0.16, 0.2]),
        crop=torch.rand(FRAMES, 3, generator=generator),
        fps=25.0,
        image_size=(240, 320),
        head_name=head.name,
        head_sha256=head.sha256,
        metadata={"clip": "a.mp4"},
    )


def same(a: FaceTrack, b: FaceTrack) -> bool:
    tensors = [(getattr(a, k), getattr(b, k)) for k in ("landmarks", "confidence", "blendshapes", "times", "crop")]
    tensors += [(v, getattr(b.params, k)) for k, v in a.params.asdict().items()]
    tensors += [(v, getattr(b.camera, k)) for k, v in vars(a.camera).items() if isinstance(v, torch.Tensor)]
    plain = ("fps", "image_size", "head_name", "head_sha256", "metadata")
    return all(torch.equal(x, y) for x, y in tensors) and all(getattr(a, k) == getattr(b, k) for k in plain)


def test_file_round_trip(track, tmp_path):
    track.save(tmp_path / "clip.safetensors")
    assert same(FaceTrack.load(tmp_path / "clip.safetensors"), track)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.safetensors"]


def test_weak_perspective_round_trip(track, tmp_path):
    weak = dataclasses.replace(track, camera=WeakPerspective(torch.tensor([800.0]), torch.tensor([[1.0, 2.0]]), 7.5))
    weak.save(tmp_path / "clip.safetensors")
    back = FaceTrack.load(tmp_path / "clip.safetensors")
    assert same(back, weak)
    assert isinstance(back.camera, WeakPerspective)
    assert back.camera.distance == 7.5


def test_empty_track_round_trip(track, tmp_path):
    track[:0].save(tmp_path / "clip.safetensors")
    assert len(FaceTrack.load(tmp_path / "clip.safetensors")) == 0


def test_every_cut_of_the_file_is_one_clear_error(track, tmp_path):
    path = tmp_path / "clip.safetensors"
    track[:2].save(path)
    blob = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 200, len(blob) // 2, len(blob) - 1):
        path.write_bytes(blob[:length])
        with pytest.raises(ValueError, match=r"clip\.safetensors is no readable face track"):
            FaceTrack.load(path)


def test_other_files_are_named(track, tmp_path, data):
    from safetensors.torch import save_file

    from headwarp.geom.head_files import write_safetensors

    path = tmp_path / "clip.safetensors"
    with pytest.raises(FileNotFoundError, match="Face track not found"):
        FaceTrack.load(path)
    write_safetensors(path, data)
    with pytest.raises(ValueError, match="its format is 'headwarp-head-1', wanted 'headwarp-track-1'"):
        FaceTrack.load(path)
    save_file({"shape": torch.zeros(2, 4)}, path, {"format": "headwarp-track-1"})
    with pytest.raises(ValueError, match="no complete face track: 'expression' is missing"):
        FaceTrack.load(path)


def test_failed_write_leaves_the_old_file(track, tmp_path, monkeypatch):
    path = tmp_path / "clip.safetensors"
    track.save(path)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        track[:2].save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_check_tells_heads_apart(track, head, make_data):
    track.check(head)
    with pytest.raises(ValueError, match="belongs to the head 'tiny'"):
        track.check(HeadModel(make_data(seed=5)))


def test_slices(track):
    assert len(track[1:4]) == len(track[1:4].camera) == 3
    assert len(track[2]) == 1
    assert torch.equal(track[-1].times, track.times[-1:])
    assert torch.equal(track[track.confidence > 0].confidence, track.confidence[track.confidence > 0])
    single = dataclasses.replace(track, camera=track.camera[0])
    assert len(single[1:4].camera) == 1
    with pytest.raises(IndexError, match="frame 6 is outside a track of 6"):
        track[6]


def test_pieces_join_to_the_whole(track):
    assert same(FaceTrack.cat([track[:2], track[2:3], track[3:]]), track)
    single = dataclasses.replace(track, camera=track.camera[0])
    assert same(FaceTrack.cat([single[:2], single[2:]]), single)
    mixed = FaceTrack.cat([single[:2], dataclasses.replace(single[2:], camera=track.camera[5])])
    assert torch.equal(mixed.camera.focal, track.camera.focal[[0, 0, 5, 5, 5, 5]])


def test_pieces_that_do_not_belong_together(track):
    with pytest.raises(ValueError, match="differ in head or picture size"):
        FaceTrack.cat([track[:2], dataclasses.replace(track[2:], image_size=(1, 2))])
    with pytest.raises(ValueError, match="times must increase"):
        FaceTrack.cat([track[2:], track[:2]])
    weak = dataclasses.replace(track[2:], camera=WeakPerspective(torch.ones(1), torch.ones(1, 2)))
    with pytest.raises(ValueError, match="different kinds of camera"):
        FaceTrack.cat([track[:2], weak])
    with pytest.raises(ValueError, match="no pieces"):
        FaceTrack.cat([])


def test_at_its_own_times_nothing_changes(track):
    again = track.at(track.times)
    for name, value in track.params.asdict().items():
        torch.testing.assert_close(getattr(again.params, name), value, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.landmarks, track.landmarks)
    torch.testing.assert_close(again.camera.focal, track.camera.focal)


def test_between_frames_rotations_turn_at_constant_speed(track):
    turn = torch.stack([euler_to_axis_angle(10.0 * i, 5.0 * i, -3.0) for i in range(FRAMES)])
    track = dataclasses.replace(track, params=track.params.replace(rotation=turn), times=torch.arange(6.0))
    found = track.at(torch.tensor([2.25])).params.rotation
    whole = angle_between(turn[2], turn[3])
    torch.testing.assert_close(angle_between(turn[2], found[0]), 0.25 * whole, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(angle_between(turn[3], found[0]), 0.75 * whole, rtol=1e-3, atol=1e-5)


def test_rotations_take_the_short_way_across_half_a_turn(track):
    turn = torch.tensor([[0.0, 3.0, 0.0], [0.0, -3.0, 0.0]])
    pair = dataclasses.replace(track[:2], params=track[:2].params.replace(rotation=turn))
    middle = pair.at(pair.times.mean()[None]).params.rotation
    assert middle.abs().max().item() == pytest.approx(torch.pi, abs=1e-4)


def test_between_frames_the_rest_is_linear_and_confidence_is_careful(track):
    middle = track.at(torch.tensor([0.06, 0.10]))
    torch.testing.assert_close(middle.params.translation[0], track.params.translation[1:3].mean(0))
    torch.testing.assert_close(middle.landmarks[1], torch.lerp(track.landmarks[2], track.landmarks[3], 0.4))
    assert middle.confidence.tolist() == [0.0, 0.0]


def test_outside_the_clip_the_ends_hold(track):
    ends = track.at(torch.tensor([-1.0, 9.0]))
    torch.testing.assert_close(ends.params.shape, track.params.shape[[0, -1]])
    torch.testing.assert_close(
        track[2].at(torch.tensor([0.0, 1.0])).params.jaw, track.params.jaw[[2, 2]], atol=1e-5, rtol=0
    )


def test_resample_keeps_the_span(track):
    fast = track.resample(50.0)
    assert fast.fps == 50.0
    assert len(fast) == 11
    torch.testing.assert_close(fast.times, torch.arange(11, dtype=torch.float64) / 50)
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        track.resample(0)


def test_wrong_shapes_are_named(track):
    for name, wanted in (("landmarks", r"\(6, 478, 3\)"), ("confidence", r"\(6,\)"), ("crop", r"\(6, 3\)")):
        with pytest.raises(ValueError, match=f"{name} must be {wanted} for 6 frames"):
            dataclasses.replace(track, **{name: getattr(track, name)[1:]})
    with pytest.raises(ValueError, match="1 or 6 cameras, got 2"):
        dataclasses.replace(track, camera=track.camera[:2])
    with pytest.raises(ValueError, match=r"params\.jaw must be \(6, n\)"):
        dataclasses.replace(track, params=track.params.replace(jaw=torch.zeros(2, 3)))


def test_params_drive_the_head(track, head):
    track.check(head)
    assert head(track.params).shape == (FRAMES, len(head.v_template), 3)
    assert isinstance(track.params, HeadParams)
