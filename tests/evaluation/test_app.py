"""The animators as methods under test, and the two commands."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import tyro

from headwarp.app.evaluate import Compare, Evaluate, KeypointReenactor, open_reenactor
from headwarp.evaluation.dataset import Frames, Moment, Ref, open_data
from headwarp.geom.rotation import axis_angle_to_euler
from headwarp.media.errors import InputError
from headwarp.media.image import load_image
from headwarp.nets.config import build
from headwarp.nets.fomm import Fomm, FommConfig
from headwarp.nets.keypoints import Motion
from headwarp.nets.model_file import save_model
from headwarp.nets.ostnet import OstNet, OstNetConfig
from headwarp.nets.pwm import Pwm, PwmConfig


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    found = Frames(open_data(data), tmp_path_factory.mktemp("cache"), 192)
    found.prepare([Ref("test/id1#a", i) for i in range(4)] + [Ref("test/id2#b", 0)])
    return found


def fitted_yaw(picture):
    from headwarp.fitting.fit import fit_image

    return float(axis_angle_to_euler(fit_image(picture).params.rotation)[0, 0])


def test_the_geometric_animator_follows_its_own_clip(store):
    method = open_reenactor("geometric", size=192)
    source, driving = (store.moment(Ref("test/id1#a", i)) for i in (0, 2))
    state = method.prepare(source)
    same, moved = method.reenact(state, [source, driving], source)
    assert np.abs(same.astype(int) - source.image).mean() < 0.5
    still = np.abs(source.image.astype(int) - driving.image).mean()
    assert np.abs(moved.astype(int) - driving.image).mean() < 0.8 * still
    assert method.facts["method"] == "geometric"


def test_another_persons_pose_is_taken_over_absolutely_or_relatively(store):
    source, driver = store.moment(Ref("test/id2#b", 0)), Ref("test/id1#a", 2)
    driving, anchor = store.moment(driver), store.moment(Ref("test/id1#a", 0))
    method = open_reenactor("geometric", size=192)
    (absolute,) = method.reenact(method.prepare(source), [driving], anchor)
    assert fitted_yaw(absolute) == pytest.approx(fitted_yaw(driving.image), abs=4)
    method = open_reenactor("geometric", size=192, motion="relative")
    (relative,) = method.reenact(method.prepare(source), [driving], anchor)
    wanted = fitted_yaw(source.image) + fitted_yaw(driving.image) - fitted_yaw(anchor.image)
    assert fitted_yaw(relative) == pytest.approx(wanted, abs=4)
    (rest,) = method.reenact(method.prepare(source), [anchor], anchor)
    assert np.abs(rest.astype(int) - source.image).mean() < 0.5


@dataclass
class _State:
    image: torch.Tensor
    motion: Motion


@dataclass
class _Output:
    image: torch.Tensor


class _Brightness:
    """A keypoint network with one keypoint: the mean brightness; it paints the source's picture that bright."""

    def read_motion(self, image):
        assert image.shape == (1, 3, 256, 256)
        return Motion(image.mean().reshape(1, 1, 1).expand(1, 1, 2))

    def encode_source(self, image):
        return _State(image, self.read_motion(image))

    def render(self, state, motion):
        return _Output(motion.value.mean() * torch.ones_like(state.image))


def grey(level, clip="a", index=0):
    return Moment(np.full((128, 128, 3), level, np.uint8), Ref(clip, index))


def test_keypoint_motion_is_absolute_or_starts_from_the_anchor(monkeypatch):
    monkeypatch.setattr("headwarp.app.evaluate.model_facts", lambda model: {"method": "fomm"})
    monkeypatch.setattr("headwarp.nets.keypoints.hull_area", lambda points: 1.0)
    source, anchor, driving = grey(100), grey(50, "b"), grey(80, "b", 1)
    for motion, level in (("absolute", 80), ("relative", 100 + 80 - 50)):
        method = KeypointReenactor("m.safetensors", _Brightness(), 128, motion)
        assert not method.fitted
        pictures = method.reenact(method.prepare(source), [driving, anchor], anchor)
        assert [p.shape for p in pictures] == [(128, 128, 3)] * 2
        assert pictures[0].mean() == pytest.approx(level, abs=1)


