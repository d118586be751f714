"""Perceptual backbones by name."""

from __future__ import annotations

from typing import Literal

from ..nets.perceptual import FIRST, Backbone
from .efficientnet_lite import load_efficientnet_lite0
from .vgg import load_vgg19

BackboneName = Literal["vgg19", "efficientnet_lite0"]


def load_backbone(name: BackboneName, vgg_layers: tuple[str, ...] = FIRST) -> Backbone:
    """A frozen backbone with its published weights.

    Args:
        name: vgg19 needs the user's file (see vgg.md); efficientnet_lite0 comes with a pip package.
        vgg_layers: which features of VGG-19; `nets.perceptual.FIRST` or `LAST`, or others. The other backbone has its
            own.
    """
    return load_vgg19(vgg_layers) if name == "vgg19" else load_efficientnet_lite0()
