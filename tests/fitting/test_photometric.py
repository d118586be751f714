"""Photometric refinement on drawn heads of which everything is known: poses are pulled back, and nothing gets worse."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch

from headwarp.assets import example
from headwarp.fitting.fit import VideoFitter
from headwarp.fitting.fit_videos import fit_files
from headwarp.fitting.options import FitOptions
from headwarp.fitting.photometric import SIDE, PhotometricRefiner, glimpse
from headwarp.fitting.solve import Identity, Solver, State, View, apart, turned_by
from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadModel
from headwarp.geom.rotation import axis_angle_to_matrix
from headwarp.geom.track import FaceTrack
from headwarp.media.video import VideoReader, VideoWriter
from headwarp.render.interpolate import interpolate
from headwarp.render.rasterize import rasterize
from headwarp.render.surface import vertex_normals
from headwarp.third_party.mediapipe import FACE_CONTOUR

FRAMES = 12
SIZE = (240, 320)
VIEW = View(900.0, (150.0, 125.0))


@dataclass
class Clip:
    images: list[np.ndarray]
    landmarks: np.ndarray
    state: State
    """What was drawn."""
    person: Identity


@pytest.fixture(scope="module")
def solver(head: HeadModel) -> Solver:
    return Solver(head, reading=None)


@pytest.fixture(scope="module")
def clip(head: HeadModel, solver: Solver) -> Clip:
    """A head with patches of brightness that turns, under light that changes from frame to frame."""
    phase = np.linspace(0, 3, FRAMES)
    angles = np.stack([0.1 * np.sin(phase), 0.3 * np.sin(0.7 * phase), 0.1 * np.cos(phase)], 1)
    still = np.zeros((FRAMES, 3))
    rotation = axis_angle_to_matrix(torch.from_numpy(angles)).numpy()
    translation = np.array([0, 0, -0.9]) + 0.01 * np.sin(phase)[:, None] * [1.0, 0.5, 1.0]
    state = State(
        expression=np.zeros((FRAMES, len(solver.rows))),
        eyelids=still[:, :2],
        jaw=np.tile(np.eye(3), (FRAMES, 1, 1)),
        rotation=rotation,
        translation=translation,
        gaze=still[:, :2],
    )
    person = solver.person()
    vertices = head(solver.params(state, person))
    rng = np.random.default_rng(0)
    waves = torch.from_numpy(rng.normal(size=(3, 40)) * 150).float()
    phases = torch.from_numpy(rng.uniform(0, 6.28, 40)).float()
    albedo = 0.5 + 0.05 * torch.sin(head.v_template @ waves + phases).sum(1)  # patches of some centimetres
    light = torch.tensor([0.3, 0.4, 0.85])
    strength = torch.from_numpy(1 + 0.2 * np.sin(2 * phase)).float()[:, None]
    shade = (vertex_normals(vertices, head.faces) @ light).clamp_min(0) * 0.6 + 0.3
    colour = (albedo * shade * strength)[..., None].repeat(1, 1, 3)
    ndc = Camera(torch.tensor([VIEW.focal]), torch.tensor([VIEW.principal])).ndc(vertices, SIZE)
    fragments = rasterize(ndc, head.faces, SIZE)
    drawn = interpolate(colour, fragments, ndc, head.faces, background=0.4).clamp(0, 1)
    images = [(picture.permute(1, 2, 0) * 255).byte().numpy() for picture in drawn]
    landmarks = np.zeros((FRAMES, 478, 3), np.float32)
    landmarks[:, solver.index, :2] = solver.points(VIEW, state, person)
    landmarks[:, 468:] = landmarks[:, :1]
    return Clip(images, landmarks, state, person)


def shaken(state: State, seed: int = 1) -> State:
    """With errors of about a degree and two millimetres that differ from frame to frame."""
    rng = np.random.default_rng(seed)
    values = {f.name: getattr(state, f.name) for f in fields(State)}
    values["rotation"] = turned_by(np.radians(0.7) * rng.normal(size=(len(state), 3)), state.rotation)
    values["translation"] = state.translation + 0.001 * rng.normal(size=(len(state), 3)) * [1, 1, 3]
    return State(**values)


def shake(state: State, clip: Clip) -> float:
    """Degrees by which the rotations' errors differ from their mean."""
    error = np.degrees(apart(state.rotation, clip.state.rotation))
    return float(np.linalg.norm(error - error.mean(0), axis=1).mean())


def distance(solver: Solver, state: State, person: Identity, landmarks: np.ndarray) -> np.ndarray:
    """(T,) mean distance of the model's points from the landmarks inside of the face, per cent of the eye distance."""
    inner = ~np.isin(solver.index, FACE_CONTOUR)
    apart_by = np.linalg.norm(solver.points(VIEW, state, person) - landmarks[:, solver.index, :2], axis=-1)
    return apart_by[:, inner].mean(1) / (VIEW.focal * 0.0009 / -state.translation[:, 2])


def looks(clip: Clip) -> list:
    return [glimpse(image, points) for image, points in zip(clip.images, clip.landmarks, strict=True)]


def test_shaken_poses_are_pulled_back(solver, clip):
    before = shaken(clip.state)
    after = PhotometricRefiner(solver).refine(looks(clip), clip.landmarks, VIEW, before, clip.person, smooth=0.01)
    assert shake(after, clip) < 0.4 * shake(before, clip)
    drift = [(s.translation - clip.state.translation) for s in (before, after)]
    assert np.abs(drift[1] - drift[1].mean(0)).mean() < 0.8 * np.abs(drift[0] - drift[0].mean(0)).mean()
    for name in ("expression", "eyelids", "jaw", "gaze"):
        assert getattr(after, name) is getattr(before, name)


