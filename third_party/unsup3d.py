"""Checkpoints of Unsup3D. See unsup3d.md beside this file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..nets.unsup3d import Unsup3d, Unsup3dConfig
from .torch_files import fill, part_of, read_torch

WHAT = "an Unsup3D checkpoint"
UNSUP3D_HELP = (
    "Get pretrained_celeba/checkpoint030.pth as https://github.com/elliottwu/unsup3d says (its pretrained folder has a "
    "script), and put it into ~/.cache/headwarp or set HEADWARP_UNSUP3D to it."
)


class _Trace:
    """Stands for `unsup3d.meters.MetricsTrace`, the training's log, which full checkpoints carry; forgets it."""

    def __setstate__(self, state: Any) -> None:
        pass


_scalar: Any = np.float64(0).__reduce__()[0]  # how pickles rebuild numpy's numbers
_STAND_INS: list[tuple[Any, str]] = [
    (_Trace, "unsup3d.meters.MetricsTrace"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (np.dtype, "numpy.dtype"),
    (np.dtypes.Float64DType, "numpy.dtypes.Float64DType"),
]


def find_unsup3d() -> Path | None:
    """The user's checkpoint030.pth: the file that HEADWARP_UNSUP3D names (or in the folder it names), or the one in
    ~/.cache/headwarp; None when there is none."""
    named = os.environ.get("HEADWARP_UNSUP3D")
    place = Path(named).expanduser() if named else Path.home() / ".cache" / "headwarp"
    place = place if place.is_file() else place / "checkpoint030.pth"
    return place if place.is_file() else None


def load_unsup3d(path: Path | str | None = None, config: Unsup3dConfig | None = None) -> Unsup3d:
    """Unsup3D with the published weights. Nothing in the file is run.

    Args:
        path: of the checkpoint; None looks for it, see `find_unsup3d`.
        config: for other objects than faces, whose ranges are not in the checkpoint; whether the model has netC is read
            off the checkpoint.
    Raises:
        FileNotFoundError: it is not there; the message says how to get it. ValueError: it is another file.
    """
    found = find_unsup3d() if path is None else Path(path)
    if found is None or not found.is_file():
        raise FileNotFoundError(f"{found or 'checkpoint030.pth'} was not found. {UNSUP3D_HELP}")
    content = read_torch(found, WHAT, stand_ins=_STAND_INS)
    states = {name: part_of(content, name, found, WHAT) for name in ("netD", "netA", "netL", "netV")}
    if "netC" in content:  # not of cars
        states["netC"] = part_of(content, "netC", found, WHAT)
    model = Unsup3d(replace(config or Unsup3dConfig(), confidence="netC" in states))
    for name, state in states.items():
        fill(getattr(model, name), state, found, name)
    return model.eval()
