"""Timing contenders side by side on a machine that others may use too.

Contenders take turns, so that a slow minute hits all of them. Every sample carries the time its threads waited for a
processor (Linux, /proc/self/task/*/schedstat); samples that waited for more than WAIT of their time are left out as
long as enough others remain.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

WAIT = 0.04
"""Share of a sample's time in the run queue above which it is left out."""
ENOUGH = 5
"""Accepted samples below which all are kept (and the table says so)."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender."""

    median: float
    spread: float
    """Between the quartiles."""
    processor: float
    """Median processor time, all threads."""
    samples: int
    """Accepted ones."""
    disturbed: bool
    """Too few samples were left alone; all were taken."""

    def __str__(self) -> str:
        return f"{self.median:.3f} ±{self.spread / 2:.3f}{'*' if self.disturbed else ''}"


def race(contenders: Mapping[str, Callable[[], object]], rounds: int = 20, seconds: float = 20.0) -> dict[str, Timing]:
    """Runs every contender once to warm up, then all in turn, `rounds` times or for `seconds`."""
    for run in contenders.values():
        run()
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    for turn in range(rounds):
        if turn >= ENOUGH and time.perf_counter() > end:
            break
        for name, run in contenders.items():
            waited, processor, start = _waited(), time.process_time(), time.perf_counter()
            run()
            wall = time.perf_counter() - start
            samples[name].append((wall, time.process_time() - processor, _waited() - waited))
    return {name: _summary(taken) for name, taken in samples.items()}


def _summary(samples: list[tuple[float, float, float]]) -> Timing:
    calm = [s for s in samples if s[2] <= WAIT * s[0]]
    disturbed = len(calm) < ENOUGH
    chosen = samples if disturbed else calm
    walls = sorted(1e3 * wall for wall, _, _ in chosen)
    quarters = statistics.quantiles(walls, n=4) if len(walls) > 1 else [walls[0]] * 3
    processor = statistics.median(1e3 * cpu for _, cpu, _ in chosen)
    return Timing(statistics.median(walls), quarters[2] - quarters[0], processor, len(chosen), disturbed)


def _waited() -> float:
    """Seconds that this process's threads have waited for a processor so far; 0 where the system does not tell."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, ValueError, IndexError):
            continue  # the thread has ended
    return total / 1e9


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        model = next(
            (x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), model
        )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "wait_limit": WAIT,
    }


def write_json(folder: Path, name: str, values: Mapping[str, Any]) -> Path:
    """`folder`/`name`.json, complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = json.dumps(values, indent=1, default=lambda x: asdict(x))
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".json", delete=False) as file:
        file.write(plain + "\n")
    os.replace(file.name, folder / f"{name}.json")
    return folder / f"{name}.json"