def test_the_commands_from_task_to_comparison(data, tmp_path, capsys):
    """Without a model the pictures for another program are written; its answers are scored and compared."""
    common = ["--data", str(data), "--protocol", "scale", "--count", "1", "--limit", "1", "--size", "96"]
    tyro.cli(Evaluate, args=[*common, "-o", str(tmp_path / "task")]).run()
    assert "6 pairs" in capsys.readouterr().out
    inputs = tmp_path / "task" / "inputs"
    answers = tmp_path / "answers"
    answers.mkdir()
    for number in range(6):
        answers.joinpath(f"{number:05d}.png").write_bytes((inputs / f"{number:05d}-driving.png").read_bytes())
    # The second and third pictures are stretched versions of the first.
    first, second = (load_image(inputs / f"0000{i}-driving.png") for i in (0, 1))
    assert first.shape == second.shape
    assert np.abs(first.astype(int) - second).mean() > 1
    pairs = ["--pairs", str(tmp_path / "task" / "pairs.csv")]
    given = [*common, *pairs, "--cache", str(tmp_path / "cache")]
    tyro.cli(Evaluate, args=[*given, "--results", str(answers), "-o", str(tmp_path / "a")]).run()
    tyro.cli(Evaluate, args=[*given, "--model", "copy", "-o", str(tmp_path / "b")]).run()
    tyro.cli(Compare, args=[str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "c")]).run()
    said = capsys.readouterr().out.split()
    assert said[-1] == str(tmp_path / "c" / "compare.html")
    page = (tmp_path / "c" / "compare.html").read_text()
    assert "different scale" in page


def test_wrong_flags_are_told(data, tmp_path):
    plain = Evaluate(data=data, output=tmp_path / "out")
    taken = tmp_path / "taken"
    taken.touch()
    for change, words in (
        ({"model": "still", "results": tmp_path}, "not both"),
        ({"size": 8}, "from 64 to 1024"),
        ({"count": 0}, "--count must be at least 1"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"data": tmp_path / "none"}, "must be a folder"),
        ({"model": str(tmp_path / "none.safetensors"), "protocol": "reconstruction"}, "no model file"),
        ({"model": "still", "output": taken, "limit": 1, "cache": tmp_path / "cache"}, "a part of that path is a file"),
    ):
        with pytest.raises(InputError, match=words):
            replace(plain, **change).run()


def test_model_files_are_opened_by_their_method(store, tmp_path):
    """Untrained networks, for the way through: the right size, a hash in the facts, driven by heads or by pictures."""
    torch.manual_seed(0)
    small = PwmConfig(size=64, base_channels=4, max_channels=8, spade_hidden=4, spade_residual=False)
    widths = {"block_expansion": 8, "max_features": 32}
    dense = {**widths, "num_blocks": 2}
    fomm = {
        "common_params": {"num_kp": 4},
        "kp_detector_params": dense,
        "generator_params": {**widths, "num_down_blocks": 3, "num_bottleneck_blocks": 1, "dense_motion_params": dense},
    }
    source, driving = store.moment(Ref("test/id1#a", 0)), store.moment(Ref("test/id1#a", 1))
    ostnet = OstNet(build(OstNetConfig, {"base": "fomm", "base_params": fomm}))
    for model, fitted in ((Pwm(small), True), (Fomm(build(FommConfig, fomm)), False), (ostnet, False)):
        path = tmp_path / f"{type(model).__name__}.safetensors"
        save_model(path, model, {"data": "none"})
        method = open_reenactor(str(path), size=192)
        assert (method.name, method.fitted) == (type(model).__name__, fitted)
        assert method.facts["data"] == "none"
        assert len(method.facts["sha256"]) == 64
        (picture,) = method.reenact(method.prepare(source), [driving], source)
        assert picture.shape == (192, 192, 3)
        assert picture.dtype == np.uint8
