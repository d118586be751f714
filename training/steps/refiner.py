"""Training the refiner: frames of a clip, made by the geometric animator from one of them, towards the truth.

    G = geometric(source, driving head),  I = G + s U(G, clues)
    loss = l1 w |I - I_d| + perceptual P(I, I_d)        on a window about the face of every frame

w is larger on eyes and mouth: few pixels, and where the animator has to invent.

The animator runs on the CPU within the step: its work on a source serves all drivers of the sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...fitting.faces import shared_models
from ...geom.camera import Camera
from ...geom.head import HeadParams, load_head
from ...nets.losses import PerceptualLoss
from ...nets.perceptual import LAST
from ...nets.refiner import Clues, Refiner, RefinerConfig
from ...render.geometric import GeometricRenderer, Observation, eyes, mouth
from ...third_party.backbones import load_backbone
from ..batch import Batch, View
from ..step import Judged, Losses, Step
from .pwm import PerceptualParams, psnr


@dataclass(frozen=True)
class RefinerWeights:
    l1: float = 10.0
    features: float = 8.0
    """Of the L1 on eyes and mouth, beside 1 everywhere."""
    perceptual: float = 0.25


@dataclass(frozen=True)
class RefinerSettings:
    model_params: RefinerConfig = field(default_factory=RefinerConfig)
    loss_weights: RefinerWeights = RefinerWeights()
    perceptual_params: PerceptualParams = field(
        default_factory=lambda: PerceptualParams("efficientnet_lite0", scales=2, relative=True)
    )
    window: int = 144
    """Side in pixels of the square that is learned from in every frame; at least the frame's: all of it."""


