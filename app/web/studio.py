"""The server's memory: one `Studio`, and a `Session` for each open page.

    work folder/  upload folders of Gradio
                  SESSION/  portrait, results; gone when the page is closed

A page that closes ends its run and forgets its portrait. The rest goes with the work folder when the server ends.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from ...media.errors import InputError
from ...nets.model_file import read_header
from ..animator import Animator, Picture
from ..models import GEOMETRIC, HEAD_METHODS, KEYPOINT_METHODS, NAMES

MAX_PICTURE = 64 * 2**20
"""Bytes of an uploaded portrait."""
PREVIEW_SIDE, PREVIEW_SIZE = 640, 256
"""Pixels: longer side of the portrait behind the sliders, and the square its motion is computed in."""


_FLAGS = {
    "--source-face": "Face of the portrait",
    "--driving-face": "Face of the clip",
    "--motion absolute": "absolute motion",
    "--no-crop": "the checkbox for face crops",
    "--model geometric": "the model geometric",
    "--rest first": "the first frame at rest",
}


class Stopped(Exception):
    """The user, or the page's end, stopped a run."""


class Session:
    """One open page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uploads: set[Path] = set()
        self.source: Path | None = None
        self.animator: Animator | None = None
        self.model, self.face = GEOMETRIC, 0
        self.stop = threading.Event()
        self.running = threading.Lock()
        self.closed = False
        folder.mkdir()

    def portrait(self) -> Animator:
        """What the sliders move.

        Raises:
            InputError: there is none yet.
        """
        if self.animator is None:
            raise InputError("Choose a portrait first: a picture that shows a face.")
        return self.animator


class Studio:
    """What all pages share.

    Args:
        work: folder for uploads and results; no other file is ever handed out.
        models: folder whose .safetensors files may be chosen as models; None: those of the package only.
    """

    def __init__(self, work: Path, models: Path | None = None) -> None:
        self.work, self.models = Path(os.path.realpath(work)), models
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        # More pictures at once than cores would only make all of them late.
        self.turn = threading.BoundedSemaphore(max(1, (os.cpu_count() or 2) // 2))

    def __len__(self) -> int:
        return len(self._sessions)

    def enter(self, key: str | None = None) -> str:
        """A new session, or that of a key: its key."""
        key = key or secrets.token_urlsafe(16)
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = Session(self.work / f"session-{secrets.token_urlsafe(16)}")
        return key

    def session(self, key: str | None) -> Session:
        found = self._sessions.get(key or "")
        if found is None:
            raise InputError("The server has forgotten this page; reload it.")
        return found

    def leave(self, key: str | None) -> None:
        """Ends a session: its run stops, its files and its memory go."""
        with self._lock:
            session = self._sessions.pop(key or "", None)
            shared = {path for other in self._sessions.values() for path in other.uploads}
        if session is None:
            return
        session.closed = True
        session.stop.set()
        with session.running:  # the run has to let go of its files first
            session.animator = None
            for path in session.uploads - shared:
                shutil.rmtree(path.parent, ignore_errors=True)
            shutil.rmtree(session.folder, ignore_errors=True)

    def close(self) -> None:
        """Ends all sessions."""
        for key in list(self._sessions):
            self.leave(key)

    def uploaded(self, session: Session, path: str) -> Path:
        """A file that the page says it has uploaded.

        Raises:
            InputError: the path leads anywhere else.
        """
        file = Path(os.path.realpath(path.replace("\0", "")))
        # Gradio puts an upload into a folder of its own; nobody else's session may be named.
        inside = file.is_relative_to(self.work) and not file.relative_to(self.work).parts[0].startswith("session-")
        if not inside or not file.is_file():
            raise InputError("That file was not uploaded here; choose it again.")
        session.uploads.add(file)
        return file

    def model_names(self, *, edit: bool) -> list[str]:
        """The models that may be chosen: those of the package, and the fitting files of the models folder."""
        methods = HEAD_METHODS if edit else (*HEAD_METHODS, *KEYPOINT_METHODS)
        names = [*NAMES]
        for path in sorted(self.models.rglob("*.safetensors")) if self.models else []:
            try:
                if read_header(path).method in methods:
                    names.append(str(path.relative_to(self.models or path)))
            except (ValueError, OSError):
                continue  # a track, or another program's file
        return names

    def model(self, name: str) -> str:
        """The path of a model by the name that `model_names` gives it."""
        if name in NAMES:
            return name
        if self.models is None or name not in self.model_names(edit=False):
            raise InputError(f"There is no model '{name[:80]}' in the models folder; choose one of the list.")
        return str(self.models / name)

    def sentence(self, error: BaseException) -> str:
        """What to tell people: bad input in its own words; what is our fault briefly, with the details on stderr."""
        if isinstance(error, Stopped):
            return "Stopped; nothing half-written was left behind."
        if isinstance(error, InputError | FileNotFoundError):
            return self.shortened(str(error))
        traceback.print_exception(error, file=sys.stderr)
        return "Something broke in headwarp itself; the terminal it runs in says what."

    def shortened(self, text: str) -> str:
        """A sentence for the page: of paths in the work folder only the file's name, the page's words for the flags."""
        for flag, words in _FLAGS.items():
            text = text.replace(flag, words)
        return re.sub(rf"{re.escape(str(self.work))}/(?:[^/\s]+/)*", "", text)


def answer(studio: Studio, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a call from the page returns: the result of `work`, or `{"error": sentence}`."""
    try:
        return work()
    except Exception as error:
        return {"error": studio.sentence(error)}


def jpeg(picture: Picture, quality: int = 88) -> str:
    """(H, W, 3) RGB as a data URL."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
