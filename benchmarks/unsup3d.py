"""How well Unsup3D knows a face's depth: SIDE and MAD on synthetic people, whose depth is exact.

    python -m headwarp.benchmarks.unsup3d [MODEL] [--pictures N] [--turn 2] [-o OUT]

As the table of Wu et al. (2020): scale-invariant depth error times 100 and mean angle deviation in degrees, mean ± std
over pictures, on the face (hair and clothes have no exact depth). All methods are judged in the picture's own view.
Baselines know no picture:

- constant: a plane
- random: a smooth random surface with the depth range of faces, another for every picture
- average: the mean true depth of as many other people's pictures, seen at their places
- untrained: a model of the same settings before training
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets.model_file import load_model
from ..nets.unsup3d import Unsup3d, Unsup3dConfig
from ..training.batch import Batch, View
from ..training.data.source import Request
from ..training.steps.unsup3d import depth_errors, true_depth
from ..training.synthetic import SyntheticParams, SyntheticPeople
from .timing import write_json

SCALE = (1.15, 1.3)
"""Side of the crops in face sizes, as configs/unsup3d_synthetic.yaml."""


def main(
    *,
    real: Path | None = None,
    output: Path | None = None,
    model: Path | None = None,
    pictures: int = 64,
    turn: float = 2.0,
) -> dict[str, Any]:
    """Judge a model and the baselines, print the table, and write unsup3d.json to `output`. `real` is not used.

    Args:
        turn: how far the people turn, as `headwarp synth --turn`; that of the training is 2.
    """
    trained = None if model is None else load_model(model)
    if trained is not None and not isinstance(trained, Unsup3d):
        raise ValueError(f"{model} is no model of Unsup3D.")
    config = Unsup3dConfig(width=16, code=64) if trained is None else trained.config
    torch.manual_seed(0)
    untrained = Unsup3d(config).eval()
    view, others = (_people(split, pictures, config.image_size, turn) for split in ("test", "train"))
    rows: dict[str, Callable[[View], tuple[Tensor, Tensor | None]]] = {
        "constant": lambda v: (torch.ones(len(v.image), 1, *v.image.shape[2:]), None),
        "random": lambda v: (_random(len(v.image), config.image_size), None),
        "average": lambda v: (_average(others, untrained).expand(len(v.image), -1, -1, -1), None),
        "untrained": lambda v: _seen(untrained, v.image),
    }
    if trained is not None:
        rows["unsup3d"] = lambda v: _seen(trained, v.image)
    results: dict[str, Any] = {
        "pictures": pictures,
        "turn": turn,
        "model": None if model is None else model.name,
        "rows": {},
    }
    print(f"Unsup3D on {pictures} held-out synthetic people, {config.image_size} x {config.image_size}")
    print(f"{'':10} SIDE x 100       MAD degrees")
    for name, guess in rows.items():
        with torch.no_grad():
            depth, covered = guess(view)
            errors = depth_errors(depth, view, untrained.camera, covered)
        row = {k: {"mean": v.mean().item(), "std": v.std().item()} for k, v in errors.items()}
        results["rows"][name] = row
        print(f"{name:10}", *(f"{r['mean']:7.3f} ± {r['std']:6.3f}" for r in row.values()))
    if output is not None:
        print(f"wrote {write_json(output, 'unsup3d', results)}")
    return results


def _seen(model: Unsup3d, image: Tensor) -> tuple[Tensor, Tensor]:
    """The reconstructed depth in the picture's view, and where there is any."""
    rendered = model.render(model.factors(image))
    return rendered.depth, rendered.mask


def _random(count: int, size: int) -> Tensor:
    coarse = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    return 1 + 0.02 * smooth


def _average(others: View, model: Unsup3d) -> Tensor:
    """(1, 1, S, S) mean depth over the pictures that show a face there; where none does, the nearest face's."""
    depth, mask = true_depth(others, model.camera)
    count = mask.sum(0, keepdim=True)
    mean = (depth * mask).sum(0, keepdim=True) / count.clamp_min(1)
    known = count > 0
    while not known.all():  # spread outwards
        weight = F.avg_pool2d(known.float(), 3, 1, 1)
        spread = F.avg_pool2d(mean * known, 3, 1, 1) / weight.clamp_min(1e-6)
        mean = torch.where(known, mean, spread)
        known = known | (weight > 0)
    return mean


def _people(split: Any, pictures: int, size: int, turn: float) -> View:
    request = Request((size, size), 2, frozenset({"depth", "segmentation"}))
    params = SyntheticParams(people=pictures, held_out=pictures, seed=1, scale=SCALE, turn=turn)
    people = SyntheticPeople(params, request, split)
    samples = [people.sample(i, np.random.default_rng(i)) for i in range(pictures)]
    return Batch.cat(samples).to("cpu").source


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="SIDE and MAD of Unsup3D and of baselines, on synthetic people.")
    parser.add_argument("model", type=Path, nargs="?", help="model file of the kind unsup3d; none: only baselines")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--turn", type=float, default=2.0)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    main(model=given.model, pictures=given.pictures, output=given.output, turn=given.turn)
