"""Fit folders of videos and pictures, at data-set scale: clips and head parameters out, whatever happens on the way.

    python fitting/fit_videos.py --videos DIR --out DIR          (= headwarp fit DIR -o DIR)

Folders (and tables like vox-metadata.csv) become data sets: a folder for each clip with clip.mp4 and clip.safetensors,
one index.parquet, and failures.csv with what could not be fitted and why. Single files become tracks,
NAME.safetensors. Running the command again goes on where it stopped; docs/fitting.md has the details.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from headwarp.fitting.clips import Recipe, fit_source
from headwarp.fitting.ledger import Failure, Ledger, Report, clear
from headwarp.fitting.options import FitOptions
from headwarp.fitting.regress import Choice, check_choice
from headwarp.fitting.sources import Source, find_sources, shard_of
from headwarp.fitting.workers import Beat, Died, Stop, run_here, run_local, run_ray
from headwarp.media.errors import InputError

Fit = Callable[[Source, Beat], Report | Stop]

_DEFAULTS = FitOptions()


def fit_files(
    inputs: Sequence[Path | str], output: Path | str, options: FitOptions = _DEFAULTS, *, progress: bool = True
) -> bool:
    """Fit everything that the inputs hold.

    Args:
        inputs: pictures, videos, folders of frames, folders of those, or tables like vox-metadata.csv.
        output: folder for the results; made when missing.
        options: see there.
        progress: show a bar on stderr.
    Returns:
        Whether every source has its results now.
    Raises:
        InputError: an input does not exist or holds nothing, options do not go together, the output folder was made
            with other settings, or the disk is full.
    """
    check_choice(Choice(options.head, options.regressor, options.refine, options.weights))
    _check(options)
    if not inputs:
        raise InputError("Name what to fit: pictures, videos, or folders of them.")
    sources, is_data_set = find_sources(inputs, options.metadata_videos)
    sources = shard_of(sources, options.shard)
    tracks = options.layout == "tracks" or (options.layout == "auto" and not is_data_set)
    recipe = Recipe(**{f.name: getattr(options, f.name) for f in fields(Recipe)})
    task: Fit = partial(fit_source, recipe=recipe, output=Path(output), tracks=tracks)
    if is_data_set:
        return _data_set(sources, Path(output), task, options, recipe, tracks, progress)
    return _files(sources, Path(output), task, options, progress)


def _files(sources: list[Source], output: Path, task: Fit, options: FitOptions, progress: bool) -> bool:
    """Files that were named one by one: fitted now, whatever is there already."""
    good = True
    try:
        with tqdm(unit="frame", disable=not progress) as bar:

            def beat() -> None:
                bar.update()

            for _, report in _answers(sources, task, options, beat):
                for failure in report.failures:
                    bar.write(f"{failure.name}: {failure.reason}", file=sys.stderr)
                good = good and not report.failures
    finally:
        clear(output)
    return good


def _data_set(
    sources: list[Source],
    output: Path,
    task: Fit,
    options: FitOptions,
    recipe: Recipe,
    tracks: bool,
    progress: bool,
) -> bool:
    """Folders and tables: what is done is skipped, and everything is written down."""
    settings = asdict(recipe) | {"layout": "tracks" if tracks else "clips"}
    shard = "" if options.shard == "1/1" else options.shard
    ledger = Ledger(output, settings, shard=shard, ending=".safetensors" if tracks else "")
    done = ledger.finished(retry=options.retry)
    waiting = [source for source in sources if source.name not in done]
    clips = 0
    bar = tqdm(total=len(sources), initial=len(sources) - len(waiting), unit="file", disable=not progress)
    try:
        with bar:
            for _, report in _answers(waiting, task, options, _silent):
                ledger.record(report)
                clips += len(report.clips)
                for failure in report.failures:
                    bar.write(f"{failure.name}: {failure.reason}", file=sys.stderr)
                bar.update()
    finally:
        ledger.close()
        with suppress(InputError):  # on a full disk; the next run makes them
            ledger.write_tables()
    if progress:
        print(f"{clips} clips fitted; {len(sources) - len(waiting)} files were done before.", file=sys.stderr)
    names = {source.name for source in sources}
    failed = [name for name, report in ledger.reports().items() if name in names and report.failures]
    if failed and progress:
        print(f"{len(failed)} files had failures, see {output / 'failures.csv'}; --retry tries again.", file=sys.stderr)
    return not failed


def _answers(sources: list[Source], task: Fit, options: FitOptions, beat: Beat) -> Iterator[tuple[Source, Report]]:
    """The report on each source, in the order in which they come."""
    workers = min(options.workers or _cores(), len(sources))
    answers: Iterator[tuple[Source, Report | Stop | Died]]
    if options.engine == "ray":
        answers = run_ray(sources, task, options.address)
    elif workers > 1:
        answers = run_local(sources, task, workers)
    else:
        answers = run_here(sources, task, beat)
    for source, answer in answers:
        if isinstance(answer, Stop):
            raise InputError(answer.reason)
        if isinstance(answer, Died):
            answer = Report(source.name, failures=[Failure(source.name, answer.reason, "next run")])
        yield source, answer


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _silent() -> None:
    """Data sets show files, not frames."""


def _check(options: FitOptions) -> None:
    if options.size < 16 or options.size % 2:
        raise InputError(f"--size must be even and at least 16, got {options.size}.")
    for name in ("smooth", "workers", "min_frames", "face"):
        if getattr(options, name) < 0:
            raise InputError(f"--{name.replace('_', '-')} must not be negative, got {getattr(options, name)}.")
    if options.fps is not None and options.fps <= 0:
        raise InputError(f"--fps must be positive, got {options.fps}.")


def main(
    videos: tuple[Path, ...],
    out: Path,
    options: Annotated[FitOptions, tyro.conf.arg(name="")] = _DEFAULTS,
) -> None:
    """Fit folders of videos and pictures into clips and head parameters.

    Args:
        videos: Pictures, videos, or folders of them; or a table like vox-metadata.csv.
        out: Folder for the results.
        options: How.
    """
    try:
        if not fit_files(videos, out, options):
            raise SystemExit(1)
    except InputError as error:
        print(f"fit_videos: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nInterrupted; nothing half-written was left behind. Run it again to go on.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    # worker processes look the task up in the package, not in this file run as a program
    from headwarp.fitting.fit_videos import main as run

    tyro.cli(run)