@dataclass
class Drawn:
    """N frames of the animator."""

    picture: Tensor
    """G (N, 3, H, W) in [0, 1]."""
    clues: Tensor
    """(N, CLUES, H/2, W/2)."""
    target: Tensor
    """(N, 3, H, W) in [0, 1], the true frames."""
    features: Tensor
    """(N, 1, H, W) in [0, 1]: 1 on eyes and mouth of the true frames."""

    def windows(self, size: int) -> Drawn:
        """A square of even corners of each frame, its centre drawn from the pixels of eyes and mouth."""
        height, width = self.picture.shape[-2:]
        rows, columns = min(size, height), min(size, width)
        parts = []
        for n in range(len(self.picture)):
            marked = self.features[n, 0].nonzero()
            at = marked[torch.randint(len(marked), ())] if len(marked) else torch.tensor([height // 2, width // 2])
            top = int(at[0] - rows // 2) // 2 * 2
            left = int(at[1] - columns // 2) // 2 * 2
            top, left = min(max(top, 0), height - rows), min(max(left, 0), width - columns)
            whole = (slice(n, n + 1), slice(None), slice(top, top + rows), slice(left, left + columns))
            half = (*whole[:2], slice(top // 2, (top + rows) // 2), slice(left // 2, (left + columns) // 2))
            parts.append((self.picture[whole], self.clues[half], self.target[whole], self.features[whole]))
        return Drawn(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class RefinerStep(Step):
    """See the module's docstring."""

    Settings: ClassVar[type[Any]] = RefinerSettings
    moments: ClassVar[int] = 6
    needs: ClassVar[frozenset[str]] = frozenset({"params", "camera", "landmarks"})

    model: Refiner

    def __init__(self, settings: RefinerSettings = RefinerSettings()) -> None:
        super().__init__()
        self.settings = settings
        self.model = Refiner(settings.model_params)
        self.head = load_head(settings.model_params.head).requires_grad_(False)
        self.perceptual: PerceptualLoss | None = None
        if settings.loss_weights.perceptual:
            params = settings.perceptual_params
            self.perceptual = PerceptualLoss(
                load_backbone(params.backbone, LAST), params.scales, relative=params.relative
            )
        # On the CPU wherever the network is: its own copy of the head.
        own = load_head(settings.model_params.head)
        self._animator, self._clues = GeometricRenderer(own), Clues(own)

    def losses(self, batch: Batch) -> tuple[Losses, None]:
        drawn = self.draw(batch, int(torch.randint(len(batch.views), ()))).windows(self.settings.window)
        self.mark("animator")
        image = drawn.picture + self.model(drawn.picture, drawn.clues)
        self.mark("forward")
        weights = self.settings.loss_weights
        emphasis = 1 + weights.features * drawn.features
        losses = {"l1": weights.l1 * (emphasis * (image - drawn.target).abs()).mean()}
        if self.perceptual is not None:
            losses["perceptual"] = weights.perceptual * self.perceptual(image, drawn.target)
        return losses, None

    @torch.no_grad()
    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        """Errors of the last frame of a sample made from its first, beside those of the animator alone."""
        assert isinstance(model, Refiner)
        drawn = self.draw(Batch([batch.views[0], batch.views[-1]], batch.clips), 0)
        image = (drawn.picture + model(drawn.picture, drawn.clues)).clamp(0, 1)
        metrics = {}
        for name, made in {"": image, "_geometric": drawn.picture}.items():
            metrics[f"l1{name}"] = (made - drawn.target).abs().mean((1, 2, 3))
            metrics[f"psnr{name}"] = psnr(made, drawn.target)
            metrics[f"psnr_features{name}"] = psnr(made, drawn.target, drawn.features)
            if self.perceptual is not None:
                each = [self.perceptual(made[i : i + 1], drawn.target[i : i + 1]) for i in range(len(made))]
                metrics[f"perceptual{name}"] = torch.stack(each)
        pictures = {
            "source": batch.views[0].image,
            "driving": drawn.target,
            "refined": image,
            "geometric": drawn.picture,
            "change x 4": (0.5 + 4 * (image - drawn.picture)).clamp(0, 1),
        }
        return Judged(metrics, pictures)

    @torch.no_grad()
    def draw(self, batch: Batch, source: int) -> Drawn:
        """What the animator makes of view `source` for each of the others, clip by clip."""
        pictures, clues, targets, features = [], [], [], []
        for number in range(len(batch)):
            moments = [_moment(view, number) for view in batch.views]
            still = moments.pop(source)
            size = still.pixels.shape[0], still.pixels.shape[1]
            person = shared_models().person_mask(still.pixels)
            seen = Observation(still.pixels, still.landmarks, still.params, still.camera, person)
            state, normals = self._animator.encode_source(seen), self._clues.normals(still.params)
            for moment in moments:
                # As across identities: the source keeps its shape and its camera.
                motion = moment.params.replace(shape=still.params.shape)
                made = self._animator.render(state, motion)
                pictures.append(_tensor(made.image))
                clues.append(self._clues.draw(normals, motion, still.camera, size, made))
                targets.append(_tensor(moment.pixels))
                features.append(torch.from_numpy(feature_mask(moment.landmarks, size))[None, None])
        device = batch.views[0].image.device
        return Drawn(*(torch.cat(parts).to(device) for parts in (pictures, clues, targets, features)))


def feature_mask(landmarks: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(H, W): 1 on eyes and mouth and half their size around them, 0 elsewhere.

    Args:
        landmarks: (478, 2 or 3) px, MediaPipe's.
        size: (H, W).
    """
    mask = np.zeros(size, np.float32)
    for ring in ([*eyes.UPPER[0], *eyes.LOWER[0]], [*eyes.UPPER[1], *eyes.LOWER[1]], [*mouth.UPPER, *mouth.LOWER]):
        points = landmarks[ring, :2]
        centre, radius = points.mean(0), 0.75 * np.ptp(points[:, 0])
        (x, y), axes = centre.round().astype(int), (int(radius) + 1, int(0.6 * radius + np.ptp(points[:, 1]) / 2) + 1)
        cv2.ellipse(mask, (int(x), int(y)), axes, 0, 0, 360, 1.0, -1)
    return mask


@dataclass
class _Moment:
    """One frame as the animator takes it."""

    pixels: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    params: HeadParams
    camera: Camera


def _moment(view: View, number: int) -> _Moment:
    """Clip `number` of a view, on the CPU."""
    params, camera, landmarks = view.params, view.camera, view.landmarks
    if params is None or camera is None or landmarks is None:
        raise ValueError("The refiner learns from fitted clips with landmarks; run `headwarp fit`.")
    one = slice(number, number + 1)
    pixels = (view.image[number].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    return _Moment(
        np.ascontiguousarray(pixels),
        landmarks[number].cpu().numpy(),
        params[one].to("cpu"),
        Camera(camera.focal[one].cpu(), camera.principal[one].cpu()),
    )


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
