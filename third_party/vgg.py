"""The user's VGG-19: torchvision's ImageNet weights. See vgg.md beside this file."""

from __future__ import annotations

import os
from pathlib import Path

from ..nets.perceptual import FIRST, Vgg19
from .torch_files import fill, read_torch, state_of

FILE = "vgg19-dcbb9e9d.pth"
HELP = (
    f"Get https://download.pytorch.org/models/{FILE} (575 MB) and put it into ~/.cache/headwarp or set HEADWARP_VGG19 "
    "to it. Without it, train with perceptual_params.backbone=efficientnet_lite0."
)


def find_vgg19() -> Path | None:
    """The file that HEADWARP_VGG19 names (or in the folder it names), or the one in ~/.cache/headwarp or torch's own
    cache; None when there is none."""
    named = os.environ.get("HEADWARP_VGG19")
    cache = Path.home() / ".cache"
    places = [Path(named).expanduser()] if named else [cache / "headwarp", cache / "torch" / "hub" / "checkpoints"]
    files = [place if place.is_file() else place / FILE for place in places]
    return next((file for file in files if file.is_file()), None)


def load_vgg19(layers: tuple[str, ...] = FIRST, path: Path | str | None = None) -> Vgg19:
    """VGG-19 with its weights, frozen, as deep as `layers` want.

    Args:
        layers: see `nets.perceptual.Vgg19`.
        path: of torchvision's file; None looks for it, see `find_vgg19`.
    Raises:
        FileNotFoundError: it is not there; the message says how to get it. ValueError: it is another file.
    """
    found = find_vgg19() if path is None else Path(path)
    if found is None or not found.is_file():
        raise FileNotFoundError(f"VGG-19's weights were not found{'' if found is None else f' at {found}'}. {HELP}")
    network = Vgg19(layers)
    wanted = network.state_dict()  # of shallow ones less than the file has
    try:
        state = state_of(read_torch(found, "torchvision's VGG-19"))
        fill(network, {name: value for name, value in state.items() if name in wanted}, found, "torchvision's VGG-19")
    except ValueError as error:
        raise ValueError(f"{error} {HELP}") from None
    network.freeze()
    return network
