"""What a keypoint model did with one frame, in pictures: the figures of the FOMM and DaGAN papers.

source and driving keypoints, rectified driver (OSTNet), depth, warped source, occlusion, attention of a chosen pixel,
output
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..media.sheet import side_by_side
from ..nets.dense_motion import resized
from ..nets.g3fa import G3faGenerator
from ..nets.generator import Generator, Output, SourceState
from ..nets.keypoints import Motion
from ..nets.scale import ScaledMotion
from .depth import coloured

Picture = NDArray[np.uint8]


@torch.inference_mode()
def explain(
    generator: Generator | G3faGenerator,
    state: SourceState,
    motion: Motion,
    output: Output,
    *,
    driving: Tensor | None = None,
    seen: Motion | None = None,
    query: tuple[float, float] | None = None,
) -> dict[str, Picture]:
    """Pictures (H, W, 3) of the first item of a batch, by title, in the order of the work.

    Args:
        generator: of the model; its `state`, the `motion` it followed and its `output`.
        driving: (B, 3, H, W) the driver's frames, with the keypoints `seen` in them: what `read_motion` gave.
        query: x, y px of the output whose attention is shown; None: the middle. Only for models with attention.
    """
    source = state.image[:1]
    pictures = {"source keypoints": with_keypoints(_bytes(source[0]), state.motion.value[0])}
    if driving is not None and seen is not None:
        scaled = seen if isinstance(seen, ScaledMotion) and seen.rectified is not None else None
        plain = seen if scaled is None or scaled.seen is None else scaled.seen
        pictures["driving keypoints"] = with_keypoints(_bytes(driving[0]), plain.value[0])
        if scaled is not None and scaled.rectified is not None:
            pictures["rectified driver"] = with_keypoints(_bytes(scaled.rectified[0]), scaled.value[0])
    pictures["wanted keypoints"] = with_keypoints(_bytes(output.image[0]), motion.value[0])
    if state.disparity is not None:
        pictures["depth"] = coloured(state.disparity[0, 0])
    pictures["warped source"] = _bytes(generator.dense_motion_network.deformed(state.image, output.dense)[0])
    if output.dense.occlusion is not None:
        visible = resized(output.dense.occlusion[:1], source)
        pictures["occlusion"] = _bytes(visible[0].expand(3, -1, -1))
    if isinstance(generator, Generator) and generator.attention != "none":
        height, width = source.shape[2:]
        x, y = query or (width / 2, height / 2)
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"explain: query must be a pixel of {width} x {height}, got ({x:g}, {y:g}).")
        features = output.features[:1]
        asks = generator.AttnModule.query(features) if state.query is None else state.query[:1]
        rows, columns = features.shape[2:]
        row, column = int(y * rows / height), int(x * columns / width)
        looks = generator.AttnModule.weights(asks, features, row, column)
        pictures["attention"] = with_heat(pictures["warped source"], looks[0], (x, y))
    pictures["output"] = _bytes(output.image[0])
    return pictures


def explained(pictures: dict[str, Picture]) -> Picture:
    """All pictures side by side with their titles."""
    return side_by_side(list(pictures.values()), list(pictures), height=max(p.shape[0] for p in pictures.values()))


def with_keypoints(picture: Picture, value: Tensor) -> Picture:
    """The picture with a disc for each keypoint, (K, 2) in [-1, 1], in colours around the circle."""
    shown = picture.copy()
    height, width = shown.shape[:2]
    radius = max(2, round(min(height, width) / 64))
    for number, (x, y) in enumerate(value.cpu().tolist()):
        colour = [round(255 * c) for c in colorsys.hsv_to_rgb(number / len(value), 0.9, 1.0)]
        centre = round((x + 1) / 2 * (width - 1)), round((y + 1) / 2 * (height - 1))
        cv2.circle(shown, centre, radius + 1, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(shown, centre, radius, colour, -1, cv2.LINE_AA)
    return shown


def with_heat(picture: Picture, weights: Tensor, place: tuple[float, float]) -> Picture:
    """The picture darkened where (h, w) weights are small, the brightest where they are largest, and a ring at (x, y)
    px, the place that asks."""
    height, width = picture.shape[:2]
    grid = weights.float().cpu().numpy()
    heat = cv2.resize(grid / max(float(grid.max()), 1e-12), (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    shown = (0.35 * picture + 0.65 * colours).round().astype(np.uint8)
    radius = max(3, round(min(height, width) / 48))
    return np.asarray(
        cv2.circle(shown, (int(place[0]), int(place[1])), radius, (120, 255, 120), 2, cv2.LINE_AA), np.uint8
    )


def _bytes(image: Tensor) -> Picture:
    found: Picture = (image.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(found)
