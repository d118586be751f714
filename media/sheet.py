"""Contact sheets, strips and side-by-side videos: what one looks at to judge a result."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import InputError
from .video import Frame, VideoReader, open_writer

_GAP = 4
_PAPER, _INK = (24, 24, 24), (235, 235, 235)
_EMPTY = (48, 48, 48)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    labels: Sequence[str] | None = None,
    *,
    columns: Sequence[str] | None = None,
    cell: int = 256,
) -> np.ndarray:
    """Rows of pictures on dark paper, each row with its label above.

    Args:
        rows: uint8 (H, W, 3) pictures of any size, fitted into square cells without distortion; None leaves a cell
            empty. Rows may differ in length.
        labels: one text a row; long ones are cut.
        columns: texts above the columns.
        cell: side of a cell in pixels.
    Returns:
        (H, W, 3) uint8.
    """
    if not rows or not any(len(row) for row in rows):
        raise ValueError("contact_sheet: rows must hold at least one picture.")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"contact_sheet: {len(rows)} rows need as many labels, got {len(labels)}.")
    width = max(len(row) for row in rows)
    if columns is not None and len(columns) > width:
        raise ValueError(f"contact_sheet: {width} columns, but {len(columns)} texts for them.")
    line = _line_height(cell)
    pieces: list[np.ndarray] = []
    full = _GAP + width * (cell + _GAP)
    if columns is not None:
        heads = [_text(name, cell, line) for name in columns] + [_paper(line, cell)] * (width - len(columns))
        pieces.append(_beside(heads, full))
    for number, row in enumerate(rows):
        if labels is not None:
            pieces.append(_beside([_text(labels[number], full - 2 * _GAP, line)], full))
        cells = [_paper(cell, cell, _EMPTY) if image is None else _fit(image, cell) for image in row]
        pieces.append(_beside(cells + [_paper(cell, cell)] * (width - len(row)), full))
        pieces.append(_paper(_GAP, full))
    return np.concatenate([_paper(_GAP, full), *pieces])


def strip_from_video(path: str | Path, count: int = 8, cell: int = 256) -> list[np.ndarray]:
    """`count` frames evenly spread over a clip, the first and the last included: a row for `contact_sheet`.

    Returns:
        `count` pictures, (h, w, 3) uint8, the longer side at most `cell`; a short clip repeats frames.
    """
    if count < 1:
        raise ValueError(f"strip_from_video: count must be at least 1, got {count}.")
    reader = VideoReader(path, max_side=cell)
    wanted = np.linspace(0, max(reader.frame_count - 1, 0), count).round().astype(int).tolist()
    strip: list[np.ndarray] = []
    last: np.ndarray | None = None
    for frame in reader:
        last = frame.image
        while len(strip) < count and wanted[len(strip)] <= frame.index:
            strip.append(last)
    if last is None:
        raise InputError(f"{path} holds no frame that can be decoded.")
    return strip + [last] * (count - len(strip))  # the file claimed more frames than it holds


def side_by_side(images: Sequence[np.ndarray], labels: Sequence[str] | None = None, height: int = 512) -> np.ndarray:
    """Pictures in one row, all `height` pixels high, with small texts in their corners; (height, W, 3) uint8."""
    if not images or (labels is not None and len(labels) != len(images)):
        raise ValueError(f"side_by_side: needs pictures, and as many labels; got {len(images)} and {labels}.")
    scaled = []
    for number, image in enumerate(images):
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        picture = _scale(image, width, height)
        if labels is not None and labels[number]:
            line = _line_height(height // 2)
            tag = _text(labels[number], width, line, tight=True)
            picture = picture.copy()
            picture[: tag.shape[0], : tag.shape[1]] = tag[:height]
        scaled.append(picture)
    return np.concatenate(scaled, axis=1)


def side_by_side_video(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    labels: Sequence[str] | None = None,
    height: int = 512,
    audio_from: str | Path | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Clips next to each other in one video, such as source | driving | result.

    The last input sets the frame times; at each of them the others show their nearest frame, and a clip that has ended
    its last one. A picture counts as a clip that stands still. Streams: memory does not grow with the length.

    Raises:
        InputError: an input cannot be read or the output cannot be written.
    """
    if not inputs:
        raise ValueError("side_by_side_video: needs at least one input.")
    readers = [VideoReader(path, max_side=4 * height) for path in inputs]  # large photos once, not at every frame
    widths = [max(1, round(reader.size[1] * height / reader.size[0])) for reader in readers]
    size, main = (height, sum(widths)), readers[-1]
    with open_writer(output, size, main.fps, audio_from=audio_from, metadata=metadata) as writer:
        followers = [_Follower(iter(reader)) for reader in readers[:-1]]
        for frame in main:
            images = [follower.at(frame.time) for follower in followers]
            writer.write(side_by_side([*images, frame.image], labels, height), frame.time)


class _Follower:
    """The frame of a clip that is nearest to a rising time."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames = frames
        self._current = next(frames)
        self._next = next(frames, None)

    def at(self, time: float) -> np.ndarray:
        while self._next is not None and self._next.time - time <= time - self._current.time:
            self._current, self._next = self._next, next(self._frames, None)
        return self._current.image


def _paper(height: int, width: int, color: tuple[int, int, int] = _PAPER) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def _beside(pieces: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Pieces of one height in a row with gaps, on paper of the given width."""
    sheet = _paper(pieces[0].shape[0], width)
    x = _GAP
    for piece in pieces:
        sheet[:, x : x + piece.shape[1]] = piece
        x += piece.shape[1] + _GAP
    return sheet


def _fit(image: np.ndarray, cell: int) -> np.ndarray:
    scale = cell / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    sheet = _paper(cell, cell, _EMPTY)
    top, left = (cell - height) // 2, (cell - width) // 2
    sheet[top : top + height, left : left + width] = _scale(image, width, height)
    return sheet


def _scale(image: np.ndarray, width: int, height: int) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"sheet: pictures must be uint8 (H, W, 3), got {image.dtype} {image.shape}.")
    if image.shape[:2] == (height, width):
        return image
    method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def _line_height(cell: int) -> int:
    return max(14, cell // 11)


@lru_cache(maxsize=8)
def _font(line: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=round(line * 0.72))


@lru_cache(maxsize=256)
def _text(text: str, width: int, line: int, tight: bool = False) -> np.ndarray:
    """(line, width, 3) text on paper, cut where it is too long; `tight` ends the paper with the text."""
    # Pillow's own font has ASCII only: accents are dropped, other scripts become question marks.
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c)).encode("ascii", "replace").decode()
    font = _font(line)
    room = width - line // 2
    shown = text
    while shown and font.getlength(shown if shown == text else shown + "...") > room:
        shown = shown[:-1]
    shown = shown if shown == text else shown + "..."
    if tight:
        width = min(width, int(font.getlength(shown)) + line // 2)
    picture = Image.new("RGB", (width, line), _PAPER)
    ImageDraw.Draw(picture).text((line // 4, line // 2), shown, fill=_INK, font=font, anchor="lm")
    result = np.asarray(picture)
    result.setflags(write=False)  # shared by the cache
    return result
