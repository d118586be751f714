"""What stands where on the page, and what happens on which event. The Edit tab's own controls: panel.html, panel.js."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import torch
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ...media.errors import InputError
from ..animator import shared_head
from ..options import AnimateOptions
from . import curves, edit, motion
from .command import LOOPBACK
from .motion import blank, note
from .studio import Studio

if TYPE_CHECKING:
    from .command import App

_DRIVE, _EDIT = "The portrait follows the clip", "The clip's own face, by the sliders of Edit"
_REGIONS = ["all", "pose", "expression", "eyes", "mouth"]
_TITLE = '<div class="hw-title"><h1>headwarp</h1><p>One portrait, moved by its geometry.</p></div>'
_HEAD = (  # the page's key, which the server hands out when the page loads
    "<script>window.headwarp = (() => { let enter; const key = new Promise((done) => { enter = done; }); "
    "return { key, enter }; })();</script>"
)
_WITH_EDIT = "(edit, ...rest) => [document.querySelector('.hw-figure').dataset.edit ?? '{}', ...rest]"


@dataclass(frozen=True)
class Running:
    """A server at work."""

    url: str
    studio: Studio
    blocks: gr.Blocks

    def close(self) -> None:
        self.blocks.close(verbose=False)
        self.studio.close()


def serve(command: App, work: Path) -> None:
    """Serves the page until Ctrl-C.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    torch.set_num_threads(1)  # several pages share the cores
    running = start(command, work)
    print(f"headwarp studio: {running.url}  (Ctrl-C ends)", flush=True)
    try:
        threading.Event().wait()
    finally:
        running.close()


def start(command: App, work: Path) -> Running:
    """Starts the server, whose uploads and results go to the folder `work`; errors as of `serve`."""
    studio = Studio(work, command.models)
    port = _free_port(command.host, command.port)
    loopback = command.host in LOOPBACK
    # A page elsewhere whose name suddenly means this machine (DNS rebinding) is turned away.
    hosts = [Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])] if loopback else []
    blocks = build(studio)
    _, url, _ = blocks.queue(max_size=64, default_concurrency_limit=8).launch(
        server_name=command.host,
        server_port=port,
        inbrowser=command.browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=True,
        ssr_mode=False,
        max_file_size=f"{command.max_upload}mb",
        app_kwargs={"middleware": hosts},
        footer_links=[],
        theme=theme(),
        css=edit.style(),
        head=_HEAD,
    )
    return Running(url, studio, blocks)


def theme() -> gr.themes.Base:
    """Quiet greys and one accent; fonts that every machine has, since none may be fetched."""
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="zinc",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_500",
        block_border_width="1px",
        block_shadow="none",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        slider_color="*primary_600",
    )


def build(studio: Studio) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="headwarp", analytics_enabled=False, delete_cache=(600, 6 * 3600)) as blocks:
        gr.HTML(_TITLE)
        key = gr.Textbox(visible="hidden")
        with gr.Tabs():
            with gr.Tab("Edit", id="edit"):
                panel = _edit_tab(studio)
            with gr.Tab("Animate", id="animate"):
                _animate_tab(studio, panel)
            with gr.Tab("Fit", id="fit"):
                _fit_tab(studio)

        def enter(request: gr.Request) -> str:
            return studio.enter(request.session_hash)

        def leave(request: gr.Request) -> None:
            studio.leave(request.session_hash)

        blocks.load(enter, outputs=key, show_progress="hidden").then(
            None, key, None, js="(key) => { window.headwarp.enter(key); }"
        )
        blocks.unload(leave)
    return blocks


def _edit_tab(studio: Studio) -> gr.HTML:
    panel = gr.HTML(
        html_template=edit.page(studio, shared_head("open")),
        js_on_load=edit.script(),
        server_functions=edit.server_functions(studio),
        apply_default_css=False,
    )
    with gr.Accordion("3D view of the head", open=False) as view:
        space = gr.Model3D(
            label="Drag to turn, wheel to zoom", interactive=False, height=420, camera_position=(90, 85, None)
        )
        told = gr.HTML()
    shown, sliders = gr.State(False), gr.Textbox("{}", visible="hidden")

    def head(values: str, wanted: bool, request: gr.Request) -> tuple[Any, str]:
        if not wanted:
            return gr.skip(), gr.skip()
        try:
            return str(edit.head_file(studio.session(request.session_hash), edit.edit_of(json.loads(values)))), ""
        except Exception as error:
            return None, note([studio.sentence(error)])

    view.expand(lambda: True, outputs=shown, show_progress="hidden").then(
        head, [sliders, shown], [space, told], js=_WITH_EDIT, show_progress="hidden"
    )
    view.collapse(lambda: False, outputs=shown, show_progress="hidden")
    panel.settled(
        head, [sliders, shown], [space, told], js=_WITH_EDIT, trigger_mode="always_last", show_progress="hidden"
    )
    return panel


