"""Many portraits, many driving clips: every pair, one folder, one page to look at.

OUT/SOURCE--DRIVING.mp4      the results
OUT/motion/DRIVING.safetensors   every clip is fitted once (with models that are driven by a head)
OUT/index.html               all results with thumbnails, in one file
OUT/failures.csv             what could not be made and why
OUT/batch.json               what was made from what; a pair whose files and options are the same is not made again
"""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..geom.head import HeadModel
from ..media.errors import InputError
from ..media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, atomic_write, list_images, natural_key
from ..media.image import load_image
from ..media.sheet import strip_from_video
from .animate import animate
from .animator import Animator
from .driving import TRACK_SUFFIXES
from .models import is_keypoint_model, open_model
from .options import DEFAULTS, AnimateOptions

THUMBNAIL = 144
"""Pixels of the longer side."""
_SHOWN = 3  # moments of each result


@dataclass(frozen=True)
class Pair:
    """One result that is wanted."""

    source: Path
    driving: Path
    name: str
    """Of the result, without an ending."""


@dataclass
class Done:
    """What became of a pair."""

    pair: Pair
    file: Path | None
    """None where it failed."""
    frames: int = 0
    seconds: float = 0.0
    """It took; 0 where the result was there already."""
    skipped: bool = False
    problems: list[str] = field(default_factory=list)


def is_batch(source: Path, driving: Path) -> bool:
    """Whether `animate_all` is meant: a folder of sources, or a folder that holds clips (one of frames is one clip)."""
    return source.is_dir() or (driving.is_dir() and bool(_clips(driving)))


def pairs_of(source: Path, driving: Path) -> list[Pair]:
    """All pairs, in natural order.

    Args:
        source: a picture, a video, or a folder of them.
        driving: a clip, a track, an ARKit table, a folder of frames, or a folder of any of these.
    Raises:
        InputError: a folder has nothing to use.
    """
    sources = _sources(source)
    drivings = (_clips(driving) or _frames(driving)) if driving.is_dir() else [driving]
    for folder, found, what in (
        (source, sources, "pictures and no videos"),
        (driving, drivings, "clips and no tracks"),
    ):
        if not found:
            raise InputError(f"{folder} holds no {what}.")
    names = [_names(sources), _names(drivings)]
    return [Pair(s, d, f"{names[0][s]}--{names[1][d]}") for s in sources for d in drivings]


def animate_all(
    source: Path,
    driving: Path,
    output: Path,
    options: AnimateOptions = DEFAULTS,
    *,
    head: HeadModel | str = "open",
    ending: str = ".mp4",
    progress: bool = False,
) -> list[Done]:
    """Animate every source with every driving clip; what fails is noted and the rest goes on.

    Args:
        source, driving: see `pairs_of`.
        output: folder; results that are there and still fit their inputs and options are kept.
        options: for all pairs.
        head: head model, or its name or path.
        ending: of the results.
        progress: show a bar on stderr.
    Raises:
        InputError: nothing to do, or the folder cannot be written. Single pairs raise nothing.
    """
    pairs = pairs_of(source, driving)
    if options.save_motion:
        raise InputError(
            "In a batch the motion of every clip is saved by itself, in the folder motion/; no --save-motion."
        )
    for folder in (source, driving):
        if folder.is_dir() and output.resolve() == folder.resolve():
            raise InputError(f"The results cannot go into the folder of the inputs, {folder}; name another one.")
    with_head = not is_keypoint_model(open_model(options.model))
    log = _Log(output, options)
    results: list[Done] = []
    animator: tuple[Path, Animator] | None = None
    try:
        for pair in tqdm(pairs, desc="batch", unit=" pair", disable=not progress, dynamic_ncols=True):
            file = output / f"{pair.name}{ending}"
            made = log.made(pair, file)
            if made is not None:
                results.append(made)
                continue
            start = time.perf_counter()
            try:
                who: Path | Animator = pair.source
                if with_head and _is_picture(pair.source) and not options.side_by_side:
                    if animator is None or animator[0] != pair.source:
                        animator = pair.source, _animator(pair.source, options, head)
                    who = animator[1]
                result = _one(who, pair, file, options, head, output / "motion" if with_head else None)
                found = Done(pair, file, result.frames, time.perf_counter() - start, problems=result.problems)
                if isinstance(who, Animator):
                    found.problems = [*who.problems, *found.problems]
            except (InputError, FileNotFoundError) as error:
                found = Done(pair, None, problems=[str(error)])
            except Exception as error:  # a fault of ours in one pair must not cost the night's other results
                found = Done(pair, None, problems=[f"{type(error).__name__}: {error}"])
            results.append(found)
            log.add(found)
    finally:  # also after Ctrl-C: what is there can be looked at
        write_page(output, results)
        _write_failures(output, results)
    return results


