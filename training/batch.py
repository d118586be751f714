"""What a training step gets: pictures of the same people at some moments, with what is known about them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..geom.camera import Camera
from ..geom.head import HeadParams


@dataclass
class View:
    """B pictures, one of each clip of the batch. What a source does not know is None for all of them."""

    image: Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    params: HeadParams | None = None
    """B heads: fitted, or of synthetic people exact."""
    camera: Camera | None = None
    """B cameras, in the pixels of `image`."""
    landmarks: Tensor | None = None
    """(B, 478, 3) px of `image`."""
    depth: Tensor | None = None
    """(B, 1, H, W) metres, +inf on the background; synthetic people only, as the next two."""
    normals: Tensor | None = None
    """(B, 3, H, W) unit world normals, 0 on the background."""
    segmentation: Tensor | None = None
    """(B, H, W) uint8, index into `render.synthetic.CLASSES`."""


@dataclass
class Batch:
    """Some moments of B clips."""

    views: list[View]
    """In the order that the sampler states: a pair is [source, driving], a triplet [before, now, after]."""
    clips: list[str]
    """B names, for messages and tables."""

    @property
    def source(self) -> View:
        return self.views[0]

    @property
    def driving(self) -> View:
        return self.views[1]

    def __len__(self) -> int:
        return len(self.clips)
