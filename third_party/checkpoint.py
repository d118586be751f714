"""Reading other people's torch checkpoints without running anything that is in them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def read_checkpoint(
    path: Path | str,
    what: str,
    how_to_get: str,
    *,
    stand_ins: Sequence[tuple[Callable[..., Any] | type, str]] = (),
) -> dict[str, Any]:
    """The dictionary that a .pth or .tar file holds, on the CPU; only tensors and plain values come out of it.

    Args:
        path: of the file.
        what: whose checkpoint it should be, for messages.
        how_to_get: a sentence for users who do not have it.
        stand_ins: harmless classes or functions of ours and the names, such as "unsup3d.meters.MetricsTrace", of
            those in the file that they stand for.
    Raises:
        FileNotFoundError: it is not there. ValueError: it holds something else, or names code that would be run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint of {what} at {path}. {how_to_get}")
    try:
        with torch.serialization.safe_globals(list(stand_ins)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is no checkpoint of {what} that can be read safely ({reason}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no checkpoint of {what}: a dictionary was expected, got {type(content).__name__}.")
    return content
