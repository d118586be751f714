"""`headwarp animate` end to end, on small inputs."""

from __future__ import annotations

import weakref
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from headwarp.app import animate as module
from headwarp.app.animator import Animator, Stage
from headwarp.fitting.fit import fit_video
from headwarp.geom.head import HeadParams
from headwarp.media.image import load_image, save_image
from headwarp.media.video import VideoReader, probe

SMALL = ("--size", 128)


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> list[HeadParams]:
    """What is asked of the renderer, which does nothing here."""
    asked: list[HeadParams] = []

    def render(self, portrait, target, *, crop_only=False):
        asked.append(target)
        return portrait.picture

    monkeypatch.setattr(Stage, "render", render)
    return asked


@pytest.fixture(scope="module")
def moved(lab, portrait, driving, tmp_path_factory):
    """The plain command's result and its output."""
    path = tmp_path_factory.mktemp("moved") / "out.mp4"
    done = lab.headwarp("animate", "--source", portrait, "--driving", driving, "-o", path, *SMALL)
    assert done.code == 0, done.err
    return path, done


def test_the_result_is_the_whole_portrait_moving(lab, moved, picture):
    path, done = moved
    assert done.out.split() == [str(path)]
    frames = lab.frames(path)
    assert len(frames) == 10
    assert frames[0].shape == picture.shape
    likeness = [lab.psnr(frame, picture) for frame in frames]
    assert likeness[0] > 35, "the first frame is the driver's rest: the portrait itself"
    assert min(likeness) < likeness[0] - 5, "nothing moved"


def test_the_note_says_that_it_was_generated(moved):
    with av.open(str(moved[0])) as container:
        assert "AI-generated" in container.metadata["comment"]


def test_progress_goes_to_stderr_and_nothing_else(moved):
    lines = [line for line in moved[1].err.replace("\r", "\n").splitlines() if line.strip()]
    assert lines
    assert all(line.startswith("animate") for line in lines), lines
    assert "10/10" in lines[-1]


def test_frame_times_and_sound_are_the_drivers(lab, moved, driving):
    mine, theirs = probe(moved[0]), probe(driving)
    assert mine.fps == theirs.fps
    assert mine.has_audio
    assert lab.times(moved[0]) == pytest.approx(lab.times(driving), abs=1e-4)
    assert mine.duration == pytest.approx(theirs.duration, abs=1 / 25)
    assert heard(moved[0]) == pytest.approx(heard(driving), abs=0.03)


