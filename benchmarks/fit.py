"""How well and how fast heads are fitted.

    headwarp bench fit [--full] [--cache FOLDER] [--real FOLDER] [-o OUT]

- truth: synthetic people that nothing was tuned on (`benchmarks.truth`): single pictures, fitted one by one, and clips;
  12 and 2 of them, or all 200 and 20 with --full. For each figure mean, median and 95 % quantile over pictures or
  frames.
  Clips are fitted in each of the ways of `CHOICES`.
  Rotation of the head in the world, jaw: angle between found and true. Beside its mean: how far the error of rotation
  is from the clip's mean error; frame to frame: of the turn from one frame to the next. Gaze: angle between the
  directions in the head, mean of both eyes, lids not shut. Eyelids: coefficients, 0 open, 1 shut. Expression: mean
  distance on the face's skin when the true person makes the found expression. Identity: mean distance of the neutral
  faces after the best similarity. Translation: of the point between the eyes, across the line of sight, and along it.
  One camera cannot tell a near small head from a far large one, nor a short lens from a near head, so depths are first
  scaled to the right mean distance of the clip; of single pictures nothing is left to say.
  Landmarks: distance of the model's points from where the true head's points are in the picture, in per cent of the
  eye distance. Beside them what one would get from the mean head and from no expression; found / true: slope of the
  found displacement on the true one, 1 = not damped.
- still: a picture with fresh noise in every frame; jitter = median second difference of the model's landmarks in per
  cent of the eye distance.
- clips: real or example clips; distance of the model's points from the landmarks, in per cent of the outer eye corners'
  distance. The landmarks' own bias against the skin is in it: the network puts a person's points beside where the model
  has them, the same way in every frame. The fit knows that (`Identity.offsets`); so, with offsets: one offset per point
  in the head's frame, learnt on the clip's first half, is added to the model's points, and the distance taken in the
  second half. Jitter in moments of rest; correlations of the jaw with the lip gap and of the eyelids with the lid gap.
- speed: decode, landmarks (with detection), solve; frames per second from file to track.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..assets import example
from ..fitting.faces import Face, FaceTracker, NoFaceError
from ..fitting.fit import VideoFitter, fit_image, shared_solver
from ..fitting.regress import Choice, open_fitter
from ..geom.camera import Camera, WeakPerspective
from ..geom.head import HeadModel, HeadParams
from ..geom.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from ..geom.track import FaceTrack
from ..media.files import list_videos
from ..media.image import load_image
from ..media.video import VideoReader
from ..third_party.mediapipe import EYELIDS, FACE_CONTOUR, INNER_LIPS
from .timing import machine, write_json
from .truth import CLIPS, FPS, HEADS, Subject, draw

Array = NDArray[np.float64]

FRAMES = 250
"""Of each clip."""
REST = 0.8
"""Mean movement per frame, in per cent of the eye distance, below which a face counts as resting."""
INNER = np.setdiff1d(np.arange(468), FACE_CONTOUR)
CHOICES = {
    "clips": Choice(),
    "clips, --regressor ours": Choice(regressor="ours"),
    "clips, --refine photometric": Choice(refine="photometric"),
    "clips, both": Choice(regressor="ours", refine="photometric"),
}
"""Ways to fit clips."""


def main(
    *, real: Path | None = None, output: Path | None = None, full: bool = False, cache: Path | None = None
) -> dict[str, Any]:
    """Measure, print the tables, and write fit.json to `output`.

    Args:
        real: folder with `clips/` of real footage; the example clip if absent.
        output: folder for the numbers.
        full: all synthetic people instead of a few.
        cache: folder that keeps the pictures of the synthetic people; drawing all of them takes a quarter of an hour.
    """
    clips = [example("driving.mp4")] if real is None else list_videos(real / "clips")
    results: dict[str, Any] = {"machine": machine(), "speed": speed(clips[0])}
    print("speed, ms per frame (processor ms):", _line(results["speed"]))
    results["still"] = still(example("portrait.png"))
    print("still face:", _line(results["still"]))
    results["clips"] = {path.stem: clip(path) for path in clips}
    for name, row in results["clips"].items():
        print(f"{name:12s}", _line(row))
    results["truth"] = truth(full=full, cache=cache)
    for name, table in results["truth"].items():
        print(_table(name, table))
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
    movement = np.linalg.norm(np.diff(seen[:, INNER], axis=0), axis=-1).mean(1) / unit
    rest = (movement[1:] < REST) & (movement[:-1] < REST)
    lips = np.linalg.norm(seen[:, INNER_LIPS[0]] - seen[:, INNER_LIPS[1]], axis=-1)
    lids = np.mean([np.linalg.norm(seen[:, a] - seen[:, b], axis=-1) for a, b in EYELIDS], 0)
    return {
        "frames": len(track),
        "without face": int((track.confidence == 0).sum()),
        "distance %": _median(np.linalg.norm(apart, axis=-1)),
        "with offsets %": _median(np.linalg.norm(_without_offsets(apart, track), axis=-1)),
        "frames at rest": int(rest.sum()),
        "landmark jitter %": _median(_jitter(seen)[rest] / unit),
        "model jitter %": _median(_jitter(model)[rest] / unit),
        "jaw ~ lip gap": _correlation(track.params.jaw[:, 0].numpy(), lips),
        "eyelids ~ lid gap": _correlation(-track.params.eyelids.mean(1).numpy(), lids),
    }


def truth(*, full: bool, cache: Path | None) -> dict[str, dict[str, dict[str, float]]]:
    """Errors against exact parameters: kind of subject -> what -> statistics; see the module docstring."""
    singles = list(HEADS if full else HEADS[:12])
    clips = list(CLIPS if full else CLIPS[:2])
    parts: dict[str, list[dict[str, Array]]] = {name: [] for name in ("single pictures", *CHOICES)}
    for seed in tqdm(singles, "pictures", leave=False):
        subject = draw(seed, cache=cache)
        with suppress(NoFaceError):  # counted below
            parts["single pictures"].append(errors(subject, fit_image(subject.images[0])))
    for seed in tqdm(clips, "clips", leave=False):
        subject, tracker = draw(seed, cache=cache), FaceTracker()
        faces = [tracker.track(image) for image in subject.images]
        for name, choice in CHOICES.items():
            with suppress(NoFaceError):
                parts[name].append(errors(subject, fit_clip(subject, faces, choice)))
    return {name: _summary(found, len(clips if name in CHOICES else singles)) for name, found in parts.items()}


def fit_clip(subject: Subject, faces: Sequence[Face | None], choice: Choice) -> FaceTrack:
    """The track that a user gets of it.

    Args:
        faces: in its pictures.
        choice: who fits.
    """
    fitter = open_fitter(choice, smooth=1.0, fps=FPS, name=f"clip {subject.seed}")
    shown = enumerate(zip(faces, subject.images, strict=True))
    pieces = [piece for k, (face, image) in shown for piece in fitter.see(face, image, k / FPS)]
    return FaceTrack.cat([*pieces, *fitter.finish()])


def errors(subject: Subject, track: FaceTrack) -> dict[str, Array]:
    """What the track says wrongly of the subject, frame by frame."""
    head = shared_solver().head
    true, found = subject.params, track.params
    turned, asked_turn = (head.transforms(head.rotations(p), head.rest_joints(p))[:, 1, :, :3] for p in (found, true))
    looks = [axis_angle_to_matrix(p.eyes.reshape(-1, 2, 3))[..., 2].double() for p in (found, true)]
    gaze = torch.rad2deg(torch.acos((looks[0] * looks[1]).sum(-1).clamp(-1, 1))).mean(1)
    watching = true.eyelids.amax(1) < 0.6
    rest = _face(head, true.replace(expression=0 * true.expression, jaw=0 * true.jaw, eyelids=0 * true.eyelids))
    asked = _face(head, true) - rest
    shown = _face(head, true.replace(expression=found.expression, jaw=found.jaw, eyelids=found.eyelids)) - rest
    person = HeadParams.zeros(head)
    neutral = _face(head, person.replace(shape=true.shape[:1]))[0]
    mean = _face(head, person)[0]
    # one shape for all frames of a clip
    shapes = _face(head, person.replace(shape=found.shape[:1]))
    places = [_between_eyes(head, p) for p in (found, true)]
    # where the found point is seen, as metres at the true depth
    aside = _pixels(places[0], track.camera) - _pixels(places[1], subject.camera)
    across = aside * -places[1][:, 2:] / float(subject.camera.focal[0])
    closer = places[0][:, 2] * (places[1][:, 2].mean() / places[0][:, 2].mean()) - places[1][:, 2]
    embedding = head.embeddings["mediapipe"]
    inner = torch.isin(embedding.indices, torch.from_numpy(INNER))  # type: ignore[arg-type]
    model, exact = (
        c.project(embedding.points(head(p)))[:, inner, :2]  # type: ignore[operator]
        for c, p in ((track.camera, found), (subject.camera, true))
    )
    unit = float(subject.camera.focal[0]) * 0.0009 / -places[1][:, 2]  # px; the eyes' outer corners are 9 cm apart
    return {
        "rotation deg": np.degrees(_angle(turned, asked_turn)),
        "... beside its mean": _wandering(turned, asked_turn),
        "... frame to frame": np.degrees(_angle(turned[1:] @ turned[:-1].mT, asked_turn[1:] @ asked_turn[:-1].mT)),
        "jaw deg": np.degrees(_angle(axis_angle_to_matrix(found.jaw), axis_angle_to_matrix(true.jaw))),
        "gaze deg": gaze[watching].numpy(),
        "eyelids": (found.eyelids - true.eyelids).abs().mean(1).numpy(),
        "expression mm": 1e3 * np.linalg.norm(shown - asked, axis=-1).mean(1),
        "no expression mm": 1e3 * np.linalg.norm(asked, axis=-1).mean(1),
        "identity mm": np.array([_apart(shape, neutral) for shape in shapes]),
        "mean head mm": np.array([_apart(mean, neutral)]),
        "translation across mm": 1e3 * np.linalg.norm(across, axis=-1),
        "translation along mm": 1e3 * np.abs(closer) if len(true) > 1 else np.zeros(0),
        "landmarks %": (model - exact).norm(dim=-1).mean(1).numpy() / unit,
        "found": shown.reshape(-1),
        "asked": asked.reshape(-1),
    }


def _summary(parts: list[dict[str, Array]], asked_for: int) -> dict[str, dict[str, float]]:
    """Statistics of the errors of some subjects."""
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    found, asked = joined.pop("found"), joined.pop("asked")
    table = {key: _statistics(values) for key, values in joined.items()}
    table["found / true"] = {"mean": float((found * asked).sum() / np.square(asked).sum())}
    table["subjects"] = {"mean": float(len(parts))}
    table["not found"] = {"mean": float(asked_for - len(parts))}
    return table


def _statistics(values: Array) -> dict[str, float]:
    if not values.size:
        return {}
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "95 %": float(np.quantile(values, 0.95)),
    }


def _angle(a: torch.Tensor, b: torch.Tensor) -> Array:
    """(T,) radians between rotation matrices (T, 3, 3)."""
    return matrix_to_axis_angle((a @ b.mT).double()).norm(dim=1).numpy()


def _wandering(a: torch.Tensor, b: torch.Tensor) -> Array:
    """(T,) degrees by which the error of rotations (T, 3, 3) differs from the clip's mean error; none of a picture."""
    error = np.degrees(matrix_to_axis_angle((a @ b.mT).double()).numpy())
    apart: Array = np.linalg.norm(error - error.mean(0), axis=1)
    return apart if len(apart) > 1 else apart[:0]


