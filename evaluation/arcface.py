"""ArcFace's embedding network (Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", 2019).

IResNet under the names of insightface's `arcface_torch`, whose backbone.pth files it reads; the depth follows from the
file. The weights are the user's, and most of them are for research only.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..third_party.torch_files import fill, read_torch, state_of

SIDE = 112
EMBEDDING = 512
PLACES = np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)])
"""px of the 112 x 112 picture (pixel centres at whole numbers): eyes, nose tip, mouth corners; picture left first."""
MESH_POINTS = (468, 473, 4, 61, 291)
"""The same five among MediaPipe's 478."""


class Block(nn.Module):
    """BN, conv, BN, PReLU, conv (with the stride), BN around a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.prelu = nn.PReLU(out)
        self.conv2 = nn.Conv2d(out, out, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x)))))
        return self.bn3(y) + shortcut


class IResNet(nn.Module):
    """Aligned faces (B, 3, 112, 112) in [0, 1] -> embeddings (B, 512), not of length one.

    Args:
        blocks: of the four stages; (3, 4, 14, 3) is IResNet-50, (3, 13, 30, 3) IResNet-100.
    """

    def __init__(self, blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        channels = 64
        for number, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), 1):
            stage = [Block(channels if i == 0 else width, width, 2 if i == 0 else 1) for i in range(count)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            channels = width
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, EMBEDDING)
        self.features = nn.BatchNorm1d(EMBEDDING)

    @classmethod
    def from_official(cls, path: Path) -> IResNet:
        """With the weights of a backbone.pth.

        Raises:
            ValueError: another file.
        """
        state = state_of(read_torch(path, "a backbone of insightface's arcface_torch"))
        stages = [{k.split(".")[1] for k in state if k.startswith(f"layer{n}.")} for n in (1, 2, 3, 4)]
        if not all(stages):
            raise ValueError(
                f"{path} is no backbone of insightface's arcface_torch: it has no stages layer1 ... layer4."
            )
        model = cls((len(stages[0]), len(stages[1]), len(stages[2]), len(stages[3])))
        fill(model, state, path, "the network")
        return model.requires_grad_(False).eval()

    def forward(self, face: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(2 * face - 1)))
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


def aligned(picture: NDArray[np.uint8], landmarks: NDArray[np.float32], side: int = SIDE) -> NDArray[np.uint8]:
    """The face at ArcFace's place, (side, side, 3): the similarity that brings five landmarks nearest to `PLACES`.

    Args:
        picture: (H, W, 3) uint8.
        landmarks: (478, 3) px.
        side: pixels; other sides than 112 scale the places.
    """
    start = landmarks[list(MESH_POINTS), :2].astype(np.float64) - 0.5  # both counted from pixel centres, as OpenCV does
    end = (PLACES + 0.5) * side / SIDE - 0.5
    # x' = a x - b y + c,  y' = b x + a y + d, least squares
    x, y = start.T
    one, zero = np.ones(5), np.zeros(5)
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(rows, end.T.reshape(-1), rcond=None)[0]
    matrix = np.array([[a, -b, c], [b, a, d]])
    return np.asarray(cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), np.uint8)
