"""What has been fitted, in a folder that survives anything: kills, full disks, several machines at once.

    OUT/train/NAME/clip.mp4, clip.safetensors   a finished clip; its folder appears whole, by one rename
    OUT/index.parquet                           one row a clip (`COLUMNS`), rewritten whole
    OUT/failures.csv                            name, reason, retry of what could not be fitted
    OUT/.fit/settings.json                      what the folder was made with
    OUT/.fit/journal*.jsonl                     one line a finished source, written after its clips are in place
    OUT/.fit/parts/                             what running processes are writing; leftovers of dead ones are removed

The journals are the truth for resuming; index and failures are made from them and can be made again. A line that was
cut off by a crash is ignored, and its source fitted again, with the same result.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..media.errors import InputError
from ..media.files import atomic_write, natural_key, write_error

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed processes stay until the folder .fit/parts is deleted
    fcntl = None  # type: ignore[assignment]

COLUMNS = {
    "name": "clip's folder below the data set, such as train/NAME",
    "split": "first folder of the name: train, test, or empty",
    "identity": "who it shows, by FOMM's rule: the name up to the first #",
    "source": "file or folder that it was cut from",
    "first_frame": "of the source (at the clip's frame rate), counted from 0",
    "frames": "of the clip",
    "start": "seconds in the source",
    "duration": "seconds",
    "fps": "frames per second",
    "size": "side of the clip in pixels",
    "x": "centre of the crop in the source, pixels",
    "y": "centre of the crop in the source, pixels",
    "side": "of the crop in the source, pixels; less than size: the clip was enlarged",
    "height": "of the source, pixels",
    "width": "of the source, pixels",
    "found": "share of frames in which the face was seen",
    "confidence": "mean presence of the face, 0 to 1",
    "head": "head model",
    "head_sha256": "its hash",
    "problems": "damage of the source that was met; empty: none",
}
"""Columns of the index and what they mean."""

TEXT = {"name", "split", "identity", "source", "head", "head_sha256", "problems"}
WHOLE = {"first_frame", "frames", "size", "height", "width"}


@dataclass
class Failure:
    """Something that could not be fitted."""

    name: str
    reason: str
    retry: str = "on request"
    """"on request": the input is to blame, `--retry` tries again; "next run": the machine is."""


@dataclass
class Report:
    """What became of one source."""

    source: str
    """`Source.name`."""
    clips: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the index."""
    failures: list[Failure] = field(default_factory=list)


class Ledger:
    """The books of an output folder; one object for each run, in its main process."""

    def __init__(self, folder: Path | str, settings: dict[str, Any], *, shard: str = "", ending: str = "") -> None:
        """
        Args:
            folder: of the data set; made where it is missing.
            settings: what decides the content of the files; a folder made with others is refused.
            shard: names this run's own journal, so that machines that share the folder do not share a file.
            ending: what follows a clip's name in its folder: nothing for folders, .safetensors for tracks.
        Raises:
            InputError: the folder cannot be written, or was made with other settings.
        """
        self.folder, self._ending = Path(folder), ending
        self._books = self.folder / ".fit"
        try:
            self._books.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.folder, error) from error
        self._check_settings(settings)
        remove_leftovers(self.folder)
        name = f"journal-{shard.replace('/', '-of-')}.jsonl" if shard else "journal.jsonl"
        self._journal = self._books / name
        self._file: BinaryIO | None = None

    def reports(self) -> dict[str, Report]:
        """The latest report of each source, from all journals."""
        found: dict[str, Report] = {}
        for path in sorted(self._books.glob("journal*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                with suppress(ValueError, KeyError, TypeError):  # cut off by a crash
                    entry = json.loads(line)
                    report = Report(entry["source"], entry["clips"], [Failure(**f) for f in entry["failures"]])
                    known = found.get(report.source)
                    # of two shards that both did it, the one that came further
                    if known is None or path == self._journal or len(report.clips) >= len(known.clips):
                        found[report.source] = report
        return found

    def finished(self, *, retry: bool) -> set[str]:
        """Sources that need no more work: their clips are there and nothing of them is to be tried again."""
        reports = self.reports()
        there = self._there(reports.values())
        return {
            name
            for name, report in reports.items()
            if all(clip["name"] in there for clip in report.clips)
            and not any(retry or failure.retry == "next run" for failure in report.failures)
        }

    def record(self, report: Report) -> None:
        """Write a report down, for good."""
        try:
            if self._file is None:
                self._file = open(self._journal, "ab+")  # noqa: SIM115 - open until `close`
                if self._file.tell():
                    self._file.seek(-1, os.SEEK_END)
                    if self._file.read(1) != b"\n":
                        self._file.write(b"\n")  # the last line was cut off
            self._file.write(json.dumps(asdict(report)).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self._journal, error) from error

    def write_tables(self) -> list[Failure]:
        """Make index.parquet and failures.csv anew from all journals; returns the failures."""
        while True:
            before = self._journal_sizes()
            reports = self.reports().values()
            there = self._there(reports)
            rows = [clip for report in reports for clip in report.clips if clip["name"] in there]
            failures = [failure for report in reports for failure in report.failures]
            rows.sort(key=lambda row: (natural_key(row["name"]), row["name"]))
            failures.sort(key=lambda failure: (natural_key(failure.name), failure.name))
            write_index(self.folder / "index.parquet", rows)
            self._write_failures(failures)
            # another shard that wrote its last line meanwhile may have had its index replaced by this one
            if self._journal_sizes() == before:
                return failures

    def close(self) -> None:
        """Let go of the journal, and remove what dead processes left."""
        if self._file is not None:
            self._file.close()
            self._file = None
        remove_leftovers(self.folder)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self._books / "settings.json"
        try:
            there = json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            raise InputError(f"{path} is damaged; delete {self._books} to start the folder afresh.") from None
        changed = [f"{k} {there.get(k)} (now {v})" for k, v in settings.items() if k in there and there[k] != v]
        if changed:
            raise InputError(
                f"{self.folder} was made with other settings: {', '.join(changed)}. Choose another output folder, or "
                "the same settings."
            )
        if settings.keys() - there.keys():
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(there | settings, indent=1))

    def _there(self, reports: Iterable[Report]) -> set[str]:
        """Which of the reported clips are in the folder. Each folder is listed once and nothing is opened, since a
        clip's name only appears when the clip is whole."""
        names = {clip["name"] for report in reports for clip in report.clips}
        found = set()
        for parent in {Path(name).parent for name in names}:
            with suppress(FileNotFoundError):
                found |= {(parent / entry).as_posix() for entry in os.listdir(self.folder / parent)}
        return {name for name in names if name + self._ending in found}

    def _journal_sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self._books.glob("journal*.jsonl")}

    def _write_failures(self, failures: list[Failure]) -> None:
        path = self.folder / "failures.csv"
        if not failures:
            with suppress(FileNotFoundError):
                path.unlink()
            return
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "reason", "retry"])
            writer.writerows([f.name, f.reason, f.retry] for f in failures)


