"""`headwarp webcam`: a portrait follows a camera, live.

    camera or file --newest frame--> motion --render, paste--> newest result --> window, virtual camera, recording

The camera is read in a thread of its own that keeps only its newest frame. A frame that comes while another is worked
on replaces the one that waits: the result lags by at most two frames' work, however slow the machine is, and the rest
is dropped. A file as input is read at the speed of its clock and takes the same way.

The window is a page on the loopback interface (MJPEG, shown by any browser), because the headless OpenCV that comes
with this package has none; where OpenCV has one, `--window opencv` uses it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import webbrowser
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Protocol, TypeVar

from tyro.conf import arg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ..geom.head import HeadParams
    from ..geom.track import FaceTrack
    from ..media.writer import VideoWriter
    from .animator import Animator
    from .keypoint import KeypointAnimator

    Picture = NDArray[np.uint8]

T = TypeVar("T")

_REMEMBERED = 240  # frames that frames/s and latency are taken over
_SPREAD = 20  # frames


@dataclass
class Webcam:
    """A portrait follows your webcam, live; a browser window shows it.

    Frames that come too fast are dropped, so that the picture never lags. The face of the first frame counts as the
    portrait's rest: look into the camera calmly at the start, or press "rest" in the window later.
    """

    source: Annotated[Path, arg(aliases=["-s"], help="Picture of a face.")]
    camera: int = 0
    """Number of the camera."""
    input: Path | None = None
    """A video in place of the camera, at its own speed."""
    model: str = "geometric"
    """What moves the portrait: geometric (no learned weights), refined or pwm (slower), or a model file."""
    size: int = 256
    """Pixels of the square that the motion is computed in, 128 to 1024; smaller is faster."""
    max_side: int = 720
    """Larger portraits are reduced to this longer side."""
    crop_only: bool = False
    """Show the face crop instead of the whole picture."""
    strength: float = 1.0
    """Multiplies the motion, 0 to 3."""
    smooth: float = 1.0
    """Smoothing of the motion over time."""
    source_face: int = 0
    """Which face of the portrait, 0 = largest."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Also record the result, .mp4 or another video."""
    virtual_camera: bool = False
    """Also offer the result as a camera to other programs; needs `pip install pyvirtualcam` and its driver."""
    window: Literal["browser", "opencv", "none"] = "browser"
    """Where the result is shown: a page on this machine, OpenCV's window (not in its headless build), or nowhere."""
    port: int = 0
    """Of the page; 0 takes a free one."""
    provenance: bool = True
    """Say inside a recording that it is AI-generated; --no-provenance leaves the note out."""

    def run(self) -> None:
        with ExitStack() as stack:
            outcome = live(self, stack, notice=lambda text: print(text, file=sys.stderr, flush=True))
        for problem in outcome.problems:
            print(f"note: {problem}", file=sys.stderr)
        print(outcome.summary())
        if self.output is not None:
            print(self.output)