def _between_eyes(head: HeadModel, params: HeadParams) -> Array:
    """(T, 3) world metres."""
    return head.joints(params)[:, 3:5].double().mean(1).numpy()


def _pixels(points: Array, camera: Camera | WeakPerspective) -> Array:
    """(T, 2) of world points (T, 3)."""
    return camera.project(torch.from_numpy(points)[:, None].float())[:, 0, :2].double().numpy()


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


def _without_offsets(apart: Array, track: FaceTrack) -> Array:
    """(T / 2, L, 2) of the second half of `apart` (T, L, 2), what is left beside each point's offset in the first half.

    An offset is a vector of head space; what a picture shows of it is its x and y after the head's rotation.
    """
    turn = axis_angle_to_matrix(track.params.rotation).double().numpy()
    distance = -track.params.translation[:, 2].double().numpy()[:, None, None]
    plane = apart * [1, -1] * distance
    half = len(plane) // 2
    offset = np.median(plane[:half] @ turn[:half, :2], axis=0)  # (L, 3)
    shown = (offset @ turn[half:].transpose(0, 2, 1))[..., :2]
    left: Array = (plane[half:] - shown) / distance[half:]
    return left


def _jitter(points: Array) -> Array:
    """(T - 2,) mean length of the inner points' second differences."""
    return np.linalg.norm(np.diff(points[:, INNER], n=2, axis=0), axis=-1).mean(1)


def _median(values: Array) -> float:
    return float(np.median(values)) if values.size else float("nan")


def _correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if min(a.std(), b.std()) > 0 else float("nan")


def _table(title: str, table: dict[str, dict[str, float]]) -> str:
    columns = ("mean", "median", "95 %")
    rows = [f"{'truth, ' + title:28s}" + "".join(f"{column:>9s}" for column in columns)]
    for name, values in table.items():
        rows.append(f"{name:28s}" + "".join(f"{values[c]:9.2f}" if c in values else " " * 9 for c in columns))
    return "\n".join(rows)


def _line(row: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
    )
