"""Regressors of whole clips; DECA and SMIRK with a stand-in for their checkpoints whose answer is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from headwarp import assets
from headwarp.assets import example
from headwarp.benchmarks.truth import HEADS, draw
from headwarp.fitting.faces import largest_face
from headwarp.fitting.fit_videos import fit_files
from headwarp.fitting.options import FitOptions
from headwarp.fitting.regress import READERS, Choice, FlameFitter, OwnFitter, open_fitter, shared_encoder
from headwarp.fitting.solve import Guess, Solver, apart
from headwarp.geom.camera import Camera, WeakPerspective, apply_crop
from headwarp.geom.head import load_head
from headwarp.geom.head_files import read_head, write_safetensors
from headwarp.geom.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from headwarp.geom.track import FaceTrack
from headwarp.media.errors import InputError
from headwarp.media.video import VideoReader, VideoWriter
from headwarp.nets.deca import DecaEncoder
from headwarp.nets.model_file import save_model
from headwarp.nets.regressor import HeadRegressor, RegressorConfig, between_eyes
from headwarp.nets.smirk import SmirkEncoder

FRAMES = 6
CAM = (8.0, 0.01, 0.03)


@pytest.fixture
def wide_head(tmp_path_factory):
    """The open head with as many coefficients as FLAME has (the further ones do nothing): path."""
    path = tmp_path_factory.mktemp("head") / "wide.safetensors"
    data = read_head(Path(assets.__file__).parent / "open_head.safetensors")
    n = len(data.v_template)
    shape, expression = data.shapedirs[..., : data.n_shape], data.shapedirs[..., data.n_shape :]
    blank = [np.zeros((n, 3, w - p.shape[-1]), np.float32) for w, p in ((300, shape), (100, expression))]
    shapedirs = np.concatenate([shape, blank[0], expression, blank[1]], -1)
    maps = dict.fromkeys(("arkit_expression", "arkit_jaw", "arkit_eyes", "arkit_eyelids"))
    maps |= {"shape_controls": None, "shape_control_names": ()}
    wide = dataclasses.replace(data, name="wide", shapedirs=shapedirs, n_shape=300, n_expression=100, **maps)
    write_safetensors(path, wide)
    return path


def answering(layer: torch.nn.Linear, answer: dict[int, float]) -> None:
    """The layer says the same to every input."""
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    for place, value in answer.items():
        layer.bias.data[place] = value


@pytest.fixture(params=["deca", "smirk"])
def regressor(request, tmp_path, monkeypatch) -> Iterator[str]:
    """DECA or SMIRK with a checkpoint that answers the same for every picture."""
    cam = dict(enumerate(CAM))
    if request.param == "deca":
        deca = DecaEncoder()
        # shape, expression, jaw, camera
        answering(deca.layers[2], {0: 1.5, 150: 0.5, 203: 0.2} | {206 + k: v for k, v in cam.items()})
        torch.save({"E_flame": deca.state_dict()}, tmp_path / "deca_model.tar")
        monkeypatch.setenv("HEADWARP_DECA", str(tmp_path))
    else:
        smirk = SmirkEncoder()
        answering(smirk.pose_encoder.get_submodule("pose_cam_layers.0"), {3 + k: v for k, v in cam.items()})
        answering(smirk.shape_encoder.get_submodule("shape_layers.0"), {0: 1.5, 299: 0.5})
        # expression, eyelids, jaw
        answering(smirk.expression_encoder.get_submodule("expression_layers.0"), {0: 0.5, 50: 0.1, 51: 0.9, 52: 0.2})
        state = {f"smirk_encoder.{name}": value for name, value in smirk.state_dict().items()}
        torch.save(state, tmp_path / "SMIRK_em1.pt")
        monkeypatch.setenv("HEADWARP_SMIRK", str(tmp_path))
    shared_encoder.cache_clear()
    yield request.param
    shared_encoder.cache_clear()


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    frames = []
    for frame in VideoReader(example("driving.mp4"), max_side=256):
        frames.append(frame.image)
        if len(frames) == FRAMES:
            break
    return frames


def test_the_networks_word_lands_in_the_picture(regressor, wide_head, pictures):
    fitter = FlameFitter(regressor, str(wide_head), 25.0, "clip")
    face = largest_face(pictures[0])
    pieces = []
    for k, image in enumerate(pictures):
        seen = None if k in (0, 3) else face  # not seen in the first frame and in the middle
        pieces += fitter.see(seen, image, k / 25)
    track = FaceTrack.cat([*pieces, *fitter.finish()])
    assert len(track) == FRAMES
    assert (track.confidence == 0).tolist() == [True, False, False, True, False, False]
    torch.testing.assert_close(track.params.shape[:, 0], torch.full((FRAMES,), 1.5))
    torch.testing.assert_close(track.params.expression[:, :2], torch.tensor([[0.5, 0.0]]).repeat(FRAMES, 1))
    torch.testing.assert_close(track.params.jaw[:, 0], torch.full((FRAMES,), 0.2))
    lids = [0.1, 0.9] if regressor == "smirk" else [0.0, 0.0]
    torch.testing.assert_close(track.params.eyelids, torch.tensor([lids]).repeat(FRAMES, 1))
    # the camera of the picture, through the crop, is the network's camera on 224 x 224
    assert isinstance(track.camera, WeakPerspective)
    cam = track.camera.crop(track.crop).to_deca((224, 224))
    torch.testing.assert_close(cam, torch.tensor(CAM).repeat(FRAMES, 1), rtol=0, atol=1e-4)
    box = apply_crop(READERS[regressor].crop(face), torch.from_numpy(face.landmarks))
    corners = box[[234, 454, 152, 33, 263, 61, 291], :2]  # cheeks, chin, eyes, mouth; DECA cuts the forehead
    assert bool((corners > 20).all())
    assert bool((corners < 204).all())


@pytest.mark.parametrize("refine", ["none", "landmarks"])
def test_fitting_with_a_network_for_flame(regressor, wide_head, pictures, tmp_path, refine):
    with VideoWriter(tmp_path / "clip.mp4", (256, 256), 25) as writer:
        for image in pictures:
            writer.write(image)
    options = FitOptions(head=str(wide_head), regressor=regressor, refine=refine, visualize=True)
    assert fit_files([tmp_path / "clip.mp4"], tmp_path / "out", options, progress=False)
    track = FaceTrack.load(tmp_path / "out" / "clip.safetensors")
    track.check(load_head(wide_head))
    torch.testing.assert_close(track.params.shape[:, :2], torch.tensor([[1.5, 0.0]]).repeat(FRAMES, 1))
    moved = float((track.params.jaw[:, 0] - 0.2).abs().max())
    assert moved < 1e-6 if refine == "none" else moved > 1e-3


@pytest.fixture
def ours(tmp_path) -> Path:
    """A regressor of the open head that answers the same for every picture."""
    head = load_head()
    model = HeadRegressor(RegressorConfig(channels=(8, 16), blocks=1, head_sha256=head.sha256))
    torch.nn.init.zeros_(model.out.weight)
    model.out.bias.data[0] = 1.2  # the first shape coefficient
    model.out.bias.data[-7] = 1.0  # jaw: 0.2 radians
    save_model(tmp_path / "ours.safetensors", model)
    return tmp_path / "ours.safetensors"


def test_our_regressors_word_lands_in_the_picture(ours, pictures):
    fitter = OwnFitter("open", str(ours), 25.0, "clip")
    face = largest_face(pictures[0])
    pieces = [piece for k in range(20) for piece in fitter.see(None if k == 3 else face, pictures[0], k / 25)]
    track = FaceTrack.cat([*pieces, *fitter.finish()])
    assert (track.confidence == 0).nonzero().flatten().tolist() == [3]
    torch.testing.assert_close(track.params.jaw[:, 0], torch.full((20,), 0.2))
    assert isinstance(track.camera, Camera)
    # it says: upright, the point between the eyes in the middle of the crop, a metre is e^1.1 crops long
    eyes = track.camera.crop(track.crop[:1]).project(between_eyes(fitter.head, track.params[:1])[:, None])[0, 0]
    torch.testing.assert_close(eyes[:2], torch.tensor([64.0, 64.0]), rtol=0, atol=1e-2)
    depth = float(track.camera.focal[0] * track.crop[0, 0] / eyes[2])
    assert abs(depth / (128 * np.exp(1.1)) - 1) < 1e-4
    assert 0.8 < float(eyes[2]) < 1.0
    box = apply_crop(track.crop[0], track.landmarks[0])[:468, :2]
    assert bool((box > 128 * 0.1).all())
    assert bool((box < 128 * 0.98).all())


@pytest.mark.parametrize("refine", ["none", "landmarks"])
def test_fitting_with_our_regressor(ours, pictures, tmp_path, refine):
    with VideoWriter(tmp_path / "clip.mp4", (256, 256), 25) as writer:
        for image in pictures:
            writer.write(image)
    options = FitOptions(regressor="ours", weights=str(ours), refine=refine)
    assert fit_files([tmp_path / "clip.mp4"], tmp_path / "out", options, progress=False)
    track = FaceTrack.load(tmp_path / "out" / "clip.safetensors")
    moved = float((track.params.jaw[:, 0] - 0.2).abs().max())
    assert moved < 1e-6 if refine == "none" else moved > 1e-3
    first = float(track.params.shape[0, 0])
    if refine == "none":
        assert first == pytest.approx(1.2)
    else:  # between its word and what landmarks alone say
        alone = FitOptions(refine="landmarks")
        assert fit_files([tmp_path / "clip.mp4"], tmp_path / "alone", alone, progress=False)
        without = float(FaceTrack.load(tmp_path / "alone" / "clip.safetensors").params.shape[0, 0])
        assert min(without, 1.2) < first < max(without, 1.2)


def test_the_regressor_of_the_package_sees_where_a_face_looks():
    """On people of the benchmark, whom it was not trained on; their mean head errs by about 15 degrees."""
    errors = []
    for seed in list(HEADS)[:3]:
        subject = draw(seed)
        fitter = open_fitter(Choice(regressor="ours", refine="none"), smooth=0.0, fps=25.0, name="picture")
        face = largest_face(subject.images[0])
        track = FaceTrack.cat([*fitter.see(face, subject.images[0], 0.0), *fitter.finish()])
        turn = axis_angle_to_matrix(track.params.rotation) @ axis_angle_to_matrix(subject.params.rotation).mT
        errors.append(float(torch.rad2deg(matrix_to_axis_angle(turn).norm())))
    assert np.mean(errors) < 5


def test_a_guess_is_weighed_against_landmarks(head, make_truth):
    """A right guess of the pitch takes away what a wrong one puts in; the landmarks fit either way."""
    truth = make_truth(head, 6, seed=3)
    solver = Solver(head)
    shape = truth.params.shape[0].double().numpy()
    true = axis_angle_to_matrix(truth.params.rotation).double().numpy()
    tilt = axis_angle_to_matrix(torch.tensor([[0.1, 0.0, 0.0]]).double()).numpy()
    found = {}
    for name, rotation in (("right", true), ("wrong", tilt @ true)):
        view, state = solver.start(truth.landmarks, truth.weights, truth.view)
        state, person = solver.solve(truth.landmarks, truth.weights, view, state, solver.person(), pose_only=True)
        guess = Guess(shape, rotation)
        state, person = solver.solve(
            truth.landmarks, truth.weights, view, state, person, shared_shape=True, guess=guess, iterations=8
        )
        found[name] = apart(state.rotation, true)[:, 0].mean()
    assert abs(found["right"]) < abs(found["wrong"])
    assert found["right"] < found["wrong"] < 0.1


def test_a_regressor_of_another_head_or_none_is_refused(ours, wide_head, tmp_path):
    (tmp_path / "clip.mp4").touch()
    for flags, message in (
        ({"weights": str(ours)}, "--regressor ours"),
        ({"regressor": "ours", "weights": str(tmp_path / "none")}, "There is no model file"),
        ({"regressor": "ours", "weights": str(ours), "head": str(wide_head)}, "trained for another head"),
    ):
        with pytest.raises(InputError, match=message):
            fit_files([tmp_path / "clip.mp4"], tmp_path / "out", FitOptions(**flags), progress=False)


def test_what_is_missing_is_said_once_and_before(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWARP_DECA", str(tmp_path))
    monkeypatch.setenv("HEADWARP_SMIRK", str(tmp_path))
    monkeypatch.setenv("HEADWARP_FLAME", str(tmp_path))
    (tmp_path / "clip.mp4").touch()
    for flags, message in (
        ({"regressor": "deca"}, r"deca_model\.tar was not found"),
        ({"regressor": "smirk"}, r"SMIRK_em1\.pt was not found"),
        ({"head": "flame"}, "FLAME needs a licence"),
        ({"refine": "none"}, "--regressor deca"),
    ):
        with pytest.raises(InputError, match=message):
            fit_files([tmp_path / "clip.mp4"], tmp_path / "out", FitOptions(**flags), progress=False)
    for regressor, file in (("deca", "deca_model.tar"), ("smirk", "SMIRK_em1.pt")):
        (tmp_path / file).touch()
        with pytest.raises(InputError, match=f"--regressor {regressor} gives .* --head flame"):
            fit_files([tmp_path / "clip.mp4"], tmp_path / "out", FitOptions(regressor=regressor), progress=False)
