"""Does the animated portrait do what was asked? Closed loop: animate, fit the result again, compare.

    headwarp bench fidelity --real FOLDER -o OUT        FOLDER holds portraits/ and clips/; without it the examples

Four questions, one table each:

- rest: a portrait that is asked for its own parameters comes back (PSNR of the crop).
- cross: every portrait driven by every clip. Rotation error: angle between the asked and the refitted head rotation.
  Mouth, lids: correlation over time of the opening (landmark gap over eye distance) in the result with the driver's, on
  clips in which the driver's opening varies.
- self: the first frame of a clip animated by that clip. NME: mean distance of the inner landmarks (no contour, no
  irises) from the real frame's, in percent of the outer-eye-corner distance. PSNR on the hull of the face. Beside it
  the unmoved first frame, and the first frame under the best 2-D similarity of its landmarks.
- speed is `headwarp bench animate`.

The landmark detector that judges is the one that drives, which flatters landmark numbers; PSNR and rotation are free of
that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..app.animator import Animator
from ..app.output import Picture
from ..assets import example
from ..fitting.faces import NoFaceError, find_faces
from ..fitting.fit import VideoFitter
from ..geom.rotation import angle_between
from ..geom.track import FaceTrack
from ..geom.transfer import TransferOptions, transfer
from ..media.files import list_images, list_videos
from ..media.image import save_image
from ..media.sheet import contact_sheet
from ..media.video import VideoReader
from ..third_party.mediapipe import FACE_CONTOUR

Array = NDArray[np.float64]

FRAMES, STRIDE = 60, 2
"""Frames looked at per clip, and the step between them."""
UNLIMITED = TransferOptions(
    expression_gain=1.0, yaw_limit=180, pitch_limit=180, roll_limit=180, translation_limit=10.0, zoom_limit=10.0
)
"""A clip that drives its own first frame asks for nothing unbelievable, so nothing is bent or amplified."""
INNER = np.setdiff1d(np.arange(468), FACE_CONTOUR)
VARIES = {"mouth": 0.03, "lids": 0.012}
"""Standard deviation of an opening (in eye distances) from which a clip counts as one that has such motion."""


@dataclass
class Cross:
    portrait: str
    clip: str
    rotation: float
    """Degrees, median over frames."""
    mouth: float | None
    lids: float | None
    seen: float
    """Share of result frames in which the face is found again."""


@dataclass
class Self:
    clip: str
    nme: float
    psnr: float
    nme_similarity: float
    psnr_similarity: float
    nme_still: float
    psnr_still: float


@dataclass
class Clip:
    """Frames of a clip and the fit of its face."""

    name: str
    pictures: list[Picture]
    track: FaceTrack


def main(*, real: Path | None = None, output: Path | None = None) -> dict[str, Any]:
    """Run everything, print the tables, and write fidelity.json and contact sheets to `output`."""
    if real is None:
        portraits, clips = [example("portrait.png")], [example("driving.mp4")]
    else:
        portraits, clips = list_images(real / "portraits"), list_videos(real / "clips")
    loaded = [load_clip(path) for path in tqdm(clips, desc="fit clips", leave=False)]
    animators = {}
    for path in portraits:
        try:
            animators[path.stem] = Animator(path)
        except NoFaceError as error:
            print(f"left out: {error}")

    rest = {name: rest_psnr(animator) for name, animator in animators.items()}
    pairs = [(a, c) for a in animators for c in loaded]
    crosses, rows = [], {clip.name: [clip.pictures[:: max(1, len(clip.pictures) // 6)][:6]] for clip in loaded}
    for name, clip in tqdm(pairs, desc="cross", leave=False):
        result, row = cross(name, animators[name], clip)
        crosses.append(result)
        rows[clip.name].append(row)
    selves = []
    for clip in tqdm(loaded, desc="self", leave=False):
        result_self, row = reenact(clip)
        selves.append(result_self)
        rows[clip.name].append(row)

    totals = summary(rest, crosses, selves)
    report = {
        "rest_psnr": rest,
        "cross": [asdict(c) for c in crosses],
        "self": [asdict(s) for s in selves],
        "summary": totals,
    }
    show(crosses, selves, totals)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "fidelity.json").write_text(json.dumps(report, indent=1))
        for clip_name, pictures in rows.items():
            labels = [clip_name, *animators, "its own first frame"]
            save_image(output / f"{clip_name}.png", contact_sheet(pictures, labels, cell=300))
    return report


def load_clip(path: Path) -> Clip:
    """Every `STRIDE`-th frame up to `FRAMES`, and their fit."""
    reader = VideoReader(path, max_side=768)
    frames = []
    for frame in reader:
        if frame.index % STRIDE == 0:
            frames.append(frame)
        if len(frames) == FRAMES:
            break
    fitter = VideoFitter(fps=float(reader.fps) / STRIDE, name=path.name)
    return Clip(path.stem, [f.image for f in frames], FaceTrack.cat(fitter.run(frames)))


def rest_psnr(animator: Animator) -> float:
    """dB between the picture and the picture asked for its own parameters; 99 = equal."""
    return psnr(animator.render(animator.portrait.params), animator.portrait.picture)


def cross(name: str, animator: Animator, clip: Clip) -> tuple[Cross, list[Picture]]:
    """A portrait driven by a clip as `headwarp animate` does it; the numbers and six frames."""
    own = animator.portrait.params
    target = transfer(animator.head, own, clip.track.params, clip.track.params[0], TransferOptions())
    results = [animator.render(target[i], crop_only=True) for i in range(len(target))]
    refit = _refit(results, clip.track)
    found = (refit.confidence > 0) & (clip.track.confidence > 0)
    error = torch.rad2deg(angle_between(refit.params.rotation, target.rotation))[found]
    driver, answer = _openings(clip.track, found), _openings(refit, found)
    row = results[:: max(1, len(results) // 6)][:6]
    return Cross(
        name,
        clip.name,
        float(error.median()),
        _correlation("mouth", driver, answer),
        _correlation("lids", driver, answer),
        float((refit.confidence > 0).float().mean()),
    ), row


def reenact(clip: Clip) -> tuple[Self, list[Picture]]:
    """The clip's first frame animated by the clip, against the clip."""
    animator = Animator(clip.pictures[0])
    own = animator.portrait.params
    target = transfer(animator.head, own, clip.track.params, clip.track.params[0], UNLIMITED)
    numbers, row = [], []
    start = clip.track.landmarks[0].numpy().astype(np.float64)
    for i in range(4, len(target), 4):
        if clip.track.confidence[i] == 0:
            continue
        real, truth = clip.pictures[i], clip.track.landmarks[i].numpy().astype(np.float64)
        moved = animator.render(target[i])
        fitted = cv2.estimateAffinePartial2D(start[INNER, :2], truth[INNER, :2], method=cv2.LMEDS)[0]
        matrix: Array = np.asarray(fitted, np.float64)
        matrix[:, 2] += matrix[:, :2] @ np.array([0.5, 0.5]) - 0.5  # OpenCV counts from pixel centres
        size = (real.shape[1], real.shape[0])
        turned = cv2.warpAffine(clip.pictures[0], matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        mask = np.zeros(real.shape[:2], np.uint8)
        cv2.fillConvexPoly(mask, cv2.convexHull(truth[:468, :2].astype(np.int32)), 1)
        shown: list[Picture] = [moved, np.asarray(turned, np.uint8), clip.pictures[0]]
        numbers.append([_landmark_error(p, truth) for p in shown] + [psnr(p, real, mask > 0) for p in shown])
        row.append(moved)
    mean = np.nanmean(np.array(numbers, np.float64), 0)
    step = max(1, len(row) // 6)
    return Self(clip.name, mean[0], mean[3], mean[1], mean[4], mean[2], mean[5]), row[::step][:6]


def psnr(ours: Picture, theirs: Picture, mask: NDArray[np.bool_] | None = None) -> float:
    """dB over the pixels of a mask; at most 99."""
    difference = ours.astype(np.float64) - theirs
    if mask is not None:
        difference = difference[mask]
    return float(min(99.0, 10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-9))))


