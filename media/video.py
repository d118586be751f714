"""Videos in, frame by frame: upright 8-bit RGB with exact times; folders of frames and single pictures alike.

    for frame in VideoReader("clip.mp4"):
        use(frame.image, frame.time)

Memory does not grow with the length: frames come one at a time and nothing is kept. Writing is in `writer.py`; its
names are here too, so that `media.video` is the one door for moving pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from .container import audio_stream, fraction, open_input, origin, seconds, video_stream
from .errors import InputError
from .files import IMAGE_SUFFIXES, list_images
from .hdr import HDR_TRANSFERS, needs_conversion, to_srgb
from .image import load_image
from .writer import FramesWriter, VideoWriter, open_writer

__all__ = ["Frame", "FramesWriter", "VideoInfo", "VideoReader", "VideoWriter", "open_writer", "probe"]

FOLDER_FPS = Fraction(25)
"""Frames per second of folders of pictures, where none is asked for."""

_THREADS = 2  # one decodes 1,500, two 2,300 frames/s at 512 x 512; more would take cores from the fit
# swscale's default takes the nearest chroma sample and loses 7 dB on faces (45.2 against 52.5 dB, conversion only).
_SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_REDUCING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_UNKNOWN_COLORSPACE = 2  # AVCOL_SPC_UNSPECIFIED


@dataclass(frozen=True)
class Frame:
    image: np.ndarray
    """(H, W, 3) uint8, RGB, upright."""
    time: float
    """When it is shown: seconds from the clip's start, which picture and sound share; the first frame may be later."""
    index: int
    """0, 1, 2, ... in the order of this reader."""


@dataclass(frozen=True)
class VideoInfo:
    """What a clip is, before it is read."""

    path: Path
    kind: str
    """`video`, `frames` (a folder of pictures) or `image`."""
    size: tuple[int, int]
    """(height, width) of the frames in pixels, upright and with square pixels."""
    fps: Fraction
    """Frames per second; the average where the rate varies."""
    duration: float
    """Seconds, as the file claims; a cut-off file holds less."""
    frame_count: int
    """As the file claims, or `duration * fps`: for progress bars, not for allocation."""
    has_audio: bool
    rotation: int
    """Degrees counterclockwise by which the stored frames are turned to stand upright: 0, 90, 180 or 270."""
    codec: str
    pixel_format: str
    hdr: bool
    """Whether brightness is coded for high dynamic range (PQ or HLG) and is taken down for 8-bit RGB."""


def probe(path: str | Path) -> VideoInfo:
    """Look at a clip: its first frame is decoded, so a clip that is probed well has a picture.

    Raises:
        InputError: missing, empty, not a video, sound only, or no frame can be decoded.
    """
    return VideoReader(path).info


