"""Optimisers of the parts of a method, gradients averaged over processes, and the model averaged over time.

Each part (model, critic) has its own Adam. Processes are kept alike without a wrapper around the modules: they start
from the same weights, and before each optimiser step the part's gradients are averaged in one all-reduce of one flat
tensor. That is what a wrapper like DistributedDataParallel does in the end, without its conditions on the order of
forward and backward passes, on unused parameters, and on how often a module is called - all of which GAN training
breaks. What it gives up is the overlap of communication with the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Adam

from .config import TrainParams
from .launch import reduced


class Part:
    """A module, its Adam, and how a step of it is made."""

    def __init__(self, fabric: Fabric, module: nn.Module, lr: float, params: TrainParams) -> None:
        self.module = module
        self._fabric, self._base, self._clip = fabric, lr, params.clip_grad
        self._milestones, self._gamma = params.milestones, params.gamma
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = Adam(self.parameters, lr=lr, betas=params.betas)
        self._stepper: Any = fabric.setup_optimizers(self.optimizer)  # knows the precision

    def lr(self, step: int) -> float:
        """Learning rate of the step."""
        return float(self._base * self._gamma ** sum(step >= milestone for milestone in self._milestones))

    def freeze(self, frozen: bool) -> None:
        """Whether gradients stop at the part's parameters."""
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)

    def update(self, step: int) -> None:
        """One optimiser step with the gradients that are there; they are gone afterwards."""
        if self._fabric.world_size > 1:
            average_gradients(self._fabric, self.parameters)
        if self._clip is not None:
            self._fabric.clip_gradients(
                self.module, self._stepper, max_norm=self._clip, error_if_nonfinite=False
            )  # fp16's scaler leaves out steps that are not finite; the others show in the next loss
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        self._stepper.step()
        self.optimizer.zero_grad(set_to_none=True)


def average_gradients(fabric: Fabric, parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over the processes, in one all-reduce; a missing gradient counts as zero."""
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = reduced(fabric, torch.cat([piece.reshape(-1) for piece in pieces]), "mean")
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter)


@torch.no_grad()
def share_state(fabric: Fabric, module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first one."""
    if fabric.world_size > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor, src=0)


class Average:
    """Exponential moving average of a model's weights; its buffers are the model's own."""

    def __init__(self, model: nn.Module, memory: float) -> None:
        """
        Args:
            model: copied at once, before its first forward pass.
            memory: weight of the past in each update, in [0, 1); lower in the first steps, which begin far away.
        """
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._memory = memory

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model after `step` steps."""
        memory = min(self._memory, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - memory)
        for own, its in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(its)