def test_the_texture_is_remembered_from_stretch_to_stretch(solver, clip):
    """Two stretches agree about the pose as one does: the second is aligned with what the first one looked like."""
    before, seen, half = shaken(clip.state), looks(clip), FRAMES // 2
    refiner = PhotometricRefiner(solver)
    first = refiner.refine(seen[:half], clip.landmarks[:half], VIEW, before[:half], clip.person, smooth=0.01)
    second = refiner.refine(seen[half:], clip.landmarks[half:], VIEW, before[half:], clip.person, smooth=0.01)
    assert shake(State.cat([first, second]), clip) < 0.6 * shake(before, clip)


def test_frames_whose_landmarks_would_no_longer_fit_are_kept(solver, clip):
    """A face that lies elsewhere than its landmarks say (another face beside it, say) does not pull the head away."""
    moved = clip.landmarks + np.array([0, 0.12 * VIEW.focal * 0.09 / 0.9, 0], np.float32)
    state = State(**{f.name: getattr(clip.state, f.name) for f in fields(State)})
    state.translation = state.translation - [0, 0.12 * 0.09, 0]
    after = PhotometricRefiner(solver).refine(looks(clip), moved, VIEW, state, clip.person)
    before, now = (distance(solver, s, clip.person, moved) for s in (state, after))
    assert (now <= before + 1.3).all()


@pytest.mark.parametrize("kind", ["black", "unseen"])
def test_pictures_that_say_nothing_change_nothing(solver, clip, kind):
    blank = [glimpse(np.zeros_like(i), p) for i, p in zip(clip.images, clip.landmarks, strict=True)]
    seen = blank if kind == "black" else [None] * FRAMES
    after = PhotometricRefiner(solver).refine(seen, clip.landmarks, VIEW, clip.state, clip.person)
    np.testing.assert_array_equal(after.rotation, clip.state.rotation)
    np.testing.assert_array_equal(after.translation, clip.state.translation)


def test_noise_moves_nothing_out_of_bounds(solver, clip):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, image.shape, np.uint8) for image in clip.images]
    seen = [glimpse(i, p) for i, p in zip(images, clip.landmarks, strict=True)]
    after = PhotometricRefiner(solver).refine(seen, clip.landmarks, VIEW, clip.state, clip.person)
    assert distance(solver, after, clip.person, clip.landmarks).max() < 1.3


def test_a_frame_without_a_face_follows_its_neighbours(solver, clip):
    before, seen = shaken(clip.state), looks(clip)
    seen[5] = None
    after = PhotometricRefiner(solver).refine(seen, clip.landmarks, VIEW, before, clip.person, smooth=0.05)
    assert np.isfinite(after.rotation).all()
    correction = np.degrees(apart(after.rotation, before.rotation))
    np.testing.assert_allclose(correction[5], (correction[4] + correction[6]) / 2, atol=0.1)


def test_a_glimpse_is_the_face_in_its_place(clip):
    """Also where the face reaches over the edge of the picture, and where it is far outside."""
    look = glimpse(clip.images[0], clip.landmarks[0])
    scale, tx, ty = look.crop
    points = clip.landmarks[0, :468, :2] * scale + (tx, ty)
    assert points.min() > 0
    assert points.max() < SIDE
    x, y = points[4].astype(int)
    pixel = clip.landmarks[0, 4, :2].astype(int)
    assert abs(int(look.grey[y, x]) - int(clip.images[0][pixel[1], pixel[0]].mean())) < 8
    for shift in (-150, 150, -5000, 5000):
        assert glimpse(clip.images[0], clip.landmarks[0] + np.float32(shift)).grey.shape == (SIDE, SIDE)


def test_the_flag_refines_the_track_of_a_video(tmp_path):
    """Only poses differ from a landmark fit, the landmarks still fit, and the same input gives the same file."""
    frames = [
        frame.image for frame, _ in zip(VideoReader(example("driving.mp4"), max_side=256), range(8), strict=False)
    ]
    video = tmp_path / "face.mp4"
    with VideoWriter(video, (256, 256), 25) as writer:
        for image in frames:
            writer.write(image)
    tracks = {}
    for name, refine in (("plain", "landmarks"), ("refined", "photometric"), ("again", "photometric")):
        assert fit_files([video], tmp_path / name, FitOptions(refine=refine, workers=1), progress=False)
        tracks[name] = FaceTrack.load(tmp_path / name / "face.safetensors")
    plain, refined = tracks["plain"].params, tracks["refined"].params
    for name in ("shape", "expression", "jaw", "eyelids"):
        torch.testing.assert_close(getattr(refined, name), getattr(plain, name), rtol=0, atol=0)
    turned = torch.rad2deg((refined.rotation - plain.rotation).norm(dim=1))
    assert 0 < turned.max() < 5
    torch.testing.assert_close(tracks["again"].params.rotation, refined.rotation, rtol=0, atol=0)


def test_frames_that_come_without_pictures_stay_as_landmarks_have_them():
    frames = [frame for frame, _ in zip(VideoReader(example("driving.mp4"), max_side=256), range(4), strict=False)]
    results = []
    for photometric in (False, True):
        fitter = VideoFitter(photometric=photometric)
        for frame in frames:
            list(fitter.observe(fitter.tracker.track(frame.image), frame.time, frame.image.shape[:2]))
        results.append(FaceTrack.cat(list(fitter.finish())))
    torch.testing.assert_close(results[1].params.rotation, results[0].params.rotation, rtol=0, atol=0)