@dataclass(frozen=True)
class Outcome:
    """What a session was like."""

    captured: int
    shown: int
    dropped: int
    seconds: float
    latencies: list[float]
    """Seconds from the arrival of a frame to its result, of the last frames."""
    stages: dict[str, float]
    """Mean seconds a shown frame: motion, picture, outputs."""
    problems: list[str]

    @property
    def fps(self) -> float:
        return self.shown / self.seconds if self.seconds > 0 else 0.0

    def latency(self, share: float) -> float:
        """Seconds that this share of the frames stays below."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0

    def summary(self) -> str:
        """One line for people."""
        stages = ", ".join(f"{name} {1e3 * value:.0f}" for name, value in self.stages.items())
        return (
            f"{self.shown} of {self.captured} frames shown in {self.seconds:.1f} s ({self.fps:.1f} frames/s, "
            f"{self.dropped} dropped); latency {1e3 * self.latency(0.5):.0f} ms in the middle, "
            f"{1e3 * self.latency(0.95):.0f} ms for 95 %; ms a frame: {stages}"
        )


class Newest(Generic[T]):
    """A place for one thing: what is put takes the place of what waits there. For threads."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self.put_count = self.dropped = 0

    def put(self, item: T) -> None:
        with self._ready:
            self.put_count += 1
            self.dropped += self._item is not None
            self._item = item
            self._ready.notify_all()

    def close(self) -> None:
        """Nothing more comes; what waits can still be taken."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def take(self) -> T | None:
        """The newest thing, once; waits for it. None after `close`."""
        with self._ready:
            self._ready.wait_for(lambda: self._item is not None or self._closed)
            item, self._item = self._item, None
            return item


@dataclass(frozen=True)
class Shot:
    """A frame as it came in."""

    image: Picture
    time: float
    """Seconds from the start, on the clip's or this machine's clock."""
    arrival: float
    """`time.perf_counter()` when it came."""


class Follower(Protocol):
    """What makes the portrait's picture of the driver's."""

    problems: list[str]
    size: tuple[int, int]

    def update(self, image: Picture, moment: float) -> Picture | None:
        """The portrait doing what the person in the frame does; None before a face has been seen."""

    def rest(self) -> None:
        """The next face counts as rest."""


class HeadFollower:
    """Through the head's parameters: the geometric animator and PWM."""

    def __init__(self, animator: Animator, *, strength: float, smooth: float, crop_only: bool) -> None:
        from ..fitting.fit import LiveFitter
        from ..geom.transfer import TransferOptions

        self.animator, self.crop_only = animator, crop_only
        self.problems = animator.problems
        shape = animator.portrait.picture.shape
        self.size = (animator.stage.size,) * 2 if crop_only else (shape[0], shape[1])
        self.fitter = LiveFitter(head=animator.head, smooth=smooth, background=True)
        self.how = TransferOptions(strength=strength)
        self._rest: FaceTrack | None = None
        self._settled = False
        self._last: HeadParams | None = None
        self._step: dict[str, Tensor] = {}
        self._left = 0  # frames over which the step is still taken

    def rest(self) -> None:
        self._rest = None

    def update(self, image: Picture, moment: float) -> Picture | None:
        target = self.motion(image, moment)
        return None if target is None else self.animator.render(target, crop_only=self.crop_only)

    def motion(self, image: Picture, moment: float) -> HeadParams | None:
        """The portrait's parameters for a frame."""
        from ..geom.transfer import transfer

        track = self.fitter.update(image, moment)
        if track is None:
            return None
        settles = self.fitter.settled and not self._settled
        if settles and self._rest is not None:
            self._rest = self.fitter.again(self._rest)
        if self._rest is None:
            self._rest, self._left = track, 0
        portrait = self.animator.portrait.params
        target = transfer(self.animator.head, portrait, track.params, self._rest.params, self.how)
        if settles and self._last is not None:
            # What the first guess of the person got wrong shows as a step of some millimetres, which is spread.
            self._settled, self._left = True, _SPREAD
            self._step = {name: value - getattr(target, name) for name, value in self._last.asdict().items()}
        if self._left:
            share = self._left / _SPREAD
            target = target.replace(**{n: v + share * self._step[n] for n, v in target.asdict().items()})
            self._left -= 1
        self._last = target
        return target


class KeypointFollower:
    """Through a keypoint model."""

    def __init__(self, animator: KeypointAnimator, *, crop_only: bool) -> None:
        from ..fitting.faces import FaceTracker
        from ..media.crop import BoxSmoother
        from .keypoint import SIDE

        self.animator, self.crop_only, self.problems = animator, crop_only, animator.problems
        shape = animator.picture.shape
        self.size = (SIDE, SIDE) if crop_only else (shape[0], shape[1])
        self.tracker, self.holding = FaceTracker(), BoxSmoother()
        self._square: Any = None
        self._first: Any = None

    def rest(self) -> None:
        self._first = None

    def update(self, image: Picture, moment: float) -> Picture | None:
        from ..media.crop import Crop
        from ..nets.keypoints import normalise
        from .keypoint import SCALE, SHIFT, SIDE

        face = self.tracker.track(image)
        if face is not None:
            self._square = self.holding.update(Crop.from_landmarks(face.landmarks[:468], SCALE, SHIFT, SIDE))
        if self._square is None:
            return None
        motion = self.animator.read(self._square.extract(image))
        self._first = motion if self._first is None else self._first
        relative = not self.animator.rectifies
        motion = normalise(motion, self._first, self.animator.state.motion, relative=relative)
        return self.animator.render(motion, crop_only=self.crop_only)


