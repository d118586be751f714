"""How fast, and in how much memory, videos become a data set.

    headwarp bench dataset [--real FOLDER] [-o OUT]        FOLDER holds clips/; without it the example clip

- stages: CPU time of one thread for each stage of a clip at 512 x 512, in the order in which `headwarp fit` does them,
  and frames per second of two such threads. CPU time, so that other work on the machine does not count; decoding and
  encoding have threads of their own, whose time is included.
- memory: the largest resident set of a process that fits a short and a long clip, and one clip and many.
- resume: seconds until 10,000 finished clips are known to be finished.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..assets import example
from ..fitting.options import FitOptions
from ..fitting.regress import Choice, open_fitter
from ..fitting.track_file import TrackWriter
from ..fitting.tubes import TubeFinder, square_crop
from ..media.files import list_videos
from ..media.video import VideoReader, VideoWriter
from ..third_party.mediapipe import MediaPipe

FRAMES = 300
LONG = 3000
MANY = 20
FINISHED = 10_000


@dataclass
class Clock:
    """CPU seconds by stage."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + time.process_time() - start


def main(real: Path | None = None, output: Path | None = None) -> None:
    """Measure, print, and write dataset.json into `output`."""
    clip = list_videos(real / "clips")[0] if real else example("driving.mp4")
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "stages": stages(clip, Path(folder)),
            "memory": memory(clip, Path(folder)),
            "resume": resume(Path(folder)),
        }
    print(table(results))
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "dataset.json").write_text(json.dumps(results, indent=1))


def stages(clip: Path, folder: Path) -> dict[str, float]:
    """CPU milliseconds a frame of each stage, and what they make together."""
    clock, reader = Clock(), VideoReader(clip)
    finder, fps = TubeFinder(), float(reader.fps)
    fitter = open_fitter(Choice(), smooth=1.0, fps=fps, name=clip.name)
    models = MediaPipe()
    count = 0
    with TrackWriter(folder) as writer:
        frames = iter(reader)
        while count < FRAMES:
            with clock.stage("decode"):
                frame = next(frames, None)
            if frame is None:
                break
            count += 1
            with clock.stage("find and follow faces, landmarks, face units"):
                finder.update(frame.image)
            face = finder.open[0].latest if finder.open else None
            with clock.stage("solve"):
                for piece in fitter.see(face, frame.image, frame.time):
                    writer.add(piece)
        with clock.stage("solve"):
            for piece in fitter.finish():
                writer.add(piece)
        crop = square_crop(finder.open[0].union, 256, reader.size)
        again = iter(VideoReader(clip))
        with VideoWriter(folder / "clip.mp4", (256, 256), reader.fps) as video:
            for _ in range(count):
                with clock.stage("decode again"):
                    picture = next(again)
                with clock.stage("crop"):
                    image = crop.extract(picture.image)
                with clock.stage("encode"):
                    video.write(image, picture.time)
        with clock.stage("write the track"):
            writer.save(folder / "clip.safetensors")
    start = time.process_time()
    for _ in range(20):
        models.detect(picture.image, "full")
        models.detect(picture.image, "short")
    look = (time.process_time() - start) / 20
    found = {name: 1e3 * seconds / count for name, seconds in clock.spent.items()}
    total = sum(found.values())
    return {
        **found,
        "total": total,
        "frames/s on two threads": 2e3 / total,
        "(of it, a look by both detectors, every tenth frame)": 1e2 * look,
    }


def memory(clip: Path, folder: Path) -> dict[str, float]:
    """MiB of the largest resident set."""
    short, long = _looped(clip, folder / "short", 200), _looped(clip, folder / "long", LONG)
    many = folder / "many"
    many.mkdir()
    for k in range(MANY):
        shutil.copy(_looped(clip, folder / "tiny", 30), many / f"{k}.mp4")
    return {
        "200 frames": _peak(short, folder),
        f"{LONG} frames": _peak(long, folder),
        f"{MANY} clips of 30 frames": _peak(many, folder),
    }


def resume(folder: Path) -> dict[str, float]:
    """Wall-clock seconds of a run that finds everything done."""
    from ..fitting.clips import Recipe
    from ..fitting.fit_videos import fit_files
    from ..fitting.ledger import COLUMNS, TEXT, WHOLE, Ledger

    videos, out = folder / "finished", folder / "finished-out"
    videos.mkdir()
    options = FitOptions()
    recipe = {name: getattr(options, name) for name in Recipe.__dataclass_fields__}
    Ledger(out, {**recipe, "layout": "clips"}).close()
    row = {name: "" if name in TEXT else 1 if name in WHOLE else 1.0 for name in COLUMNS}
    with open(out / ".fit" / "journal.jsonl", "w") as file:
        for k in range(FINISHED):
            (videos / f"{k}.mp4").touch()
            (out / str(k)).mkdir()
            entry = {"source": str(k), "clips": [{**row, "name": str(k)}], "failures": []}
            file.write(json.dumps(entry) + "\n")
    start = time.perf_counter()
    fit_files([videos], out, options, progress=False)
    return {f"{FINISHED} finished clips": time.perf_counter() - start}


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    stages, memory, resume = results["stages"], results["memory"], results["resume"]
    total = stages["total"]
    lines = ["| stage | CPU ms a frame | share |", "|---|---|---|"]
    for name, value in stages.items():
        share = f"{100 * value / total:.0f} %" if name[0] != "(" and "frames/s" not in name else ""
        lines.append(f"| {name} | {value:.1f} | {share} |")
    lines += ["", "| one process fits | MiB at most |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in memory.items()]
    lines += [
        "",
        *(f"{name} are skipped in {value:.1f} s." for name, value in resume.items()),
        f"({platform.machine()})",
    ]
    return "\n".join(lines)


def _looped(clip: Path, folder: Path, frames: int) -> Path:
    """A clip of so many frames, forwards and backwards by turns, 256 pixels high and wide."""
    path = folder / f"{frames}.mp4"
    if path.exists():
        return path
    pictures: list[np.ndarray] = []
    for frame in VideoReader(clip, max_side=256):
        pictures.append(frame.image)
        if len(pictures) == 200:
            break
    there_and_back = pictures + pictures[-2:0:-1]
    height, width = pictures[0].shape[:2]
    with VideoWriter(path, (height, width), 25) as writer:
        for k in range(frames):
            writer.write(there_and_back[k % len(there_and_back)])
    return path


def _peak(source: Path, folder: Path) -> float:
    """MiB that a process of its own needs at most to fit a source."""
    program = (
        "import resource, sys; from headwarp.fitting.fit_videos import fit_files; "
        "from headwarp.fitting.options import FitOptions; "
        "fit_files([sys.argv[1]], sys.argv[2], FitOptions(layout='clips', workers=1, min_frames=10), progress=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    out = folder / f"out-{source.parent.name}-{source.name}"
    done = subprocess.run([sys.executable, "-c", program, str(source), str(out)], capture_output=True, check=True)
    return int(done.stdout.split()[-1]) / 1024
