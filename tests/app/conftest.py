"""A small portrait, a short driving clip, and the command line called in this process."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from headwarp.app import cli
from headwarp.app.animator import Animator
from headwarp.assets import example
from headwarp.media.image import load_image, save_image
from headwarp.media.video import VideoReader

FRAMES, FPS = 10, 25


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def headwarp(*arguments: object) -> Outcome:
    """`headwarp ARGUMENTS` in this process; exceptions that are no clean exit come through."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def refused(*arguments: object) -> str:
    """The one sentence with which a command refuses bad input."""
    done = headwarp(*arguments)
    assert done.code == 2, done
    assert not done.out
    errors = [line for line in done.err.replace("\r", "\n").splitlines() if line.startswith("headwarp: ")]
    assert len(errors) == 1, done.err
    assert "Traceback" not in done.err
    return errors[0].removeprefix("headwarp: ")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def write_clip(
    path: Path, images: Sequence[np.ndarray], *, times: Sequence[float] | None = None, fps: int = FPS, tone: float = 0.0
) -> Path:
    """An MP4 by PyAV alone; `tone` adds that many seconds of sound."""
    height, width = (side - side % 2 for side in images[0].shape[:2])
    tick = Fraction(1, 90_000)
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=fps, options={"crf": "12", "bf": "0"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = tick
        sound = output.add_stream("aac", rate=48000) if tone else None
        if sound is not None:
            sound.codec_context.layout = "mono"
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
            frame.pts = round((index / fps if times is None else times[index]) / tick)
            frame.time_base = tick
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if sound is not None:
            wave = (np.sin(2 * np.pi * 440 * np.arange(round(tone * 48000)) / 48000) * 12000).astype(np.int16)
            block = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 48000, 0, Fraction(1, 48000)
            resampler = av.AudioResampler(sound.format, "mono", 48000, sound.codec_context.frame_size)
            for part in [*resampler.resample(block), *resampler.resample(None)]:
                output.mux(sound.encode(part))
            output.mux(sound.encode(None))
    return path


def frames(path: Path) -> list[np.ndarray]:
    return [frame.image for frame in VideoReader(path)]


def times(path: Path) -> list[float]:
    return [frame.time for frame in VideoReader(path)]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: nothing may be lost, and nothing left behind."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The functions above; test files cannot import each other (importlib mode)."""
    return SimpleNamespace(
        headwarp=headwarp,
        refused=refused,
        psnr=psnr,
        write_clip=write_clip,
        frames=frames,
        times=times,
        snapshot=snapshot,
    )


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """scikit-image's public-domain portrait, 512 x 512."""
    return pytest.importorskip("skimage.data").astronaut()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="session")
def portrait(astronaut: np.ndarray, folder: Path) -> Path:
    """Head and shoulders of the astronaut at half size, 182 x 164 pixels: no side is like another, the face 60 wide."""
    small = Image.fromarray(astronaut).resize((256, 256), Image.Resampling.LANCZOS)
    path = folder / "portrait.png"
    save_image(path, np.asarray(small)[:182, 24:188])
    return path


@pytest.fixture(scope="session")
def driving_images() -> list[np.ndarray]:
    """Every eighth of the first frames of the example clip, 256 x 256."""
    return [frame.image for frame in islice(VideoReader(example("driving.mp4"), max_side=256), 0, 8 * FRAMES, 8)]


@pytest.fixture(scope="session")
def driving(driving_images: list[np.ndarray], folder: Path) -> Path:
    """Ten frames, 0.4 s, with sound."""
    return write_clip(folder / "driving.mp4", driving_images, tone=FRAMES / FPS)


@pytest.fixture(scope="session")
def crop(portrait: Path, folder: Path) -> Path:
    """The portrait's face crop, 256 x 256, as FOMM's data sets have them."""
    path = folder / "crop.png"
    save_image(path, Animator(portrait, size=256).edit(crop_only=True))
    return path


@pytest.fixture(scope="session")
def picture(portrait: Path) -> np.ndarray:
    return load_image(portrait)


@pytest.fixture
def real() -> Path:
    """Real footage, which is not part of the repository."""
    root = Path(__file__).parents[2]
    path = Path(os.environ.get("HEADWARP_REAL", root.parent / "shared" / "data" / "real"))
    if not path.is_dir():
        pytest.skip("no real footage here")
    return path


@pytest.fixture
def make_two(picture: np.ndarray) -> Callable[[Path], Path]:
    """Writes a picture of two people, the larger one on the right."""

    def make(path: Path) -> Path:
        height, width = picture.shape[:2]
        large = np.asarray(Image.fromarray(picture).resize((width * 3 // 2, height * 3 // 2), Image.Resampling.LANCZOS))
        both = np.full((large.shape[0], width + large.shape[1], 3), 128, np.uint8)
        both[-height:, :width] = picture
        both[:, width:] = large
        save_image(path, both)
        return path

    return make
