"""DECA's coarse encoder: a face crop to FLAME parameters in one pass (Feng et al., "Learning an animatable detailed 3D
face model from in-the-wild images", 2021).

    crop (B, 3, 224, 224) in [0, 1] --ResNet-50, mean over 7 x 7--> 2048 --> 1024 --> 236 = codes

The codes, in order: shape 100, texture 50, expression 50, pose 6 (global and jaw rotation, axis-angle), camera 3
(scale, tx, ty, see `geom.camera.WeakPerspective.from_deca`), light 9 x 3 (spherical harmonics, RGB).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geom.head import HeadModel, HeadParams
from .resnet import ResNet

SIDE = 224
"""Pixels: the encoder knows this size only."""
CODES = {"shape": 100, "tex": 50, "exp": 50, "pose": 6, "cam": 3, "light": 27}
"""Name and width of each part of the output, in order."""


@dataclass(frozen=True)
class DecaCodes:
    """The output, taken apart; names and shapes as in DECA's code dictionary."""

    shape: Tensor
    """(B, 100)"""
    tex: Tensor
    """(B, 50)"""
    exp: Tensor
    """(B, 50)"""
    pose: Tensor
    """(B, 6) global rotation, jaw; axis-angle, radians."""
    cam: Tensor
    """(B, 3) scale, tx, ty."""
    light: Tensor
    """(B, 9, 3)"""

    def params(self, head: HeadModel) -> HeadParams:
        """The parameters of a FLAME head; DECA's coefficients are the first of FLAME's, the others are 0.

        Raises:
            ValueError: the head has fewer coefficients than 100 and 50.
        """
        if head.n_shape < CODES["shape"] or head.n_expression < CODES["exp"]:
            raise ValueError(
                f"DecaCodes.params: DECA gives 100 shape and 50 expression coefficients of FLAME; head '{head.name}' "
                f"has {head.n_shape} and {head.n_expression}."
            )
        return HeadParams.zeros(head, len(self.shape)).replace(
            shape=F.pad(self.shape, (0, head.n_shape - CODES["shape"])),
            expression=F.pad(self.exp, (0, head.n_expression - CODES["exp"])),
            rotation=self.pose[:, :3],
            jaw=self.pose[:, 3:],
        )


class DecaEncoder(nn.Module):
    """E_flame under its official names `encoder.*` and `layers.{0,2}.*`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet(50)
        self.layers = nn.Sequential(nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, sum(CODES.values())))

    @classmethod
    def from_official(cls, checkpoint: Mapping[str, Any]) -> DecaEncoder:
        """The encoder of a loaded deca_model.tar (or of its E_flame), ready to use.

        Raises:
            ValueError: parameters are missing or of other shapes.
        """
        state = checkpoint.get("E_flame", checkpoint)
        model = cls()
        try:
            missing, _ = model.load_state_dict(state, strict=False)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"DecaEncoder: the checkpoint is of another network ({error}).") from None
        # checkpoints of old torch versions do not count batches
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing:
            raise ValueError(f"DecaEncoder: the checkpoint lacks {len(missing)} parameters, such as {missing[0]}.")
        return model.eval()

    def forward(self, crop: Tensor) -> Tensor:
        """(B, 236) codes of (B, 3, 224, 224) crops, RGB in [0, 1], not normalised further."""
        if crop.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(f"DecaEncoder: crops must be (B, 3, {SIDE}, {SIDE}), got {tuple(crop.shape)}.")
        return self.layers(self.encoder(crop).mean((2, 3)))

    @torch.no_grad()
    def encode(self, crop: Tensor) -> DecaCodes:
        """The codes of (B, 3, 224, 224) crops, taken apart."""
        parts = dict(zip(CODES, self(crop).split(list(CODES.values()), -1), strict=True))
        return DecaCodes(**{**parts, "light": parts["light"].unflatten(-1, (9, 3))})
