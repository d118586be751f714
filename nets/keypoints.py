"""Keypoints with local affine maps: how FOMM, DaGAN, G3FA and OSTNet describe motion (Siarohin et al., "First order
motion model for image animation", 2019, sections 3.1 and 3.3).

    picture --blur, / 4--> hourglass --7 x 7--> K heat maps --soft-argmax--> value (B, K, 2)
                                     --7 x 7--> K maps of 2 x 2, averaged under the heat maps --> jacobian (B, K, 2, 2)

Positions are x, y in [-1, 1], where the corners are the centres of the border pixels (`layers.corner_grid`). The 7 x 7
convolutions have no padding, and [-1, 1] spans what they leave: the published weights expect that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor, nn

from ..geom.precision import exact
from .layers import AntiAlias, Hourglass, corner_grid


@dataclass(frozen=True)
class Motion:
    """Where the keypoints of B pictures are."""

    value: Tensor
    """(B, K, 2) x, y."""
    jacobian: Tensor | None = None
    """(B, K, 2, 2) local affine maps, row by row; None where a detector has none."""

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: slice) -> Motion:
        return self._each(lambda t: t[index])

    def to(self, *args: Any, **kwargs: Any) -> Motion:
        """As `Tensor.to`, of both."""
        return self._each(lambda t: t.to(*args, **kwargs))

    def detach(self) -> Motion:
        return self._each(Tensor.detach)

    def expand(self, batch: int) -> Motion:
        """One motion for `batch` pictures."""
        return self._each(lambda t: t.expand(batch, *t.shape[1:]))

    @cached_property
    def hull_area(self) -> Tensor:
        """(B,) area of the convex hull of the keypoints; computed once, on the CPU."""
        points = self.value.detach().double().cpu().numpy()
        return torch.tensor([hull_area(p) for p in points]).to(self.value)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Motion:
        return Motion(change(self.value), None if self.jacobian is None else change(self.jacobian))


@exact
def normalise(
    motion: Motion,
    first: Motion,
    source: Motion,
    *,
    relative: bool = True,
    jacobian: bool = True,
    adapt_scale: bool = False,
) -> Motion:
    """The motion that a source shall follow.

        value = s (value_d - value_first) + value_source,   jacobian = J_d J_first^-1 J_source
        s = sqrt(hull area of the source / hull area of the first) with `adapt_scale`, else 1

    Args:
        motion: (B) of the driving frames.
        first: (B or 1) of the driving frame in which the driver's head is as the source's.
        source: (B or 1) of the source picture.
        relative: False gives `motion` back: the driver's absolute positions.
        jacobian: False keeps the driver's affine maps.
        adapt_scale: the driver's movements become larger or smaller with the size of the source's face.
    """
    if not relative:
        return motion
    move = motion.value - first.value
    if adapt_scale:
        move = move * (source.hull_area / first.hull_area).sqrt()[:, None, None]
    maps = motion.jacobian
    if jacobian and maps is not None and first.jacobian is not None and source.jacobian is not None:
        maps = maps @ torch.linalg.inv(first.jacobian) @ source.jacobian
    return Motion(source.value + move, maps)


def hull_area(points: NDArray[np.floating[Any]]) -> float:
    """Area of the convex hull of (N, 2) points.

    Raises:
        ValueError: all points lie on one line.
    """
    try:
        return float(ConvexHull(points).volume)  # in two dimensions scipy's volume is the area
    except QhullError:
        raise ValueError(
            "hull_area: all points lie on one line, so their spread says nothing about a face's size; animate without "
            "adapting the scale."
        ) from None


def best_frame(source: NDArray[np.floating[Any]], frames: NDArray[np.floating[Any]]) -> int:
    """Index of the frame whose face is posed most like the source's, where relative motion is best begun.

    Landmarks lose their mean and are divided by the square root of their hull's area (not by the area: as the original
    demos); the frame with the least sum of squared differences wins.

    Args:
        source: (L, 2 or more) landmarks, px; only x and y are used.
        frames: (T, L, 2 or more). Frames with values that are not finite (no face found) are passed over.
    Raises:
        ValueError: no frame has landmarks.
    """

    def shape(points: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        points = points[:, :2] - points[:, :2].mean(0)
        return np.asarray(points / np.sqrt(hull_area(points)))

    usable = np.flatnonzero(np.isfinite(frames).all((1, 2)))
    if len(usable) == 0:
        raise ValueError("best_frame: there is no face in any of the frames.")
    wanted = shape(source)
    return int(usable[np.argmin([np.square(shape(frames[i]) - wanted).sum() for i in usable])])


def gaussian(value: Tensor, height: int, width: int, variance: float) -> Tensor:
    """(B, K, H, W) pictures exp(-|z - value|^2 / (2 variance)) of (B, K, 2) positions."""
    away = corner_grid(height, width, value) - value[:, :, None, None]
    return torch.exp(-0.5 / variance * away.square().sum(-1))


@dataclass(frozen=True)
class KeypointConfig:
    """`kp_detector_params` of FOMM's YAML files."""

    temperature: float = 0.1
    """Of the softmax over the pixels of a heat map."""
    block_expansion: int = 32
    max_features: int = 1024
    num_blocks: int = 5
    """Halvings of the hourglass; H and W must be multiples of 2 ** num_blocks / scale_factor."""
    scale_factor: float = 0.25
    single_jacobian_map: bool = False
    """One map of 2 x 2 for all keypoints (mgif-256)."""


class KeypointDetector(nn.Module):
    """FOMM's detector, official names. `num_channels` is 3 for RGB, 4 for RGB and disparity, 1 for disparity."""

    def __init__(
        self,
        num_kp: int,
        num_channels: int = 3,
        *,
        estimate_jacobian: bool = True,
        config: KeypointConfig = KeypointConfig(),
    ) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.predictor = Hourglass(config.block_expansion, num_channels, config.num_blocks, config.max_features)
        features = self.predictor.channels_out
        self.kp = nn.Conv2d(features, num_kp, 7)
        self.jacobian: nn.Conv2d | None = None
        if estimate_jacobian:
            maps = 1 if config.single_jacobian_map else num_kp
            self.jacobian = nn.Conv2d(features, 4 * maps, 7)
            nn.init.zeros_(self.jacobian.weight)
            assert self.jacobian.bias is not None
            self.jacobian.bias.data.copy_(torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(maps))
        self.down = AntiAlias(num_channels, config.scale_factor)

    def forward(self, image: Tensor) -> Motion:
        """Keypoints of (B, C, H, W) pictures in [0, 1]."""
        features = self.predictor(self.down(image))
        maps = None if self.jacobian is None else self.jacobian(features)
        return self._expected(self.kp(features), maps)

    @exact
    def _expected(self, logits: Tensor, maps: Tensor | None) -> Motion:
        """Means over the pixels under the heat of logits (B, K, h, w), of places and of maps (B, 4 K or 4, h, w)."""
        heat = (logits.flatten(2) / self.temperature).softmax(-1)  # (B, K, h w)
        grid = corner_grid(logits.shape[2], logits.shape[3], heat).flatten(0, 1)
        value = heat @ grid
        if maps is None:
            return Motion(value)
        maps = maps.flatten(2).unflatten(1, (-1, 4))  # (B, K or 1, 4, h w)
        if maps.shape[1] == 1:
            jacobian = torch.einsum("bkp,bcp->bkc", heat, maps[:, 0])
        else:
            jacobian = torch.einsum("bkp,bkcp->bkc", heat, maps)
        return Motion(value, jacobian.unflatten(-1, (2, 2)))
