"""Fit folders of videos and pictures: one track (.safetensors) per file; what is done is skipped, failures are listed.

    python fitting/fit_videos.py --videos DIR --out DIR

The tracks keep the folders' structure: DIR/a/clip.mp4 becomes OUT/a/clip.safetensors. Files that cannot be fitted are
listed with the reason in OUT/failures.csv and do not stop the others; a later run tries them again.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from headwarp.fitting.fit import fit_image, fit_video
from headwarp.geom.track import FaceTrack
from headwarp.media.errors import InputError
from headwarp.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, atomic_write, natural_key
from headwarp.media.image import load_image
from headwarp.media.video import VideoReader

FAILURES = "failures.csv"


def fit_files(
    inputs: Sequence[Path | str],
    output: Path | str,
    *,
    head: str = "open",
    smooth: float = 1.0,
    index: int = 0,
    progress: bool = True,
) -> bool:
    """Fit all files.

    Args:
        inputs: pictures, videos, or folders that are searched for them.
        output: folder for the tracks; made when missing.
        head: name or path of the head model.
        smooth: strength of the temporal term, see `VideoFitter`.
        index: which face, 0 = the largest.
        progress: show a bar.
    Returns:
        Whether every file has its track now.
    Raises:
        InputError: an input does not exist, there is nothing to fit, or two inputs would write the same track.
    """
    output = Path(output)
    jobs = _jobs([Path(i) for i in inputs], output)
    failures: list[tuple[Path, str]] = []
    bar = tqdm(jobs, unit="file", disable=not progress)
    for source, target in bar:
        bar.set_postfix_str(source.name)
        if _done(target):
            continue
        try:
            track = _fit(source, head, smooth, index)
            target.parent.mkdir(parents=True, exist_ok=True)
            track.save(target)
        except (InputError, OSError) as error:
            failures.append((source, str(error)))
            bar.write(f"{source}: {error}", file=sys.stderr)
        except Exception as error:  # one odd file must not lose the night's run; the log tells what it was
            logging.getLogger(__name__).exception("fitting %s failed", source)
            failures.append((source, f"{type(error).__name__}: {error}"))
    _write_failures(output / FAILURES, failures)
    return not failures


def _fit(source: Path, head: str, smooth: float, index: int) -> FaceTrack:
    if source.suffix.lower() in IMAGE_SUFFIXES:
        track = fit_image(load_image(source), head=head, index=index, name=source.name)
    else:
        reader = VideoReader(source)
        track = fit_video(reader, head=head, smooth=smooth, index=index)
        if reader.problems:
            track.metadata["problems"] = " ".join(reader.problems)
    track.metadata["source"] = source.name
    return track


def _jobs(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """(source, track) of every file, in natural order."""
    jobs: dict[Path, Path] = {}
    for given in inputs:
        if not given.exists():
            raise InputError(f"{given} does not exist. Give pictures, videos, or folders of them.")
        for source in _sources(given):
            relative = source.relative_to(given) if given.is_dir() else Path(source.name)
            target = output / relative.with_suffix(".safetensors")
            if target in jobs and jobs[target] != source:
                raise InputError(
                    f"{jobs[target]} and {source} would both write {target}. Rename one of them, or fit them into "
                    "different folders."
                )
            jobs[target] = source
    if not jobs:
        raise InputError(f"There is no picture and no video in {', '.join(map(str, inputs))}.")
    return [(source, target) for target, source in sorted(jobs.items(), key=lambda job: natural_key(job[1]))]


def _sources(given: Path) -> Iterable[Path]:
    if given.is_file():
        return [given]
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return [p for p in given.rglob("*") if p.is_file() and p.suffix.lower() in suffixes and not p.name.startswith(".")]


def _done(target: Path) -> bool:
    """Whether the track is there and whole: tracks are written whole or not at all."""
    return target.is_file() and target.stat().st_size > 0


def _write_failures(path: Path, failures: Sequence[tuple[Path, str]]) -> None:
    """The list of this run's failures; no file when there are none."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "reason"])
    writer.writerows((str(source), reason) for source, reason in failures)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="+", required=True, help="files, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tracks")
    parser.add_argument("--head", default="open", help="open, flame, or a head file")
    parser.add_argument("--smooth", type=float, default=1.0, help="strength of smoothing over time; 0 = none")
    parser.add_argument("--face", type=int, default=0, help="which face, 0 = the largest")
    arguments = parser.parse_args()
    try:
        done = fit_files(
            arguments.videos, arguments.out, head=arguments.head, smooth=arguments.smooth, index=arguments.face
        )
    except InputError as error:
        parser.exit(2, f"{error}\n")
    if not done:
        parser.exit(1, f"Some files could not be fitted, see {arguments.out / FAILURES}\n")


if __name__ == "__main__":
    main()