def live(
    options: Webcam, stack: ExitStack, *, notice: Callable[[str], object], stop: threading.Event | None = None
) -> Outcome:
    """A session, to the end of the file, to Ctrl-C, or to `stop`.

    Raises:
        InputError: no such file or camera, no face in the portrait, no such window or virtual camera.
    """
    from ..media.errors import InputError
    from ..media.files import protect
    from .provenance import marks, sign

    if not 0 <= options.strength <= 3:
        raise InputError(f"The strength must be from 0 to 3, got {options.strength:g}.")
    if options.output is not None:
        protect([options.source, *([options.input] if options.input else [])], options.output)
    stop = stop or threading.Event()
    follower = open_follower(options)
    frames, fps = open_input(options)
    show = _Show()
    window = stack.enter_context(_window(options, follower, show, notice))
    camera = stack.enter_context(_virtual_camera(options, follower.size, notice))
    recording: VideoWriter | None = None
    writing = ExitStack()
    if options.output is not None:
        from ..media.video import VideoWriter

        recording = writing.enter_context(
            VideoWriter(options.output, follower.size, fps, metadata=marks(options.provenance))
        )
    shots: Newest[Shot] = Newest()
    fault: list[BaseException] = []
    reader = threading.Thread(target=_capture, args=(frames, shots, stop, fault), daemon=True)
    latencies: deque[float] = deque(maxlen=_REMEMBERED)
    moments: deque[float] = deque(maxlen=_REMEMBERED)
    spent = {"motion and picture": 0.0, "outputs": 0.0}
    shown = unseen = 0
    begin = time.perf_counter()
    reader.start()
    with writing:
        try:
            while not stop.is_set() and (shot := shots.take()) is not None:
                start = time.perf_counter()
                if show.wants_rest():
                    follower.rest()
                picture = follower.update(shot.image, shot.time)
                if picture is None:
                    unseen += 1
                    continue
                middle = time.perf_counter()
                latencies.append(middle - shot.arrival)
                moments.append(middle)
                show.put(picture, _rate(moments), latencies[-1], shots.dropped)
                if window(picture) is False:
                    break
                if camera is not None:
                    camera(picture)
                if recording is not None:
                    recording.write(picture, shot.time)
                spent["motion and picture"] += middle - start
                spent["outputs"] += time.perf_counter() - middle
                shown += 1
        except KeyboardInterrupt:
            notice("stopped")  # the usual end: what was recorded is kept
        finally:
            stop.set()
            show.close()
            reader.join(timeout=5)
        if fault:
            raise fault[0]
        if recording is not None and shown == 0:
            raise InputError("No face was seen, so there is nothing to record.")
    problems = list(follower.problems)
    if options.output is not None and options.provenance:
        problems += sign([options.output])
    if unseen:
        problems.append(f"{unseen} frames at the start showed no face.")
    return Outcome(
        captured=shots.put_count,
        shown=shown,
        dropped=shots.dropped,
        seconds=time.perf_counter() - begin,
        latencies=list(latencies),
        stages={name: value / max(shown, 1) for name, value in spent.items()},
        problems=problems,
    )


def open_follower(options: Webcam) -> Follower:
    """The portrait, encoded once."""
    from .animator import Animator
    from .keypoint import KeypointAnimator
    from .models import is_keypoint_model, open_model

    model = open_model(options.model)
    if is_keypoint_model(model):
        keypoints = KeypointAnimator(options.source, model, face=options.source_face, max_side=options.max_side)
        return KeypointFollower(keypoints, crop_only=options.crop_only)
    animator = Animator(
        options.source, size=options.size, max_side=options.max_side, face=options.source_face, model=options.model
    )
    return HeadFollower(animator, strength=options.strength, smooth=options.smooth, crop_only=options.crop_only)


