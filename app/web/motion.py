"""The Animate tab: runs that make videos, told of as they go, and the preview of the crops.

A run works in a thread of its own and tells a `Run` how far it is; the page asks that. Stopping takes effect at the
next frame: what the run then raises takes its half-written files along.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ...fitting.faces import choose_face, face_of_crop, find_faces
from ...media.crop import Crop
from ...media.errors import InputError
from ...media.files import VIDEO_SUFFIXES
from ...media.image import load_image
from ...media.video import VideoReader
from ..animate import animate
from ..animator import CROP_SCALE, CROP_SHIFT, Picture
from ..driving import TRACK_SUFFIXES
from ..edits import edit_video
from ..options import AnimateOptions
from .edit import edit_of
from .studio import Session, Stopped, Studio, jpeg

if TYPE_CHECKING:
    from ..animate import Animated

SIDE = 420
"""Pixels: longer side of previews."""
_BEAT = 0.15  # seconds between two previews, at least
_FRAME = (45, 212, 191)


@dataclass
class Run:
    """How far a run is. `app.output.Watch` for the thread that works, and what the page shows."""

    session: Session
    what: str = "Starting"
    done: float = 0.0
    total: int = 0
    picture: Picture | None = None
    result: Any = None
    error: BaseException | None = None
    finished: threading.Event = field(default_factory=threading.Event)

    def beat(self, what: str, done: float, total: int) -> None:
        if self.session.stop.is_set():
            raise Stopped
        self.what, self.done, self.total = what, done, total

    def frame(self, picture: Picture) -> None:
        self.picture = picture


def follow(session: Session, work: Callable[[Run], Any]) -> Iterator[Run]:
    """Does `work` in a thread; yields its `Run` now and then, and last when it has ended.

    Raises:
        InputError: this page has a run already.
    """
    if not session.running.acquire(blocking=False):
        raise InputError("A run of this page is still going on; wait for its end, or press Stop.")
    run = Run(session)
    session.stop.clear()
    if session.closed:
        session.stop.set()

    def job() -> None:
        try:
            run.result = work(run)
        except BaseException as error:
            run.error = error
        finally:
            session.running.release()
            run.finished.set()

    threading.Thread(target=job, name="headwarp-run", daemon=True).start()
    try:
        while not run.finished.wait(_BEAT):
            yield run
        yield run
    finally:  # the page has gone, or the run has ended
        session.stop.set()


def status(run: Run) -> str:
    """The run as markup: what it does, how far it is, the newest frame."""
    share = min(run.done / run.total, 1.0) if run.total else 0.0
    name = {"animate": "Animating", "edit": "Editing", "look for rest": "Looking for the calmest frame"}.get(
        run.what, run.what
    )
    count = f" · {run.done:.0f} of {run.total} frames" if run.total else ""
    picture = "" if run.picture is None else f'<img alt="The newest frame" src="{jpeg(small(run.picture), 80)}">'
    return (
        f'<div class="hw-card" data-share="{share:.3f}">{picture or _blank("The first frames are on their way.")}'
        f'<div class="hw-meter" role="progressbar" aria-valuenow="{100 * share:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-label="{name}"><i style="width:{100 * share:.1f}%"></i></div>'
        f'<p class="hw-quiet" aria-live="off">{name}{count}</p></div>'
    )


def note(sentences: list[str]) -> str:
    """Sentences as markup; nothing for none."""
    return "".join(f'<p class="hw-message">{escape(sentence)}</p>' for sentence in sentences)


def blank(text: str) -> str:
    """An empty place that says what will be there."""
    return f'<div class="hw-card">{_blank(text)}</div>'


def _blank(text: str) -> str:
    return f'<div class="hw-blank">{escape(text)}</div>'


def check_clip(studio: Studio, session: Session, path: str | None) -> Path:
    """The uploaded clip of a page, or a track.

    Raises:
        InputError: none was chosen, or it is neither.
    """
    if not path:
        raise InputError("Choose a clip first, or record one with the camera.")
    file = studio.uploaded(session, path)
    if file.suffix.lower() not in (*VIDEO_SUFFIXES, *TRACK_SUFFIXES):
        kinds = ", ".join(sorted(VIDEO_SUFFIXES)[:6])
        raise InputError(f"{file.name} is no clip: choose a video ({kinds} ...), a track or an ARKit table.")
    return file


def drive(session: Session, clip: Path, options: AnimateOptions, run: Run) -> Animated:
    """The portrait follows the clip; result.mp4, and result_concat.mp4 beside it where it can be made."""
    session.portrait()
    assert session.source is not None
    return animate(session.source, clip, fresh(session, "motion", "result.mp4"), options, progress=run)


def edit_clip(session: Session, clip: Path, edit: Any, options: AnimateOptions, run: Run) -> Animated:
    """The clip's own face with the sliders of the Edit tab."""
    return edit_video(
        clip,
        fresh(session, "motion", "result.mp4"),
        edit_of(edit),
        model=options.model,
        size=options.size,
        max_side=options.max_side,
        crop=not options.no_crop,
        crop_only=options.crop_only,
        face=options.driving_face,
        smooth=options.smooth,
        audio=options.audio,
        provenance=options.provenance,
        progress=run,
    )


