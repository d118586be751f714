"""The studio's page, driven in headless Chromium: upload, sliders, undo, files, runs; and what must not hurt the
server.

The server runs in this process, so that its memory and its folder can be looked at. Nothing here sleeps: everything is
waited for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import threading
import urllib.error
import urllib.request
import weakref
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from headwarp.app.edits import load_edit
from headwarp.media.errors import InputError
from headwarp.media.image import load_image, save_image

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the test extra)")
pytest.importorskip("gradio", reason="needs Gradio (the app extra)")

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
PATIENCE = 120_000  # milliseconds, for machines that are busy with other things
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    work = tmp_path_factory.mktemp("work")
    before, threads = dict(os.environ), torch.get_num_threads()
    os.environ |= {"GRADIO_TEMP_DIR": str(work), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    from headwarp.app.web.command import App
    from headwarp.app.web.page import start

    torch.set_num_threads(1)
    running = start(App(port=0, browser=False), work)
    yield running
    running.close()
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def open_page(server: Any, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end nobody may have called home, and no script may have failed."""
    contexts, foreign, errors = [], [], []

    def go(width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda r: r.url.startswith((server.url, "data:", "blob:")) or foreign.append(r.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        page.wait_for_selector(".hw-edit[data-alive]")
        return page

    yield go
    for context in contexts:
        context.close()
    assert foreign == []
    assert errors == []


@pytest.fixture(scope="module")
def first_page(open_page: Callable[..., Any], portrait: Path) -> Any:
    page = open_page()
    choose(page, portrait)
    return page


@pytest.fixture
def page(first_page: Any) -> Any:
    """The page with the small portrait in it, nothing moved."""
    first_page.get_by_role("tab", name="Edit", exact=True).click()
    first_page.select_option('[data-choose="view"]', "picture")
    first_page.click('[data-tab="pose"]')
    first_page.click('[data-side="both"]')
    if first_page.is_enabled('[data-do="reset"]'):
        first_page.click('[data-do="reset"]')
    shown(first_page)
    return first_page


def choose(page: Any, file: Path) -> None:
    page.set_input_files(".hw-file", file)
    page.wait_for_selector(f'.hw-edit[data-state="ready"] [data-portrait="{file.name}"]')


def slider(page: Any, key: str) -> Any:
    return page.locator(f'[data-key="{key}"] input[type="range"]')


def move(page: Any, key: str, value: float) -> None:
    """As a hand does: the slider moves, and is let go."""
    slider(page, key).evaluate(
        "(e, v) => { e.value = v; "
        "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); }",
        value,
    )


def edit_of(page: Any) -> dict[str, Any]:
    told = json.loads(page.get_attribute(".hw-figure", "data-edit"))
    return {name: value for name, value in told.items() if value}


def shown(page: Any) -> bytes:
    """The picture, once it shows what the sliders say."""
    page.wait_for_function(
        "() => { const f = document.querySelector('.hw-figure').dataset; return f.shown === f.asked; }"
    )
    return page.get_attribute(".hw-picture", "src").encode()


def message(page: Any) -> str:
    """The sentence that the page shows."""
    page.wait_for_selector(".hw-message:visible")
    text = page.inner_text(".hw-message:visible")
    assert "Traceback" not in text
    assert "/" not in text.replace("/ ", "")  # no folders of the server
    return text


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for something that no event tells of."""
    end, ticks = monotonic() + seconds, threading.Event()
    while not condition():
        assert monotonic() < end, "did not come true"
        ticks.wait(0.05)


@needs_chromium
def test_the_picture_follows_the_sliders(page: Any) -> None:
    still = page.get_attribute(".hw-picture", "src")
    yaw = slider(page, "yaw")
    yaw.focus()
    times = []
    for _ in range(12):
        before = int(page.get_attribute(".hw-figure", "data-renders"))
        page.keyboard.press("ArrowRight")
        page.wait_for_function("n => +document.querySelector('.hw-figure').dataset.renders > n", arg=before)
        times.append(float(page.get_attribute(".hw-figure", "data-milliseconds")))
    print(f"slider to picture: median {np.median(times):.0f} ms, fastest {min(times):.0f}, slowest {max(times):.0f}")
    assert edit_of(page) == {"yaw": 6}
    assert shown(page) != still
    assert min(times) < 1000


@needs_chromium
def test_the_newest_slider_wins(page: Any) -> None:
    before = int(page.get_attribute(".hw-figure", "data-renders"))
    slider(page, "yaw").evaluate(
        "e => { const tell = (kind) => e.dispatchEvent(new Event(kind, {bubbles: true})); "
        "for (let v = 0.5; v <= 20; v += 0.5) { e.value = v; tell('input'); } tell('change'); }"
    )
    assert edit_of(page) == {"yaw": 20}
    last = shown(page)
    renders = int(page.get_attribute(".hw-figure", "data-renders")) - before
    assert renders <= 3, "stale positions of the slider were drawn"
    move(page, "yaw", 0)
    move(page, "yaw", 20)
    assert shown(page) == last


@needs_chromium
def test_undo_redo_reset_and_sides(page: Any) -> None:
    move(page, "yaw", 10)
    move(page, "pitch", 5)
    page.click('[data-tab="expression"]')
    page.click('[data-side="Left"]')
    move(page, "expression.mouthSmile*", 0.5)
    assert edit_of(page) == {"yaw": 10, "pitch": 5, "expression": {"mouthSmileLeft": 0.5}}
    page.keyboard.press("Control+z")
    assert edit_of(page) == {"yaw": 10, "pitch": 5}
    page.click('[data-do="undo"]')
    assert edit_of(page) == {"yaw": 10}
    page.keyboard.press("Control+Shift+Z")
    assert edit_of(page) == {"yaw": 10, "pitch": 5}
    page.click('[data-do="reset"]')
    assert edit_of(page) == {}
    assert page.is_disabled('[data-do="reset"]')
    page.click('[data-do="undo"]')
    assert edit_of(page) == {"yaw": 10, "pitch": 5}
    page.click('[data-preset="Wink"]')
    assert edit_of(page)["expression"]["eyeBlinkLeft"] == 1
    shown(page)


@needs_chromium
def test_edits_and_pictures_are_saved_and_loaded(page: Any, portrait: Path, tmp_path: Path) -> None:
    move(page, "yaw", 8)
    move(page, "gaze.right", 10)
    move(page, "expression.mouthSmile*", 0.6)
    wanted, picture = edit_of(page), shown(page)
    with page.expect_download() as download:
        page.click('[data-do="save"]')
    file = tmp_path / "saved.json"
    download.value.save_as(file)
    edit = load_edit(file)
    assert (edit.yaw, edit.gaze, edit.expression) == (8, (10, 0), {"mouthSmileLeft": 0.6, "mouthSmileRight": 0.6})

    with page.expect_download() as download:
        page.click('[data-do="download"]')
    result = tmp_path / "result.png"
    download.value.save_as(result)
    assert load_image(result).shape == load_image(portrait).shape
    assert np.abs(load_image(result).astype(int) - load_image(portrait)).max() > 20
    assert b"compositeWithTrainedAlgorithmicMedia" in result.read_bytes()

    page.click('[data-do="reset"]')
    page.set_input_files(".hw-json", file)
    page.wait_for_function("e => document.querySelector('.hw-figure').dataset.edit.includes('mouthSmile')", arg=None)
    assert edit_of(page) == wanted
    assert shown(page) == picture
    file.write_text('{"yaw": 400}')
    page.set_input_files(".hw-json", file)
    assert "saved.json" in message(page)
    assert edit_of(page) == wanted


@needs_chromium
def test_overlays_show_what_they_say(page: Any) -> None:
    move(page, "yaw", 15)
    seen = {"picture": shown(page)}
    for kind in ("mesh", "landmarks", "displacement", "depth", "normals"):
        before = int(page.get_attribute(".hw-figure", "data-renders"))
        page.select_option('[data-choose="view"]', kind)
        page.wait_for_function("n => +document.querySelector('.hw-figure').dataset.renders > n", arg=before)
        seen[kind] = page.get_attribute(".hw-picture", "src").encode()
    assert len(set(seen.values())) == len(seen)


def bomb(path: Path) -> Path:
    """A PNG of 40,000 x 40,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(120_001 * 50))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@needs_chromium
def test_bad_uploads_get_a_sentence(page: Any, tmp_path: Path, portrait: Path) -> None:
    save_image(tmp_path / "wall.png", np.full((128, 128, 3), 120, np.uint8))
    (tmp_path / "letter.png").write_text("Dear Sir or Madam")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(100 * 2**20)
    bomb(tmp_path / "bomb.png")
    said = {}
    for name in ("wall", "letter", "bomb", "huge"):
        page.evaluate("document.querySelector('.hw-message').hidden = true")
        page.set_input_files(".hw-file", tmp_path / f"{name}.png")
        said[name] = message(page)
        page.wait_for_selector('.hw-edit[data-state="ready"]')
    assert "No face" in said["wall"]
    assert "is not a picture" in said["letter"]
    assert "40000 x 40000 pixels" in said["bomb"]
    assert "100 MB" in said["huge"]
    # The portrait from before is still there.
    still = page.get_attribute(".hw-picture", "src")
    move(page, "yaw", 12)
    assert shown(page) != still


@needs_chromium
def test_one_of_two_faces_is_chosen(
    page: Any, portrait: Path, make_two: Callable[[Path], Path], tmp_path: Path
) -> None:
    choose(page, make_two(tmp_path / "two.png"))
    assert page.locator('[data-choose="face"] option').all_inner_texts() == ["1", "2"]
    move(page, "yaw", 15)
    largest = shown(page)
    before = int(page.get_attribute(".hw-figure", "data-renders"))
    page.select_option('[data-choose="face"]', index=1)
    page.wait_for_function("n => +document.querySelector('.hw-figure').dataset.renders > n", arg=before)
    assert shown(page) != largest
    assert edit_of(page) == {"yaw": 15}
    choose(page, portrait)
    assert not page.is_visible('[data-choose="face"]')


@needs_chromium
def test_the_head_is_shown_in_space(page: Any, tmp_path: Path) -> None:
    with page.expect_response(re.compile(r"\.glb$")) as first:
        page.get_by_text("3D view of the head").click()
    head = first.value.body()
    assert head[:4] == b"glTF"
    with page.expect_response(re.compile(r"\.glb$")) as second:  # it follows the sliders
        move(page, "jaw", 20)
    assert second.value.body()[:4] == b"glTF"
    assert second.value.body() != head
    page.get_by_text("3D view of the head").click()


@needs_chromium
def test_animating_without_a_clip_says_so(page: Any) -> None:
    page.get_by_role("tab", name="Animate").click()
    page.click("#hw-animate")
    assert "Choose a clip first" in message(page)


@needs_chromium
def test_a_clip_drives_and_is_fitted(page: Any, driving: Path, lab: SimpleNamespace, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Animate").click()
    page.set_input_files('input[type="file"][accept*="video"] >> visible=false >> nth=0', driving)
    page.wait_for_function("() => document.querySelectorAll('.hw-pair img').length === 2")  # both crops
    page.click("#hw-animate")
    page.wait_for_selector("#hw-progress [role=progressbar]")
    page.wait_for_selector("#hw-result video")
    with page.expect_download() as download:
        page.locator("#hw-files a[download]").first.click()
    result = tmp_path / "result.mp4"
    download.value.save_as(result)
    made = lab.frames(result)
    assert len(made) == len(lab.frames(driving))
    assert np.abs(made[-1].astype(int) - made[0]).max() > 20
    assert b"compositeWithTrainedAlgorithmicMedia" in result.read_bytes()

    page.get_by_role("tab", name="Fit").click()
    page.set_input_files('input[type="file"][accept*="video"] >> visible=false >> nth=-1', driving)
    page.wait_for_selector("[role=tabpanel]:visible video")
    page.click("#hw-fit")
    page.wait_for_selector("#hw-curves svg")
    assert page.locator("#hw-curves svg").count() == 6
    assert "10 frames" in page.inner_text("#hw-curves")


@needs_chromium
def test_a_closed_tab_stops_its_run(
    server: Any,
    open_page: Callable[..., Any],
    portrait: Path,
    driving_images: list[np.ndarray],
    lab: SimpleNamespace,
    tmp_path: Path,
) -> None:
    clip = lab.write_clip(tmp_path / "long.mp4", driving_images * 25)
    before = set(server.studio._sessions)
    page = open_page()
    choose(page, portrait)
    (key,) = set(server.studio._sessions) - before
    session = server.studio.session(key)
    animator = weakref.ref(session.animator)
    page.get_by_role("tab", name="Animate").click()
    page.set_input_files('input[type="file"][accept*="video"] >> visible=false >> nth=0', clip)
    page.wait_for_function("() => document.querySelectorAll('.hw-pair img').length === 2")
    page.click("#hw-animate")
    page.wait_for_function("() => +document.querySelector('#hw-progress [data-share]')?.dataset.share > 0")
    assert session.folder.is_dir()
    page.close()
    until(lambda: session.closed and not any(t.name == "headwarp-run" for t in threading.enumerate()))
    until(lambda: len(server.studio) == len(before) and not session.folder.exists())
    assert not any(server.studio.work.rglob("long.mp4"))
    until(lambda: animator() is None or collected(animator))


def collected(reference: weakref.ref[Any]) -> bool:
    import gc

    gc.collect()
    return reference() is None


@needs_chromium
def test_phones_and_the_dark(open_page: Callable[..., Any], portrait: Path) -> None:
    page = open_page(390, 844, color_scheme="dark", has_touch=True, is_mobile=True)
    choose(page, portrait)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert np.mean([int(v) for v in re.findall(r"\d+", ground)[:3]]) < 64
    slider(page, "expression.eyeBlink*").scroll_into_view_if_needed()
    box = page.locator(".hw-picture").bounding_box()
    assert box["y"] + box["height"] > 100, "the picture is out of sight while the slider is moved"


@needs_chromium
def test_everything_is_reached_by_keyboard(page: Any) -> None:
    page.focus('[data-do="compare"]')
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(e => e.dataset.preset ?? e.dataset.tab ?? e.dataset.do ?? e.ariaLabel)(document.activeElement)"
            )
        )
    assert reached >= {"Front", "Wink", "pose", "Yaw", "Jaw", "download"}
    page.focus('[data-tab="pose"]')
    page.keyboard.press("ArrowRight")
    assert page.is_visible('[data-panel="expression"]')


