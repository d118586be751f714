"""How well keypoint models turn heads far, and whether what they make has the right depth and normals.

    headwarp synth -o SET --size 64 --scale 1.15 1.3 --fps 4 --frames 8 --turn 2 --clips 40 --seed 11 \\
        --split test --truth
    python -m headwarp.benchmarks.turned SET READER none=A.safetensors ours=B.safetensors

READER is a model of Unsup3D (configs/unsup3d_synthetic.yaml): SIDE and MAD are of the depth that it reads from a
result, against the exact depth of the true frame. In every clip the frame nearest to the front is the source, and the
others drive.
Of the last model minus the first stand differences with 95 % intervals, people drawn with replacement.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geom.rotation import axis_angle_to_euler, axis_angle_to_matrix, matrix_to_axis_angle
from ..media.errors import InputError
from ..nets.dagan import DaGan
from ..nets.fomm import Fomm
from ..nets.model_file import load_model
from ..nets.unsup3d import Unsup3d
from ..training.batch import View
from ..training.data.clips import find_clips
from ..training.data.frames import FrameStore
from ..training.data.source import Request
from ..training.steps.pwm import psnr
from ..training.steps.unsup3d import Unsup3dStep, depth_errors

NAMES = ("L1", "PSNR", "SIDE", "MAD")


@torch.inference_mode()
def main(data: Path, reader: Path, models: dict[str, Path]) -> None:
    """Print the tables of the module's docstring."""
    unsup3d = load_model(reader)
    if not isinstance(unsup3d, Unsup3d):
        raise InputError(f"{reader} is no model of Unsup3D.")
    side = unsup3d.config.image_size
    source, driving, turn, people = pairs(data, side)

    def judge(image: Tensor) -> NDArray[np.float64]:
        rendered = unsup3d.render(unsup3d.factors(image))
        errors = depth_errors(rendered.depth, driving, unsup3d.camera, rendered.mask)
        l1 = (image - driving.image).abs().mean((1, 2, 3))
        values = [l1, psnr(image, driving.image), errors["side"], errors["mad"]]
        return torch.stack(values, 1).double().numpy()

    rows = {"true frame": judge(driving.image), "source": judge(source.image)}
    rows |= {name: judge(moved(load_model(path), source.image, driving.image)) for name, path in models.items()}
    for title, chosen in {"all pairs": turn >= 0, "turned 30 degrees or more": turn >= 30}.items():
        print(f"{title} ({chosen.sum()})", *NAMES, sep="\t")
        for name, values in rows.items():
            print(name, *(f"{value:.4f}" for value in values[chosen].mean(0)), sep="\t")
        if len(models) > 1:
            change = (rows[list(models)[-1]] - rows[next(iter(models))])[chosen]
            low, high = interval(change, people[chosen])
            print(
                "change",
                *(f"{m:+.4f} [{a:+.4f}, {b:+.4f}]" for m, a, b in zip(change.mean(0), low, high, strict=True)),
                sep="\t",
            )


def pairs(data: Path, side: int) -> tuple[View, View, NDArray[np.float64], NDArray[np.int64]]:
    """Sources, driving frames, degrees of yaw between them, and numbers of the clips."""
    request = Request((side, side), 2, truth=Unsup3dStep.truth)
    sources, drivers, turns, people = [], [], [], []
    for number, clip in enumerate(find_clips(data, FrameStore((side, side), data, 0))):
        views = clip.views(range(len(clip)), request)
        poses = torch.cat([_angles(view) for view in views])
        front = int(poses.abs().sum(1).argmin())
        for k in range(len(views)):
            if k != front:
                sources.append(views[front])
                drivers.append(views[k])
                turns.append(abs(float(poses[k, 0] - poses[front, 0])))
                people.append(number)
    return View.cat(sources).to("cpu"), View.cat(drivers).to("cpu"), np.array(turns), np.array(people)


def moved(model: torch.nn.Module, source: Tensor, driving: Tensor) -> Tensor:
    """The sources with the motion of the driving frames, absolute."""
    if not isinstance(model, Fomm | DaGan):
        raise InputError("benchmarks.turned: only models of FOMM and DaGAN can be judged.")

    def render(s: Tensor, d: Tensor) -> Tensor:
        image: Tensor = model.render(model.encode_source(s), model.read_motion(d)).image
        return image

    return torch.cat([render(s, d) for s, d in zip(source.split(32), driving.split(32), strict=True)])


def interval(change: NDArray[np.float64], people: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % interval of the mean, people drawn with replacement."""
    rng = np.random.default_rng(0)
    each = [change[people == person] for person in np.unique(people)]
    means = [np.concatenate([each[i] for i in rng.integers(len(each), size=len(each))]).mean(0) for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


def _angles(view: View) -> Tensor:
    """(1, 3) yaw, pitch, roll of the head in degrees, the neck's included."""
    assert view.params is not None
    turn = axis_angle_to_matrix(view.params.rotation) @ axis_angle_to_matrix(view.params.neck)
    return axis_angle_to_euler(matrix_to_axis_angle(turn))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keypoint models on heads that turn far.")
    parser.add_argument("data", type=Path)
    parser.add_argument("reader", type=Path)
    parser.add_argument("models", nargs="+", help="NAME=FILE")
    given = parser.parse_args()
    main(given.data, given.reader, {n: Path(p) for n, p in (m.split("=", 1) for m in given.models)})
