"""Geometry critics beside any method: the inverse renderer of a configuration, and a step around another step.

`with_geometry(PwmStep)`, `method: pwm+geometry` in a file, is PWM's step with `geometry_params` in its configuration.
Its losses are PWM's and one more: what critics of depth and normals say about the generated picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...geom.camera import Camera
from ...geom.head import HeadParams, load_head
from ...media.errors import InputError
from ...nets.depth import FaceDepth
from ...nets.geometry_critics import (
    Ensemble,
    EnsembleConfig,
    FaceDepthGeometry,
    Geometry,
    HeadGeometry,
    InverseRenderer,
    Unsup3dGeometry,
)
from ...nets.model_file import load_model
from ...nets.unsup3d import DepthReader, Unsup3d, Unsup3dConfig
from ...third_party.unsup3d import load_unsup3d
from ..batch import Batch
from ..step import Judged, Losses, Step


@dataclass(frozen=True)
class GeometryParams:
    """`geometry_params` of a configuration."""

    inverse_renderer: Literal["unsup3d", "face_depth", "head"] = "unsup3d"
    """Where depth and normals come from: Unsup3D as published, our face depth network, or the fitted head, drawn."""
    model: str | None = None
    """Model file of unsup3d or face_depth. unsup3d also takes its official checkpoint, and looks for that by itself."""
    border_depth: float = 1.05
    """Of an official checkpoint of Unsup3D. G3FA's; Unsup3D was trained with 1.04."""
    weight: float = 1.0
    """Of the term that `with_geometry` adds, which counts depth and normals alone."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)


def open_renderer(params: GeometryParams) -> InverseRenderer:
    """The frozen inverse renderer of a configuration.

    Raises:
        InputError: its model is not there, or is another one.
    """
    if params.inverse_renderer == "head":
        return HeadGeometry(load_head("open"))
    try:
        if params.inverse_renderer == "unsup3d":
            return Unsup3dGeometry(_depth_reader(params))
        if params.model is None:
            raise InputError("geometry_params.model: the face depth network's model file is needed.")
        network = load_model(params.model)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"geometry_params.model: {error}") from None
    if not isinstance(network, FaceDepth):
        raise InputError(f"geometry_params.model: {params.model} is no face depth network.")
    return FaceDepthGeometry(network)


def _depth_reader(params: GeometryParams) -> DepthReader:
    if params.model is None or Path(params.model).suffix != ".safetensors":
        model: nn.Module = load_unsup3d(params.model, Unsup3dConfig(border_depth=params.border_depth))
    else:
        model = load_model(params.model)
    if not isinstance(model, Unsup3d):
        raise ValueError(f"{params.model} is no model of Unsup3D.")
    return DepthReader(model.netD, model.config)


def geometry_needs(params: GeometryParams) -> frozenset[str]:
    """Fields of a view that the inverse renderer wants."""
    return frozenset({"params", "camera"}) if params.inverse_renderer == "head" else frozenset()


def head_of(batch: Batch) -> tuple[HeadParams | None, Camera | None]:
    """Head and camera of the driving pictures, where they are known."""
    return batch.driving.params, batch.driving.camera


@dataclass
class _Shared:
    inner: Any
    image: Tensor
    geometry: Geometry
    real_geometry: Geometry


class GeometryStep(Step):
    """Another step with critics of depth and normals beside its own; made by `with_geometry`.

    What the other step shares with its critic must have the generated pictures as `image` or `output.image`.
    """

    Inner: ClassVar[type[Step]]

    def __init__(self, settings: Any) -> None:
        super().__init__()
        kind = self.Inner.Settings
        self.inner = self.Inner(kind(**{f.name: getattr(settings, f.name) for f in fields(kind)}))
        self.params: GeometryParams = settings.geometry_params
        self.renderer = open_renderer(self.params)
        self.geometry = Ensemble(self.params.ensemble, picture=False, from_picture=self.renderer.from_picture)
        self.model = self.inner.model
        parts: dict[str, nn.Module] = {"geometry": self.geometry}
        if self.inner.critic is not None:
            parts["inner"] = self.inner.critic
        self.critic = nn.ModuleDict(parts)
        self.moments = self.inner.moments  # type: ignore[misc]
        self.needs = self.inner.needs | geometry_needs(self.params)  # type: ignore[misc]
        self.truth = self.inner.truth  # type: ignore[misc]

    def losses(self, batch: Batch) -> tuple[Losses, _Shared]:
        losses, shared = self.inner.losses(batch)
        image = getattr(getattr(shared, "output", shared), "image", None)
        if not isinstance(image, Tensor):
            raise TypeError(f"{self.Inner.__name__} shares no generated picture that geometry critics could judge.")
        head = head_of(batch)
        with torch.no_grad():
            real_geometry = self.renderer(batch.driving.image, *head)
        geometry = self.geometry.geometry_of(self.renderer, image, *head)
        fooling = self.geometry.fooling(self.geometry(image, geometry))
        losses["geometry"] = self.params.weight * fooling
        return losses, _Shared(shared, image, geometry, real_geometry)

    def critic_losses(self, batch: Batch, shared: _Shared) -> Losses:
        losses = {} if self.inner.critic is None else self.inner.critic_losses(batch, shared.inner)
        real = self.geometry(batch.driving.image, shared.real_geometry)
        fake = self.geometry(shared.image.detach(), shared.geometry.detach())
        losses["critic_geometry"] = self.geometry.telling(real, fake)
        return losses

    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        return self.inner.judge(model, batch)


@cache
def with_geometry(step: type[Step]) -> type[Step]:
    """The class of a step with geometry critics; its settings are the step's and `geometry_params`."""
    name = step.__name__.removesuffix("Step")
    settings = make_dataclass(
        f"{name}GeometrySettings",
        [("geometry_params", GeometryParams, field(default_factory=GeometryParams))],
        bases=(step.Settings,),
        frozen=True,
    )
    settings.__module__ = __name__
    return type(f"{name}GeometryStep", (GeometryStep,), {"Inner": step, "Settings": settings})
