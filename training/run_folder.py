"""The folder of a run: where it is, whether it may go on with a configuration, and the facts for its model file."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs apart there
    fcntl = None  # type: ignore[assignment]

import yaml

from .. import __version__
from ..media.errors import InputError
from ..media.files import atomic_write, write_error
from .checkpoint import checkpoints
from .config import TrainConfig

LOGS = Path("log")
CONFIG, CHECKPOINTS, FINISHED, LOCK = "config.yaml", "checkpoints", "finished", ".lock"
_MAY_CHANGE = (
    "run_params.",
    "log_params.",
    "train_params.iterations",
    "train_params.num_epochs",
    "dataset_params.cache_",
)
"""What a run may go on with although it was begun with something else."""


@contextmanager
def run_folder(config: TrainConfig, output: Path | str | None) -> Iterator[Path]:
    """The folder of a run, made where it is missing, with the configuration inside, and no other process's until the
    block ends.

    Args:
        config: of the run.
        output: the folder; None: the newest log/NAME DATE (FOMM's pattern, UTC) that has the same configuration and is
            not finished, else a new one.
    Raises:
        InputError: the folder holds a run with settings that learn something else, or one that another process trains.
    """
    folder = Path(output) if output is not None else _unfinished(config) or _new(config)
    with _locked(folder):
        _claim(config, folder)
        yield folder


def _claim(config: TrainConfig, folder: Path) -> None:
    """Write the configuration into the folder, if it is new or holds a run that may go on with it."""
    if (folder / CONFIG).exists() and checkpoints(folder / CHECKPOINTS):  # else nothing was learnt yet
        changes = [change for change in _changes(folder, config) if not change.startswith(_MAY_CHANGE)]
        if changes:
            raise InputError(
                f"{folder} holds a run with other settings ({'; '.join(changes[:3])}). Choose another folder with "
                "-o, or set them alike to go on with it."
            )
    with atomic_write(folder / CONFIG) as part:
        part.write_text(config.as_yaml())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A lock that ends with the process, however it ends. Loader processes do not inherit it, as they would flock's."""
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except (OSError, ValueError) as error:
        raise write_error(path, error) from error
    try:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(lock, 200).decode(errors="replace") or "it does not say which"
            raise InputError(
                f"{folder} is being trained by another process ({owner}). Wait for its end, or choose another folder "
                "with -o."
            ) from None
        except OSError:
            pass  # a file system without locks
        else:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        os.close(lock)


def facts(config: TrainConfig, step: int) -> dict[str, str]:
    """What a model file says about its making."""
    data = [
        Path(source.root_dir or source.shards or "").name or "synthetic"
        for source in config.dataset_params.all_sources()
    ]
    found = {
        "configuration": config.name,
        "steps": str(step),
        "data": ", ".join(data),
        "made_by": f"headwarp {__version__}",
    }
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


def _commit() -> str | None:
    """The commit of a checkout; None for an installed package."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _new(config: TrainConfig) -> Path:
    return LOGS / f"{config.name} {datetime.now(UTC):%d_%m_%y_%H.%M.%S}"


def _unfinished(config: TrainConfig) -> Path | None:
    """The newest run of this configuration that has checkpoints and is not at its end."""
    folders = [path for path in LOGS.glob(f"{config.name} *") if (path / CONFIG).exists()]
    for folder in sorted(folders, key=lambda path: (path / CONFIG).stat().st_mtime, reverse=True):
        if (folder / CHECKPOINTS).exists() and not (folder / FINISHED).exists() and not _changes(folder, config):
            return folder
    return None


def _changes(folder: Path, config: TrainConfig) -> list[str]:
    """Settings in which a folder's configuration differs, "section.key: there, here"."""
    try:
        there = dict(_leaves(yaml.safe_load((folder / CONFIG).read_text())))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
        raise InputError(f"{folder / CONFIG} cannot be read; choose another folder with -o.") from None
    here = dict(_leaves(yaml.safe_load(config.as_yaml())))
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return [f"{key}: {there.get(key)} there, {here.get(key)} here" for key in keys]


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
