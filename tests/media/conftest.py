"""Clips made on the fly, with PyAV alone, so that the reader is not judged by our own writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest


def picture(height: int, width: int, shift: float = 0.0) -> np.ndarray:
    """A smooth colourful picture with a bright top-left and a dark bottom-right quarter; uint8 (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin((x + shift) / 17 + k) * np.cos(y / 23 - k) for k in range(3)]
    image = 128 + 50 * np.stack(waves, -1)
    image[: height // 2, : width // 2] += 60
    image[height // 2 :, width // 2 :] -= 60
    return np.clip(image, 0, 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def write_clip(
    path: Path,
    images: Sequence[np.ndarray],
    *,
    times: Sequence[float] | None = None,
    fps: int = 25,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    prepare: Callable[[av.VideoStream], None] | None = None,
    tone: float = 0.0,
    audio_codec: str = "aac",
    options: dict[str, str] | None = None,
) -> Path:
    """A clip by PyAV alone: `prepare(stream)` sets tags, `tone` adds that many seconds of a 440 Hz tone."""
    height, width = images[0].shape[:2]
    with av.open(str(path), "w", options=options or {}) as output:
        video = output.add_stream(codec, rate=fps)
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        tick = Fraction(1, 90_000) if times is not None else Fraction(1, fps)
        video.codec_context.time_base = tick
        if prepare:
            prepare(video)
        sound: Any = output.add_stream(audio_codec, rate=48000) if tone else None
        if sound is not None:
            sound.codec_context.layout = "mono"
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
                format=pixel_format, dst_colorspace="itu709", dst_color_range=1
            )
            frame.pts = index if times is None else round(times[index] / tick)
            frame.time_base = tick
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if sound is not None:
            resampler = av.AudioResampler(sound.format, "mono", 48000, sound.codec_context.frame_size or 960)
            wave = (np.sin(2 * np.pi * 440 * np.arange(round(tone * 48000)) / 48000) * 12000).astype(np.int16)
            block = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 48000, 0, Fraction(1, 48000)
            for part in [*resampler.resample(block), *resampler.resample(None)]:
                output.mux(sound.encode(part))
            output.mux(sound.encode(None))
    return path


def leftovers(folder: Path) -> list[str]:
    """Temporary files that should not be there."""
    return [entry.name for entry in folder.iterdir() if ".part" in entry.name]


@pytest.fixture
def lab() -> SimpleNamespace:
    """The functions above; test files cannot import each other (importlib mode)."""
    return SimpleNamespace(picture=picture, psnr=psnr, write_clip=write_clip, leftovers=leftovers)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """30 frames of 64 x 96 at 25 fps with 1.2 s of sound."""
    return write_clip(tmp_path / "clip.mp4", [picture(64, 96, 3 * k) for k in range(30)], tone=1.2)
