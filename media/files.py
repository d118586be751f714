"""Files: writes that are all or nothing, natural order, the pictures and videos of a folder."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2"})
"""Read as a still picture. `.gif` counts as a video, as in FOMM's data sets; `load_image` takes its first frame."""
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp"}
)

_WRITE_FAULTS = {
    errno.EACCES: "there is no permission to write there; choose another folder or change its permissions",
    errno.EPERM: "there is no permission to write there; choose another folder or change its permissions",
    errno.EROFS: "that disk is read-only; choose another folder",
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.ENOTDIR: "a part of that path is a file, not a folder; choose another path",
    errno.EEXIST: "a part of that path is a file, not a folder; choose another path",
    errno.EISDIR: "that is a folder; add a file name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def write_error(path: str | Path, error: Exception) -> InputError:
    """The sentence for a write that the system refused: no permission, no space, not a folder ..."""
    reason = _WRITE_FAULTS.get(getattr(error, "errno", None) or 0, f"the system answered: {error}")
    return InputError(f"Cannot write {path}: {reason}.")


def make_folder(path: Path) -> None:
    """A folder for results, with those above it, where there is none yet.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from None


def read_error(path: str | Path) -> InputError | None:
    """The sentence for a path no file can be read from: missing, a folder, empty, forbidden; None where all is well."""
    path = Path(path)
    try:
        if path.is_dir():
            return InputError(f"{path} is a folder; name a file inside it.")
        if path.stat().st_size == 0 and path.is_file():
            return InputError(f"{path} is empty (0 bytes); copy or download it again.")
        with path.open("rb"):
            return None
    except FileNotFoundError:
        return InputError(f"{path} does not exist; check the spelling (the current folder is {Path.cwd()}).")
    except PermissionError:
        return InputError(f"{path} may not be read: there is no permission; change its permissions or copy it.")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return InputError(f"{path} cannot be read ({error}).")


def protect(inputs: Iterable[str | Path], output: str | Path) -> None:
    """InputError where writing `output`, a file or a folder that is replaced as a whole, would destroy an input."""
    target = Path(os.path.realpath(output))
    for path in inputs:
        if Path(os.path.realpath(path)).is_relative_to(target):
            raise InputError(f"Writing {output} would replace the input {path}; choose another name for the result.")


def reserve(path: str | Path) -> tuple[Path, Path]:
    """Where a file will be, and an empty temporary file beside it, hidden, of the same ending.

    Makes missing folders. A link is followed, so that the link stays and what it points at is replaced. Finish with
    `os.replace(temporary, target)`; `atomic_write` does both for writers that fit into a `with`.

    Raises:
        InputError: nothing can be written there, or the path is a folder or a write-protected file.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"Cannot write {path}: that is a folder; add a file name.")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"Cannot write {path}: the file is there and write-protected; choose another name.")
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # 0o666 less the umask, the permissions of an ordinary new file (tempfile would give 0o600).
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except (OSError, ValueError) as error:
        raise write_error(path, error) from error
    return target, temporary


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary file to write; it becomes `path` when the block ends well, and is removed when it does not.

    Nobody ever sees half a file, also when the run is interrupted: the previous file, if any, stays until the new one
    is complete. The temporary file lies in the same folder and has the same ending.

        with atomic_write("out.json") as temporary:
            temporary.write_text(text)

    Raises:
        InputError: the system refuses to write (also when it does so inside the block).
    """
    target, temporary = reserve(path)
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def natural_key(path: str | Path) -> tuple[tuple[int, int | str], ...]:
    """Sort key by name in which numbers count as numbers: frame2 comes before frame10; case does not matter."""
    parts = re.split(r"(\d+)", Path(path).name.lower())
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def list_images(folder: str | Path) -> list[Path]:
    """The pictures of a folder (not of its subfolders), in natural order; hidden files are left out."""
    return _list(folder, IMAGE_SUFFIXES)


def list_videos(folder: str | Path) -> list[Path]:
    """The videos of a folder (not of its subfolders), in natural order; hidden files are left out."""
    return _list(folder, VIDEO_SUFFIXES)


def _list(folder: str | Path, suffixes: frozenset[str]) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.")
    try:
        found = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}).") from error
    return sorted(found, key=lambda p: (natural_key(p), p.name))
