"""How fast a portrait is animated, and where the time goes.

    headwarp bench animate [--real FOLDER] [-o OUT]

One process, one clip, the stages one after the other over the same frames, each timed by itself: decode, track
(detector and landmarks), fit (head parameters), transfer, render (the square that moves), paste, encode. The peer is
the same render with the rasteriser's plain torch backend, in the same run. Wall time counts; processor time stands
beside it, so that a run on a busy machine is recognised (there wall time grows and processor time does not).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..app.animator import Animator, paste
from ..assets import example
from ..fitting.faces import FaceTracker
from ..fitting.fit import VideoFitter
from ..geom.track import FaceTrack
from ..geom.transfer import transfer
from ..media.video import VideoReader, VideoWriter

FRAMES = 100


def main(*, real: Path | None = None, output: Path | None = None) -> dict[str, Any]:
    """Measure, print the table, and write animate.json to `output`."""
    source = example("portrait.png") if real is None else sorted((real / "portraits").glob("s*.jpg"))[0]
    clip = example("driving.mp4") if real is None else sorted((real / "clips").glob("drive_*.mp4"))[0]
    animator = Animator(source)
    animator.edit(yaw=5, jaw=5)  # compiles or loads every kernel
    reader = VideoReader(clip, max_side=1280)
    frames = list(zip(reader, range(FRAMES), strict=False))
    pictures = [frame.image for frame, _ in frames]
    count = len(pictures)
    warm = VideoFitter(fps=float(reader.fps))
    _ = [list(warm.push(p, i / 25)) for i, p in enumerate(pictures[:40])]

    seconds: dict[str, float] = {}
    busy: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        result = work()
        seconds[name], busy[name] = time.perf_counter() - start, time.process_time() - cpu
        return result

    timed("decode", lambda: [None for _ in zip(reader, range(count), strict=False)])
    tracker = FaceTracker()
    timed("track", lambda: [tracker.track(p) for p in pictures])
    fitter = VideoFitter(fps=float(reader.fps))

    def fit() -> FaceTrack:
        pieces = [piece for f, _ in frames for piece in fitter.push(f.image, f.time)]
        return FaceTrack.cat([*pieces, *fitter.finish()])

    track = timed("fit", fit)
    for clock in (seconds, busy):
        clock["fit"] -= clock["track"]  # the fitter tracks as well
    own = animator.portrait.params
    rest = track.params[0]
    targets = timed("transfer", lambda: transfer(animator.head, own, track.params, rest))
    render = animator.stage.renderer.render
    state = animator.portrait.state
    moved = timed("render", lambda: [render(state, targets[i]).image for i in range(count)])
    whole = timed("paste", lambda: [paste(animator.portrait.picture, animator.portrait.square, m) for m in moved])
    with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder) / "a.mp4", whole[0].shape[:2], 25) as writer:
        timed("encode", lambda: deque(map(writer.write, whole), maxlen=0))

    few = [targets[i] for i in range(0, count, max(1, count // 10))]
    with backend("torch"):
        slow = _per_frame(lambda: [render(state, target) for target in few], len(few))
    fast = _per_frame(lambda: [render(state, target) for target in few], len(few))

    total = sum(seconds.values())
    after_tracking = sum(seconds[name] for name in ("transfer", "render", "paste", "encode"))
    fitting = seconds["decode"] + seconds["track"] + seconds["fit"]
    report = {
        "frames": count,
        "clip": list(reader.size),
        "picture": list(animator.portrait.picture.shape[:2]),
        "square": animator.portrait.square.size,
        "threads": torch.get_num_threads(),
        "ms per frame": {name: 1e3 * s / count for name, s in seconds.items()},
        "cpu ms per frame": {name: 1e3 * s / count for name, s in busy.items()},
        "frames/s fitting": count / fitting,
        "frames/s animation after tracking": count / after_tracking,
        "frames/s everything": count / total,
        "render, torch rasteriser over numba": slow / fast,
    }
    print(
        f"{count} frames, picture {report['picture']}, square {report['square']} px, {report['threads']} torch threads"
    )
    print("            wall ms  share  processor ms   (per frame)")
    for name, s in seconds.items():
        print(f"  {name:9} {1e3 * s / count:7.2f}  {s / total:5.0%}  {1e3 * busy[name] / count:7.2f}")
    for name in list(report)[-4:]:
        print(f"{name:40} {report[name]:7.2f}")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "animate.json").write_text(json.dumps(report, indent=1))
    return report


@contextmanager
def backend(name: str) -> Iterator[None]:
    """The render backend for a stretch of code."""
    before = os.environ.get("HEADWARP_BACKEND")
    os.environ["HEADWARP_BACKEND"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["HEADWARP_BACKEND"]
        else:
            os.environ["HEADWARP_BACKEND"] = before


def _per_frame(work: Callable[[], Any], count: int) -> float:
    """Seconds, median of three rounds."""
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        rounds.append((time.perf_counter() - start) / count)
    return float(np.median(rounds))