class VideoReader:
    """The frames of a clip; iterate over it, as often as needed.

    Reads what PyAV reads (MP4, MOV, MKV, WebM, AVI, GIF, ...), folders of pictures in natural order (FOMM's layout),
    and a single picture as a clip of one frame. Phone videos are turned (and mirrored) as their display matrix says,
    non-square pixels are made square, 10-bit and HDR clips (PQ, HLG, BT.2020, P3) become 8-bit sRGB, where light
    near and above diffuse white is compressed (`hdr.py`). Files that do not say how their colours are
    coded count as BT.709 from 720 lines or 1280 columns on and as BT.601 below, as players assume.

    A clip that is damaged or cut off yields the frames that can be decoded; then `problems` says what was missing.
    """

    def __init__(self, path: str | Path, *, fps: float | Fraction | None = None, max_side: int | None = None) -> None:
        """
        Args:
            path: a video, a folder of pictures, or a picture.
            fps: of a video: None keeps its own frames and times, a number resamples to that constant rate (at each tick
                the nearest frame). Of a folder: the rate at which it plays, 25 if None.
            max_side: frames are reduced so that the longer side has at most this many pixels.
        Raises:
            InputError: missing, empty, not a video, sound only, or no frame can be decoded.
        """
        if fps is not None and fps <= 0:
            raise ValueError(f"VideoReader: fps must be positive, got {fps}.")
        if max_side is not None and max_side < 1:
            raise ValueError(f"VideoReader: max_side must be at least 1 pixel, got {max_side}.")
        self.path = Path(path)
        self.problems: list[str] = []
        """One sentence for each kind of damage met by the latest iteration; complete when it has ended."""
        self._max_side = max_side
        self._fps = None if fps is None else Fraction(fps).limit_denominator(100_000)
        self._pictures: list[Path] = []
        self._own_step = 1 / FOLDER_FPS  # seconds between the frames of the file
        self.info = self._look()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.info.size

    @property
    def fps(self) -> Fraction:
        return self.info.fps

    @property
    def duration(self) -> float:
        """Seconds, as the file claims."""
        return self.info.duration

    @property
    def frame_count(self) -> int:
        """An estimate, for progress bars."""
        return self.info.frame_count

    @property
    def has_audio(self) -> bool:
        return self.info.has_audio

    def __iter__(self) -> Iterator[Frame]:
        self.problems = []
        if self.info.kind == "video":
            frames = self._video_frames()
            return _resampled(frames, self._fps, self._own_step) if self._fps else frames
        return self._picture_frames()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Nothing stays open between iterations: each opens the file and closes it at its end."""

    def _look(self) -> VideoInfo:
        if self.path.is_dir():
            self._pictures = list_images(self.path)
            if not self._pictures:
                raise InputError(f"{self.path} holds no pictures; a folder of frames has files like 0000000.png.")
            return self._look_at_pictures("frames")
        if self.path.suffix.lower() in IMAGE_SUFFIXES:
            self._pictures = [self.path]
            return self._look_at_pictures("image")
        with open_input(self.path) as container:
            if container.format.name.endswith("_pipe"):  # a picture under another name
                self._pictures = [self.path]
                return self._look_at_pictures("image")
            return self._look_at_video(container)

    def _look_at_pictures(self, kind: str) -> VideoInfo:
        height, width = load_image(self._pictures[0], max_side=self._max_side).shape[:2]
        fps, number = self._fps or FOLDER_FPS, len(self._pictures)
        codec = self._pictures[0].suffix.lower().lstrip(".")
        return VideoInfo(
            self.path, kind, (height, width), fps, float(number / fps), number, False, 0, codec, "rgb24", False
        )

    def _look_at_video(self, container: InputContainer) -> VideoInfo:
        stream = video_stream(container)
        if stream is None:
            what = "only sound" if container.streams.audio else "no video"
            raise InputError(f"{self.path} holds {what}; a clip with pictures is needed.")
        first = next(self._decoded(container, stream), None)
        if first is None:
            raise InputError(f"{self.path} holds no frame that can be decoded; copy or record it again.")
        fps = _rate(stream)
        self._own_step = 1 / fps
        claimed = _claimed_duration(stream)
        if claimed is not None:
            duration = claimed
        elif container.duration is not None:
            duration = container.duration / av.time_base
        else:
            duration = float(stream.frames / fps)
        turned, (height, width) = _Turn.of(first), self._target_size(first, stream)
        return VideoInfo(
            path=self.path,
            kind="video",
            size=(width, height) if turned.transpose else (height, width),
            fps=self._fps or fps,
            duration=duration,
            frame_count=round(duration * self._fps) if self._fps else stream.frames or max(1, round(duration * fps)),
            has_audio=audio_stream(container) is not None,
            rotation=turned.degrees,
            codec=stream.codec_context.name,
            pixel_format=first.format.name,
            hdr=first.color_trc in HDR_TRANSFERS,
        )

    def _target_size(self, frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
        """(height, width) of the stored frame with square pixels and at most `max_side` long."""
        aspect = fraction(stream.sample_aspect_ratio)
        width = frame.width * float(aspect) if aspect else float(frame.width)
        scale = min(1.0, self._max_side / max(width, frame.height)) if self._max_side else 1.0
        return max(1, round(frame.height * scale)), max(1, round(width * scale))

    def _video_frames(self) -> Iterator[Frame]:
        with open_input(self.path) as container:
            stream = video_stream(container)
            if stream is None:
                raise InputError(f"{self.path} has changed since it was opened; it holds no video now.")
            zero, step = origin(container), 1 / _rate(stream)
            reformatter = VideoReformatter()
            height, width = self.size
            last: Fraction | None = None
            index = 0
            for index, frame in enumerate(self._decoded(container, stream)):
                shown = seconds(frame.pts, frame.time_base or stream.time_base)
                time = None if shown is None else shown - zero
                if time is None or (last is not None and time <= last):
                    time = Fraction(0) if last is None else last + step  # no usable time stamp
                last = time
                turn = _Turn.of(frame)
                # The first frame's size holds for the clip, also where a stream changes its resolution on the way.
                image = _to_rgb(frame, (width, height) if turn.transpose else (height, width), reformatter)
                yield Frame(turn.apply(image), float(time), index)
            self._check_length(stream, last, index + 1, step)

    def _check_length(self, stream: av.VideoStream, last: Fraction | None, number: int, step: Fraction) -> None:
        claimed = _claimed_duration(stream)
        if last is not None and claimed is not None and float(last + step) < claimed - max(0.25, float(3 * step)):
            self.problems.append(
                f"{self.path} is cut off: {number} frames up to {float(last + step):.2f} s could be read of "
                f"{claimed:.2f} s."
            )

    def _decoded(self, container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        """Whole frames in order of time; damage is counted, told in `problems`, and skipped."""
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _THREADS
        damaged = 0
        packets = container.demux(stream)
        try:
            while True:
                try:
                    packet = next(packets, None)
                except av.error.FFmpegError as error:
                    self.problems.append(f"{self.path} cannot be read to its end ({error.strerror}).")
                    packet = None
                if packet is None:
                    break
                try:
                    frames = stream.decode(packet)
                except av.error.EOFError:
                    break
                except av.error.FFmpegError:
                    damaged += 1
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        damaged += 1
                    else:
                        yield frame
        finally:
            if damaged:
                what = "1 frame" if damaged == 1 else f"{damaged} frames"
                self.problems.append(f"{self.path} is damaged: {what} could not be decoded, left out.")

    def _picture_frames(self) -> Iterator[Frame]:
        height, width = self.size
        for position, path in enumerate(self._pictures):
            try:
                image = load_image(path, max_side=self._max_side)
            except InputError as error:
                self.problems.append(str(error))
                continue
            if image.shape[:2] != (height, width):
                raise InputError(
                    f"{path} has {image.shape[1]} x {image.shape[0]} pixels and the first frame {width} x {height}; "
                    "the frames of a folder must be of one size."
                )
            yield Frame(image, float(position / self.fps), position)


def _rate(stream: av.VideoStream) -> Fraction:
    """Frames per second, as far as the file can be believed: some muxers write the rate of their clock instead."""
    rates = (fraction(stream.average_rate), fraction(stream.guessed_rate))
    return next((rate for rate in rates if rate and rate <= 500), FOLDER_FPS)


def _claimed_duration(stream: av.VideoStream) -> float | None:
    """Seconds of the pictures alone, by the file's header; Matroska keeps them in a tag."""
    claimed = seconds(stream.duration, stream.time_base)
    if claimed is not None:
        return float(claimed)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) if tag else None


