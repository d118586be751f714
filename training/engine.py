"""The training engine: any method's `Step`, on one device or many, that can be killed at any moment and goes on.

    for every step:  batches -> losses -> gradients, averaged -> Adam of the model -> (the same for the critic) -> EMA

What step s does is a function of the weights, the seed and s alone: its samples are numbers s B ... s B + B - 1, and
the random generators are seeded from (seed, s, process) when it begins. So a checkpoint needs no random state and no
data position, and on a CPU a resumed run gives the bits of an uninterrupted one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer

from ..geom.head import HeadModel
from ..media.errors import InputError
from ..nets.model_file import save_model
from .batch import Batch
from .checkpoint import Progress, begin_with, checkpoints, load_checkpoint, prune, save_checkpoint
from .clock import Clock
from .config import TrainConfig
from .data import Request, open_training
from .data.loader import Dealer, load
from .launch import anywhere, launch, loader_processes, seed, stop_signals
from .optim import Average, Part, share_state
from .report import Report
from .run_folder import CHECKPOINTS, FINISHED, facts, run_folder
from .step import Losses, Step
from .steps import step_class

_SIDE = 32
"""Every network of the package takes squares with sides of a multiple of this; some take others too."""


class Diverged(RuntimeError):
    """A loss or a weight is not finite; the message names it and the last good checkpoint."""


class Stopped(Exception):
    """The run was asked to stop and has written a checkpoint; the message says how to go on."""


def train(config: TrainConfig, output: Path | str | None = None, *, progress: bool = True) -> Path:
    """Train as a configuration says, or go on with a run that was stopped.

    Args:
        config: see there.
        output: run folder; None: log/NAME DATE, or the newest of those that has this configuration and is unfinished.
        progress: show a bar on stderr.
    Returns:
        The run folder: model.safetensors (the averaged model), config.yaml, log.jsonl, validation/, checkpoints/.
    Raises:
        InputError: data or settings that cannot be used.
        Diverged: a loss or a weight is not finite.
        Stopped: SIGTERM or Ctrl-C came; a checkpoint is written.
    """
    fabric = launch(config.run_params)
    with ExitStack() as held:
        folder = _agreed_folder(fabric, config, output, held)
        with stop_signals() as asked:
            Trainer(config, folder, fabric, progress=progress).run(asked)
    return folder


def _agreed_folder(fabric: Fabric, config: TrainConfig, output: Path | str | None, held: ExitStack) -> Path:
    """The run folder, chosen by the first process and kept from others until `held` ends. Where it is refused, that one
    says why and all of them end."""
    answer: Path | InputError = Path()
    if fabric.is_global_zero:
        try:
            answer = held.enter_context(run_folder(config, output))
        except InputError as error:
            answer = error
    answer = fabric.broadcast(answer, src=0)
    if isinstance(answer, InputError):
        if fabric.is_global_zero:
            raise answer
        raise SystemExit(2)
    return answer


class Trainer:
    """One run: its state, and what is done with it."""

    def __init__(self, config: TrainConfig, folder: Path, fabric: Fabric, *, progress: bool = True) -> None:
        self.config, self.folder, self.fabric, self.show_bar = config, folder, fabric, progress
        seed(config.train_params.seed)
        self.step = self._make_step()
        self.request = self._make_request()
        self.source = open_training(config.dataset_params, self.request)
        self.params = params = config.train_params.in_steps(len(self.source))
        self.iterations = params.iterations or 0
        self.parts = {"model": Part(fabric, self.step.model, params.lr, params)}
        if self.step.critic is not None:
            rate = params.lr if params.lr_critic is None else params.lr_critic
            self.parts["critic"] = Part(fabric, self.step.critic, rate, params)
        self.average = Average(self.step.model, params.ema)
        self.progress = self._resume()
        cuda = fabric.device.type == "cuda"
        self.clock = Clock(torch.cuda.synchronize if cuda else None)
        self.step.mark = self.clock.mark
        # To look at a loss, and to ask other processes, a GPU must wait: there only as often as there is a report.
        self._look_every = config.log_params.log_freq if cuda else 1

    def run(self, asked: threading.Event) -> None:
        """Train to the end, or until asked to stop."""
        if self.progress.step >= self.iterations:
            self._tell(f"{self.folder} is at its end; -o '{self.folder}' with more train_params.iterations goes on.")
            return
        finished = self.folder / FINISHED
        finished.unlink(missing_ok=True)
        often, begin = self.config.log_params, self.progress.step
        # The batches first: their workers load while the validation samples are made.
        with closing(self._batches()) as batches, closing(Report(self)) as report:
            self.clock.skip()
            while self.progress.step < self.iterations:
                micro = [batch.to(self.fabric.device) for batch in islice(batches, self.params.accumulate)]
                self.clock.mark("data")
                take = self._first_step if self.progress.step == begin else self.train_step
                report.add(take(self.progress.step, micro))
                self.progress.step += 1
                step, last = self.progress.step, self.progress.step == self.iterations
                stop = False
                if step % self._look_every == 0 or last or (asked.is_set() and self.fabric.world_size == 1):
                    bad = report.meter.not_finite()
                    stop, diverged = anywhere(self.fabric, asked.is_set(), bool(bad))
                    if diverged:
                        what = f"The loss term {bad[0]}" if bad else "A loss term of another process"
                        raise Diverged(f"{what} became nan or inf by step {step}. {self._way_out()}")
                if step % often.log_freq == 0 or last:
                    report.losses(step)
                best = (step % often.validation_freq == 0 or last) and report.validation(step)
                if step % often.checkpoint_freq == 0 or last or stop or best:
                    self.save(best=best)
                if stop and not last:
                    again = f"The same command goes on with it (or -o '{self.folder}')."
                    raise Stopped(f"Stopped after {step} steps, with a checkpoint. {again}")
                self.clock.mark("other")
                self.clock.lap()
        if self.fabric.is_global_zero:
            finished.touch()
        self._tell(f"{self.iterations} steps are done ({self.clock}). {self.folder / 'model.safetensors'}")

    def _first_step(self, number: int, batches: list[Batch]) -> Losses:
        """`train_step`; what fails with pictures of an unusual size says so. Later ones have had that size before.

        Raises:
            InputError: the network cannot take pictures of this size.
        """
        try:
            return self.train_step(number, batches)
        except (RuntimeError, ValueError) as error:
            height, width = self.request.size
            usual = height == width and height % _SIDE == 0
            if usual or isinstance(error, torch.OutOfMemoryError):
                raise
            raise InputError(
                f"dataset_params.frame_shape [{height}, {width}, 3] does not fit the network ({error}). Squares whose "
                f"side is a multiple of {_SIDE} do."
            ) from error

    def train_step(self, number: int, batches: list[Batch]) -> Losses:
        """One step of all parts.

        Args:
            number: of the step, from 0.
            batches: on the device; their gradients are averaged.
        Returns:
            Detached means of the terms; those of the critic as critic/NAME.
        """
        seed(self.params.seed, number, self.fabric.global_rank)
        model, critic = self.parts["model"], self.parts.get("critic")
        sums: Losses = {}
        shared: list[Any] = []
        self.step.model.train()
        if critic is not None:
            critic.module.train()
            critic.freeze(True)
        for batch in batches:
            with self.fabric.autocast():
                terms, extra = self.step.losses(batch)
            shared.append(extra)
            self.clock.mark("losses")
            self._backward({name: term / len(batches) for name, term in terms.items()}, sums)
        model.update(number)
        self.average.update(model.module, number)
        self.clock.mark("step")
        if critic is not None:
            critic.freeze(False)
            for batch, extra in zip(batches, shared, strict=True):
                with self.fabric.autocast():
                    terms = self.step.critic_losses(batch, extra)
                self.clock.mark("critic")
                self._backward({f"critic/{name}": term / len(batches) for name, term in terms.items()}, sums)
            critic.update(number)
            self.clock.mark("step")
        return sums

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint and the averaged model, and remove old checkpoints; called by all processes.

        Raises:
            Diverged: a weight is not finite; nothing is written.
        """
        bad = [
            f"{part}.{name}"
            for part, module in self._modules().items()
            for name, value in module.state_dict().items()
            if value.is_floating_point() and not value.isfinite().all()
        ]
        if anywhere(self.fabric, bool(bad))[0]:
            what = f"The weights {bad[0]}" if bad else "Weights of another process"
            raise Diverged(f"{what} became nan or inf by step {self.progress.step}. {self._way_out()}")
        if self.fabric.is_global_zero:
            scaler = getattr(self.fabric.strategy.precision, "scaler", None)
            self.progress.scaler = scaler.state_dict() if scaler is not None else {}
            folder = self.folder / CHECKPOINTS
            save_checkpoint(folder, self.progress, self._modules(), self._optimizers())
            prune(folder, self.config.log_params.keep_checkpoints, self.progress.best_step)
            for name in ("model", "model-best") if best else ("model",):
                known = facts(self.config, self.progress.step)
                save_model(self.folder / f"{name}.safetensors", self.average.module, known)
        self.fabric.barrier()

    def _backward(self, terms: Losses, sums: Losses) -> None:
        """Add the gradients of some terms, and the terms to `sums`."""
        self.fabric.backward(torch.stack([term.float() for term in terms.values()]).sum())
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach().float()
        self.clock.mark("backward")

    def _make_step(self) -> Step:
        try:
            step = step_class(self.config.method)(self.config.settings)
        except ValueError as error:  # a setting that does not fit, or a user's file (weights, head) that is another
            raise InputError(str(error)) from None
        if self.config.train_params.start_from is not None:
            begin_with(step.model, self.config.train_params.start_from)
        if self.fabric.world_size > 1 and self.fabric.device.type == "cuda":
            step = nn.SyncBatchNorm.convert_sync_batchnorm(step)
        step = step.to(self.fabric.device).eval()
        share_state(self.fabric, step)
        return step

    def _make_request(self) -> Request:
        head = getattr(self.step, "head", None)
        sha256 = head.sha256 if isinstance(head, HeadModel) else None
        step = self.step
        return Request(self.config.dataset_params.size, step.moments, step.needs, step.truth, sha256)

    def _resume(self) -> Progress:
        found = checkpoints(self.folder / CHECKPOINTS)
        if not found:
            return Progress()
        progress = load_checkpoint(found[-1], self._modules(), self._optimizers())
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and progress.scaler:
            scaler.load_state_dict(progress.scaler)
        self._tell(f"Going on with {self.folder} after {progress.step} steps.")
        return progress

    def _batches(self) -> Generator[Batch]:
        dealer = Dealer(
            self.progress.step,
            self.iterations,
            self.params.batch_size,
            accumulate=self.params.accumulate,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        workers = loader_processes(self.config.run_params, self.fabric)
        pin = self.fabric.device.type == "cuda"
        return load(self.source, self.params.seed, dealer, workers=workers, pin=pin)

    def _modules(self) -> dict[str, nn.Module]:
        return {**{name: part.module for name, part in self.parts.items()}, "ema": self.average.module}

    def _optimizers(self) -> dict[str, Optimizer]:
        return {name: part.optimizer for name, part in self.parts.items()}

    def _way_out(self) -> str:
        found = checkpoints(self.folder / CHECKPOINTS)
        where = f"The last good checkpoint is {found[-1]}." if found else "There is no checkpoint from before."
        return f"{where} A lower train_params.lr, train_params.clip_grad or run_params.precision fp32 may help."

    def _tell(self, text: str) -> None:
        if self.fabric.is_global_zero:
            print(text, file=sys.stderr)
