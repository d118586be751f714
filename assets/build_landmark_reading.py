"""Builds landmark_reading.safetensors: how MediaPipe's models read faces whose parameters are known exactly.

    python assets/build_landmark_reading.py [--people 72] [--processes 2] [--cache FILE.npz]

Draws synthetic people (render.synthetic) with random expressions, poses and gaze, lets the models read them, and fits
the observation model that `fitting.reading` describes: offsets and responses by ridge regression, then shared errors as
principal components, between people and within. Everything is mirrored, so that left and right come out alike. Run it
again when the head's geometry or the renderer has changed. With two free cores it takes about five minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headwarp.fitting.faces import find_faces
from headwarp.fitting.reading import ASSET, Reading, made_for
from headwarp.fitting.solve import Solver, gaze_matrix
from headwarp.geom import arkit
from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.rotation import axis_angle_to_matrix, euler_to_axis_angle, matrix_to_axis_angle
from headwarp.render.synthetic import render_head, sample_appearance, sample_face, sample_identity

Floats = NDArray[np.float64]
Observed = dict[str, NDArray[np.float32]]

FRAMES = 16
"""Pictures per person; the first is neutral."""
SIZE = 384
DISTANCE = 0.95
FRAMED = 0.34
"""Metres that the picture shows at the head's distance."""
PERSON_MODES, FRAME_MODES = 12, 12
MAX_YAW = 30.0
"""Degrees up to which landmarks are measured; beyond, one half of the face is a guess."""


