"""LPIPS v0.1 (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018).

    d = sum over layers of mean over pixels of sum over channels  w_c (f_c(a) / |f(a)| - f_c(b) / |f(b)|)^2

f: AlexNet's five or VGG-16's five ReLU outputs, w the calibration learned by the authors (it comes with torchmetrics).
The networks are defined here under torchvision's parameter names, because nothing of this project may need
torchvision; their weights are the user's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..third_party.torch_files import fill, read_torch, state_of

Trunk = Literal["alex", "vgg"]

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_POOL = 0
# Convolutions as (channels, kernel, stride, padding); each is followed by ReLU. `taps` are the ReLUs that count.
_LAYERS: dict[Trunk, list[tuple[int, int, int, int] | int]] = {
    "alex": [(64, 11, 4, 2), _POOL, (192, 5, 1, 2), _POOL, (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)],
    "vgg": [
        *((64, 3, 1, 1), (64, 3, 1, 1), _POOL, (128, 3, 1, 1), (128, 3, 1, 1), _POOL),
        *((256, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), _POOL),
        *((512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1), _POOL, (512, 3, 1, 1), (512, 3, 1, 1), (512, 3, 1, 1)),
    ],
}
_NAMES: dict[Trunk, str] = {"alex": "AlexNet", "vgg": "VGG-16"}
_TAPS: dict[Trunk, tuple[int, ...]] = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


class Lpips(nn.Module):
    """The distance; parameters `features.N.*` as torchvision's `alexnet` and `vgg16` have them, `weights.N` (C,).

    Args:
        trunk: which network.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.taps = _TAPS[trunk]
        layers: list[nn.Module] = []
        channels = 3
        for layer in _LAYERS[trunk]:
            if isinstance(layer, int):
                layers.append(nn.MaxPool2d(3 if trunk == "alex" else 2, 2))
            else:
                out, kernel, stride, padding = layer
                layers += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
                channels = out
        self.features = nn.Sequential(*layers)
        widths = [self.features[tap - 1].out_channels for tap in self.taps]
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(int(width))) for width in widths)  # type: ignore[arg-type]
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    @classmethod
    def from_files(cls, trunk: Trunk, network: Path) -> Lpips:
        """With the ImageNet weights of torchvision's file and the calibration that torchmetrics carries.

        Raises:
            ValueError: another file.
        """
        import torchmetrics.functional.image as images

        model = cls(trunk)
        state = state_of(read_torch(network, f"torchvision's {_NAMES[trunk]}"), "features.")
        fill(model.features, state, network, "the network")
        table = Path(images.__file__).parent / "lpips_models" / f"{trunk}.pth"
        heads = read_torch(table, "torchmetrics' calibration of LPIPS")
        for number, weight in enumerate(model.weights):
            weight.data.copy_(heads[f"lin{number}.model.1.weight"].flatten())
        return model.requires_grad_(False).eval()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) distances of (B, 3, H, W) pictures in [0, 1]."""
        a, b = ((2 * x - 1 - self.shift) / self.scale for x in (first, second))  # type: ignore[operator]
        total = first.new_zeros(len(first))
        taps = dict(zip(self.taps, self.weights, strict=True))
        for number, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if number in taps:
                difference = (_unit(a) - _unit(b)).square()
                total = total + torch.einsum("bchw,c->bhw", difference, taps[number]).mean((1, 2))
        return total


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
