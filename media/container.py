"""Opening video files with PyAV: which streams count, when the clip starts, and errors in sentences."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition

from .errors import InputError
from .files import read_error

_NOT_VIDEO = ("tty", "image2", "subviewer", "srt", "webvtt", "ass")
"""FFmpeg formats that turn any text file, or a file name with a pattern, into a clip."""


def open_input(path: str | Path) -> InputContainer:
    """A container of a local file; nothing else is ever opened (playlists may not reach the network or other files).

    Raises:
        InputError: missing, a folder, empty, not a video, or without its index (a recording or download cut off).
    """
    path = Path(path)
    if fault := read_error(path):
        raise fault
    try:
        # Absolute and with the protocol spelt out: a name like "concat:a|b" or "-" is a file name, nothing more.
        container = av.open(f"file:{path.absolute()}", options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if _has_no_index(path):
            raise InputError(
                f"{path} was cut off before its index was written (an unfinished recording or download); "
                "copy or record it again."
            ) from error
        raise InputError(f"{path} is not a video that can be read; convert it to MP4.") from error
    if container.format.name in _NOT_VIDEO or not container.streams:
        container.close()
        raise InputError(f"{path} is not a video; use MP4, MOV, MKV, WebM, AVI, GIF or a folder of pictures.")
    return container


def _has_no_index(path: Path) -> bool:
    """Whether an MP4 or MOV lacks its `moov` box, which cameras write last."""
    with path.open("rb") as file:
        found: set[bytes] = set()
        position, size = 0, path.stat().st_size
        while position + 8 <= size and len(found) < 64:
            file.seek(position)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            found.add(kind)
            length = int.from_bytes(head[8:16], "big") if length == 1 else length
            if length < 8:
                break
            position += length
    return b"ftyp" in found and b"moov" not in found


def video_stream(container: InputContainer) -> av.VideoStream | None:
    """The first stream of moving pictures; a cover picture of an audio file is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def audio_stream(container: InputContainer) -> av.AudioStream | None:
    """The stream a player would choose, if one can be decoded."""
    stream = container.streams.best("audio")
    return stream if isinstance(stream, av.AudioStream) and stream.codec_context is not None else None


def fraction(value: Fraction | av.AVRational | None) -> Fraction | None:
    """A rational of PyAV as Python's own: up to PyAV 18 these are fractions or None, from 19 on AVRational or 0 / 1."""
    return Fraction(value.numerator, value.denominator) if value else None


def seconds(ticks: int | None, time_base: Fraction | av.AVRational | None) -> Fraction | None:
    """A time stamp in seconds, exactly; None where the file has none."""
    tick = fraction(time_base)
    return None if ticks is None or tick is None else ticks * tick


def origin(container: InputContainer) -> Fraction:
    """The clip's time zero in seconds on its own clock; one for picture and sound, so that they stay together."""
    return Fraction(container.start_time or 0, av.time_base)