def observe_person(seed: int) -> Observed:
    """Truth and readings of one random person in `FRAMES` pictures; (T, ...) arrays."""
    torch.set_num_threads(1)
    head = load_head()
    rng = np.random.default_rng(seed)
    weights = np.stack([np.zeros(52, np.float32), *(sample_face(rng) for _ in range(FRAMES - 1))])
    gaze = rng.normal(size=(FRAMES, 2)) * np.radians([10, 5])
    angles = rng.normal(size=(FRAMES, 3)) * [13, 8, 7]
    gaze[0], angles[0] = 0, angles[0] * 0.3
    look = matrix_to_axis_angle(torch.from_numpy(gaze_matrix(gaze))).float()
    place = np.c_[rng.normal(size=(FRAMES, 2)) * 0.015 + [0, 0.02], np.full(FRAMES, -DISTANCE)]
    params = HeadParams.zeros(head, FRAMES).replace(**head.arkit(torch.from_numpy(weights)))
    params = params.replace(
        shape=sample_identity(seed, head).reshape(1, -1).repeat(FRAMES, 1),
        eyes=torch.cat([look, look], 1),
        rotation=euler_to_axis_angle(*torch.from_numpy(angles).float().T),
        translation=torch.from_numpy(place).float(),
    )
    focal = SIZE * DISTANCE / FRAMED
    camera = Camera(torch.tensor([focal]), torch.full((1, 2), SIZE / 2))
    pictures = render_head(head, params, camera, sample_appearance(seed, head, resolution=256), (SIZE, SIZE)).image
    images = (pictures.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    faces = [next(iter(find_faces(image)), None) for image in images]
    seen = np.array([face is not None for face in faces])
    kept = params[torch.from_numpy(seen)]
    return {
        "seed": np.full(seen.sum(), seed, np.float32),
        "landmarks": np.stack([face.landmarks for face in faces if face]),
        "read": np.stack([face.units for face in faces if face]),
        "weights": weights[seen],
        "gaze": gaze[seen].astype(np.float32),
        "focal": np.full(seen.sum(), focal, np.float32),
        **{name: value.numpy() for name, value in kept.asdict().items()},
    }


def observe(people: range, processes: int) -> Observed:
    """Observations of several people, one after the other in the arrays."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = []
        for number, part in enumerate(pool.imap(observe_person, people)):
            parts.append(part)
            print(f"person {number + 1} of {len(people)}: {len(part['seed'])} faces", flush=True)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure(head: HeadModel, seen: Observed) -> Reading:
    """The observation model that explains the observations."""
    solver = Solver(head, reading=None)
    params = HeadParams(**{name: torch.from_numpy(seen[name]) for name in HeadParams.zeros(head).asdict()})
    rotation = axis_angle_to_matrix(params.rotation.double()).numpy()
    turned = np.degrees(np.arctan2(rotation[:, 0, 2], rotation[:, 2, 2]))
    kept = np.abs(turned) < MAX_YAW
    params, rotation = params[torch.from_numpy(kept)], rotation[kept]
    seen = {name: values[kept] for name, values in seen.items()}

    vertices = head(params)
    points = _embedded(head, vertices)  # (F, 468, 3) world metres
    camera = Camera(torch.from_numpy(seen["focal"]), torch.full((len(params), 2), SIZE / 2))
    error = _in_metres(seen["landmarks"][:, :468, :2], points, camera)  # (F, L, 2) right, up

    units = seen["weights"][:, solver.unit_index]
    features = np.concatenate(
        [np.ones((len(units), 1)), units, seen["eyelids"], np.sin(seen["jaw"][:, :1])], 1, dtype=np.float64
    )
    mirror = _mirror(head)
    unit_mirror = _unit_mirror(solver.unit_index)
    count = len(solver.unit_index)
    flipped = np.concatenate(
        [features[:, :1], features[:, 1 : 1 + count][:, unit_mirror], features[:, [2 + count, 1 + count, 3 + count]]], 1
    )
    swap = np.diag([-1.0, 1.0, 1.0])
    features = np.concatenate([features, flipped])
    rotation = np.concatenate([rotation, swap @ rotation @ swap])
    error = np.concatenate([error, error[:, mirror] * [-1, 1]])
    person = np.concatenate([seen["seed"], -1 - seen["seed"]])

    response = _regress(features, rotation, error)  # (L, 3, C)
    explained = np.einsum("fxc,lcd,fd->flx", rotation[:, :2], response, features)
    rest = _upright(error - explained, rotation)  # (F, L, 3) head space
    rest -= rest.mean(1, keepdims=True)  # a common shift is the head's translation
    people = np.unique(person)
    means = np.stack([rest[person == p].mean(0) for p in people])
    within = rest - means[np.searchsorted(people, person)]
    person_modes = _components(means, PERSON_MODES)
    frame_modes = _components(within, FRAME_MODES)
    left_over = np.concatenate([_without(means, person_modes), _without(within, frame_modes)])

    by_unit = np.zeros((468, 3, 52))
    by_unit[..., solver.unit_index] = response[..., 1 : 1 + count]
    arrays = {
        "places": _embedded(head, head.v_template[None])[0].numpy() + response[..., 0],
        "units": by_unit,
        "lids": response[..., 1 + count : 3 + count],
        "jaw": response[..., 3 + count],
        "person_modes": person_modes,
        "frame_modes": frame_modes,
        "noise": np.sqrt(np.square(left_over[..., :2]).mean((0, 2))),
        "irises": _iris_offsets(solver, head, params, seen, camera),
    }
    return Reading(**{name: values.astype(np.float32) for name, values in arrays.items()})


def _embedded(head: HeadModel, vertices: torch.Tensor) -> torch.Tensor:
    embedding = head.embeddings["mediapipe"]
    order = torch.argsort(embedding.indices)  # type: ignore[arg-type]
    return embedding.points(vertices)[:, order[:468]]  # type: ignore[operator]


def _in_metres(pixels: NDArray[np.float32], points: torch.Tensor, camera: Camera) -> Floats:
    """(F, L, 2) metres right and up from the world points to what was seen."""
    projected = camera.project(points).numpy().astype(np.float64)
    scale = projected[..., 2:] / camera.focal.numpy()[:, None, None]
    out: Floats = (pixels - projected[..., :2]) * scale * [1, -1]
    return out


def _upright(plane: Floats, rotation: Floats) -> Floats:
    """Vectors in the picture plane (F, L, 2) as vectors in head space (F, L, 3)."""
    return plane @ rotation[:, :2]


def _regress(features: Floats, rotation: Floats, error: Floats) -> Floats:
    """(L, 3, C): ridge regression of picture-plane errors on features, in head space.

    The first feature is the constant. Responses are believed to be about a millimetre per unit, depth half as much.
    """
    width = features.shape[1]
    design = np.einsum("fxc,fd->fxcd", rotation[:, :2], features).reshape(-1, 3 * width)
    target = error.transpose(0, 2, 1).reshape(len(design), -1)
    prior = np.full((3, width), 1.5e-3)
    prior[:, 0], prior[:, -1] = 1e-2, 5e-3
    prior[2] *= 0.5
    ridge = np.diag(np.square(2e-3 / prior.ravel()))
    solved = np.linalg.solve(design.T @ design + ridge, design.T @ target)
    return solved.T.reshape(-1, 3, width)


def _components(samples: Floats, count: int) -> Floats:
    """(L, 3, count) principal components, each with the length of one standard deviation."""
    flat = samples.reshape(len(samples), -1)
    _, sizes, rows = np.linalg.svd(flat, full_matrices=False)
    return (rows[:count] * (sizes[:count, None] / np.sqrt(len(samples)))).T.reshape(*samples.shape[1:], count)


def _without(samples: Floats, modes: Floats) -> Floats:
    """Samples less their projection on the modes."""
    base = modes.reshape(-1, modes.shape[-1])
    base = base / np.linalg.norm(base, axis=0)
    flat = samples.reshape(len(samples), -1)
    return (flat - (flat @ base) @ base.T).reshape(samples.shape)


def _mirror(head: HeadModel) -> NDArray[np.int64]:
    """(468,) the mirror image of each landmark."""
    points = _embedded(head, head.v_template[None])[0].numpy()
    distance = np.linalg.norm((points * [-1, 1, 1])[:, None] - points[None], axis=-1)
    return distance.argmin(1)


def _unit_mirror(index: NDArray[np.int64]) -> NDArray[np.int64]:
    names = [arkit.NAMES[i] for i in index]
    swap = {"Left": "Right", "Right": "Left"}
    flipped = [next((n.removesuffix(a) + b for a, b in swap.items() if n.endswith(a)), n) for n in names]
    return np.array([names.index(name) for name in flipped])


def _iris_offsets(solver: Solver, head: HeadModel, params: HeadParams, seen: Observed, camera: Camera) -> Floats:
    """(2, 3) left, right: mean iris centre minus its place on the eyeball, in head space."""
    joints = head.joints(params)
    turn = axis_angle_to_matrix(params.rotation) @ axis_angle_to_matrix(params.eyes[:, :3])
    pupils = joints[:, 3:5] + solver.eye_radius * turn[:, None, :, 2]
    open_eyes = (params.eyelids.amax(1) < 0.3).numpy()
    error = _in_metres(seen["landmarks"][:, [473, 468], :2], pupils, camera)
    offset = np.median(_upright(error, axis_angle_to_matrix(params.rotation.double()).numpy())[open_eyes], 0)
    even = (offset + offset[::-1] * [-1, 1, 1]) / 2
    out: Floats = even
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=72)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cache", type=Path, help="keep the observations in this .npz, or read them from it")
    arguments = parser.parse_args()
    head = load_head()
    cached = arguments.cache is not None and arguments.cache.is_file()
    if cached:
        with np.load(arguments.cache) as file:
            seen: Observed = dict(file)
    else:
        seen = observe(range(5000, 5000 + arguments.people), arguments.processes)
        if arguments.cache is not None:
            np.savez(arguments.cache, **seen)  # type: ignore[arg-type]
    reading = measure(head, seen)
    reading.save(ASSET, {**made_for(head), "people": str(arguments.people), "frames": str(len(seen["seed"]))})
    print(f"wrote {ASSET}: {ASSET.stat().st_size / 1e6:.2f} MB, noise {1e3 * reading.noise.mean():.2f} mm")


if __name__ == "__main__":
    main()