def summary(rest: dict[str, float], crosses: Sequence[Cross], selves: Sequence[Self]) -> dict[str, float]:
    """Medians over pairs and means over clips."""

    def median(values: list[float | None]) -> float:
        known = [v for v in values if v is not None]
        return float(np.median(known)) if known else float("nan")

    return {
        "rest PSNR, lowest (dB)": min(rest.values()),
        "rotation error, median of pairs (degrees)": median([c.rotation for c in crosses]),
        "rotation error, worst pair (degrees)": max(c.rotation for c in crosses),
        "mouth correlation, median": median([c.mouth for c in crosses]),
        "lid correlation, median": median([c.lids for c in crosses]),
        "face found again (%)": 100 * float(np.mean([c.seen for c in crosses])),
        "self NME (%)": float(np.mean([s.nme for s in selves])),
        "self NME of a 2-D similarity (%)": float(np.mean([s.nme_similarity for s in selves])),
        "self NME of the still (%)": float(np.mean([s.nme_still for s in selves])),
        "self PSNR on the face (dB)": float(np.mean([s.psnr for s in selves])),
        "self PSNR over a 2-D similarity (dB)": float(np.mean([s.psnr - s.psnr_similarity for s in selves])),
        "self PSNR over the still (dB)": float(np.mean([s.psnr - s.psnr_still for s in selves])),
    }


