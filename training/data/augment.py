"""Random changes of a sample: mirroring, reversed time, colours."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from ..batch import Batch, View
from ..config import AugmentationParams, JitterParams


def augment(sample: Batch, params: AugmentationParams, rng: np.random.Generator) -> Batch:
    """A sample (uint8 pictures, B = 1), changed at random, all its views alike."""
    views = sample.views
    if params.flip_param.time_flip and rng.random() < 0.5:
        views = views[::-1]
    if params.flip_param.horizontal_flip and rng.random() < 0.5:
        views = [mirror(view) for view in views]
    if params.jitter_param != JitterParams():
        change = Jitter(params.jitter_param, rng)
        views = [View(**{**vars(view), "image": change(view.image)}) for view in views]
    return Batch(list(views), sample.clips)


def mirror(view: View) -> View:
    """The view with left and right exchanged. Parameters, camera and landmarks are lost: there are head models whose
    mirror image has no exact parameters."""
    normals = view.normals
    if normals is not None:
        normals = normals.flip(-1) * normals.new_tensor([-1.0, 1.0, 1.0])[:, None, None]
    return View(
        image=view.image.flip(-1),
        depth=None if view.depth is None else view.depth.flip(-1),
        normals=normals,
        segmentation=None if view.segmentation is None else view.segmentation.flip(-1),
    )


class Jitter:
    """One random change of brightness, contrast, saturation and hue."""

    def __init__(self, params: JitterParams, rng: np.random.Generator) -> None:
        self._brightness, self._contrast, self._saturation = (
            1 + amount * rng.uniform(-1, 1) for amount in (params.brightness, params.contrast, params.saturation)
        )
        self._hue = params.hue * rng.uniform(-1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) uint8 -> the same, changed."""
        values: np.ndarray = image[0].permute(1, 2, 0).numpy().astype(np.float32) * self._brightness
        values = (values - values.mean()) * self._contrast + values.mean()
        grey = values @ np.array([0.299, 0.587, 0.114], np.float32)
        values = (values - grey[..., None]) * self._saturation + grey[..., None]
        values = np.clip(values, 0, 255)
        if self._hue:
            hsv = cv2.cvtColor(np.ascontiguousarray(values / 255, np.float32), cv2.COLOR_RGB2HSV)  # H in degrees
            hsv[..., 0] = (hsv[..., 0] + 360 * self._hue) % 360
            values = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
        return torch.from_numpy(np.rint(values).astype(np.uint8)).permute(2, 0, 1)[None].contiguous()