def get(server: Any, path: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_files_outside_are_not_read(server: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("nobody's business")
    for path in (secret, Path(__file__), Path("/etc/passwd"), server.studio.work / ".." / tmp_path.name / "secret.txt"):
        assert get(server, f"gradio_api/file={path}") in (400, 403, 404)
    assert get(server, "", Host="evil.example") == 400  # a name that was made to mean this machine
    assert get(server, "") == 200
    key = server.studio.enter()
    session = server.studio.session(key)
    link = server.studio.work / "link.png"
    link.symlink_to(secret)
    other = server.studio.session(server.studio.enter("other"))
    (other.folder / "portrait.png").write_text("somebody else's")
    for path in (secret, link, other.folder / "portrait.png", "/etc/passwd", "", "a\0b"):
        with pytest.raises(InputError, match="not uploaded here"):
            server.studio.uploaded(session, str(path))
    with pytest.raises(InputError, match="no model"):
        server.studio.model("../../secret")
    link.unlink()
    server.studio.leave(key)
    server.studio.leave("other")
    assert not other.folder.exists()


def test_ten_users_at_once(server: Any, portrait: Path) -> None:
    from headwarp.app.web.edit import server_functions

    call = {function.__name__: function for function in server_functions(server.studio)}
    upload = server.studio.work / "upload" / "portrait.png"
    upload.parent.mkdir()
    shutil.copyfile(portrait, upload)

    def use(number: int) -> list[str]:
        key = server.studio.enter(f"user {number}")
        opened = call["open_portrait"]({"key": key, "path": str(upload)})
        assert "error" not in opened, opened
        return [call["render"]({"key": key, "edit": {"yaw": yaw}})["picture"] for yaw in (5, 10)]

    with ThreadPoolExecutor(10) as users:
        results = list(users.map(use, range(10)))
    assert all(result == results[0] for result in results)
    assert results[0][0] != results[0][1]
    assert call["render"]({"key": "nobody", "edit": {}}) == {"error": "The server has forgotten this page; reload it."}
    assert "sliders" in call["render"]({"key": "user 0", "edit": {"nose": 1}})["error"]
    animators = [weakref.ref(server.studio.session(f"user {i}").animator) for i in range(10)]
    for number in range(10):
        assert upload.exists()
        server.studio.leave(f"user {number}")
    assert not upload.exists()  # with the last of those who used it
    assert all(collected(animator) for animator in animators)


def test_refusals_before_anything_starts(lab: SimpleNamespace, server: Any, tmp_path: Path) -> None:
    port = server.url.rstrip("/").rpartition(":")[2]
    assert f"port {port}" in lab.refused("app", "--port", port, "--no-browser")
    assert "--models must be a folder" in lab.refused("app", "--models", tmp_path / "none", "--no-browser")
    assert "--max-upload" in lab.refused("app", "--max-upload", 0, "--no-browser")


def test_pictures_keep_their_size(portrait: Path) -> None:
    from headwarp.app.web.motion import small

    picture = np.asarray(Image.open(portrait))
    assert small(picture, 1000) is picture
    assert max(small(picture, 100).shape) == 100
