"""How fast G3FA makes a frame, and that the fast way gives the same picture.

    headwarp bench g3fa [-o OUT]

The published 256 x 256 network with random weights (time does not depend on them), batch 1, a smooth source and driver:

- straightforward: as the published code runs, everything about the source anew in every frame (but for the warped
  source picture that it makes for looking at)
- cached: `encode_source` once, `read_motion` and `render` per frame
- optimised: the same on `nets.inference.optimise`: the decoder's label convolutions on the coarse map, gamma and beta
  in one convolution, three-dimensional blocks plane by plane, norms in the weights
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nets.g3fa import G3fa
from ..nets.inference import optimise
from .timing import machine, race, write_json

GOAL = 0.55
"""Optimised over straightforward, at most."""


def main(*, real: Path | None = None, output: Path | None = None) -> dict[str, Any]:
    """Measure, print the table, and write g3fa.json to `output`. `real` is not used."""
    results: dict[str, Any] = {"machine": machine()}
    facts = results["machine"]
    print(
        f"G3FA, 256 x 256; {facts['threads']} threads of {facts['cores']} x {facts['processor']}, load {facts['load']}"
    )
    with torch.inference_mode():
        model = _model()
        fast = optimise(model)
        source, driving = _picture(0), _picture(1)
        contenders = _contenders(model, fast, source, driving)
        first, *others = (run() for run in contenders.values())
        results["largest_difference"] = max(float((first - other).abs().max()) for other in others)
        timings = race(contenders, rounds=9, seconds=90)
    results["timings"] = timings
    results["ratio"] = {n: t.median / timings["straightforward"].median for n, t in timings.items()}
    results["processor_ratio"] = {n: t.processor / timings["straightforward"].processor for n, t in timings.items()}
    print("ms a frame (median ± half IQR), share of straightforward, processor ms, share\n")
    for name, timing in timings.items():
        ratio, share = results["ratio"][name], results["processor_ratio"][name]
        print(f"{name:16} {timing!s:>20} {ratio:6.3f} {timing.processor:10.0f} {share:6.3f}")
    print(f"\ngoal: {GOAL}; largest difference between the pictures {results['largest_difference']:.1e}")
    if output is not None:
        print(f"wrote {write_json(output, 'g3fa', results)}")
    return results


def _contenders(model: G3fa, fast: G3fa, source: Tensor, driving: Tensor) -> dict[str, Callable[[], Tensor]]:
    kept, kept_fast = model.encode_source(source), fast.encode_source(source)

    def straightforward() -> Tensor:
        state = model.generator.encode(source, kept.motion)  # the demo keeps the source's keypoints
        return model.render(state, model.read_motion(driving)).image

    return {
        "straightforward": straightforward,
        "cached": lambda: model.render(kept, model.read_motion(driving)).image,
        "optimised": lambda: fast.render(kept_fast, fast.read_motion(driving)).image,
    }


def _model() -> G3fa:
    torch.manual_seed(0)
    model = G3fa().eval()
    for norm in model.modules():  # no norm is the identity, as after training
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d) and norm.running_mean is not None:
            norm.running_mean.normal_(0, 0.1)
            nn.init.uniform_(norm.weight, 0.8, 1.2)
    return model


def _picture(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    return nn.functional.interpolate(coarse, (256, 256), mode="bicubic", align_corners=False).clamp(0, 1)
