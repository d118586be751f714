"""Checkpoints: everything that a run needs to go on as if it had never stopped, in one safetensors file.

    checkpoints/00001000.safetensors      after 1000 steps
      model.*, critic.*, ema.*            state dicts
      optimizer.model.3.exp_avg, ...      Adam's state of the parameter number 3
      metadata: format, state (JSON: step, best value, parameter groups, gradient scaler)

The random state is no part of it: the engine seeds every step anew from its number. Nothing in the file can run code.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ..media.errors import InputError
from ..media.files import write_error
from ..nets.config import as_dict
from ..nets.model_file import load_model

FORMAT = "headwarp-checkpoint-1"


@dataclass
class Progress:
    """Where a run stands, besides its tensors."""

    step: int = 0
    """Optimiser steps done; the data position is this number times the batch size."""
    best: float | None = None
    """Best value of `log_params.best` so far."""
    best_step: int | None = None
    scaler: dict[str, Any] = field(default_factory=dict)
    """Of fp16's gradient scaler."""


def save_checkpoint(
    folder: Path, progress: Progress, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> Path:
    """Write `folder/STEP.safetensors`; it appears whole or not at all.

    Raises:
        InputError: the system refuses to write.
    """
    tensors: dict[str, Tensor] = {}
    groups: dict[str, Any] = {}
    for name, module in modules.items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        groups[name] = state["param_groups"]
        for number, values in state["state"].items():
            tensors |= {f"optimizer.{name}.{number}.{key}": torch.as_tensor(v) for key, v in values.items()}
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    metadata = {"format": FORMAT, "state": json.dumps({"progress": vars(progress), "groups": groups})}
    path = folder / f"{progress.step:08d}.safetensors"
    part = folder / f".{path.name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(plain, part, metadata)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # a name must not outlive a power cut that its content does not
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> Progress:
    """Put a checkpoint's state into modules and optimisers.

    Raises:
        InputError: the file is damaged, or of another model.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it to go on from the one before.") from None
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is no checkpoint of this version; delete it or choose another run folder.")
    state = json.loads(metadata["state"])
    for name, module in modules.items():
        own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            reason = str(error).replace("\n\t", " ").strip()
            raise InputError(f"{path} does not fit the configuration. {reason}") from None
    for name, optimizer in optimizers.items():
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{name}."):
                number, entry = key.removeprefix(f"optimizer.{name}.").split(".")
                states.setdefault(int(number), {})[entry] = value
        optimizer.load_state_dict({"state": states, "param_groups": state["groups"][name]})
    return Progress(**state["progress"])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"\d{8,}\.safetensors", path.name)]
    return sorted(found, key=lambda path: int(path.stem))


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one."""
    for path in checkpoints(folder)[:-keep]:
        if int(path.stem) != best_step:
            path.unlink(missing_ok=True)


def begin_with(model: nn.Module, path: Path | str) -> None:
    """Give a model that is to be trained the weights of a model file.

    Raises:
        InputError: there is no such file, or it holds another method's model or one with other settings.
    """
    try:
        found = load_model(path)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"train_params.start_from: {error}") from None
    if type(found) is not type(model):
        raise InputError(f"train_params.start_from: {path} holds {_name(found)}, and {_name(model)} is to be trained.")
    there, here = (_flat(as_dict(m.config)) for m in (found, model))
    other = [f"{key} {there.get(key)} (now {value})" for key, value in here.items() if there.get(key) != value]
    if other:
        raise InputError(
            f"train_params.start_from: {path} has other model_params: {', '.join(other)}. Set those as there."
        )
    model.load_state_dict(found.state_dict())


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Section.key -> value."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


def _name(model: nn.Module) -> str:
    return f"a model of the kind {type(model).__name__}"
