"""Checkpoints of G3FA and FNeVR. See g3fa.md beside this file."""

from __future__ import annotations

from pathlib import Path

from ..nets.g3fa import G3fa, G3faConfig
from .torch_files import read_torch

__all__ = ["G3FA_HELP", "load_g3fa"]

G3FA_HELP = (
    "Get G3FA.pth from the link in the README of https://github.com/dfki-av/G3FA (FNeVR's from "
    "https://github.com/zengbohan0217/FNeVR) and pass its path."
)


def load_g3fa(path: Path | str, config: G3faConfig | None = None) -> G3fa:
    """G3FA or FNeVR with the published weights; which one is read off them. Nothing in the file is run.

    Args:
        path: of the checkpoint.
        config: for networks of other sizes than the published ones.
    Raises:
        FileNotFoundError: it is not there; the message says how to get it. ValueError: it is another file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no {path}. {G3FA_HELP}")
    return G3fa.from_official(read_torch(path, "a G3FA or FNeVR checkpoint"), config)
