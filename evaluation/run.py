"""A model on the pairs of a protocol: pictures made, scored and added up, in a folder that can be gone on with.

    DIR/pairs.csv          what was asked; pictures are called by the first column
    DIR/pictures/00000.png the results, (size, size); any program may make them (`evaluate(None, ...)`)
    DIR/journal.jsonl      a line for each pair made (seconds) and for each pair scored; what is in it is not done again
    DIR/scores.csv         the metrics of each pair
    DIR/result.json        means with intervals, what each metric is, what was run, on what
    DIR/places.csv         where the pictures of each pair lie on this machine
    DIR/report.html, table.tex

Frames of the data set and what was seen in them are kept in another folder, which models share.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import __version__
from ..fitting.faces import NoFaceError
from ..media.crop import Crop
from ..media.errors import InputError
from ..media.files import IMAGE_SUFFIXES, atomic_write, make_folder
from ..media.image import load_image, save_image
from .backbones import picture_hash
from .dataset import Clip, Frames, Moment, Picture, Ref
from .metrics import bootstrap, frechet
from .protocols import Pair, Reenactor, stretched, write_pairs
from .suite import Item, Metric, Suite

FORMAT = "headwarp-evaluation-1"
ALL = "all"
"""The table over all groups."""
BATCH = 16


@dataclass
class Row:
    """One scored pair."""

    pair: str
    """Its number, and the name of its picture."""
    source: str
    driving: str
    group: str
    sequence: str
    identity: str
    """Of the source."""
    clip: str
    """The driving one; pairs of a clip are drawn together when intervals are made."""
    stretch: tuple[float, float]
    picture: str
    """sha256 of the result."""
    found: bool
    """Whether a face was found in the result."""
    values: dict[str, float]
    seconds: float | None = None
    """That the model took; None where the picture was given."""


@dataclass
class Result:
    """A finished evaluation, as result.json and scores.csv hold it."""

    name: str
    facts: dict[str, Any]
    """Model, data, protocol, versions."""
    metrics: dict[str, dict[str, Any]]
    """What each metric is (`suite.Metric`), with its fingerprint."""
    tables: dict[str, dict[str, dict[str, float]]]
    """Group -> metric -> mean, low, high (95 %), count."""
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """Pairs and pictures of a run."""

    pairs: Sequence[Pair]
    frames: Frames
    facts: dict[str, Any]
    """Of data and protocol, for the result file."""
    problems: list[str]
    """Such as rows of a pair file that the data set does not have."""

    @property
    def digest(self) -> str:
        """sha256 of the pairs; results of the same ones are comparable pair by pair."""
        return hashlib.sha256(write_pairs(self.pairs, self.frames.clips).encode()).hexdigest()


def prepare(pairs: Sequence[Pair], frames: Frames, facts: Mapping[str, Any], problems: Sequence[str] = ()) -> Bench:
    """Write the frames that the pairs need; pairs whose frames a clip does not have are left out and named."""
    wanted = {ref for p in pairs for ref in (p.source, p.driving, p.anchor) if ref is not None}
    by_clip = sorted(wanted, key=lambda r: (r.clip, r.index))
    lost: set[Ref] = set()
    notes = list(problems)
    for name, refs in tqdm(list(_grouped(by_clip)), desc="frames", leave=False, disable=None):
        try:
            lost |= frames.prepare(refs)
        except InputError as error:
            notes.append(f"{name}: {error}")
            lost |= set(refs)
    kept = [p for p in pairs if not {p.source, p.driving, p.anchor} & lost]
    if lost:
        names = ", ".join(sorted(map(str, lost))[:5])
        notes.append(f"{len(pairs) - len(kept)} pairs are left out: their frames cannot be read ({names} ...).")
    if not kept:
        raise InputError(f"No pair can be evaluated: {notes[-1]}")
    return Bench(kept, frames, dict(facts), notes)


def evaluate(
    reenactor: Reenactor | None,
    bench: Bench,
    output: Path | str,
    *,
    suite: Suite,
    results: Path | str | None = None,
    name: str | None = None,
) -> Result:
    """Make and score the pictures of all pairs and write the result files (not the report).

    Args:
        reenactor: the model; None where the pictures are in `results`.
        bench: what is asked.
        output: folder; where it holds a part of the same evaluation, that is gone on with.
        suite: the metrics.
        results: folder with NUMBER.png (or .jpg ...) for each row of pairs.csv, made by any program.
        name: in tables; the model's own by default.
    Raises:
        InputError: the folder holds another evaluation, or pictures are missing.
    """
    output = Path(output)
    make_folder(output)
    label = name or (reenactor.name if reenactor else Path(str(results)).name)
    facts: dict[str, Any] = dict(reenactor.facts) if reenactor else {"pictures": f"given, in {Path(str(results)).name}"}
    what = {"model": facts, "pairs_sha256": bench.digest, "size": bench.frames.size, "refit": bench.frames.refit}
    _claim(output, what)
    with atomic_write(output / "pairs.csv") as temporary:
        temporary.write_text(write_pairs(bench.pairs, bench.frames.clips))
    journal = _Journal(output / "journal.jsonl")
    problems = list(bench.problems)
    if reenactor is not None:
        problems += _make(reenactor, bench, output / "pictures", journal)
        folder = output / "pictures"
    else:
        folder = Path(str(results))
    rows = _score(bench, folder, suite, journal, problems, given=reenactor is None)
    result = _add_up(label, what, bench, rows, suite, folder, problems, journal)
    write_result(result, output)
    _write_places(bench, rows, folder, output)
    return result


def write_result(result: Result, output: Path) -> None:
    """result.json and scores.csv."""
    with atomic_write(output / "result.json") as temporary:
        whole = {"format": FORMAT, **{k: v for k, v in asdict(result).items() if k != "rows"}}
        temporary.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")
    names = [m for m, card in result.metrics.items() if card["kind"] == "pair"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fixed = ("pair", "source", "driving", "group", "sequence", "identity", "clip")
    writer.writerow([*fixed, "stretch_width", "stretch_height", "picture", "face_found", "seconds", *names])
    for row in result.rows:
        numbers = [f"{row.values[m]:.6g}" if m in row.values else "" for m in names]
        seconds = "" if row.seconds is None else f"{row.seconds:.4g}"
        start = [getattr(row, column) for column in fixed]
        writer.writerow([*start, *row.stretch, row.picture, int(row.found), seconds, *numbers])
    with atomic_write(output / "scores.csv") as temporary:
        temporary.write_text(text.getvalue())


def _write_places(bench: Bench, rows: Sequence[Row], folder: Path, output: Path) -> None:
    """places.csv: where the pictures of each pair lie on this machine, for the pages that show them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pair", "source", "driving", "shown", "result"])
    pairs = {f"{number:05d}": pair for number, pair in enumerate(bench.pairs)}
    for row in rows:
        pair = pairs[row.pair]
        places = [bench.frames.path(pair.source), bench.frames.path(pair.driving)]
        shown = "" if pair.stretch == (1.0, 1.0) else f"{pair.stretch[0]},{pair.stretch[1]}"
        path = _picture_path(folder, row.pair)
        assert path is not None
        writer.writerow([row.pair, *(p.resolve() for p in places), shown, path.resolve()])
    with atomic_write(output / "places.csv") as temporary:
        temporary.write_text(text.getvalue())