def _one(
    who: Path | Animator, pair: Pair, file: Path, options: AnimateOptions, head: HeadModel | str, kept: Path | None
) -> Any:
    """One pair; the clip's motion is taken from `kept`, or left there."""
    if options.explain:
        options = replace(options, explain=options.explain / pair.name)
    track = None
    if kept is not None and pair.driving.suffix.lower() not in TRACK_SUFFIXES:
        # Its name says what it depends on beside the clip itself.
        facts = [_stamp(pair.driving), options.driving_face, options.smooth, options.no_crop]
        track = kept / f"{pair.driving.stem}.{_digest(facts)}.safetensors"
        if not track.is_file():
            options = replace(options, save_motion=track)
    there = track if track is not None and options.save_motion is None else None
    return animate(who, pair.driving, file, options, head=head, fitted=there)


def _animator(source: Path, options: AnimateOptions, head: HeadModel | str) -> Animator:
    return Animator(
        source,
        head=head,
        face=options.source_face,
        crop=not options.no_crop,
        size=options.size,
        max_side=options.max_side,
        model=options.model,
    )


class _Log:
    """batch.json: what every result was made from."""

    def __init__(self, folder: Path, options: AnimateOptions) -> None:
        self.path = folder / "batch.json"
        # Not of `asdict`: the command line's options hold its paths as well.
        self.settings = {f.name: str(getattr(options, f.name)) for f in fields(AnimateOptions)}
        model = Path(options.model)
        if model.is_file():
            self.settings["model"] += f" {_stamp(model)}"
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            entries = {}
        self.entries: dict[str, Any] = entries if isinstance(entries, dict) else {}

    def made(self, pair: Pair, file: Path) -> Done | None:
        """The pair as an earlier run left it; None where it is to be made."""
        entry = self.entries.get(file.name)
        if not file.is_file() or not isinstance(entry, dict) or entry.get("from") != self._from(pair):
            return None
        return Done(pair, file, entry.get("frames", 0), skipped=True, problems=entry.get("problems", []))

    def add(self, done: Done) -> None:
        if done.file is None:
            return
        self.entries[done.file.name] = {"from": self._from(done.pair), "frames": done.frames, "problems": done.problems}
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.entries, indent=1), encoding="utf-8")

    def _from(self, pair: Pair) -> dict[str, Any]:
        return {"source": _stamp(pair.source), "driving": _stamp(pair.driving), "options": self.settings}


def write_page(folder: Path, results: Sequence[Done]) -> Path:
    """The summary: one self-contained HTML file, a row for each source, a column for each driving clip."""
    sources = list(dict.fromkeys(done.pair.source for done in results))
    drivings = list(dict.fromkeys(done.pair.driving for done in results))
    cells = {(done.pair.source, done.pair.driving): done for done in results}
    heads = "".join(f"<th scope=col>{_head(path)}</th>" for path in drivings)
    rows = []
    for source in sources:
        found = "".join(f"<td>{_cell(cells.get((source, driving)))}</td>" for driving in drivings)
        rows.append(f"<tr><th scope=row>{_head(source)}</th>{found}</tr>")
    failed = sum(done.file is None for done in results)
    made = sum(done.file is not None and not done.skipped for done in results)
    kept = sum(done.skipped for done in results)
    told = f"{made} made, {kept} there before, {failed} failed"
    text = _PAGE.format(told=told, heads=heads, rows="\n".join(rows))
    path = folder / "index.html"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>headwarp: {told}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ border: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: .4rem; vertical-align: top; }}
