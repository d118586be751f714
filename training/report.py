"""What a run tells as it goes: the bar, the log, validation with its sheets."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..media.errors import InputError
from .data import open_held_out
from .data.loader import held_out
from .launch import anywhere
from .log import Meter, RunLog
from .step import Losses
from .validation import validate

if TYPE_CHECKING:
    from .engine import Trainer


class Report:
    """The reports of a run. All processes call it, the first one speaks."""

    def __init__(self, run: Trainer) -> None:
        self._run = run
        config, progress = run.config, run.progress
        self._speaks = run.fabric.is_global_zero
        self.meter = Meter(progress.step)
        if not self._speaks:
            return
        options = config.log_params
        sets = open_held_out(config.dataset_params, run.request, options.validation_samples)
        self._samples = {name: held_out(source, options.validation_samples) for name, source in sets.items()}
        if not sets:
            print("note: nothing is held out (dataset_params.hold_out), so there is no validation.", file=sys.stderr)
        self._log = RunLog(
            run.folder,
            progress.step,
            tensorboard=options.tensorboard,
            wandb=options.wandb,
            name=run.folder.name,
            config=config.as_dict(),
        )
        self._bar = tqdm(
            total=run.iterations,
            initial=progress.step,
            unit="it",
            dynamic_ncols=True,
            disable=not run.show_bar,
        )

    def add(self, terms: Losses) -> None:
        """One step is done."""
        self.meter.add(terms)
        if self._speaks:
            self._bar.update()

    def losses(self, step: int) -> None:
        """Log the means since the last time; of the first process' share of the batches."""
        losses, steps_per_s = self.meter.read(step)
        if not self._speaks:
            return
        run = self._run
        total = sum(value for name, value in losses.items() if not name.startswith("critic/"))
        images_per_s = steps_per_s * run.params.batch_size
        self._bar.set_postfix(loss=f"{total:.4g}", images=f"{images_per_s:.1f}/s")
        entry = {
            "loss": total,
            "losses": losses,
            "lr": {name: part.lr(step - 1) for name, part in run.parts.items()},
            "images_per_s": round(images_per_s, 3),
            "shares": {name: round(share, 4) for name, share in run.clock.shares().items()},
        }
        self._log.write(step, entry)

    def validation(self, step: int) -> bool:
        """Judge the averaged model on what is held out; returns whether it is the best so far."""
        run = self._run
        begin, best = time.perf_counter(), False
        if self._speaks and self._samples:
            run.clock.mark("other")
            run.step.eval()
            batch = max(1, run.params.batch_size // run.params.accumulate)
            rows = run.config.log_params.sheet_rows
            found = {}
            for name, samples in self._samples.items():
                verdict = validate(run.fabric, run.step, run.average.module, samples, batch, rows)
                found[name] = verdict.metrics
                if verdict.columns:
                    self._log.sheet(step, name, verdict.columns, verdict.clips)
            self._log.write(step, {"validation": found})
            best = self._is_best(found)
            run.clock.mark("validation")
        self.meter.skip(time.perf_counter() - begin)
        return anywhere(run.fabric, best)[0]

    def close(self) -> None:
        if self._speaks:
            self._bar.close()
            self._log.close()

    def _is_best(self, found: dict[str, dict[str, float]]) -> bool:
        wanted, progress = self._run.config.log_params.best, self._run.progress
        if wanted is None:
            return False
        sign, name = (-1, wanted[1:]) if wanted.startswith("-") else (1, wanted)
        values = [metrics[name] for metrics in found.values() if name in metrics]
        if not values:
            known = sorted({metric for metrics in found.values() for metric in metrics})
            raise InputError(f"log_params.best is {wanted}, but the method reports {', '.join(known)}.")
        value = sum(values) / len(values)
        if not math.isfinite(value) or (progress.best is not None and sign * value <= sign * progress.best):
            return False
        progress.best, progress.best_step = value, progress.step
        return True