def _animate_tab(studio: Studio, panel: gr.HTML) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=330):
            crops = gr.HTML(blank("Choose the portrait in Edit. The crops of portrait and clip are shown here."))
            clip = gr.Video(label="Clip that drives", sources=["upload", "webcam"], height=330)
            with gr.Accordion("Saved motion in place of a clip", open=False):
                track = gr.File(label="Track or ARKit table", file_types=[".safetensors", ".csv"], height=110)
            what = gr.Radio([_DRIVE, _EDIT], value=_DRIVE, label="What moves")
            model = gr.Dropdown(studio.model_names(edit=False), value="geometric", label="Model")
            with gr.Accordion("Motion", open=True):
                strength = gr.Slider(0, 3, 1, step=0.05, label="Strength")
                smooth = gr.Slider(0, 5, 1, step=0.1, label="Smoothing")
                region = gr.Dropdown(_REGIONS, value="all", label="Region")
                kind = gr.Radio(["relative", "absolute"], value="relative", label="Motion")
                rest = gr.Radio(["first", "best"], value="first", label="Frame at rest")
            with gr.Accordion("Crop", open=False):
                source_face = gr.Number(
                    0, precision=0, minimum=0, maximum=20, label="Face of the portrait, 0 = largest"
                )
                driving_face = gr.Number(0, precision=0, minimum=0, maximum=20, label="Face of the clip, 0 = largest")
                no_crop = gr.Checkbox(False, label="Portrait and clip are face crops already")
                crop_only = gr.Checkbox(False, label="Result is the face crop only")
                size = gr.Slider(128, 1024, 512, step=64, label="Size the motion is computed at, pixels")
            with gr.Accordion("Result", open=False):
                beside = gr.Checkbox(True, label="Also side by side with portrait and clip")
                audio = gr.Checkbox(True, label="Keep the clip's sound")
                provenance = gr.Checkbox(True, label="Mark as AI-generated")
        with gr.Column(scale=1, min_width=330):
            with gr.Row():
                start = gr.Button("Animate", variant="primary", elem_id="hw-animate")
                stop = gr.Button("Stop", elem_id="hw-stop")
            progress = gr.HTML(blank("The result comes here."), elem_id="hw-progress")
            notes = gr.HTML(elem_id="hw-notes")
            result = gr.Video(
                label="Result", interactive=False, visible=False, elem_id="hw-result", autoplay=True, loop=True
            )
            pair = gr.Video(label="Side by side", interactive=False, visible=False, elem_id="hw-pair")
            files = gr.File(label="Download", interactive=False, visible=False, elem_id="hw-files")
    sliders = gr.Textbox("{}", visible="hidden")
    nothing = [gr.Video(visible=False), gr.Video(visible=False), gr.File(visible=False)]

    def preview(path: str | None, own: int, other: int, whole: bool, request: gr.Request) -> str:
        try:
            session = studio.session(request.session_hash)
            video = None if path is None else motion.check_clip(studio, session, path)
            with studio.turn:
                return motion.crops(session, video, int(own or 0), int(other or 0), whole)
        except Exception as error:
            return note([studio.sentence(error)])

    def run(
        request: gr.Request, values: str, path: str | None, saved: str | None, mode: str, *chosen: Any
    ) -> Iterator[list[Any]]:
        try:
            session = studio.session(request.session_hash)
            file = motion.check_clip(studio, session, saved or path)
            options = _options(studio, *chosen, beside_possible=not saved and mode == _DRIVE)
            if mode == _DRIVE:
                session.portrait()

            def work(run: motion.Run) -> Any:
                if mode == _EDIT:
                    return motion.edit_clip(session, file, json.loads(values), options, run)
                return motion.drive(session, file, options, run)

            for last in motion.follow(session, work):
                yield [motion.status(last), "", *nothing]
            if last.error is not None:
                raise last.error
            done = last.result
            made = [str(path) for path in done.files]
            told = note([studio.shortened(problem) for problem in done.problems])
            yield [
                f'<div class="hw-card" data-share="1"><p class="hw-quiet">{done.frames} frames.</p></div>',
                told,
                gr.Video(made[0], visible=True),
                gr.Video(made[1] if len(made) > 1 else None, visible=len(made) > 1),
                gr.File(made, visible=True),
            ]
        except Exception as error:
            yield [blank("The result comes here."), note([studio.sentence(error)]), *nothing]

    sight = [clip, source_face, driving_face, no_crop]
    gr.on(
        [clip.change, source_face.change, driving_face.change, no_crop.change],
        preview,
        sight,
        crops,
        trigger_mode="always_last",
        show_progress="hidden",
    )
    panel.opened(preview, sight, crops, trigger_mode="always_last", show_progress="hidden")
    chosen = [model, strength, smooth, region, kind, rest, source_face, driving_face, no_crop, crop_only, size, beside]
    inputs = [sliders, clip, track, what, *chosen, audio, provenance]
    _runs(start, stop, run, inputs, [progress, notes, result, pair, files], studio, _WITH_EDIT)


