"""What a training step gets: pictures of the same people at some moments, with what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..geom.camera import Camera
from ..geom.head import HeadParams


@dataclass
class View:
    """B pictures, one of each clip of the batch. What a source does not know is None for all of them."""

    image: Tensor
    """(B, 3, H, W) float32 in [0, 1]; uint8 from its source until `Batch.to` brings it to the device."""
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

    def known(self) -> set[str]:
        """Names of the fields that are not None."""
        return {f.name for f in fields(self) if getattr(self, f.name) is not None}

    def to(self, device: torch.device | str) -> View:
        """The view on a device, its picture float32 in [0, 1]."""
        moved: dict[str, Any] = {name: getattr(self, name).to(device, non_blocking=True) for name in self.known()}
        if moved["image"].dtype == torch.uint8:
            moved["image"] = moved["image"].float() / 255
        return replace(self, **moved)

    @staticmethod
    def cat(views: Sequence[View]) -> View:
        """One view of several; a field that one of them does not know is None."""
        joined: dict[str, Any] = {}
        for name in set.intersection(*(view.known() for view in views)):
            parts = [getattr(view, name) for view in views]
            if name == "params":
                joined[name] = HeadParams.cat(parts)
            elif name == "camera":
                joined[name] = Camera(torch.cat([c.focal for c in parts]), torch.cat([c.principal for c in parts]))
            else:
                joined[name] = torch.cat(parts)
        return View(**joined)


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

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, its pictures float32 in [0, 1]."""
        return Batch([view.to(device) for view in self.views], self.clips)

    def pin_memory(self) -> Batch:
        """The batch with its pictures in pinned memory; called by torch's loader. The rest is small."""
        return Batch([replace(view, image=view.image.pin_memory()) for view in self.views], self.clips)

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """One batch of several with equally many moments, such as samples (batches of one)."""
        moments = zip(*(batch.views for batch in batches), strict=True)
        return Batch([View.cat(views) for views in moments], [clip for batch in batches for clip in batch.clips])

    def __len__(self) -> int:
        return len(self.clips)
