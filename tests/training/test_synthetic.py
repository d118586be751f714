"""The stream of synthetic samples and the data set of them: the same everywhere, true, readable, resumable."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from headwarp.fitting.ledger import read_index
from headwarp.geom import arkit
from headwarp.geom.head import HeadParams
from headwarp.geom.track import FaceTrack
from headwarp.media.errors import InputError
from headwarp.media.video import VideoReader
from headwarp.render.synthetic import CLASSES
from headwarp.training.config import DatasetParams, HoldOut
from headwarp.training.data import open_held_out, open_training
from headwarp.training.data.source import Request
from headwarp.training.synthetic import Cast, SyntheticParams, SyntheticPeople, landmarks, shared_head
from headwarp.training.synthetic_set import SetRecipe, clip_name, write_set

TRUTH = frozenset({"depth", "normals", "segmentation"})
SMALL = SyntheticParams(people=3, held_out=2, keep=2, seconds=1.0)
RECIPE = SetRecipe(frames=5, size=64, people=2, truth=True)


@pytest.fixture(scope="module")
def head():
    return shared_head("cpu")


@pytest.fixture(scope="module")
def source():
    return SyntheticPeople(SMALL, Request((96, 80), 2, TRUTH))


@pytest.fixture(scope="module")
def sample(source):
    return source.sample(1, np.random.default_rng(5))


def digest(batch) -> str:
    parts = [view.image for view in batch.views] + [view.params.translation for view in batch.views]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def test_a_sample_has_the_contract_of_batches(sample):
    assert len(sample) == 1
    assert len(sample.views) == 2
    for view in sample.views:
        assert view.image.shape == (1, 3, 96, 80)
        assert view.image.dtype == torch.uint8
        assert view.depth.shape == (1, 1, 96, 80)
        assert view.landmarks.shape == (1, 478, 3)
        assert len(view.params) == len(view.camera) == 1
    source, driving = sample.views
    assert torch.equal(source.params.shape, driving.params.shape)
    assert not torch.equal(source.image, driving.image)


def test_big_truth_comes_only_where_it_is_needed():
    lean = SyntheticPeople(SMALL, Request((64, 64), 3)).sample(0, np.random.default_rng(1))
    assert len(lean.views) == 3
    assert lean.views[0].known() == {"image", "params", "camera", "landmarks"}


def test_the_same_numbers_give_the_same_sample_in_another_process(sample):
    program = (
        "import numpy as np, hashlib\n"
        "from headwarp.training.data.source import Request\n"
        "from headwarp.training.synthetic import SyntheticParams, SyntheticPeople\n"
    )
    program += (
        "source = SyntheticPeople(SyntheticParams(people=3, held_out=2, keep=2, seconds=1.0), Request((96, 80), 2))\n"
        "source.sample(0, np.random.default_rng(0))\n"
        "views = source.sample(1, np.random.default_rng(5)).views\n"
        "parts = [v.image for v in views] + [v.params.translation for v in views]\n"
        "print(hashlib.sha256(b''.join(p.numpy().tobytes() for p in parts)).hexdigest())\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == digest(sample)


def test_a_dropped_person_comes_back_the_same_and_a_source_travels(source, sample):
    for index in (0, 2, 0):  # more people than are kept
        source.sample(index, np.random.default_rng(index))
    again = source.sample(1, np.random.default_rng(5))
    assert digest(again) == digest(sample)
    assert digest(source.sample(1, np.random.default_rng(6))) != digest(sample)
    travelled = pickle.loads(pickle.dumps(source))
    assert digest(travelled.sample(1, np.random.default_rng(5))) == digest(sample)


def test_held_out_people_are_others_and_need_no_generator(source, sample):
    test = SyntheticPeople(SMALL, source.request, "test")
    assert len(test) == 2
    one, two = (test.sample(0, np.random.default_rng(k)) for k in (1, 2))
    assert digest(one) == digest(two)
    shapes = [source.sample(k, np.random.default_rng(0)).source.params.shape for k in range(len(source))]
    assert all(not torch.equal(shape, one.source.params.shape) for shape in shapes)


def test_truth_belongs_to_the_picture(head, sample):
    for view in sample.views:
        points = view.camera.project(landmarks(head, view.params))
        torch.testing.assert_close(view.landmarks[..., :2], points[..., :2])
        x, y = view.landmarks[0, :, 0], view.landmarks[0, :, 1]
        assert ((x > 0) & (x < 80) & (y > 0) & (y < 96)).all(), "the crop holds the face"
        # A landmark in the middle of the face lies on the surface that the depth shows.
        for k in (9, 4, 152):
            shown = view.depth[0, 0, int(y[k]), int(x[k])]
            assert abs(shown - points[0, k, 2]) < 0.012
        nearest, middle = view.landmarks[0, 4, 2], view.landmarks[0, 454, 2]
        assert nearest < middle, "the tip of the nose is nearer than the ear"
        assert ((view.segmentation == 0) <= torch.isinf(view.depth[:, 0])).float().mean() > 0.97
        assert (view.segmentation == CLASSES.index("skin")).float().mean() > 0.05


def test_faces_are_cropped_as_asked(sample):
    wide = max((v.landmarks[0, :, :2].amax(0) - v.landmarks[0, :, :2].amin(0)).max() for v in sample.views)
    assert 1.9 < 80 / wide < 2.9


def test_replay_moves_a_track_onto_other_people(head, tmp_path):
    frames = 40
    swing = torch.sin(torch.arange(frames) / 6)[:, None]
    params = HeadParams.zeros(head, frames).replace(
        jaw=torch.cat([0.2 * swing.abs(), torch.zeros(frames, 2)], 1),
        translation=torch.tensor([[0.3, 0.1, -0.7]]).repeat(frames, 1),
    )
    track = FaceTrack(
        params=params,
        camera=SyntheticPeople(SMALL, Request((64, 64))).sample(0, np.random.default_rng(0)).source.camera,
        landmarks=torch.zeros(frames, 478, 3),
        confidence=torch.ones(frames),
        blendshapes=torch.zeros(frames, 52),
        times=torch.arange(frames, dtype=torch.float64) / 25,
        crop=torch.tensor([[1.0, 0.0, 0.0]]).repeat(frames, 1),
        fps=25.0,
        image_size=(64, 64),
        head_name=head.name,
        head_sha256=head.sha256,
    )
    (tmp_path / "take").mkdir()
    track.save(tmp_path / "take" / "clip.safetensors")
    driven = SyntheticPeople(replace(SMALL, tracks=str(tmp_path), replay=1.0, seconds=4.0), Request((64, 64)))
    views = driven.sample(1, np.random.default_rng(3)).views
    jaws = [float(view.params.jaw[0, 0]) for view in views]
    assert all(any(abs(jaw - float(known)) < 1e-6 for known in params.jaw[:, 0]) for jaw in jaws)
    assert views[0].params.shape.abs().max() > 0.1, "of the person, not of the track"
    with pytest.raises(InputError, match="no tracks"):
        SyntheticPeople(replace(SMALL, tracks=str(tmp_path / "none")), Request())


@pytest.mark.parametrize(("field", "value"), [("people", 0), ("scale", (2.6, 2.0)), ("replay", 1.5), ("seconds", 0.0)])
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ValueError, match="synthetic: "):
        replace(SMALL, **{field: value})


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    assert write_set(folder, 3, RECIPE, workers=1, progress=False)
    return folder


def files(folder) -> dict[str, str]:
    found = sorted(path for path in (folder / "train").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_a_data_set_reads_like_a_fitted_one(head, data_set):
    rows = read_index(data_set)
    assert [row["name"] for row in rows] == [
        "train/synthetic-00000#000",
        "train/synthetic-00000#001",
        "train/synthetic-00001#000",
    ]
    assert {row["identity"] for row in rows} == {"synthetic-00000", "synthetic-00001"}
    tracks = [FaceTrack.load(data_set / row["name"] / "clip.safetensors") for row in rows]
    for row, track in zip(rows, tracks, strict=True):
        track.check(head)
        frames = list(VideoReader(data_set / row["name"] / "clip.mp4"))
        assert len(frames) == len(track) == row["frames"] == RECIPE.frames
        assert frames[0].image.shape == (64, 64, 3)
    assert torch.equal(tracks[0].params.shape, tracks[1].params.shape), "two takes of one person"
    assert not torch.equal(tracks[0].params.shape[:1], tracks[2].params.shape[:1])


def test_the_truth_file_says_what_the_track_says(head, data_set):
    folder = data_set / "train/synthetic-00001#000"
    track = FaceTrack.load(folder / "clip.safetensors")
    with safe_open(folder / "truth.safetensors", framework="pt") as file:
        truth = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    assert truth["depth"].shape == (RECIPE.frames, 64, 64)
    points = track.camera.project(head.landmarks68(track.params))
    torch.testing.assert_close(truth["landmarks68"], points, rtol=0, atol=2e-3)
    # The tip of the nose goes where the flow at its pixel says.
    tip = track.landmarks[:, 4, :2]
    for k in range(RECIPE.frames - 1):
        x, y = (int(v) for v in tip[k])
        assert truth["flow_visible"][k, y, x]
        assert (truth["flow"][k, :, y, x].float() - (tip[k + 1] - tip[k])).abs().max() < 0.25
    assert truth["flow"][-1].abs().max() == 0
    lengths = truth["normals"].float().norm(dim=1)
    assert ((lengths < 1) | ((lengths - 127).abs() < 1.5)).all()


def test_only_validation_reads_the_truth_of_a_set(data_set):
    settings = DatasetParams(root_dir=str(data_set), frame_shape=(64, 64, 3), cache_gb=0, hold_out=HoldOut(every=2))
    request = Request((64, 64), 2, truth=frozenset({"depth", "segmentation"}))
    seen = open_training(settings, request).sample(0, np.random.default_rng(0)).source
    assert seen.depth is None
    assert seen.segmentation is None
    [held_out] = open_held_out(settings, request, 8).values()
    driving = held_out.sample(1, np.random.default_rng(0)).driving  # frame 3 of the first clip
    with safe_open(data_set / "train/synthetic-00000#000/truth.safetensors", framework="pt") as file:
        assert torch.equal(driving.depth[0, 0], file.get_tensor("depth")[3])
        assert torch.equal(driving.segmentation[0], file.get_tensor("segmentation")[3])
    smaller = open_held_out(replace(settings, frame_shape=(32, 32, 3)), replace(request, size=(32, 32)), 8)
    assert smaller["every"].sample(0, np.random.default_rng(0)).driving.depth is None


def test_a_test_set_may_have_truth_alone(tmp_path):
    plain = replace(RECIPE, frames=1, truth=False)
    assert write_set(tmp_path, 1, plain, workers=1, progress=False)
    assert write_set(tmp_path, 1, replace(plain, split="test", truth=True), workers=1, progress=False)
    assert [path.parent.parent.name for path in tmp_path.rglob("truth.safetensors")] == ["test"]
    with pytest.raises(InputError, match=r"other settings: train truth False \(now True\)"):
        write_set(tmp_path, 2, replace(plain, truth=True), workers=1, progress=False)
    with pytest.raises(InputError, match=r"other settings: test truth True \(now False\)"):
        write_set(tmp_path, 2, replace(plain, split="test"), workers=1, progress=False)


def test_a_set_goes_on_after_a_kill_with_the_same_files(data_set, tmp_path):
    program = (
        "from headwarp.training.synthetic_set import SetRecipe, write_set\n"
        f"write_set({str(tmp_path)!r}, 3, SetRecipe(frames=5, size=64, people=2, truth=True), workers=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    journal = tmp_path / ".fit" / "journal.jsonl"
    deadline = time.monotonic() + 100
    while process.poll() is None and not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = set(files(tmp_path))
    assert write_set(tmp_path, 3, RECIPE, workers=1, progress=False)
    assert there <= set(files(tmp_path))
    assert files(tmp_path) == files(data_set)
    assert not list((tmp_path / ".fit" / "parts").glob("*"))
    times = {path: os.stat(tmp_path / path).st_mtime_ns for path in files(tmp_path)}
    assert write_set(tmp_path, 3, RECIPE, workers=1, progress=False)
    assert {path: os.stat(tmp_path / path).st_mtime_ns for path in times} == times, "what is there is not made again"
    with pytest.raises(InputError, match="other settings"):
        write_set(tmp_path, 3, replace(RECIPE, seed=1), workers=1, progress=False)


def test_rare_expressions_come_and_go_while_head_and_gaze_move_on():
    cast = Cast(shared_head("cpu"), 64)
    shape = torch.zeros(1, cast.head.n_shape)

    def scene(rare: float):
        rng = np.random.default_rng(3)
        return cast.scene(shape, rng, frames=200, fps=25.0, size=(64, 64), scale=(2.0, 2.0), rare=rare)

    usual, some = scene(0.0), scene(0.3)
    for same in ("rotation", "neck", "eyes", "translation"):
        assert torch.equal(getattr(some.params, same), getattr(usual.params, same))
    looks = torch.tensor([name.startswith("eyeLook") for name in arkit.NAMES])
    assert torch.equal(some.blendshapes[:, looks], usual.blendshapes[:, looks])
    changed = (some.params.expression != usual.params.expression).any(1)
    assert 0.2 < changed.float().mean() < 0.4
    shown = cast.head.arkit(some.blendshapes)
    for name in ("expression", "jaw", "eyelids"):
        torch.testing.assert_close(getattr(some.params, name), shown[name])


def test_names_keep_people_of_both_splits_apart():
    assert clip_name(5, RECIPE) == "train/synthetic-00001#002"
    assert clip_name(5, replace(RECIPE, people=None, split="test")) == "test/synthetic-test-00005#000"


def test_bad_settings_of_a_set_are_refused_before_anything_is_written(tmp_path):
    for bad in (
        replace(RECIPE, size=65),
        replace(RECIPE, people=0),
        replace(RECIPE, scale=(0.5, 2.0)),
        replace(RECIPE, seed=-1),
        replace(RECIPE, rare=1.5),
    ):
        with pytest.raises(InputError, match="--"):
            write_set(tmp_path / "out", 1, bad, progress=False)
    assert not (tmp_path / "out").exists()
