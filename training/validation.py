"""Quality of the averaged model on samples that are never trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from .batch import Batch
from .step import Step


@dataclass
class Verdict:
    """What came out for one validation set."""

    metrics: dict[str, float]
    """Means over the set."""
    columns: dict[str, Tensor]
    """Column title -> (N, 3, H, W), the first N samples."""
    clips: list[str]
    """N names."""


@torch.no_grad()
def validate(fabric: Fabric, step: Step, model: nn.Module, samples: Sequence[Batch], batch: int, rows: int) -> Verdict:
    """Judge a model.

    Args:
        step: judges.
        model: is judged, in evaluation mode.
        samples: of one validation set, batches of one.
        batch: samples judged at once.
        rows: samples whose pictures are kept.
    """
    sums: dict[str, float] = defaultdict(float)
    columns: dict[str, list[Tensor]] = defaultdict(list)
    clips: list[str] = []
    for first in range(0, len(samples), batch):
        part = Batch.cat(samples[first : first + batch])
        with fabric.autocast():
            judged = step.judge(model, part.to(fabric.device))
        for name, values in judged.metrics.items():
            sums[name] += float(values.double().sum())
        room = rows - len(clips)
        if room > 0:
            clips += part.clips[:room]
            for title, pictures in judged.pictures.items():
                columns[title].append(pictures[:room].cpu())
    return Verdict(
        {name: value / len(samples) for name, value in sums.items()},
        {title: torch.cat(parts) for title, parts in columns.items()},
        clips,
    )
