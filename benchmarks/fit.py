"""How well and how fast heads are fitted.

    headwarp bench fit [--real FOLDER] [-o OUT]

- truth: synthetic people that nothing was tuned on, drawn with known parameters, read by the models and fitted with one
  identity per person (and, beside it, picture by picture). Rotation: median angle; relative: between a person's first
  picture and the others, which is what animation uses. Expression: mean distance on the face's skin when the true
  person makes the found expression; found / true: slope of the found displacement on the true one, 1 = not damped.
  Identity: mean distance of the neutral faces after a similarity.
- still: a picture with fresh noise in every frame; jitter = median second difference of the model's landmarks in per
  cent of the eye distance.
- clips: real or example clips; distance of the model's points from the landmarks, in per cent of the outer eye corners'
  distance (the landmarks' own bias against the skin is in it), and what is left of it without each point's mean over
  the clip; jitter in moments of rest; correlations of the jaw with the lip gap and of the eyelids with the lid gap.
- speed: decode, landmarks (with detection), solve; frames per second from file to track.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..assets import example
from ..assets.build_landmark_reading import observe_person
from ..fitting.faces import Face, FaceTracker
from ..fitting.fit import Observations, VideoFitter, settle, shared_solver
from ..fitting.solve import Solver, State
from ..geom.head import HeadModel, HeadParams
from ..geom.rotation import angle_between, axis_angle_to_matrix, matrix_to_axis_angle
from ..geom.track import FaceTrack
from ..media.files import list_videos
from ..media.image import load_image
from ..media.video import VideoReader
from ..third_party.mediapipe import EYELIDS, FACE_CONTOUR, INNER_LIPS
from .timing import machine, write_json

Array = NDArray[np.float64]

PEOPLE = range(9000, 9006)
"""Seeds; the observation model was measured on others."""
FRAMES = 250
"""Of each clip."""
REST = 0.8
"""Mean movement per frame, in per cent of the eye distance, below which a face counts as resting."""
INNER = np.setdiff1d(np.arange(468), FACE_CONTOUR)


def main(*, real: Path | None = None, output: Path | None = None) -> dict[str, Any]:
    """Measure, print the tables, and write fit.json to `output`."""
    clips = [example("driving.mp4")] if real is None else list_videos(real / "clips")
    results: dict[str, Any] = {"machine": machine(), "speed": speed(clips[0])}
    print("speed, ms per frame (processor ms):", _line(results["speed"]))
    results["still"] = still(example("portrait.png"))
    print("still face:", _line(results["still"]))
    results["clips"] = {path.stem: clip(path) for path in clips}
    for name, row in results["clips"].items():
        print(f"{name:12s}", _line(row))
    results["truth"] = truth()
    for name, row in results["truth"].items():
        print(f"truth, {name:18s}", _line(row))
    if output is not None:
        print(f"wrote {write_json(output, 'fit', results)}")
    return results


def speed(path: Path) -> dict[str, float]:
    """Milliseconds per frame of each stage, wall and processor time, over the first frames of a clip."""
    reader = VideoReader(path)
    frames = [frame for frame, _ in zip(reader, range(FRAMES), strict=False)]
    list(VideoFitter().run(frames[:70]))  # loads and warms everything
    out: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        out[name] = 1e3 * (time.perf_counter() - wall) / len(frames)
        out[f"{name} processor"] = 1e3 * (time.process_time() - processor) / len(frames)
        return result

    timed("decode", lambda: [None for _ in zip(reader, range(len(frames)), strict=False)])
    tracker = FaceTracker()
    faces: list[Face | None] = timed("landmarks", lambda: [tracker.track(frame.image) for frame in frames])
    fitter = VideoFitter(fps=float(reader.fps))
    size = frames[0].image.shape[0], frames[0].image.shape[1]

    def solve() -> None:
        for face, frame in zip(faces, frames, strict=True):
            list(fitter.observe(face, frame.time, size))
        list(fitter.finish())

    timed("solve", solve)
    out["frames per second"] = 1e3 / (out["decode"] + out["landmarks"] + out["solve"])
    return out


def still(path: Path) -> dict[str, float]:
    """Jitter of a face that does not move, under camera noise of 3 grey levels."""
    picture = load_image(path, max_side=512)
    rng = np.random.default_rng(0)
    fitter, pieces = VideoFitter(), []
    for i in range(90):
        noisy = np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
        pieces += list(fitter.push(noisy, i / 25))
    track = FaceTrack.cat([*pieces, *fitter.finish()])
    seen, model, unit = _points(track, fitter.solver.head)
    return {"landmark jitter %": _median(_jitter(seen) / unit), "model jitter %": _median(_jitter(model) / unit)}


def clip(path: Path) -> dict[str, float]:
    """What can be said of a clip without truth."""
    reader = VideoReader(path)
    fitter = VideoFitter(fps=float(reader.fps), name=path.name)
    pieces = [p for frame, _ in zip(reader, range(FRAMES), strict=False) for p in fitter.push(frame.image, frame.time)]
    track = FaceTrack.cat([*pieces, *fitter.finish()])
    seen, model, unit = _points(track, fitter.solver.head)
    apart = (seen - model)[:, INNER] / unit
    centred = apart - np.median(apart, axis=0)
    movement = np.linalg.norm(np.diff(seen[:, INNER], axis=0), axis=-1).mean(1) / unit
    rest = (movement[1:] < REST) & (movement[:-1] < REST)
    lips = np.linalg.norm(seen[:, INNER_LIPS[0]] - seen[:, INNER_LIPS[1]], axis=-1)
    lids = np.mean([np.linalg.norm(seen[:, a] - seen[:, b], axis=-1) for a, b in EYELIDS], 0)
    return {
        "frames": len(track),
        "without face": int((track.confidence == 0).sum()),
        "distance %": _median(np.linalg.norm(apart, axis=-1)),
        "without its mean %": _median(np.linalg.norm(centred, axis=-1)),
        "frames at rest": int(rest.sum()),
        "landmark jitter %": _median(_jitter(seen)[rest] / unit),
        "model jitter %": _median(_jitter(model)[rest] / unit),
        "jaw ~ lip gap": _correlation(track.params.jaw[:, 0].numpy(), lips),
        "eyelids ~ lid gap": _correlation(-track.params.eyelids.mean(1).numpy(), lids),
    }


def truth() -> dict[str, dict[str, float]]:
    """Errors against exact parameters; see the module docstring."""
    solver = shared_solver()
    seen = [observe_person(seed) for seed in PEOPLE]
    rows: dict[str, list[dict[str, Array]]] = {"one identity": [], "picture by picture": []}
    for person in seen:
        observed = Observations(person["landmarks"], person["read"], np.ones(len(person["seed"]), np.float32))
        _, state, identity = settle(solver, observed, offsets=True)
        rows["one identity"].append(_errors(solver, person, solver.params(state, identity), state))
        singles = [settle(solver, observed[i : i + 1], offsets=False) for i in range(len(observed))]
        params = HeadParams.cat(solver.params(s, who) for _, s, who in singles)
        rows["picture by picture"].append(_errors(solver, person, params, State.cat([s for _, s, _ in singles])))
    out = {}
    for name, parts in rows.items():
        joined = {key: np.concatenate([np.atleast_1d(part[key]) for part in parts]) for key in parts[0]}
        medians = ("rotation deg", "relative rotation deg", "jaw deg", "gaze deg")
        out[name] = {k: float(np.median(v) if k in medians else v.mean()) for k, v in joined.items()}
        found, asked = joined["found"], joined["asked"]
        out[name]["found / true"] = float((found * asked).sum() / np.square(asked).sum())
        del out[name]["found"], out[name]["asked"]
    return out


def _errors(
    solver: Solver, person: dict[str, NDArray[np.float32]], found: HeadParams, state: State
) -> dict[str, Array]:
    head = solver.head
    true = HeadParams(**{name: torch.from_numpy(person[name]) for name in found.asdict()})
    turned, asked = (axis_angle_to_matrix(p.rotation) for p in (found, true))
    relative = [matrix_to_axis_angle(m[1:] @ m[:1].mT) for m in (turned, asked)]
    rest = _face(head, true.replace(expression=0 * true.expression, jaw=0 * true.jaw, eyelids=0 * true.eyelids))
    asked_moves = _face(head, true) - rest
    found_moves = _face(head, true.replace(expression=found.expression, jaw=found.jaw, eyelids=found.eyelids)) - rest
    neutral = _face(head, HeadParams.zeros(head).replace(shape=true.shape[:1]))[0]
    shapes = _face(head, HeadParams.zeros(head, len(found)).replace(shape=found.shape))
    mean = _face(head, HeadParams.zeros(head))[0]
    return {
        "rotation deg": np.degrees(angle_between(found.rotation, true.rotation).numpy()),
        "relative rotation deg": np.degrees(angle_between(*relative).numpy()),
        "jaw deg": np.degrees((found.jaw - true.jaw)[:, 0].abs().numpy()),
        "eyelids": (found.eyelids - true.eyelids).abs().mean(1).numpy(),
        "gaze deg": np.degrees(np.abs(state.gaze - person["gaze"])).mean(1),
        "expression mm": 1e3 * np.linalg.norm(found_moves - asked_moves, axis=-1).mean(1),
        "no expression mm": 1e3 * np.linalg.norm(asked_moves, axis=-1).mean(1),
        "identity mm": np.array([_apart(shape, neutral) for shape in shapes]),
        "mean head mm": np.array(_apart(mean, neutral)),
        "found": found_moves.reshape(-1),
        "asked": asked_moves.reshape(-1),
    }


def _face(head: HeadModel, params: HeadParams) -> Array:
    """(B, V, 3) skin of the front of the head, without pose and gaze."""
    zero = torch.zeros_like(params.rotation)
    upright = params.replace(rotation=zero, translation=zero, eyes=torch.zeros_like(params.eyes))
    skin = head.faces[head.part_faces("head")].unique()
    front = skin[(head.v_template[skin, 2] > -0.01) & (head.v_template[skin, 1] > -0.09)]
    return head(upright)[:, front].double().numpy()


def _apart(shape: Array, target: Array) -> float:
    """Millimetres between two faces after the best similarity (Umeyama 1991)."""
    a, b = shape - shape.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    flip = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    moved = (d * flip).sum() / np.square(a).sum() * a @ (u * flip @ vt).T
    return float(1e3 * np.linalg.norm(moved - b, axis=1).mean())


def _points(track: FaceTrack, head: HeadModel) -> tuple[Array, Array, float]:
    """Landmarks seen and the model's (T, 468, 2) pixels; and one per cent of the eye distance, pixels."""
    embedding = head.embeddings["mediapipe"]
    model = np.zeros((len(track), 478, 2))
    model[:, embedding.indices.numpy()] = track.camera.project(embedding.points(head(track.params)))[..., :2].numpy()  # type: ignore[operator]
    seen = track.landmarks[:, :468, :2].double().numpy()
    unit = np.linalg.norm(seen[:, 33] - seen[:, 263], axis=-1).mean() / 100
    return seen, model[:, :468], float(unit)


def _jitter(points: Array) -> Array:
    """(T - 2,) mean length of the inner points' second differences."""
    return np.linalg.norm(np.diff(points[:, INNER], n=2, axis=0), axis=-1).mean(1)


def _median(values: Array) -> float:
    return float(np.median(values)) if values.size else float("nan")


def _correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if min(a.std(), b.std()) > 0 else float("nan")


def _line(row: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
    )
