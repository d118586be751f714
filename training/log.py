"""What a run tells: a line of JSON per report, TensorBoard, Weights & Biases, and sheets of validation pictures.

log.jsonl     {"step": 20, "loss": 1.2, "losses": {...}, "lr": ..., "images_per_s": ..., "shares": {...}}
              {"step": 1000, "validation": {"every": {"psnr": 24.1}}}
validation/   00001000-every.png
events.out.*  TensorBoard
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..media.errors import InputError
from ..media.files import atomic_write, write_error
from ..media.image import save_image
from ..media.sheet import contact_sheet
from .step import Losses


class RunLog:
    """The log of a run folder. A resumed run first forgets what was told about steps that it will do again."""

    def __init__(self, folder: Path, step: int, *, tensorboard: bool, wandb: str, name: str, config: dict[str, Any]):
        """
        Args:
            folder: of the run.
            step: where it starts.
            tensorboard: write its events too, where it is installed.
            wandb: off, offline or online.
            name, config: what the run is called there, and its settings.
        """
        self.folder = folder
        self._path = folder / "log.jsonl"
        self._forget(step)
        self._board = _board(folder, step) if tensorboard else None
        self._wandb = _wandb(folder, wandb, name, config) if wandb != "off" else None

    def write(self, step: int, entry: Mapping[str, Any]) -> None:
        """One report; numbers, and numbers in dictionaries, go to the boards under their joined names."""
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **entry}) + "\n")
        except OSError as error:
            raise write_error(self._path, error) from error
        numbers = _flat(entry)
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def sheet(self, step: int, title: str, columns: Mapping[str, Tensor], clips: Sequence[str]) -> Path:
        """Write a contact sheet: one row a sample.

        Args:
            title: of the validation set.
            columns: column title -> (N, 3, H, W) in [0, 1].
            clips: N names.
        """
        pictures = {name: to_uint8(values) for name, values in columns.items()}
        rows = [[column[i] for column in pictures.values()] for i in range(len(clips))]
        cell = max(max(column.shape[1:3]) for column in pictures.values())
        sheet = contact_sheet(rows, list(clips), columns=list(pictures), cell=cell)
        path = self.folder / "validation" / f"{step:08d}-{title}.png"
        save_image(path, sheet)
        if self._board is not None:
            self._board.add_image(f"validation/{title}", sheet, step, dataformats="HWC")
        return path

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _forget(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            with suppress(ValueError, KeyError):  # a line that was cut off
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        with atomic_write(self._path) as part:
            part.write_text("".join(kept))


class Meter:
    """Means of the loss terms since they were last read, and the speed."""

    def __init__(self, step: int) -> None:
        self._sums: Losses = {}
        self._counts: dict[str, int] = {}
        self._step, self._time = step, time.perf_counter()

    def add(self, terms: Losses) -> None:
        """One step's terms, detached."""
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def not_finite(self) -> list[str]:
        """Names of the terms that are nan or inf. On a GPU this waits for the work in progress."""
        if not self._sums:
            return []
        good = torch.stack(list(self._sums.values())).isfinite().tolist()
        return [name for name, fine in zip(self._sums, good, strict=True) if not fine]

    def read(self, step: int) -> tuple[dict[str, float], float]:
        """The means, and steps per second; both start anew."""
        values = torch.stack([value / self._counts[name] for name, value in self._sums.items()]).tolist()
        means = dict(zip(self._sums, values, strict=True))
        now = time.perf_counter()
        speed = (step - self._step) / max(now - self._time, 1e-9)
        self._sums, self._counts, self._step, self._time = {}, {}, step, now
        return means, speed

    def skip(self, seconds: float) -> None:
        """Leave time that was not training out of the speed."""
        self._time += seconds


def to_uint8(images: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] -> (N, H, W, 3) uint8."""
    values = images.detach().float().clamp(0, 1).mul(255).round().byte()
    return values.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            numbers |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            numbers[f"{prefix}{name}"] = float(value)
    return numbers


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "note: TensorBoard is not installed; log.jsonl has the curves (pip install tensorboard).", file=sys.stderr
        )
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _wandb(folder: Path, mode: str, name: str, config: dict[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise InputError(
            f"log_params.wandb is {mode}, but wandb is not installed; pip install wandb, or set it to off."
        ) from None
    identity = folder / "wandb-id.txt"
    run = wandb.init(
        project="headwarp",
        name=name,
        dir=str(folder),
        config=config,
        mode=mode,
        id=identity.read_text().strip() if identity.exists() else None,
        resume="allow",
    )
    identity.write_text(run.id)
    return run