def heard(path: Path) -> float:
    """Seconds of sound, decoded."""
    with av.open(str(path)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def test_without_audio_when_asked(lab, portrait, driving, tmp_path):
    out = tmp_path / "out.mp4"
    assert lab.headwarp("animate", "-s", portrait, "-d", driving, "-o", out, *SMALL, "--no-audio").code == 0
    assert not probe(out).has_audio


def test_variable_frame_rate_is_kept(lab, portrait, driving_images, tmp_path):
    moments = [0.0, 0.04, 0.1, 0.12, 0.3, 0.5, 0.52]
    clip = lab.write_clip(tmp_path / "vfr.mp4", driving_images[:7], times=moments)
    done = lab.headwarp("animate", "-s", portrait, "-d", clip, "-o", tmp_path / "out.mp4", *SMALL)
    assert done.code == 0, done.err
    assert lab.times(tmp_path / "out.mp4") == pytest.approx(moments, abs=1e-3)


def test_zero_motion_gives_the_portrait_back_in_png_frames(lab, portrait, picture, driving, tmp_path):
    out = f"{tmp_path}/some.frames/"  # the slash makes it a folder, whatever the name
    done = lab.headwarp("animate", "-s", portrait, "-d", driving, "-o", out, "--strength", 0, *SMALL)
    assert done.code == 0, done.err
    names = sorted(p.name for p in Path(out).iterdir())
    assert names == [f"{i:07d}.png" for i in range(10)]
    for name in names:
        assert lab.psnr(load_image(Path(out) / name), picture) >= 50


def test_two_runs_agree_in_every_pixel(lab, portrait, driving, tmp_path):
    for name in ("a", "b"):
        options = ("--crop-only", *SMALL)
        assert lab.headwarp("animate", "-s", portrait, "-d", driving, "-o", tmp_path / name, *options).code == 0
    first, second = lab.snapshot(tmp_path / "a"), lab.snapshot(tmp_path / "b")
    assert len(first) == 10
    assert first == second


def test_crop_only_writes_the_square(lab, portrait, driving, tmp_path):
    out = tmp_path / "out.mkv"
    done = lab.headwarp("animate", "-s", portrait, "-d", driving, "-o", out, "--crop-only", "--size", 160)
    assert done.code == 0, done.err
    assert probe(out).size == (160, 160)


def test_crop_only_of_an_animator_has_its_size(portrait, driving, tmp_path):
    done = Animator(portrait, size=144).animate(driving, tmp_path / "out.mp4", crop_only=True)
    assert done.frames == 10
    assert probe(tmp_path / "out.mp4").size == (144, 144)


def test_face_crops_and_a_folder_of_frames(lab, crop, driving_images, tmp_path, monkeypatch):
    for index, image in enumerate(driving_images):
        save_image(tmp_path / "frames" / f"{index:07d}.png", image)
    monkeypatch.setattr("headwarp.fitting.faces.MediaPipe.detect", None)  # --no-crop asks no detector
    out = tmp_path / "out.mp4"
    done = lab.headwarp("animate", "-s", crop, "-d", tmp_path / "frames", "-o", out, "--no-crop", "--size", 256)
    assert done.code == 0, done.err
    assert (probe(out).size, probe(out).fps, len(lab.frames(out))) == ((256, 256), 25, 10)


def test_gif_webm_and_mov(lab, portrait, driving, tmp_path):
    for name, sound in (("out.gif", False), ("out.webm", True), ("out.mov", True)):
        done = lab.headwarp("animate", "-s", portrait, "-d", driving, "-o", tmp_path / name, "--crop-only", *SMALL)
        assert done.code == 0, done.err
        assert probe(tmp_path / name).has_audio is sound
        assert len(lab.frames(tmp_path / name)) == 10
    assert lab.times(tmp_path / "out.gif") == pytest.approx(lab.times(driving), abs=0.011)


def test_side_by_side(lab, portrait, driving, tmp_path):
    out = tmp_path / "out.mp4"
    done = lab.headwarp("animate", "-s", portrait, "-d", driving, "-o", out, "--side-by-side", *SMALL)
    assert done.code == 0, done.err
    beside = tmp_path / "out_concat.mp4"
    assert done.out.split() == [str(out), str(beside)]
    assert probe(beside).has_audio
    height, width = probe(beside).size
    assert height == 512
    assert width == pytest.approx(512 + 2 * 512 * 164 / 182, abs=2)


def test_max_side_bounds_the_result(lab, portrait, driving, tmp_path):
    out = tmp_path / "out.mp4"
    done = lab.headwarp("animate", "-s", portrait, "-d", driving, "-o", out, "--max-side", 150, *SMALL)
    assert done.code == 0, done.err
    assert probe(out).size == (150, 136)  # 135.2 rounds to 135, and H.264 wants even sides


def test_a_saved_track_drives_like_its_clip(lab, portrait, driving, tmp_path, targets):
    fit_video(driving).save(tmp_path / "driving.safetensors")
    for clip in (driving, tmp_path / "driving.safetensors"):
        done = lab.headwarp("animate", "-s", portrait, "-d", clip, "-o", tmp_path / "out.mp4", *SMALL)
        assert done.code == 0, done.err
    assert len(targets) == 20
    for live, saved in zip(targets[:10], targets[10:], strict=True):
        torch.testing.assert_close(live.rotation, saved.rotation, rtol=0, atol=1e-6)
        torch.testing.assert_close(live.expression, saved.expression, rtol=0, atol=1e-5)


def test_one_picture_drives_in_absolute_motion(lab, portrait, picture, driving_images, tmp_path):
    save_image(tmp_path / "smile.png", driving_images[6])
    relative = lab.headwarp("animate", "-s", portrait, "-d", tmp_path / "smile.png", "-o", tmp_path / "a.png", *SMALL)
    assert (relative.code, "--motion absolute" in relative.err) == (0, True), relative.err
    assert lab.psnr(load_image(tmp_path / "a.png"), picture) >= 50
    options = ("--motion", "absolute", *SMALL)
    absolute = lab.headwarp("animate", "-s", portrait, "-d", tmp_path / "smile.png", "-o", tmp_path / "b.png", *options)
    assert (absolute.code, "note" in absolute.err) == (0, False), absolute.err
    assert lab.psnr(load_image(tmp_path / "b.png"), picture) < 45


def test_regions_leave_the_rest_alone(lab, portrait, driving, tmp_path, targets):
    source = Animator(portrait, size=128).portrait.params
    pose, face = ("rotation", "translation"), ("expression", "jaw", "eyes", "eyelids")
    still = {"pose": face, "expression": pose, "eyes": (*pose, "jaw"), "mouth": (*pose, "eyes", "eyelids")}
    moves = {"pose": "rotation", "expression": "expression", "eyes": "eyelids", "mouth": "jaw"}
    for region, fields in still.items():
        targets.clear()
        out = tmp_path / f"{region}.mp4"
        done = lab.headwarp("animate", "-s", portrait, "-d", driving, "-o", out, "--region", region, *SMALL)
        assert done.code == 0, done.err
        for name in fields:
            for target in targets:
                torch.testing.assert_close(getattr(target, name), getattr(source, name), rtol=0, atol=1e-6)
        moved = torch.cat([getattr(target, moves[region]) for target in targets])
        assert float((moved - getattr(source, moves[region])).abs().max()) > 1e-2, f"{region} moved nothing"


def test_absolute_motion_takes_the_drivers_pose(lab, portrait, driving, tmp_path, targets):
    done = lab.headwarp(
        "animate", "-s", portrait, "-d", driving, "-o", tmp_path / "o.mp4", "--motion", "absolute", *SMALL
    )
    assert done.code == 0, done.err
    track = fit_video(driving)
    for index, target in enumerate(targets):
        torch.testing.assert_close(target.expression[0], track.params.expression[index], rtol=0, atol=1e-4)


def test_rest_chooses_the_frame_without_motion(lab, portrait, driving, tmp_path, targets):
    source = Animator(portrait, size=128).portrait.params
    for rest, index in (("first", 0), ("4", 4), ("best", None)):
        targets.clear()
        done = lab.headwarp(
            "animate", "-s", portrait, "-d", driving, "-o", tmp_path / "out.mp4", "--rest", rest, *SMALL
        )
        assert done.code == 0, done.err
        distance = [float((t.expression - source.expression).norm()) for t in targets]
        assert min(distance) < 1e-3
        if index is not None:
            assert int(np.argmin(distance)) == index


def test_more_smoothing_is_calmer(lab, portrait, driving_images, tmp_path, targets):
    shaken = [np.roll(image, (i % 2, -(i % 2)), (0, 1)) for i, image in enumerate(driving_images[:1] * 10)]
    clip = lab.write_clip(tmp_path / "shaken.mp4", shaken)
    steps = []
    for smooth in (0, 1, 3):
        targets.clear()
        done = lab.headwarp("animate", "-s", portrait, "-d", clip, "-o", tmp_path / "o.mp4", "--smooth", smooth, *SMALL)
        assert done.code == 0, done.err
        steps.append(float(torch.cat([t.translation for t in targets]).diff(dim=0).norm(dim=1).mean()))
    assert steps[0] > steps[1] > steps[2]


def test_a_video_as_source_keeps_its_speed(lab, driving, driving_images, tmp_path):
    slow = lab.write_clip(tmp_path / "slow.mp4", driving_images, fps=10)  # 1 s
    out = tmp_path / "out.mp4"
    done = lab.headwarp("animate", "-s", driving, "-d", slow, "-o", out, "--strength", 0, "--size", 128)
    assert done.code == 0, done.err
    result, source = lab.frames(out), lab.frames(driving)
    assert len(result) == 4, "0.4 s of source at 10 frames/s"
    for index, image in enumerate(result):
        score = [lab.psnr(image, other) for other in source]
        assert int(np.argmax(score)) in (round(2.5 * index - 0.01), round(2.5 * index + 0.01)), "frame by time"
        assert max(score) > 35


def test_a_face_that_goes_away_for_a_while(lab, portrait, driving_images, tmp_path):
    grey = np.full_like(driving_images[0], 128)
    clip = lab.write_clip(tmp_path / "gap.mp4", [*driving_images[:4], *[grey] * 25, *driving_images[4:]])
    done = lab.headwarp("animate", "-s", portrait, "-d", clip, "-o", tmp_path / "out.mp4", "--crop-only", *SMALL)
    assert done.code == 0, done.err
    assert "note: 25 of 35 driving frames show no face" in done.err
    result = lab.frames(tmp_path / "out.mp4")
    assert len(result) == 35
    assert min(lab.psnr(a, b) for a, b in pairwise(result[4:30])) > 25, "no jumps in the gap"


def test_a_face_that_comes_late(lab, portrait, picture, driving_images, tmp_path):
    grey = np.full_like(driving_images[0], 128)
    clip = lab.write_clip(tmp_path / "late.mp4", [grey] * 3 + driving_images[:4])
    done = lab.headwarp("animate", "-s", portrait, "-d", clip, "-o", tmp_path / "out/", *SMALL)
    assert done.code == 0, done.err
    assert lab.psnr(load_image(tmp_path / "out" / "0000000.png"), picture) >= 50


def test_an_interrupt_leaves_the_old_result(lab, portrait, driving, tmp_path, monkeypatch):
    render, count = Stage.render, 0

    def third_time(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return render(self, *args, **kwargs)

    monkeypatch.setattr(Stage, "render", third_time)
    (tmp_path / "out.mp4").write_bytes(b"the previous result")
    before = lab.snapshot(tmp_path)
    for name in ("out.mp4", "frames/"):
        count = 0
        done = lab.headwarp("animate", "-s", portrait, "-d", driving, "-o", f"{tmp_path}/{name}", *SMALL)
        assert done.code == 130
        assert "Interrupted" in done.err
        assert lab.snapshot(tmp_path) == before


def test_memory_does_not_hold_the_clip(portrait, driving, tmp_path, monkeypatch):
    """Pictures are gone soon after they were read."""
    held: list[weakref.ref] = []
    most = 0
    read = VideoReader.__iter__

    def watched(self):
        nonlocal most
        for frame in read(self):
            held.append(weakref.ref(frame.image))
            most = max(most, sum(image() is not None for image in held))
            yield frame

    monkeypatch.setattr(VideoReader, "__iter__", watched)
    module.animate(portrait, driving, tmp_path / "out.mp4", module.AnimateOptions(size=128))
    assert most <= 3