def _options(
    studio: Studio,
    model: str,
    strength: float,
    smooth: float,
    region: Any,
    kind: Any,
    rest: str,
    source_face: int | None,
    driving_face: int | None,
    no_crop: bool,
    crop_only: bool,
    size: int,
    beside: bool,
    audio: bool,
    provenance: bool,
    *,
    beside_possible: bool,
) -> AnimateOptions:
    return AnimateOptions(
        model=studio.model(model),
        motion=kind,
        region=region,
        strength=float(strength),
        rest=rest,
        smooth=float(smooth),
        crop_only=crop_only,
        no_crop=no_crop,
        size=int(size),
        source_face=int(source_face or 0),
        driving_face=int(driving_face or 0),
        audio=audio,
        side_by_side=beside and beside_possible,
        provenance=provenance,
    )


def _fit_tab(studio: Studio) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=330):
            clip = gr.Video(label="Clip of a face", sources=["upload", "webcam"], height=330)
            smooth = gr.Slider(0, 5, 1, step=0.1, label="Smoothing")
            face = gr.Number(0, precision=0, minimum=0, maximum=20, label="Face, 0 = largest")
            with gr.Row():
                start = gr.Button("Fit", variant="primary", elem_id="hw-fit")
                stop = gr.Button("Stop")
            overlay = gr.Video(label="The fitted head", interactive=False, visible=False, elem_id="hw-overlay")
            files = gr.File(label="Download: track, ARKit table, animated head", interactive=False, visible=False)
        with gr.Column(scale=1, min_width=330):
            notes = gr.HTML()
            progress = gr.HTML(blank("The curves come here."), elem_id="hw-curves")
    nothing = [gr.Video(visible=False), gr.File(visible=False)]

    def run(path: str | None, strength: float, index: int | None, request: gr.Request) -> Iterator[list[Any]]:
        try:
            session = studio.session(request.session_hash)
            file = motion.check_clip(studio, session, path)
            for last in motion.follow(session, lambda run: curves.fit(run, file, float(strength), int(index or 0))):
                yield [motion.status(last), "", *nothing]
            if last.error is not None:
                raise last.error
            done = last.result
            yield [
                curves.figures(done.track),
                note([studio.shortened(problem) for problem in done.problems]),
                gr.Video(str(done.overlay), visible=True),
                gr.File([str(path) for path in done.files], visible=True),
            ]
        except Exception as error:
            yield [blank("The curves come here."), note([studio.sentence(error)]), *nothing]

    _runs(start, stop, run, [clip, smooth, face], [progress, notes, overlay, files], studio)


def _runs(
    begin: gr.Button,
    stop: gr.Button,
    run: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    studio: Studio,
    js: str | None = None,
) -> None:
    """A button that starts runs, one at a time for all pages, and one that stops its page's."""

    def halt(request: gr.Request) -> None:
        try:
            studio.session(request.session_hash).stop.set()
        except InputError:
            return

    begin.click(lambda: blank("Waiting for its turn."), None, outputs[0], show_progress="hidden").then(
        run,
        inputs,
        outputs,
        js=js,
        concurrency_limit=1,
        concurrency_id="runs",
        trigger_mode="once",
        show_progress="hidden",
    )
    stop.click(halt, show_progress="hidden", queue=False)


def _free_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"Nothing can listen on {host}, port {port} ({os.strerror(error.errno or 0)}); "
                "choose another with --port, or --port 0 for a free one."
            ) from None
        return int(probe.getsockname()[1])