def write_index(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """The Parquet file of the rows, its columns `COLUMNS`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {name: pa.string() if name in TEXT else pa.int64() if name in WHOLE else pa.float64() for name in COLUMNS}
    schema = pa.schema([pa.field(name, kind, metadata={"about": COLUMNS[name]}) for name, kind in kinds.items()])
    with atomic_write(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), temporary)


def read_index(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of a data set's index.parquet."""
    import pyarrow.parquet as pq

    path = Path(folder) / "index.parquet"
    if not path.is_file():
        raise InputError(f"{folder} has no index.parquet; `headwarp fit VIDEOS -o {folder}` makes one.")
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


@contextmanager
def parts_folder(folder: Path | str) -> Iterator[Path]:
    """A folder for what is being written, on the disk of `folder`; gone at the end of the block.

    A lock marks it as in use, so that the leftover of a killed process is told from the folder of a living one, also
    on another machine that shares the disk.
    """
    parts = Path(folder) / ".fit" / "parts"
    place, lock = _locked(parts)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def remove_leftovers(folder: Path | str) -> None:
    """Remove the parts of processes that are gone."""
    if fcntl is None:
        return
    for place in (Path(folder) / ".fit" / "parts").glob("*"):
        with suppress(OSError):
            lock = os.open(place / "lock", os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(lock)


def clear(folder: Path | str) -> None:
    """Remove the folder of parts where nothing is being written and no data set is kept."""
    remove_leftovers(folder)
    for place in (Path(folder) / ".fit" / "parts", Path(folder) / ".fit"):
        with suppress(OSError):  # not empty
            place.rmdir()


def _locked(parts: Path) -> tuple[Path, int]:
    """A new folder and its lock, held."""
    while True:
        place = parts / secrets.token_hex(8)
        try:
            place.mkdir(parents=True)
            lock = os.open(place / "lock", os.O_CREAT | os.O_RDWR)
        except FileNotFoundError:
            continue  # another run tidied up between the two
        except OSError as error:
            raise write_error(place, error) from error
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (place / "lock").exists():  # else the same, before the lock was held
            return place, lock
        os.close(lock)


def publish(part: Path, target: Path) -> None:
    """Give a finished folder of parts its name, by one rename; an older clip of that name makes way.

    The content is on the disk before the name is: after a power cut there is no folder with empty files.
    """
    try:
        for path in part.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            os.replace(target, part.with_name(f"{part.name}.old"))
        os.replace(part, target)
    except OSError as error:
        raise write_error(target, error) from error
