"""The Edit tab: what its page asks of the server, and its markup.

Each function takes one dictionary with the page's `key` and returns one: results, or `error`, a sentence for people.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from time import monotonic, perf_counter
from typing import Any

import torch

from ...fitting.faces import find_faces
from ...fitting.formats import glb
from ...geom.head import HeadModel
from ...media.errors import InputError
from ...media.image import save_image
from ..animator import Animator
from ..edits import Edit, edit_from, load_edit
from ..models import GEOMETRIC
from ..provenance import marks, sign
from . import overlays
from .sliders import POSE, PRESETS, expression_groups, markup, shape_groups
from .studio import MAX_PICTURE, PREVIEW_SIDE, PREVIEW_SIZE, Session, Studio, answer, jpeg

MAX_SIDE = 8192
"""Pixels: larger portraits are reduced to this longer side when the result is written."""

Data = dict[str, Any]


def server_functions(studio: Studio) -> list[Callable[[Data], Data]]:
    """What the page may call."""

    def open_portrait(data: Data) -> Data:
        return answer(studio, lambda: _open(studio, data))

    def render(data: Data) -> Data:
        return answer(studio, lambda: _render(studio, data))

    def save_picture(data: Data) -> Data:
        return answer(studio, lambda: _save_picture(studio, data))

    def save_edit(data: Data) -> Data:
        return answer(studio, lambda: _save_edit(studio, data))

    def read_edit(data: Data) -> Data:
        return answer(studio, lambda: _read_edit(studio, data))

    return [open_portrait, render, save_picture, save_edit, read_edit]


def page(studio: Studio, head: HeadModel) -> str:
    """The tab's markup."""
    models = [f'<option value="{escape(name)}">{escape(name)}</option>' for name in studio.model_names(edit=True)]
    presets = [f'<button type="button" data-preset="{escape(name)}">{escape(name)}</button>' for name in PRESETS]
    views = [f'<option value="{kind}">{kind.capitalize()}</option>' for kind in overlays.KINDS]
    return Template(_text("panel.html")).substitute(
        models="".join(models),
        presets="".join(presets),
        views="".join(views),
        pose=markup(POSE),
        expression=markup(expression_groups()),
        shape=markup(shape_groups(head)),
    )


def script() -> str:
    """What makes the markup alive."""
    return f"const PRESETS = {json.dumps(PRESETS)};\nconst MAX_PICTURE = {MAX_PICTURE};\n" + _text("panel.js")


def style() -> str:
    return _text("panel.css")


def head_file(session: Session, edit: Edit) -> Path:
    """A .glb of the head with an edit, for the 3D view.

    Raises:
        InputError: there is no portrait yet.
    """
    animator = session.portrait()
    for old in session.folder.glob("head-*.glb"):
        old.unlink()
    path = session.folder / f"head-{monotonic():.6f}.glb"  # a new name: browsers remember what was at the old one
    glb.write_still(edit.apply(animator.head, animator.portrait.params), path, animator.head)
    return path


def edit_of(values: Any) -> Edit:
    """The edit that the page sends, checked as a file of it would be."""
    if not isinstance(values, dict):
        raise InputError("The page sent no sliders; reload it.")
    return edit_from(values, "sliders")


def _open(studio: Studio, data: Data) -> Data:
    session = studio.session(data.get("key"))
    file = studio.uploaded(session, str(data.get("path")))
    if file.stat().st_size > MAX_PICTURE:
        raise InputError(f"{file.name} has more than {MAX_PICTURE >> 20} MB; choose a smaller picture.")
    model, face = studio.model(str(data.get("model", GEOMETRIC))), int(data.get("face", 0))
    with studio.turn:
        animator = Animator(file, size=PREVIEW_SIZE, max_side=PREVIEW_SIDE, model=model, face=face)
        faces = len(find_faces(animator.portrait.picture))
    if session.closed:
        raise InputError("The page was closed.")
    if session.source != file:
        source = session.folder / f"portrait{file.suffix.lower()}"
        shutil.copyfile(file, source)
        session.source = source
    session.animator, session.model, session.face = animator, model, face
    height, width = animator.portrait.picture.shape[:2]
    return {
        "picture": jpeg(animator.portrait.picture),
        "name": file.name,
        "width": width,
        "height": height,
        "faces": faces,
        "face": face,
    }


def _render(studio: Studio, data: Data) -> Data:
    animator = studio.session(data.get("key")).portrait()
    edit, view = edit_of(data.get("edit")), data.get("view", "picture")
    if view != "picture" and view not in overlays.KINDS:
        raise InputError("There is no such view; reload the page.")
    with studio.turn:
        start = perf_counter()
        target = edit.apply(animator.head, animator.portrait.params)
        picture = animator.render(target)
        if view != "picture":
            with torch.no_grad():
                picture = overlays.draw(view, picture, animator, target)
        encoded = jpeg(picture)
    return {"picture": encoded, "milliseconds": round(1e3 * (perf_counter() - start), 1)}


def _save_picture(studio: Studio, data: Data) -> Data:
    """The result at the portrait's own resolution, as a file for the browser to keep."""
    session = studio.session(data.get("key"))
    session.portrait()
    edit, provenance = edit_of(data.get("edit")), bool(data.get("provenance", True))
    assert session.source is not None
    metadata = marks(provenance)
    with studio.turn:
        animator = Animator(session.source, size=512, max_side=MAX_SIDE, model=session.model, face=session.face)
        path = session.folder / "result.png"
        save_image(path, animator.apply(edit), metadata=metadata)
    try:
        notes = sign([path]) if provenance else []
        return {"file": base64.b64encode(path.read_bytes()).decode(), "notes": notes}
    finally:
        path.unlink(missing_ok=True)


def _save_edit(studio: Studio, data: Data) -> Data:
    path = studio.session(data.get("key")).folder / "edit.json"
    edit_of(data.get("edit")).save(path)
    return {"text": path.read_text(encoding="utf-8")}


def _read_edit(studio: Studio, data: Data) -> Data:
    session = studio.session(data.get("key"))
    name = Path(str(data.get("name", "edit.json"))).name or "edit.json"
    path = session.folder / f"loaded{'.json' if Path(name).suffix.lower() == '.json' else '.yaml'}"
    path.write_text(str(data.get("text", "")), encoding="utf-8")
    try:
        edit = load_edit(path)
        edit.apply(session.portrait().head, session.portrait().portrait.params)  # refuses unknown names
    except InputError as error:
        raise InputError(str(error).replace(str(path), name)) from None
    finally:
        path.unlink()
    values = {name: getattr(edit, name) for name in ("yaw", "pitch", "roll", "jaw", "gaze", "expression", "shape")}
    return {"edit": values | {"replace": list(edit.replace)}}


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