def _resampled(frames: Iterator[Frame], fps: Fraction, own_step: Fraction) -> Iterator[Frame]:
    """Frames at first time + k / fps, each the nearest in time; the last one lasts `own_step`."""
    with closing(frames):  # type: ignore[type-var]  # a generator
        current = next(frames, None)
        if current is None:
            return
        start, ticks = current.time, count()
        tick = next(ticks)
        while current is not None:
            following = next(frames, None)
            if following is not None:
                until = (current.time + following.time) / 2
            else:
                until = current.time + max(float(own_step - 1 / (2 * fps)), 1e-6)
            while start + float(tick / fps) < until:
                yield replace(current, time=start + float(tick / fps), index=tick)
                tick = next(ticks)
            current = following


def _to_rgb(frame: av.VideoFrame, size: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    """(height, width, 3) uint8 sRGB of a decoded frame, scaled to `size`; transparency shows white."""
    height, width = size
    colorspace = None
    if frame.colorspace == _UNKNOWN_COLORSPACE:
        colorspace = Colorspace.ITU709 if frame.height >= 720 or frame.width >= 1280 else Colorspace.ITU601
    convert = needs_conversion(frame.color_trc, frame.color_primaries)
    alpha = not convert and any(component.is_alpha for component in frame.format.components)
    rgb = reformatter.reformat(
        frame,
        width=width,
        height=height,
        format="rgb48le" if convert else "rgba" if alpha else "rgb24",
        src_colorspace=colorspace,
        dst_color_range=ColorRange.JPEG,
        interpolation=_SCALING if width >= frame.width else _REDUCING,
        threads=1,
    ).to_ndarray()
    if convert:
        return to_srgb(rgb, frame.color_trc, frame.color_primaries)
    if not alpha:
        return rgb
    if rgb[..., 3].min() == 255:
        return np.ascontiguousarray(rgb[..., :3])
    share = rgb[..., 3:].astype(np.uint16)
    return ((rgb[..., :3] * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)


@dataclass(frozen=True)
class _Turn:
    """How stored frames become upright: transposed first, then mirrored left-right and top-bottom."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> _Turn:
        """From the display matrix: x' = a x + c y, y' = b x + d y in 16.16 fixed point, stored (a, b, u, c, d, ...).
        Angles other than multiples of 90 degrees, which no camera writes, are rounded to them."""
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if not isinstance(matrix, SideData):
            return cls()
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
        if abs(a) >= abs(b):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    @property
    def degrees(self) -> int:
        """Counterclockwise, a mirrored frame as if it were not."""
        if self.transpose:
            return 270 if self.mirror_x else 90
        return 180 if self.mirror_y else 0

    def apply(self, image: np.ndarray) -> np.ndarray:
        if self.transpose:
            image = cv2.transpose(image)
        if self.mirror_x or self.mirror_y:
            image = cv2.flip(image, -1 if self.mirror_x and self.mirror_y else int(self.mirror_x))
        return image