def read_result(folder: Path | str) -> Result:
    """A finished evaluation.

    Raises:
        InputError: the folder holds none.
    """
    folder = Path(folder)
    try:
        whole = json.loads((folder / "result.json").read_text())
        with open(folder / "scores.csv", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, ValueError):
        raise InputError(f"{folder} holds no finished evaluation (result.json and scores.csv).") from None
    if whole.pop("format", None) != FORMAT:
        raise InputError(f"{folder}/result.json is no result of `headwarp evaluate`, or one of another version.")
    rows = []
    for line in lines:
        values = {m: float(line[m]) for m in whole["metrics"] if line.get(m)}
        text = {k: line[k] for k in ("pair", "source", "driving", "group", "sequence", "identity", "clip", "picture")}
        stretch = (float(line["stretch_width"]), float(line["stretch_height"]))
        seconds = float(line["seconds"]) if line["seconds"] else None
        rows.append(Row(**text, stretch=stretch, found=line["face_found"] == "1", values=values, seconds=seconds))
    return Result(rows=rows, **whole)


class _Journal:
    """What has been done, a JSON line each; a line that was cut off does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made: dict[str, dict[str, Any]] = {}
        self.scored: dict[str, dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                (self.made if entry["what"] == "made" else self.scored)[entry["pair"]] = entry

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        with open(self.path, "a") as file:
            for entry in entries:
                file.write(json.dumps(entry) + "\n")
                (self.made if entry["what"] == "made" else self.scored)[entry["pair"]] = entry


def _claim(output: Path, what: dict[str, Any]) -> None:
    """InputError where the folder belongs to another evaluation."""
    path = output / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text())
        other = [key for key in what if before.get(key) != what[key]]
        if other:
            raise InputError(
                f"{output} holds another evaluation (it differs in {', '.join(other)}); name another folder, or remove "
                "that one."
            )
        return
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(what, indent=1) + "\n")


def _make(reenactor: Reenactor, bench: Bench, folder: Path, journal: _Journal) -> list[str]:
    """Make the pictures that are not there; gives a sentence for each kind of failure."""
    folder.mkdir(exist_ok=True)
    todo = [
        (f"{number:05d}", pair)
        for number, pair in enumerate(bench.pairs)
        if f"{number:05d}" not in journal.made or not (folder / f"{number:05d}.png").is_file()
    ]
    failures: list[str] = []
    bar = tqdm(total=len(todo), desc=reenactor.name, leave=False, disable=None)
    for _, run in groupby(todo, key=lambda item: (item[1].source, item[1].driving.clip, item[1].anchor)):
        try:
            for number, picture, seconds, setup in _reenacted(reenactor, list(run), bench.frames, failures):
                save_image(folder / f"{number}.png", picture)
                journal.add([{"what": "made", "pair": number, "seconds": seconds, "setup": setup}])
                bar.update()
        except NoFaceError as error:  # in the source or the anchor
            failures.append(str(error))
    bar.close()
    if failures:
        return [f"The model could not treat {len(failures)} sources or driving frames; the first: {failures[0]}"]
    return []


def _reenacted(
    reenactor: Reenactor, run: Sequence[tuple[str, Pair]], frames: Frames, failures: list[str]
) -> Iterator[tuple[str, Picture, float, float | None]]:
    """Number, picture, seconds of the frame, and with its first frame the seconds of the source."""
    first = run[0][1]
    source = frames.moment(first.source, fitted=reenactor.fitted)
    anchor = frames.moment(first.anchor, fitted=reenactor.fitted) if first.anchor else None
    start = time.perf_counter()
    state = reenactor.prepare(source)
    setup: float | None = time.perf_counter() - start

    def attempt(driving: Sequence[Moment]) -> list[Picture | None]:
        try:
            return list(reenactor.reenact(state, driving, anchor))
        except NoFaceError as error:
            if len(driving) > 1:  # one bad frame does not take the others along
                return [attempt([moment])[0] for moment in driving]
            failures.append(str(error))
            return [None]

    for begin in range(0, len(run), BATCH):
        some = run[begin : begin + BATCH]
        driving = [_driving(pair, frames, reenactor.fitted) for _, pair in some]
        start = time.perf_counter()
        pictures = attempt(driving)
        seconds = (time.perf_counter() - start) / len(some)
        if len(pictures) != len(some):
            raise ValueError(f"{reenactor.name}: {len(some)} driving frames gave {len(pictures)} pictures.")
        for (number, _), picture in zip(some, pictures, strict=True):
            if picture is None:
                continue
            if picture.shape != source.image.shape or picture.dtype != np.uint8:
                raise ValueError(f"{reenactor.name}: a result must be uint8 {source.image.shape}, got {picture.shape}.")
            yield number, picture, seconds, setup
            setup = None


def _driving(pair: Pair, frames: Frames, fitted: bool) -> Moment:
    """What the model is shown; a stretched frame is an unknown picture."""
    if pair.stretch == (1.0, 1.0):
        return frames.moment(pair.driving, fitted=fitted)
    return Moment(stretched(frames.picture(pair.driving), *pair.stretch), pair.driving)


def _score(
    bench: Bench, folder: Path, suite: Suite, journal: _Journal, problems: list[str], *, given: bool
) -> list[Row]:
    """Rows of all pairs that have a picture, in order."""
    rows: list[Row] = []
    waiting: list[tuple[Row, Item]] = []
    missing = resized = 0

    def flush() -> None:
        scores = suite.score([item for _, item in waiting])
        entries = []
        for (row, _), values, found in zip(waiting, scores.values, scores.found, strict=True):
            row.values, row.found = values, found
            entry = {"picture": row.picture, "suite": suite.fingerprint, "found": found, "values": values}
            entries.append({"what": "scored", "pair": row.pair, **entry})
        journal.add(entries)
        waiting.clear()

    for number, pair in enumerate(tqdm(bench.pairs, desc="score", leave=False, disable=None)):
        label = f"{number:05d}"
        path = _picture_path(folder, label)
        if path is None:
            missing += 1
            continue
        image = load_image(path)
        size = bench.frames.size
        if image.shape[:2] != (size, size):
            resized += 1
            image = Crop.whole(image.shape, size).extract(image)
        identity = bench.frames.clips[pair.source.clip].identity
        made = journal.made.get(label, {})
        texts = (label, str(pair.source), str(pair.driving), pair.group, pair.sequence, identity, pair.driving.clip)
        row = Row(*texts, pair.stretch, picture_hash(image), False, {}, made.get("seconds"))
        rows.append(row)
        before = journal.scored.get(label)
        if before and (before["picture"], before["suite"]) == (row.picture, suite.fingerprint):
            row.values, row.found = before["values"], before["found"]
            continue
        driving, source = bench.frames.picture(pair.driving), bench.frames.picture(pair.source)
        waiting.append((row, Item(image, driving, source, pair.has_truth, bench.frames.exact(pair.driving))))
        if len(waiting) == BATCH:
            flush()
    if waiting:
        flush()
    if missing:
        problems.append(f"{missing} of {len(bench.pairs)} pairs have no picture and count in nothing.")
    if resized:
        problems.append(f"{resized} given pictures were brought to {bench.frames.size} x {bench.frames.size} pixels.")
    if not rows:
        where = f"{folder} holds no picture of these pairs" if given else "the model made no picture"
        raise InputError(f"There is nothing to score: {where}; results are called {0:05d}.png as in pairs.csv.")
    return rows


def _picture_path(folder: Path, label: str) -> Path | None:
    for suffix in (".png", *sorted(IMAGE_SUFFIXES - {".png"})):
        if (path := folder / f"{label}{suffix}").is_file():
            return path
    return None


def _add_up(
    name: str,
    what: dict[str, Any],
    bench: Bench,
    rows: list[Row],
    suite: Suite,
    folder: Path,
    problems: list[str],
    journal: _Journal,
) -> Result:
    groups = sorted({row.group for row in rows if row.group})
    pairs = {f"{number:05d}": pair for number, pair in enumerate(bench.pairs)}
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for group in [ALL, *groups]:
        some = [row for row in rows if group in (ALL, row.group)]
        table = summary(some, [m for m in suite.metrics.values() if m.kind == "pair"])
        table["face_found"] = _share_found(some)
        if group == ALL or len(groups) > 1:
            table |= _set_metrics(some, pairs, bench, suite, folder)
        tables[group] = table
    facts = {
        **what,
        **bench.facts,
        "pairs": len(bench.pairs),
        "clips": len(bench.frames.clips),
        "identities": len({row.identity for row in rows}),
        "seconds": _seconds(rows, journal),
        "versions": {
            "headwarp": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    }
    cards = {n: {**m.as_dict(), "fingerprint": m.fingerprint} for n, m in suite.metrics.items() if n in tables[ALL]}
    return Result(name, facts, cards, tables, rows, problems)


def summary(rows: Sequence[Row], metrics: Iterable[Metric]) -> dict[str, dict[str, float]]:
    """Mean, interval and count of each metric that has values."""
    clips = {clip: i for i, clip in enumerate(sorted({row.clip for row in rows}))}
    table = {}
    for metric in metrics:
        having = [row for row in rows if math.isfinite(row.values.get(metric.name, math.nan))]
        if having:
            values = np.array([row.values[metric.name] for row in having])
            table[metric.name] = _cell(values, np.array([clips[row.clip] for row in having]))
    return table


def _cell(values: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    cell = {"mean": float(values.mean()), "count": len(values)}
    if len(np.unique(groups)) > 1:  # one clip says nothing about others
        low, high = bootstrap(values.astype(np.float64), groups.astype(np.int64))
        cell |= {"low": low, "high": high}
    return cell


def _share_found(rows: Sequence[Row]) -> dict[str, float]:
    return {"mean": float(np.mean([row.found for row in rows])), "count": len(rows)}


def _set_metrics(
    rows: Sequence[Row], pairs: Mapping[str, Pair], bench: Bench, suite: Suite, folder: Path
) -> dict[str, dict[str, float]]:
    """Frechet distances, and jitter of the sequences."""

    def result(row: Row) -> Picture:
        path = _picture_path(folder, row.pair)
        assert path is not None
        image = load_image(path)
        size = bench.frames.size
        return image if image.shape[:2] == (size, size) else Crop.whole(image.shape, size).extract(image)

    truth = all(pairs[row.pair].has_truth for row in rows)
    made: dict[str, list[np.ndarray]] = {}
    real: dict[str, list[np.ndarray]] = {}
    for begin in range(0, len(rows), BATCH):
        some = rows[begin : begin + BATCH]
        references = [pairs[row.pair].driving if truth else pairs[row.pair].source for row in some]
        for into, pictures in (
            (made, [result(row) for row in some]),
            (real, [bench.frames.picture(ref) for ref in references]),
        ):
            for n, vectors in suite.vectors(pictures).items():
                into.setdefault(n, []).append(vectors)
    distances = {n: frechet(np.concatenate(made[n]), np.concatenate(real[n])) for n in made}
    table = {n: {"mean": v, "count": len(rows)} for n, v in distances.items() if math.isfinite(v)}
    found: dict[str, list[float]] = {}
    sequences: dict[str, list[Row]] = {}
    for row in rows:
        if row.sequence:
            sequences.setdefault(row.sequence, []).append(row)
    for some in sequences.values():
        some.sort(key=lambda r: pairs[r.pair].driving.index)
        drivings = [pairs[r.pair].driving for r in some]
        truths = [bench.frames.picture(ref) for ref in drivings] if truth else None
        for n, v in suite.jitters([result(r) for r in some], truths).items():
            if math.isfinite(v):
                found.setdefault(n, []).append(v)
    for n, values in found.items():
        table[n] = _cell(np.array(values), np.arange(len(values)))
    return table


def _seconds(rows: Sequence[Row], journal: _Journal) -> dict[str, float]:
    """Medians of what the model took: for a driving frame, and for a source."""
    frames = [row.seconds for row in rows if row.seconds is not None]
    setups = [e["setup"] for e in journal.made.values() if e.get("setup") is not None]
    found = {"per_pair": frames, "per_source": setups}
    return {name: float(np.median(values)) for name, values in found.items() if values}


def _grouped(refs: Sequence[Ref]) -> Iterator[tuple[str, list[Ref]]]:
    for name, some in groupby(refs, key=lambda ref: ref.clip):
        yield name, list(some)


def data_facts(clips: Mapping[str, Clip], root: Path) -> dict[str, Any]:
    """What the result says about the data set: names only, no paths of this machine."""
    text = "\n".join(f"{clip.name} {clip.length}" for clip in clips.values())
    return {"data": root.resolve().name, "data_sha256": hashlib.sha256(text.encode()).hexdigest()}