def show(crosses: Sequence[Cross], selves: Sequence[Self], totals: dict[str, float]) -> None:
    """Print the tables."""

    def number(value: float | None) -> str:
        return "    -" if value is None else f"{value:5.2f}"

    print("\nportrait     clip         rotation deg  mouth  lids   found")
    for c in crosses:
        print(f"{c.portrait:12} {c.clip:12} {c.rotation:12.2f}  {number(c.mouth)}  {number(c.lids)}  {c.seen:5.0%}")
    print("\nclip         NME %  (similarity, still)   face PSNR dB  (similarity, still)")
    for s in selves:
        print(
            f"{s.clip:12} {s.nme:5.2f}  ({s.nme_similarity:5.2f}, {s.nme_still:5.2f})         "
            f"{s.psnr:6.2f}       ({s.psnr_similarity:6.2f}, {s.psnr_still:6.2f})"
        )
    print()
    for name, value in totals.items():
        print(f"{name:45} {value:8.2f}")


def _refit(pictures: Sequence[Picture], like: FaceTrack) -> FaceTrack:
    """The fit of a result; a frame without a face has confidence 0."""
    fitter = VideoFitter(fps=like.fps, name="the result")
    pieces = []
    for picture, time in zip(pictures, like.times.tolist(), strict=True):
        pieces += list(fitter.push(picture, time))
    return FaceTrack.cat([*pieces, *fitter.finish()])


def _openings(track: FaceTrack, found: torch.Tensor) -> dict[str, Array]:
    """Landmark gaps over the eye distance, (T,) each: mouth (inner lips) and lids (mean of both eyes)."""
    points = track.landmarks[found].numpy().astype(np.float64)
    unit = np.linalg.norm(points[:, 33, :2] - points[:, 263, :2], axis=1)

    def gap(upper: int, lower: int) -> Array:
        return np.linalg.norm(points[:, upper, :2] - points[:, lower, :2], axis=1) / unit

    return {"mouth": gap(13, 14), "lids": (gap(159, 145) + gap(386, 374)) / 2}


def _correlation(what: str, driver: dict[str, Array], answer: dict[str, Array]) -> float | None:
    """Correlation over time, None where the driver's opening hardly varies."""
    if len(driver[what]) < 5 or driver[what].std() < VARIES[what]:
        return None
    if answer[what].std() < 1e-9:
        return 0.0
    return float(np.corrcoef(driver[what], answer[what])[0, 1])


def _landmark_error(picture: Picture, truth: Array) -> float:
    """Percent of the outer-eye-corner distance; nan when no face is found."""
    faces = find_faces(picture)
    if not faces:
        return float("nan")
    eye = np.linalg.norm(truth[33, :2] - truth[263, :2])
    distance = np.linalg.norm(faces[0].landmarks[INNER, :2] - truth[INNER, :2], axis=1)
    return float(100 * distance.mean() / eye)