th {{ font-weight: 600; text-align: left; overflow-wrap: anywhere; min-width: 7rem; }}
img {{ display: block; max-width: none; border-radius: 4px; }}
small {{ display: block; max-width: 28rem; }}
.failed {{ color: light-dark(#a40000, #ff9b9b); }}
</style>
<h1>Portraits and clips</h1>
<p>{told}. Rows are portraits, columns driving clips; a picture opens its result. AI-generated.</p>
<div class="scroll"><table><thead><tr><td></td>{heads}</tr></thead><tbody>
{rows}
</tbody></table></div>
</html>
"""


def _head(path: Path) -> str:
    try:
        picture = load_image(path, max_side=THUMBNAIL) if _is_picture(path) else _strip(path, 1)
        shown = _image(picture, "")
    except (InputError, FileNotFoundError):  # a track has no pictures, and a bad file none that can be shown
        shown = ""
    return f"{html.escape(path.name)}{shown}"


def _cell(done: Done | None) -> str:
    if done is None:
        return ""
    notes = "".join(f"<small>{html.escape(problem)}</small>" for problem in done.problems)
    if done.file is None:
        return f'<div class="failed">failed{notes}</div>'
    link = quote(done.file.name)
    try:
        shown = _image(_strip(done.file, _SHOWN), done.pair.name)
    except InputError:
        shown = html.escape(done.file.name)
    took = f", {done.seconds:.1f} s" if not done.skipped else ", there before"
    return f'<a href="{link}">{shown}</a><small>{done.frames} frames{took}</small>{notes}'


def _strip(path: Path, count: int) -> np.ndarray:
    return np.concatenate(strip_from_video(path, count, THUMBNAIL), 1)


def _image(picture: np.ndarray, description: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=80)
    data = base64.b64encode(stream.getvalue()).decode()
    height, width = picture.shape[:2]
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" '
        f'alt="{html.escape(description, quote=True)}">'
    )


def _write_failures(folder: Path, results: Sequence[Done]) -> None:
    """failures.csv, of this run; no file where all went well."""
    failed = [done for done in results if done.file is None]
    path = folder / "failures.csv"
    if not failed:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "driving", "error"])
        writer.writerows([done.pair.source, done.pair.driving, done.problems[0]] for done in failed)


def _sources(path: Path) -> list[Path]:
    return _files(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES) if path.is_dir() else [path]


def _clips(folder: Path) -> list[Path]:
    """Clips, tracks and tables of a folder, and its folders of frames unless it is one itself."""
    folders = []
    if not list_images(folder):
        folders = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and list_images(p)]
    files = _files(folder, VIDEO_SUFFIXES | frozenset(TRACK_SUFFIXES))
    return sorted([*files, *folders], key=lambda p: (natural_key(p), p.name))


def _frames(folder: Path) -> list[Path]:
    return [folder] if list_images(folder) else []


def _files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    found = [p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in suffixes and p.name[0] != "."]
    return sorted(found, key=lambda p: (natural_key(p), p.name))


def _names(paths: Sequence[Path]) -> Mapping[Path, str]:
    """Stems, with the ending where two files share one."""
    stems = [path.stem for path in paths]
    return {p: p.stem if stems.count(p.stem) == 1 else p.name.replace(".", "_") for p in paths}


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _stamp(path: Path) -> str:
    """What changes when a file does: name, size and time of change; of a folder of frames that of each."""
    if path.is_dir():
        return _digest([path.name, *(_stamp(p) for p in list_images(path))])
    try:
        facts = os.stat(path)
    except OSError:
        return path.name
    return f"{path.name} {facts.st_size} {facts.st_mtime_ns}"


def _digest(facts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps([str(fact) for fact in facts]).encode()).hexdigest()[:12]
