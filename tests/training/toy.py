"""A method that trains in seconds: a tiny autoencoder that copies the driving picture, with a tiny critic.

Run as a file it is `headwarp train` that knows this method, for tests that need processes. The variable TOY makes
trouble: "3:SIGTERM 5:nan" sends a signal in the fourth step of the process and makes a loss nan in the sixth.
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


class ToyStep(Step):
    Settings = ToySettings
    model: Toy

    def __init__(self, settings: ToySettings) -> None:
        super().__init__()
        self.settings = settings
        self.model = Toy(settings.model_params)
        self.critic = nn.Conv2d(3, 1, 3)
        self._calls = 0
        self._trouble = {int(at): what for at, what in (item.split(":") for item in os.environ.get("TOY", "").split())}

    def losses(self, batch: Batch) -> tuple[Losses, Any]:
        weights, trouble = self.settings.loss_weights, self._trouble.get(self._calls, "")
        self._calls += 1
        if trouble.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[trouble])
        target = batch.driving.image
        image = self.model(target + weights.noise * torch.randn_like(target))
        self.mark("forward")
        l1 = weights.l1 * (image - target).abs().mean()
        if trouble == "nan":
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
