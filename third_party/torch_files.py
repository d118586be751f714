"""Reading other people's torch files without running anything in them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


def read_torch(
    path: str | Path, what: str, *, stand_ins: Sequence[tuple[type | Callable[..., Any], str]] = ()
) -> dict[str, Any]:
    """The dictionary of a file of `torch.save`, tensors on the CPU.

    Args:
        what: what the file should be, for messages, such as "a DaGAN checkpoint".
        stand_ins: harmless classes of ours, each with the name, such as "unsup3d.meters.MetricsTrace", of the one in
            the file that it stands for.
    Raises:
        FileNotFoundError: there is no such file. ValueError: it is something else, or holds more than plain data.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}; {what} was expected there.")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(stand_ins)):
            warnings.simplefilter("ignore")  # about how the pickle was written
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # a damaged file can end anywhere in torch's reader: IndexError, struct.error ...
        raise ValueError(f"{path} is not {what} that can be read safely: {_reason(error)}.") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is not {what}: a dictionary was expected, got {type(content).__name__}.")
    return dict(content)


def _reason(error: Exception) -> str:
    """In our words: torch's recommend to load the file without the safeguard."""
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    if name is not None:
        return f"it holds {name[1]}, which is more than plain data and could run code"
    return "it is damaged, or no file of torch.save"


def state_of(content: Mapping[str, Any], prefix: str = "") -> State:
    """The tensors of a state dict whose names start with `prefix`, which is cut off.

    Names of networks that were wrapped for several GPUs begin with `module.`; that goes too, but only at the start
    (DaGAN has parameters called `AttnModule.gamma`). What is no tensor is left out: depth encoders carry their size.
    """
    plain = {name.removeprefix("module."): v for name, v in content.items() if isinstance(v, Tensor)}
    return {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}


def part_of(content: Mapping[str, Any], name: str, path: str | Path, what: str) -> State:
    """One network of a checkpoint.

    Raises:
        ValueError: the checkpoint has no such entry.
    """
    part = content.get(name)
    if not isinstance(part, Mapping):
        kinds = ", ".join(map(str, list(content)[:6])) or "nothing"
        raise ValueError(f"{path} is not {what}: it has no entry '{name}', but {kinds}.")
    return state_of(part)


def fill(module: torch.nn.Module, state: State, path: str | Path, what: str) -> None:
    """Loads a state dict strictly, except that batch norms of old files do not count batches.

    Raises:
        ValueError: names are missing, too many, or of other shapes; the first one is named.
    """
    wanted = module.state_dict()
    missing = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in wanted]
    if missing or unknown:
        count, name = (len(missing), missing[0]) if missing else (len(unknown), unknown[0])
        verb = "lacks" if missing else "has besides"
        raise ValueError(f"{path}: {what} {verb} {count} parameters, such as {name}.")
    wrong = [n for n, v in state.items() if v.shape != wanted[n].shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path}: {what} has {name} of shape {tuple(state[name].shape)}; {tuple(wanted[name].shape)} was expected."
        )
    broken = [n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: {broken[0]} holds values that are not finite; the file cannot be used.")
    module.load_state_dict(state, strict=False)
