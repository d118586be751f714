"""How fast features are warped.

    headwarp bench warp [-o OUT]

The decoder's sizes, batch 1, float32 channels-last, a smooth displacement. The bound is a copy of the same size, the
peer `F.grid_sample` on channels-last and on contiguous features. Results are compared before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..render import warp
from .timing import Timing, machine, race, write_json

SIZES = ((64, 256), (128, 128), (256, 64), (512, 32), (3, 256))
"""Channels, and pixels along each side."""


def main(*, real: Path | None = None, output: Path | None = None) -> dict[str, Any]:
    """Measure, print the table, and write warp.json to `output`. `real` is not used: features are random."""
    results: dict[str, Any] = {"machine": machine(), "sizes": {}}
    facts = results["machine"]
    print(f"warp; {facts['threads']} threads of {facts['cores']} x {facts['processor']}, load {facts['load']}")
    print("ms (median ± half IQR), multiples of the copy (goals: forward 1.5, backward 5), processor ms\n")
    for channels, side in SIZES:
        timings = race(_contenders(channels, side))
        results["sizes"][f"1x{channels}x{side}x{side}"] = timings
        _print(channels, side, timings)
    print("* fewer samples than wanted ran undisturbed by other processes; all were taken")
    if output is not None:
        print(f"wrote {write_json(output, 'warp', results)}")
    return results


def smooth(side: int) -> Tensor:
    """(1, 2, side, side) NDC: about a twentieth of the picture, as head motion is."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    return 0.1 * torch.stack([torch.sin(3 * y + x), torch.cos(2 * x)])[None]


def _contenders(channels: int, side: int) -> dict[str, Callable[[], object]]:
    last = torch.channels_last
    generator = torch.Generator().manual_seed(0)
    contiguous = torch.randn(1, channels, side, side, generator=generator)
    features = contiguous.contiguous(memory_format=last)
    grad = torch.randn(features.shape, generator=generator).contiguous(memory_format=last)
    displacement = smooth(side)
    coarse = F.interpolate(displacement, scale_factor=0.5, mode="bilinear")
    kept = torch.empty_like(features)
    line = (torch.arange(side) * 2 + 1) / side - 1
    grid = displacement.permute(0, 2, 3, 1) + torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)

    def sample(source: Tensor, where: Tensor) -> Tensor:
        return F.grid_sample(source, where, "bilinear", "border", False)

    difference = (warp(features, displacement) - sample(features, grid)).abs().max().item()
    if difference > 1e-3:
        raise RuntimeError(f"bench warp: ours and grid_sample differ by {difference:.1e}; nothing timed.")

    def backward(function: Callable[[Tensor, Tensor], Tensor], source: Tensor, where: Tensor) -> Callable[[], object]:
        inputs = source.clone(memory_format=torch.preserve_format).requires_grad_(), where.clone().requires_grad_()
        image = function(*inputs)
        given = grad.contiguous(memory_format=last) if image.is_contiguous(memory_format=last) else grad.contiguous()
        return lambda: torch.autograd.grad(image, inputs, given, retain_graph=True)

    contenders: dict[str, Callable[[], object]] = {
        "copy": lambda: kept.copy_(features),
        "ours": lambda: warp(features, displacement, out=kept),
        "ours, new image": lambda: warp(features, displacement),
        "ours, coarse field": lambda: warp(features, coarse, out=kept),
        "grid_sample": lambda: sample(features, grid),
        "grid_sample contiguous": lambda: sample(contiguous, grid),
        "ours backward": backward(warp, features, displacement),
        "grid_sample backward": backward(sample, features, grid),
        "grid_sample contiguous backward": backward(sample, contiguous, grid),
    }
    if channels >= 8:
        half, half_kept = features.bfloat16(), kept.bfloat16()
        contenders["ours bfloat16"] = lambda: warp(half, displacement, out=half_kept)
    return contenders


def _print(channels: int, side: int, timings: dict[str, Timing]) -> None:
    copy = timings["copy"].median
    print(f"1 x {channels} x {side} x {side}")
    for name, timing in timings.items():
        print(f"  {name:34s}{timing!s:>18s}  ({timing.median / copy:6.2f}) {timing.processor:8.3f}  n={timing.samples}")
    ours, theirs = timings["ours"].median, timings["grid_sample"].median
    back = timings["grid_sample backward"].median / timings["ours backward"].median
    print(f"  grid_sample / ours: forward {theirs / ours:.1f}, backward {back:.1f}\n")