def open_input(options: Webcam) -> tuple[Iterator[Shot], float]:
    """The frames of file or camera, each at its moment, and their usual rate.

    Raises:
        InputError: there is no such file or camera.
    """
    if options.input is not None:
        from ..media.video import VideoReader

        reader = VideoReader(options.input, max_side=720)
        return _file_shots(reader), float(reader.fps)
    import cv2

    from ..media.errors import InputError

    camera = cv2.VideoCapture(options.camera)
    if not camera.isOpened():
        raise InputError(
            f"Camera {options.camera} cannot be opened: there is none, another program has it, or access to it is not "
            "allowed. --camera 1 tries the next one, --input FILE takes a video."
        )
    camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return _camera_shots(camera), 30.0


def _file_shots(reader: Any) -> Iterator[Shot]:
    begin: float | None = None
    for frame in reader:
        now = time.perf_counter()
        begin = now - frame.time if begin is None else begin
        # A real camera delivers on time whether or not anybody keeps up.
        time.sleep(max(0.0, begin + frame.time - now))
        yield Shot(frame.image, frame.time, time.perf_counter())


def _camera_shots(camera: Any) -> Iterator[Shot]:
    import cv2

    begin = time.perf_counter()
    try:
        while True:
            good, image = camera.read()
            if not good:
                return
            now = time.perf_counter()
            yield Shot(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), now - begin, now)
    finally:
        camera.release()


def _capture(frames: Iterator[Shot], into: Newest[Shot], stop: threading.Event, fault: list[BaseException]) -> None:
    """The reading thread."""
    try:
        for shot in frames:
            if stop.is_set():
                break
            into.put(shot)
    except BaseException as error:  # told to the main thread, which raises it
        fault.append(error)
    finally:
        frames.close()  # type: ignore[attr-defined]  # a generator
        into.close()


def _rate(moments: deque[float]) -> float:
    return (len(moments) - 1) / (moments[-1] - moments[0]) if len(moments) > 1 else 0.0


