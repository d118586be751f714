"""The live path: newest frame wins, the page is for this machine only, files take the same way as cameras."""

from __future__ import annotations

import http.client
import json
import sys
import threading
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from headwarp.app import webcam as module
from headwarp.app.animator import Animator
from headwarp.app.webcam import HeadFollower, Newest, Outcome, Webcam, live, serve
from headwarp.assets import example
from headwarp.fitting import fit
from headwarp.fitting.fit import fit_video
from headwarp.geom.transfer import TransferOptions, transfer
from headwarp.media.errors import InputError
from headwarp.media.image import save_image
from headwarp.media.video import VideoReader


def session(**options) -> Outcome:
    with ExitStack() as stack:
        return live(Webcam(**{"window": "none", "size": 128, **options}), stack, notice=lambda text: None)


def test_the_newest_wins_and_the_others_are_counted():
    place: Newest[int] = Newest()
    for number in range(5):
        place.put(number)
    assert place.take() == 4
    assert (place.put_count, place.dropped) == (5, 4)
    place.put(7)
    place.close()
    assert place.take() == 7, "what waits at the end is still taken"
    assert place.take() is None


def test_taking_waits_for_the_other_thread():
    place: Newest[int] = Newest()
    taken: list[int | None] = []
    thread = threading.Thread(target=lambda: taken.append(place.take()))
    thread.start()
    place.put(1)
    thread.join(timeout=10)
    assert taken == [1]


def test_a_file_runs_through_in_real_time(portrait: Path, picture: np.ndarray, driving: Path, tmp_path: Path, lab):
    out = tmp_path / "out.mp4"
    outcome = session(source=portrait, input=driving, output=out)
    assert outcome.captured == 10
    assert outcome.shown + outcome.dropped == 10
    assert outcome.shown >= 1
    assert outcome.seconds >= 0.35, "a clip of 0.4 s is not read faster than a camera would deliver it"
    assert len(outcome.latencies) == outcome.shown
    assert all(value > 0 for value in outcome.latencies)
    result = lab.frames(out)
    assert len(result) == outcome.shown
    assert result[0].shape == picture.shape
    assert lab.psnr(result[0], picture) > 35, "the first face is the rest"
    assert b"AI-generated" in out.read_bytes()
    assert "frames/s" in outcome.summary()


def test_a_slow_machine_drops_frames_and_does_not_lag(portrait: Path, driving: Path, monkeypatch: pytest.MonkeyPatch):
    """Work that takes three frames' time: a queue would be 20 frames late at the end, the newest frame is not."""
    enough = threading.Event()

    def slow(self, image, moment):
        enough.wait(0.12)
        return np.zeros((*self.size, 3), np.uint8)

    monkeypatch.setattr(HeadFollower, "update", slow)
    outcome = session(source=portrait, input=driving)
    assert outcome.dropped >= 4
    assert max(outcome.latencies) < 2.5 * 0.12 + 0.1


def test_the_same_motion_as_offline(portrait: Path, driving: Path):
    """Frame by frame without looking ahead, the live head stays close to the one that animate uses."""
    animator = Animator(portrait, size=128)
    follower = HeadFollower(animator, strength=1.0, smooth=1.0, crop_only=True)
    live_targets = [follower.motion(frame.image, frame.time) for frame in VideoReader(driving)]
    params = fit_video(driving).params
    offline = transfer(animator.head, animator.portrait.params, params, params[0], TransferOptions())
    for index, target in enumerate(live_targets):
        turn = torch.rad2deg((target.rotation - offline[index].rotation).abs().max())
        assert float(turn) < 4, index
        assert float((target.jaw - offline[index].jaw).abs().max()) < 0.06


def test_nothing_jumps_when_the_person_is_settled(portrait: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "SETTLE_FRAMES", 12)
    animator = Animator(portrait, size=128)
    follower = HeadFollower(animator, strength=1.0, smooth=1.0, crop_only=True)
    frames = islice(VideoReader(example("driving.mp4"), max_side=256), 18)
    follower.fitter.background = False  # at a frame that is known beforehand
    targets = [follower.motion(frame.image, frame.time) for frame in frames]
    head = animator.head
    steps = torch.stack([head(b) - head(a) for a, b in pairwise(targets)]).norm(dim=-1).mean((1, 2))
    assert follower.fitter.settled
    assert float(steps[10]) < 0.0005, "metres, mean over the head: it takes 5 mm in one step otherwise"
    assert float(steps[11:].max()) < 0.002


