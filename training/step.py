"""The contract between a method and the engine: losses of one batch. Optimisers, precision, devices, averaging and
files are the engine's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from .batch import Batch

Losses = dict[str, Tensor]
"""Weighted terms, scalars; their sum is what is minimised. A weight of 0 leaves a term out."""


@dataclass
class Judged:
    """One validation batch."""

    metrics: dict[str, Tensor]
    """Name -> (B,) values."""
    pictures: dict[str, Tensor] = field(default_factory=dict)
    """Column title -> (B, 3, H, W) in [0, 1], for the contact sheet."""


class Step(nn.Module):
    """One training step of a method.

    Attributes:
        Settings: frozen dataclass of what the method reads from the YAML file besides the engine's own sections. Its
            fields are the file's keys: `model_params` (the model's own `Config`), `loss_weights` (a dataclass; in the
            file it stands under `train_params`, as in FOMM's), and others where a method wants them, such as
            `discriminator_params`. Every field has a default. The class is called as `Step(settings)`.
        moments: views of a batch: 2 = [source, driving], 3 = [before, now, after].
        needs: fields of `View` besides `image` that the method cannot train without.
        truth: fields of synthetic people that `judge` compares with where they are known; training never gets them.
        model: what is trained by `losses`, averaged over time (EMA) and saved with `nets.model_file`.
        critic: the discriminators, trained by `critic_losses`; None where there are none.
    Frozen helpers (perceptual networks, heads) are attributes too; their parameters do not require gradients, and they
    stay in evaluation mode (the engine switches `model` and `critic` only). A `HeadModel` kept as `head` must be the
    one that the clips were fitted with; the engine compares the hashes.
    """

    Settings: ClassVar[type[Any]]
    moments: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = frozenset()
    truth: ClassVar[frozenset[str]] = frozenset()

    model: nn.Module
    critic: nn.Module | None
    mark: Callable[[str], None] = staticmethod(lambda kind: None)
    """`self.mark("forward")` between the network and the losses books the time until there as "forward" and what
    follows as "losses"; the engine's clock stands behind it."""

    def __init__(self, settings: Any = None) -> None:
        super().__init__()
        self.critic = None  # here, because torch would not find a module behind a class attribute

    def losses(self, batch: Batch) -> tuple[Losses, Any]:
        """Terms of the model, and what `critic_losses` needs of this forward pass (detached there).

        The critic's parameters do not require gradients during this call.
        """
        raise NotImplementedError

    def critic_losses(self, batch: Batch, shared: Any) -> Losses:
        """Terms of the critic; called after the model's optimiser step, only where there is a critic."""
        raise NotImplementedError

    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        """Quality on a held-out batch, without gradients; `model` is the averaged one."""
        raise NotImplementedError
