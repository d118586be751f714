"""What scale transformation (ST) and scale embedding (SE) do for FOMM and DaGAN: OSTNet's tables 1, 2 and 5 in small.

    headwarp bench scale -o OUT

Draws synthetic people into OUT/data, trains the models of configs/fomm_scale_small.yaml and dagan_scale_small.yaml with
and without the two parts, and a FOMM that never sees a stretched frame, same budget, seed and samples, into OUT/NAME,
and judges them on people that none has seen: each driving frame as it is (same scale), and stretched twice (different
scale); the truth is the frame unstretched. Runs that were begun go on, finished ones are only judged. `main` takes
other budgets.

Beside the models: `source`, the source unmoved, and `driving`, the frame that was given, stretched or not. How far the
keypoints that drive lie from those of the truth is told beside them: it needs no picture, and so no trained generator.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluation.metrics import l1, psnr, ssim
from ..media.image import save_image
from ..media.sheet import contact_sheet
from ..nets.model_file import load_model
from ..nets.ostnet import OstNet
from ..nets.scale import ScaledMotion, stretch
from ..training.batch import Batch
from ..training.config import read_config
from ..training.data import Request, open_held_out
from ..training.engine import train
from ..training.steps.ostnet import fixed_stretches, reenact
from ..training.synthetic_set import SetRecipe, write_set
from .timing import machine, write_json

WITHOUT = ("model_params.scale_transform=false", "model_params.scale_embedding=false")
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fomm": ("fomm_scale_small", WITHOUT),
    "fomm+ST+SE": ("fomm_scale_small", ()),
    "dagan": ("dagan_scale_small", WITHOUT),
    "dagan+ST+SE": ("dagan_scale_small", ()),
    "fomm-plain": ("fomm_scale_small", (*WITHOUT, "stretch=0")),
}
"""Configuration and settings. "-plain" never sees a stretched frame in training, the others all do."""
METRICS = {"l1": l1, "psnr": psnr, "ssim": ssim}
STRETCHES = 2
"""Stretched versions of a pair, as in the paper's 4,166 pairs of 2,083."""
SHEET_ROWS = 6


@dataclass
class Scores:
    """What each picture of a method got: metric -> (pairs,), the stretched ones one after the other."""

    same: dict[str, list[Tensor]] = field(default_factory=dict)
    different: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, image: Tensor, truth: Tensor, *, stretched: bool) -> None:
        into = self.different if stretched else self.same
        for name, formula in METRICS.items():
            into.setdefault(name, []).append(formula(image, truth))

    def values(self, metric: str, *, stretched: bool) -> Tensor:
        """(pairs,) or (pairs * STRETCHES,)."""
        return torch.cat((self.different if stretched else self.same)[metric])

    def means(self) -> dict[str, dict[str, float]]:
        return {
            table: {name: float(torch.cat(parts).mean()) for name, parts in scores.items()}
            for table, scores in (("same scale", self.same), ("different scale", self.different))
        }


