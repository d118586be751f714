"""Devices, processes, random seeds, and how a run is asked to stop."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from ..media.errors import InputError
from .config import RunParams

_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def launch(run: RunParams) -> Fabric:
    """The device and the processes: started here, or before by torchrun or `fabric run`.

    Raises:
        InputError: this machine has no such device, or not as many.
    """
    under_torchrun = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    many = under_torchrun > 1 or run.devices != 1 or run.num_nodes != 1
    try:
        fabric = Fabric(
            accelerator=run.device,
            devices=under_torchrun or run.devices,
            num_nodes=int(os.environ["WORLD_SIZE"]) // under_torchrun if under_torchrun else run.num_nodes,
            strategy="ddp" if many else "auto",
            precision=_PRECISION[run.precision],  # type: ignore[arg-type]
        )
    except (RuntimeError, MisconfigurationException) as error:
        raise InputError(
            f"run_params: {run.devices} x {run.device} cannot be used here ({error}); device=auto takes what there is."
        ) from None
    if "LT_CLI_USED" not in os.environ:
        fabric.launch()
    if fabric.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # pictures of one size: worth the search for the best kernels
    return fabric


def loader_processes(run: RunParams, fabric: Fabric) -> int:
    """Loader processes of each training process."""
    if run.workers is not None:
        return run.workers
    local = max(1, fabric.world_size // run.num_nodes)
    return max(0, min(8, (os.cpu_count() or 1) // local - 1))


def seed(*numbers: int) -> None:
    """Seed every global random generator from some numbers (not negative)."""
    value = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002 - the generator that libraries draw from
    random.seed(value)


def anywhere(fabric: Fabric, *flags: bool) -> list[bool]:
    """Which of the flags are set in any process."""
    if fabric.world_size == 1:
        return list(flags)
    counts = reduced(fabric, torch.tensor([float(flag) for flag in flags], device=fabric.device), "sum")
    return [count > 0 for count in counts.tolist()]


def reduced(fabric: Fabric, tensor: Tensor, how: Literal["mean", "sum"]) -> Tensor:
    """The mean or sum of a tensor over the processes."""
    result = fabric.all_reduce(tensor, reduce_op=how)
    assert isinstance(result, Tensor)
    return result


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; a second Ctrl-C interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one may have handlers
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
