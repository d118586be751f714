"""The Fit tab: the head of every frame of a clip, and its parameters as curves."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...fitting.fit import VideoFitter
from ...fitting.formats import convert
from ...fitting.overlay import draw_overlay
from ...geom import arkit
from ...geom.rotation import axis_angle_to_matrix, matrix_to_euler
from ...geom.track import FaceTrack
from ...media.video import VideoReader
from .motion import Run, fresh

COLOURS = ("#14b8a6", "#f97316", "#8b5cf6", "#ec4899")
"""Of a figure's curves; they can be told apart on light and dark."""
WIDTH, HEIGHT, PAD = 800, 120, 8
POINTS = 800
"""At most so many points of a curve are drawn."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves for the page."""

    track: FaceTrack
    overlay: Path
    files: list[Path]
    """The track, an ARKit table and an animated .glb."""
    problems: list[str]


def fit(run: Run, clip: Path, smooth: float, face: int) -> Fitted:
    """Fits a clip; the page sees its frames as they are read.

    Raises:
        InputError: the clip cannot be read, or shows no face.
    """
    reader = VideoReader(clip, max_side=1280)
    fitter = VideoFitter(fps=float(reader.fps), smooth=smooth, index=face, name=clip.name)
    pieces: list[FaceTrack] = []
    for frame in reader:
        pieces += fitter.push(frame.image, frame.time)
        run.frame(frame.image)
        run.beat("Finding the face", frame.index + 1, reader.frame_count)
    pieces += fitter.finish()
    track = FaceTrack.cat(pieces)
    path = fresh(run.session, "fit", "track.safetensors")
    track.save(path)
    pictures = path.with_name("pictures")  # elsewhere than the track: the overlay is of the whole picture
    pictures.mkdir()
    done = 0

    def beat() -> None:
        nonlocal done
        done += 1
        run.beat("Drawing the head", done, len(track))

    draw_overlay(clip, path, pictures, "open", beat)
    files = [path]
    for name in ("arkit.csv", "head.glb"):
        files.append(path.with_name(name))
        convert(path, files[-1])
    return Fitted(track, pictures / "overlay.mp4", files, list(reader.problems))


def figures(track: FaceTrack) -> str:
    """The track's parameters over time, as markup."""
    times = track.times.numpy().astype(np.float64)
    params, seen = track.params, track.confidence.numpy() > 0
    degrees = matrix_to_euler(axis_angle_to_matrix(params.rotation)).numpy().astype(np.float64)
    eyes = np.degrees(params.eyes.numpy().astype(np.float64)).reshape(-1, 2, 3).mean(1)
    place = 100 * (params.translation - params.translation[:1]).numpy().astype(np.float64)
    units = track.blendshapes.numpy().astype(np.float64)
    lively = np.argsort(-np.ptp(units, axis=0))[: len(COLOURS)]
    rows: list[tuple[str, dict[str, Floats]]] = [
        ("Head, degrees", dict(zip(("yaw", "pitch", "roll"), degrees.T, strict=True))),
        ("Place, cm from the first frame", dict(zip("xyz", place.T, strict=True))),
        ("Jaw, degrees", {"open": np.degrees(params.jaw[:, 0].numpy().astype(np.float64))}),
        (
            "Lids, 0 open, 1 shut",
            dict(zip(("left", "right"), params.eyelids.numpy().astype(np.float64).T, strict=True)),
        ),
        ("Gaze, degrees", {"right": eyes[:, 1], "down": eyes[:, 0]}),
        ("Liveliest face units", {arkit.NAMES[i]: units[:, i] for i in lively}),
    ]
    span = f"{len(track)} frames, {times[-1] - times[0]:.2f} s"
    missing = int((~seen).sum())
    told = f"{span}; {missing} without a face (shaded)" if missing else f"{span}, a face in all of them"
    drawn = "".join(_figure(title, times, curves, seen) for title, curves in rows)
    return f'<div class="hw-card hw-curves"><p class="hw-quiet">{told}</p>{drawn}</div>'


def _figure(title: str, times: Floats, curves: dict[str, Floats], seen: NDArray[np.bool_]) -> str:
    values = np.stack(list(curves.values()))
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    high = high if high - low > 1e-3 else low + 1
    length = max(float(times[-1] - times[0]), 1e-9)
    keep = np.unique(np.linspace(0, len(times) - 1, min(len(times), POINTS)).round().astype(int))
    x = (times - times[0]) / length * WIDTH

    def y(value: Floats | float) -> Floats:
        return np.asarray(HEIGHT - PAD - (np.asarray(value) - low) / (high - low) * (HEIGHT - 2 * PAD))

    half = WIDTH / max(len(times) - 1, 1) / 2
    lost = "".join(
        f'<rect class="hw-lost" x="{x[i] - half:.1f}" y="0" width="{2 * half:.1f}" height="{HEIGHT}"/>'
        for i in np.flatnonzero(~seen)
    )
    lines, keys = "", ""
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[keep], y(curve)[keep], strict=True))
        lines += (
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8" '
            'stroke-linejoin="round" vector-effect="non-scaling-stroke"/>'
        )
        ends = f"{curve.min():.2g} to {curve.max():.2g}" if high < 2 else f"{curve.min():.1f} to {curve.max():.1f}"
        keys += f'<span><i style="background:{colour}"></i>{escape(name)} <small>{ends}</small></span>'
    zero = float(y(0.0))
    return (
        f"<figure><figcaption><strong>{escape(title)}</strong>{keys}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">{lost}'
        f'<line class="hw-zero" x1="0" x2="{WIDTH}" y1="{zero:.1f}" y2="{zero:.1f}" '
        f'vector-effect="non-scaling-stroke"/>{lines}</svg></figure>'
    )