def main(
    *,
    real: Path | None = None,
    output: Path | None = None,
    models: Sequence[str] = tuple(MODELS),
    people: int = 160,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Train, judge, print the tables, and write scale.json and scale.png to `output`.

    Args:
        real: not used; real clips are judged by `headwarp evaluate --protocol scale`.
        output: folder that keeps data and runs.
        models: names in `MODELS`.
        people: of the training data.
        settings: for all trainings, such as train_params.iterations=1000.
    """
    with tempfile.TemporaryDirectory() if output is None else nullcontext(output) as kept:
        folder = Path(kept)
        for split, clips in (("train", people), ("test", 32)):
            recipe = SetRecipe(frames=10, fps=2.5, size=64, split=split)  # type: ignore[arg-type]
            if not write_set(folder / "data", clips, recipe):
                raise RuntimeError(f"Some clips of {folder / 'data'} could not be drawn; its report says why.")
        networks: dict[str, OstNet] = {}
        data = [f"dataset_params.root_dir={folder / 'data'}", f"dataset_params.cache_dir={folder / 'frames'}"]
        for name in models:
            config, switches = MODELS[name]
            chosen = read_config(config, [*data, *switches, *settings])
            train(chosen, folder / name)
            network = load_model(folder / name / "model.safetensors")
            assert isinstance(network, OstNet)
            networks[name] = network
        request = Request(chosen.dataset_params.size)
        held_out = open_held_out(chosen.dataset_params, request, 32)["test"]
        random = np.random.default_rng(0)
        samples = [held_out.sample(index, random) for index in range(len(held_out))]
        scores = judge(networks, samples)
        report = {"machine": machine(), "pairs": len(samples), "settings": list(settings), "people": people}
        report |= {"means": {name: found.means() for name, found in scores.items()}}
        report["keypoints"] = keypoint_errors(networks, samples)
        report["gains"] = _gains(scores, [sample.clips[0].split(" ")[0] for sample in samples])
        _print(report)
        if output is not None:
            save_image(output / "scale.png", sheet(networks, samples))
            print(f"wrote {write_json(output, 'scale', report)} and scale.png")
    return report


@torch.no_grad()
def judge(networks: Mapping[str, OstNet], samples: Sequence[Batch], batch: int = 16) -> dict[str, Scores]:
    """Both protocols for models and for what they have to beat.

    Args:
        samples: [source, driving], batches of one; sample k is stretched alike for all models, in all calls.
    """
    names = [*networks, "source", "driving", *(f"{n} rectified" for n, m in networks.items() if m.transformation)]
    scores = {name: Scores() for name in names}
    factors = fixed_stretches(STRETCHES * len(samples)).unflatten(0, (STRETCHES, -1))
    for version in range(-1, STRETCHES):
        stretched = version >= 0
        for first in range(0, len(samples), batch):
            part = Batch.cat(samples[first : first + batch]).to("cpu")
            source, truth = part.source.image, part.driving.image
            driving = truth
            if stretched:
                width, height = factors[version, first : first + len(part)].unbind(1)
                driving = stretch(truth, width, height)
            scores["source"].add(source, truth, stretched=stretched)
            scores["driving"].add(driving, truth, stretched=stretched)
            for name, network in networks.items():
                made, motion = reenact(network, source, driving)
                scores[name].add(made.image, truth, stretched=stretched)
                if isinstance(motion, ScaledMotion) and motion.rectified is not None:
                    scores[f"{name} rectified"].add(motion.rectified, truth, stretched=stretched)
    return scores


@torch.no_grad()
def keypoint_errors(
    networks: Mapping[str, OstNet], samples: Sequence[Batch], batch: int = 16
) -> dict[str, list[float]]:
    """Mean distance of the keypoints that drive, read from stretched frames, to those that the same network reads from
    the truth, in % of the picture's width: [of the stretched frame itself, of what the network makes of it]."""
    factors = fixed_stretches(len(samples))
    sums = {name: [0.0, 0.0] for name in networks}
    for first in range(0, len(samples), batch):
        part = Batch.cat(samples[first : first + batch]).to("cpu")
        truth = part.driving.image
        driving = stretch(truth, *factors[first : first + len(part)].unbind(1))
        for name, network in networks.items():
            state = network.encode_source(part.source.image)
            wanted = network.read_motion(truth).value
            for i, found in enumerate((network.read_motion(driving), network.read_motion(driving, state))):
                sums[name][i] += float((found.value - wanted).norm(dim=-1).mean(1).sum()) * 50
    return {name: [value / len(samples) for value in values] for name, values in sums.items()}


@torch.no_grad()
def sheet(networks: Mapping[str, OstNet], samples: Sequence[Batch]) -> np.ndarray:
    """Source, truth, stretched driving frame, and for each model the rectified one and the result."""
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, SHEET_ROWS).round().astype(int)]
    part = Batch.cat(chosen).to("cpu")
    source, truth = part.source.image, part.driving.image
    strong = torch.tensor([[0.7, 1.3], [1.3, 0.7], [0.75, 1.1], [1.1, 0.75], [0.8, 1.2], [1.2, 0.8]])
    driving = stretch(truth, *strong[: len(truth)].unbind(1))
    columns = {"source": source, "truth": truth, "driving": driving}
    for name, network in networks.items():
        made, motion = reenact(network, source, driving)
        if isinstance(motion, ScaledMotion) and motion.rectified is not None:
            columns[f"{name}: rectified"] = motion.rectified
        columns[name] = made.image
    cells = [(c.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy() for c in columns.values()]
    return contact_sheet([list(row) for row in zip(*cells, strict=True)], columns=list(columns), cell=160)


def _gains(scores: Mapping[str, Scores], clips: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Of each model with the parts over the same without: mean paired difference and its 95 % interval, by people."""
    people = np.array(clips)
    gains: dict[str, dict[str, list[float]]] = {}
    for name in scores:
        base = name.removesuffix("+ST+SE")
        against = [other for other in (base, f"{base}-plain") if other in scores and base != name]
        for other, (stretched, table) in product(against, ((False, "same scale"), (True, "different scale"))):
            repeats = STRETCHES if stretched else 1
            for metric in METRICS:
                with_parts = scores[name].values(metric, stretched=stretched)
                change = (with_parts - scores[other].values(metric, stretched=stretched)).view(repeats, -1).mean(0)
                each = np.array([change[torch.from_numpy(people == person)].mean() for person in np.unique(people)])
                drawn = np.random.default_rng(0).choice(each, (4000, len(each))).mean(1)
                interval = np.quantile(drawn, [0.025, 0.975]).tolist()
                gains.setdefault(f"{name} over {other}, {table}", {})[metric] = [float(each.mean()), *interval]
    return gains


def _print(report: Mapping[str, Any]) -> None:
    for table in ("same scale", "different scale"):
        print(f"{table:24}" + "".join(f"{metric:>9}" for metric in METRICS))
        for name, means in report["means"].items():
            print(f"  {name:22}" + "".join(f"{means[table][metric]:9.3f}" for metric in METRICS))
    for name, (seen, drive) in report["keypoints"].items():
        print(f"{name}: keypoints of stretched frames {seen:.2f} % of the width off, those that drive {drive:.2f} %")
    for name, gains in report["gains"].items():
        told = ", ".join(
            f"{metric} {mean:+.3f} [{low:+.3f}, {high:+.3f}]" for metric, (mean, low, high) in gains.items()
        )
        print(f"gain {name}: {told}")
