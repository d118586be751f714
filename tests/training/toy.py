"""A method that trains in seconds: a tiny autoencoder that copies the driving picture, with a tiny critic.

Run as a file it is `headwarp train` that knows this method, for tests that need processes.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwarp.nets.model_file import METHODS
from headwarp.training.batch import Batch
from headwarp.training.step import Judged, Losses, Step
from headwarp.training.steps import STEPS


@dataclass(frozen=True)
class ToyConfig:
    width: int = 4


class Toy(nn.Module):
    Config = ToyConfig

    def __init__(self, config: ToyConfig = ToyConfig()) -> None:
        super().__init__()
        self.config = config
        self.down = nn.Conv2d(3, config.width, 4, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(config.width, 3, 4, stride=2, padding=1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> Tensor:
        if self.training:
            self.seen += len(image)
        return self.up(self.down(image).relu()).sigmoid()


@dataclass(frozen=True)
class ToyWeights:
    l1: float = 1.0
    adversarial: float = 0.01
    noise: float = 0.0
    """Random numbers added to the picture, which a resumed run must draw alike."""


@dataclass(frozen=True)
class ToySettings:
    model_params: ToyConfig = ToyConfig()
    loss_weights: ToyWeights = ToyWeights()
    nan_at: int = -1
    """Call of `losses` (from 0) at which a term becomes nan."""
    kill_at: int = -1
    """Call at which the process gets SIGTERM; with `kill_hard` SIGKILL."""
    kill_hard: bool = False


class ToyStep(Step):
    Settings = ToySettings
    model: Toy

    def __init__(self, settings: ToySettings) -> None:
        super().__init__()
        self.settings = settings
        self.model = Toy(settings.model_params)
        self.critic = nn.Conv2d(3, 1, 3)
        self._calls = 0

    def losses(self, batch: Batch) -> tuple[Losses, Any]:
        weights, calls = self.settings.loss_weights, self._calls
        self._calls += 1
        if calls == self.settings.kill_at:
            os.kill(os.getpid(), signal.SIGKILL if self.settings.kill_hard else signal.SIGTERM)
        target = batch.driving.image
        image = self.model(target + weights.noise * torch.randn_like(target))
        self.mark("forward")
        l1 = weights.l1 * (image - target).abs().mean()
        if calls == self.settings.nan_at:
            l1 = l1 * torch.nan
        return {"l1": l1, "adversarial": -weights.adversarial * self.critic(image).mean()}, image.detach()

    def critic_losses(self, batch: Batch, shared: Any) -> Losses:
        real, fake = self.critic(batch.driving.image), self.critic(shared)
        return {"hinge": (1 - real).relu().mean() + (1 + fake).relu().mean()}

    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        image = model(batch.driving.image)
        error = (image - batch.driving.image).abs().mean((1, 2, 3))
        return Judged({"l1": error}, {"driving": batch.driving.image, "output": image})


def register() -> None:
    """Let the package find this method under the name toy."""
    here = sys.modules[__name__]
    Toy.__module__ = "headwarp.nets.toy"
    METHODS["toy"], STEPS["toy"] = "toy:Toy", "toy:ToyStep"
    sys.modules["headwarp.nets.toy"] = sys.modules["headwarp.training.steps.toy"] = here


if __name__ == "__main__":
    from headwarp.app.train import Train

    register()
    torch.set_num_threads(1)
    config, output, *settings = sys.argv[1:]
    Train(config, tuple(settings), output).run()
