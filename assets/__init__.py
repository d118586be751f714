"""Files that ship with the package (the open head, face models, examples); provenance in docs/provenance.md."""

from __future__ import annotations

from pathlib import Path


def example(name: str) -> Path:
    """Path of a file of `assets/examples`, such as driving.mp4."""
    path = Path(__file__).parent / "examples" / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; install the package again, or check the repository out whole.")
    return path