def test_no_frame_waits_for_the_person_to_be_settled(portrait: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "SETTLE_FRAMES", 3)
    gate, run = threading.Event(), fit.settle

    def settle(*args, **options):
        if options["offsets"]:
            assert gate.wait(30)
        return run(*args, **options)

    monkeypatch.setattr(fit, "settle", settle)
    follower = HeadFollower(Animator(portrait, size=128), strength=1.0, smooth=1.0, crop_only=True)
    frames = list(islice(VideoReader(example("driving.mp4"), max_side=256), 6))
    for frame in frames:
        assert follower.motion(frame.image, frame.time) is not None
    assert not follower.fitter.settled
    gate.set()
    follower.fitter._settling.result(timeout=60)
    follower.motion(frames[-1].image, 1.0)
    assert follower.fitter.settled


def test_a_keypoint_model_follows_too(portrait: Path, driving: Path, tmp_path: Path):
    from headwarp.nets.fomm import Fomm, FommConfig
    from headwarp.nets.generator import GeneratorConfig
    from headwarp.nets.keypoints import KeypointConfig
    from headwarp.nets.model_file import save_model

    torch.manual_seed(0)
    small = KeypointConfig(block_expansion=4, max_features=16, num_blocks=2)
    generator = GeneratorConfig(block_expansion=4, max_features=16, num_bottleneck_blocks=1)
    save_model(tmp_path / "fomm.safetensors", Fomm(FommConfig(kp_detector_params=small, generator_params=generator)))
    outcome = session(source=portrait, input=driving, model=str(tmp_path / "fomm.safetensors"), crop_only=True)
    assert outcome.shown + outcome.dropped == 10


def get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    data = answer.read(4000) if path == "/stream" else answer.read()
    connection.close()
    return answer.status, data


def test_the_page_shows_the_newest_picture_to_this_machine_only():
    show = module._Show()
    server = serve(show, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        port = server.server_address[1]
        assert server.server_address[0] == "127.0.0.1"
        show.put(np.full((40, 60, 3), (200, 30, 30), np.uint8), 24.0, 0.05, 2)
        assert b"/stream" in get(port, "/")[1]
        assert json.loads(get(port, "/stats")[1]) == {"fps": 24.0, "latency_ms": 50.0, "dropped": 2}
        show.close()  # the stream ends after the newest picture
        status, data = get(port, "/stream")
        assert status == 200
        begin = data.index(b"\xff\xd8")
        image = cv2.imdecode(np.frombuffer(data[begin:], np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (40, 60, 3)
        assert image[20, 30, 2] > 180 > 60 > image[20, 30, 0], "red stays red"

        assert not show.wants_rest()
        assert get(port, "/rest", "POST")[0] == 200
        assert show.wants_rest()
        assert get(port, "/rest", "POST", Origin="https://elsewhere.example")[0] == 403
        assert get(port, "/stats", Host="elsewhere.example")[0] == 403
        assert get(port, "/../etc/passwd")[0] == 404
        assert not show.wants_rest()
    finally:
        server.shutdown()
        server.server_close()


def test_what_cannot_work_is_said_in_a_sentence(portrait: Path, driving: Path, tmp_path: Path, monkeypatch):
    with pytest.raises(InputError, match="does not exist"):
        session(source=portrait, input=tmp_path / "none.mp4")
    with pytest.raises(InputError, match="Camera 77 cannot be opened"):
        session(source=portrait, camera=77)
    with pytest.raises(InputError, match="replace the input"):
        session(source=portrait, input=driving, output=driving)
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(InputError, match="pip install pyvirtualcam"):
        session(source=portrait, input=driving, virtual_camera=True)
    if "GUI:                           NONE" in cv2.getBuildInformation():
        with pytest.raises(InputError, match="--window browser"):
            session(source=portrait, input=driving, window="opencv")
    grey = tmp_path / "grey"
    save_image(grey / "0.png", np.full((64, 64, 3), 128, np.uint8))
    with pytest.raises(InputError, match="No face was seen"):
        session(source=portrait, input=grey, output=tmp_path / "o.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grey"]