def crops(session: Session, clip: Path | None, source_face: int, driving_face: int, no_crop: bool) -> str:
    """What would be cut out of the portrait and of the clip's first frame, as markup."""
    shown = []
    if session.source is not None:
        picture = load_image(session.source, max_side=1280)
        shown.append(("Portrait: this square moves", _framed(picture, source_face, no_crop, "the portrait")))
    if clip is not None and clip.suffix.lower() in VIDEO_SUFFIXES:
        first = next(iter(VideoReader(clip, max_side=1280)), None)
        if first is not None:
            shown.append(("Clip: this face drives", _framed(first.image, driving_face, no_crop, clip.name)))
    if not shown:
        return blank("The crops of portrait and clip are shown here.")
    cells = [
        f'<figure><img alt="" src="{jpeg(picture)}"><figcaption>{escape(t)}</figcaption></figure>'
        for t, picture in shown
    ]
    return f'<div class="hw-card"><div class="hw-pair">{"".join(cells)}</div></div>'


def small(picture: Picture, side: int = SIDE) -> Picture:
    """At most `side` pixels."""
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _framed(picture: Picture, index: int, no_crop: bool, name: str) -> Picture:
    """The picture with its crop; what is outside is dark."""
    if no_crop:
        return small(picture)
    faces = find_faces(picture)
    face = choose_face(faces, picture, index=index, name=name) if faces else face_of_crop(picture)
    if face is None:
        raise InputError(f"No face found in {name}. Crop closer around it if it is small.")
    crop = Crop.from_landmarks(face.landmarks[:468], CROP_SCALE, CROP_SHIFT)
    x0, y0, x1, y1 = (
        round(c + sign * crop.side / 2) for sign in (-1, 1) for c in crop.center
    )  # fmt: skip
    shown = picture // 3
    inside = slice(max(y0, 0), max(y1, 0)), slice(max(x0, 0), max(x1, 0))
    shown[inside] = picture[inside]
    cv2.rectangle(shown, (x0, y0), (x1, y1), _FRAME, max(2, round(max(picture.shape) / 250)), cv2.LINE_AA)
    return small(shown, 640)


def fresh(session: Session, kind: str, name: str) -> Path:
    """Where a result goes: a folder of its own, so that a browser never shows an earlier one from its memory. The
    results of the last run of this kind go."""
    for old in session.folder.glob(f"{kind}-*"):
        shutil.rmtree(old)
    folder = session.folder / f"{kind}-{monotonic():.6f}"
    folder.mkdir()
    return folder / name
