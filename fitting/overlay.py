"""Looking at a fit: the head over the pictures, the landmarks, and how sure the tracker is.

overlay.mp4 shows, side by side, the picture with the detected landmarks and the confidence as a bar, and the picture
with the fitted head over it and the head's own landmarks; sheet.jpg shows eight moments of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..geom.camera import apply_crop
from ..geom.head import HeadModel
from ..geom.landmarks import Embedding
from ..geom.track import FaceTrack
from ..media.image import save_image
from ..media.sheet import contact_sheet
from ..media.video import VideoReader, VideoWriter
from ..render.surface import view_head
from .regress import shared_head
from .track_file import read_pieces

_SIDE = 512  # longer side of one of the two pictures, at most
_MOMENTS = 8
_OPACITY = 0.75
_SEEN, _MODEL = (70, 230, 120), (255, 120, 60)  # RGB of detected landmarks and of the head's


def draw_overlay(
    video: Path, track: Path, folder: Path, head: str, beat: Callable[[], None], *, fps: float | None = None
) -> None:
    """Write overlay.mp4 and sheet.jpg beside a track.

    Args:
        video: the pictures: a clip whose pixels the track's crop leads to, or the source of the track.
        track: its file.
        folder: for the results.
        head: name or path of the track's head.
        beat: called for every frame.
        fps: frame rate at which the source was read, if not its own.
    """
    model = shared_head(head)
    reader = VideoReader(video, fps=fps)
    height, width = reader.size
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(2, round(height * scale)), max(2, round(width * scale)))
    pieces = read_pieces(track, 64)
    total = max(reader.frame_count, 1)
    moments = set(np.linspace(0, total - 1, _MOMENTS).round().astype(int).tolist())
    plain: list[np.ndarray] = []
    drawn: list[np.ndarray] = []
    # a clip of ours is seen through the track's crop, a source directly
    cropped = video.parent == track.parent
    still = reader.info.kind == "image"
    piece, offset = next(pieces), 0
    with VideoWriter(folder / "overlay.mp4", (size[0], 2 * size[1]), reader.fps) as writer:
        for position, frame in enumerate(reader):
            beat()
            if position - offset >= len(piece):
                offset += len(piece)
                following = next(pieces, None)
                if following is None:
                    break
                piece = following
            picture = cv2.resize(frame.image, size[::-1], interpolation=cv2.INTER_AREA) if scale < 1 else frame.image
            left, right = draw_frame(picture, piece[position - offset], model, scale, cropped=cropped)
            writer.write(np.concatenate([left, right], 1), None if still else frame.time)
            if position in moments:
                plain.append(left)
                drawn.append(right)
    labels = ["green: detected landmarks; the bar: confidence", f"orange: the fitted head, {model.name}"]
    save_image(folder / "sheet.jpg", contact_sheet([plain, drawn], labels, cell=320))


def draw_frame(
    picture: np.ndarray, moment: FaceTrack, head: HeadModel, scale: float = 1.0, *, cropped: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """One frame with its landmarks, and with the head over it.

    Args:
        picture: (H, W, 3) uint8.
        moment: a track of one frame.
        head: its model.
        scale: from the track's pixels (after the crop) to the picture's.
        cropped: whether the picture is what the track's crop shows; else it is the whole picture.
    Returns:
        Two pictures like the first one.
    """
    step = moment.crop[0] * scale if cropped else torch.tensor([scale, 0.0, 0.0])
    left, right = picture.copy(), picture.copy()
    confidence = float(moment.confidence[0])
    if confidence > 0:
        _dots(left, apply_crop(step, moment.landmarks[0])[:, :2], _SEEN)
    _bar(left, confidence)
    camera = moment.camera.crop(step)
    shaded = view_head(head, moment.params, camera, (picture.shape[0], picture.shape[1]), supersampling=1)
    ground = torch.from_numpy(right).permute(2, 0, 1)[None].float() / 255
    over = shaded.over(ground, _OPACITY)
    right = (over[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    embedding = dict(head.embeddings).get("mediapipe")
    if isinstance(embedding, Embedding):
        _dots(right, camera.project(embedding.points(head(moment.params)))[0, :, :2], _MODEL)
    return left, right


def _dots(image: np.ndarray, points: Tensor, colour: tuple[int, int, int]) -> None:
    radius = max(1, round(max(image.shape[:2]) / 500))
    for x, y in points.tolist():
        # continuous coordinates have pixel centres at .5
        cv2.circle(image, (round(16 * (x - 0.5)), round(16 * (y - 0.5))), 16 * radius, colour, -1, cv2.LINE_AA, 4)


def _bar(image: np.ndarray, confidence: float) -> None:
    """A bar along the lower edge: full and green when sure, red and short when not."""
    height, width = image.shape[:2]
    thick = max(2, height // 64)
    image[height - thick :] //= 4
    image[height - thick :, : round(width * confidence)] = (
        round(230 * (1 - confidence)),
        round(60 + 170 * confidence),
        70,
    )