class _Show:
    """The newest result for those who look at it, and what they asked for. For threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._picture: Picture | None = None
        self._jpeg: tuple[int, bytes] = (0, b"")
        self._rest = False
        self._open = True
        self.number = 0
        self.stats: dict[str, float] = {"fps": 0.0, "latency_ms": 0.0, "dropped": 0}

    def put(self, picture: Picture, fps: float, latency: float, dropped: int) -> None:
        with self._changed:
            self._picture = picture
            self.number += 1
            self.stats = {"fps": round(fps, 1), "latency_ms": round(1e3 * latency, 1), "dropped": dropped}
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def ask_rest(self) -> None:
        with self._changed:
            self._rest = True

    def wants_rest(self) -> bool:
        with self._changed:
            asked, self._rest = self._rest, False
            return asked

    def jpeg_after(self, number: int) -> tuple[int, bytes] | None:
        """The newest picture that comes after this one, compressed when somebody looks; None at the end."""
        import cv2

        with self._changed:
            self._changed.wait_for(lambda: self.number > number or not self._open)
            if self.number <= number:
                return None
            newest, picture = self.number, self._picture
            if self._jpeg[0] == newest:
                return self._jpeg
        assert picture is not None
        _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
        with self._changed:
            self._jpeg = newest, data.tobytes()
            return self._jpeg


@contextmanager
def _window(
    options: Webcam, follower: Follower, show: _Show, notice: Callable[[str], object]
) -> Iterator[Callable[[Picture], bool]]:
    """What is called with every picture; False when the user closed the window."""
    if options.window == "none":
        yield lambda picture: True
        return
    if options.window == "opencv":
        yield _opencv_window(show)
        return
    server = serve(show, options.port)
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    notice(f"showing at {address} (Ctrl-C ends)")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if options.input is None:
        webbrowser.open(address)
    try:
        yield lambda picture: True
    finally:
        server.shutdown()
        server.server_close()


def _opencv_window(show: _Show) -> Callable[[Picture], bool]:
    import re

    import cv2

    from ..media.errors import InputError

    found = re.search(r"GUI:\s*(\S+)", cv2.getBuildInformation())
    if found is None or found[1] == "NONE":
        raise InputError(
            "This OpenCV has no windows (the headless build). Use --window browser, or replace it: pip uninstall "
            "opencv-python-headless; pip install opencv-python."
        )

    def put(picture: Picture) -> bool:
        text = f"{show.stats['fps']:.1f} frames/s  {show.stats['latency_ms']:.0f} ms"
        shown = picture[..., ::-1].copy()
        cv2.putText(shown, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        cv2.imshow("headwarp", shown)
        key = cv2.waitKey(1) & 0xFF
        if key == ord("r"):
            show.ask_rest()
        return key not in (27, ord("q"))

    return put


@contextmanager
def _virtual_camera(
    options: Webcam, size: tuple[int, int], notice: Callable[[str], object]
) -> Iterator[Callable[[Picture], object] | None]:
    if not options.virtual_camera:
        yield None
        return
    from ..media.errors import InputError

    try:
        import pyvirtualcam
    except ImportError:
        raise InputError("A virtual camera needs pyvirtualcam: pip install pyvirtualcam.") from None
    height, width = size[0] - size[0] % 2, size[1] - size[1] % 2
    try:
        camera = pyvirtualcam.Camera(width=width, height=height, fps=30)
    except RuntimeError as error:
        raise InputError(
            f"There is no virtual camera to write to ({error}). Linux: load v4l2loopback. Windows, macOS: install OBS."
        ) from None
    notice(f"virtual camera: {camera.device}")
    with camera:
        yield lambda picture: camera.send(picture[:height, :width].copy())


def serve(show: _Show, port: int) -> ThreadingHTTPServer:
    """The page with the live picture, on the loopback interface only.

    Raises:
        InputError: the port is taken.
    """
    from ..media.errors import InputError

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._local():
                return
            if self.path == "/":
                self._send(_PAGE.encode(), "text/html; charset=utf-8")
            elif self.path == "/stats":
                self._send(json.dumps(show.stats).encode(), "application/json")
            elif self.path == "/stream":
                self._stream()
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            if not self._local():
                return
            if self.path == "/rest":
                show.ask_rest()
                self._send(b"{}", "application/json")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _local(self) -> bool:
            """Other sites that the browser has open may neither see the camera's picture nor press buttons."""
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            origin = self.headers.get("Origin")
            mine = {f"http://{name}:{self.server.server_address[1]}" for name in ("127.0.0.1", "localhost")}  # type: ignore[index]
            if host in ("127.0.0.1", "localhost") and origin in (None, *mine):
                return True
            self.send_error(HTTPStatus.FORBIDDEN)
            return False

        def _send(self, data: bytes, kind: str) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def _stream(self) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            number = 0
            while (newest := show.jpeg_after(number)) is not None:
                number, data = newest
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                try:
                    self.wfile.write(head.encode() + data + b"\r\n")
                except OSError:  # the browser has gone
                    return

        def log_message(self, format: str, *args: Any) -> None:
            """No line for every request."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise InputError(
            f"The page cannot be served on port {port} ({error.strerror}); --port 0 takes a free one."
        ) from None
    server.daemon_threads = True
    return server


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>headwarp webcam</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 1rem; text-align: center; }
img { max-width: 100%; max-height: 80vh; border-radius: 6px; }
button { font: inherit; padding: .3rem 1rem; }
</style>
<img src="/stream" alt="the animated portrait">
<p><span id="stats" role="status">waiting for a face</span>
<button id="rest" title="Look into the camera calmly and press (key r)">rest</button></p>
<script>
const rest = () => fetch("/rest", {method: "POST"});
document.getElementById("rest").onclick = rest;
document.onkeydown = e => { if (e.key === "r") rest(); };
setInterval(async () => {
  try {
    const s = await (await fetch("/stats")).json();
    document.getElementById("stats").textContent = s.fps + " frames/s, " + s.latency_ms + " ms latency";
  } catch { document.getElementById("stats").textContent = "ended"; }
}, 500);
</script>
</html>
"""
