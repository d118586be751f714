"""The refiner's step: frames made by the animator within the step, on real pictures of synthetic people."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from headwarp.training.config import read_config
from headwarp.training.data import Request, open_training
from headwarp.training.engine import train
from headwarp.training.steps.refiner import RefinerSettings, RefinerStep
from headwarp.training.synthetic_set import SetRecipe, write_set


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    assert write_set(folder, 2, SetRecipe(frames=7, size=128, people=2, fps=5), workers=1, progress=False)
    return folder


def settings(people: Path, *more: str) -> list[str]:
    return [
        f"dataset_params.root_dir={people}", "dataset_params.sources=[]", "dataset_params.frame_shape=[128,128,3]",
        f"dataset_params.cache_dir={people / 'cache'}", "train_params.batch_size=1", "window=64",
        "model_params.size=128", "model_params.base_channels=8", "model_params.max_channels=16", *more,
    ]  # fmt: skip


def test_the_animator_draws_what_the_network_starts_from(people: Path):
    step = RefinerStep(RefinerSettings())
    config = read_config("refiner", settings(people))
    source = open_training(config.dataset_params, Request((128, 128), step.moments, step.needs))
    batch = source.sample(0, np.random.default_rng(0)).to("cpu")
    drawn = step.draw(batch, 2)
    assert drawn.picture.shape == drawn.target.shape == (5, 3, 128, 128)
    assert drawn.clues.shape == (5, 12, 64, 64)
    torch.testing.assert_close(drawn.target[2], batch.views[3].image[0])
    moved = (batch.views[2].image - drawn.target).square().mean()
    assert (drawn.picture - drawn.target).square().mean() < 0.6 * moved
    torch.manual_seed(0)
    part = drawn.windows(48)
    assert part.picture.shape == (5, 3, 48, 48)
    assert part.clues.shape == (5, 12, 24, 24)
    assert drawn.windows(500).picture.shape == drawn.picture.shape


def test_eyes_and_mouth_count_more(people: Path):
    step = RefinerStep(read_config("refiner", settings(people)).settings)
    source = open_training(read_config("refiner", settings(people)).dataset_params, Request((128, 128), 6, step.needs))
    drawn = step.draw(source.sample(0, np.random.default_rng(0)).to("cpu"), 0)
    share = drawn.features.mean((1, 2, 3))
    assert ((share > 0.01) & (share < 0.25)).all()
    torch.manual_seed(0)
    for _ in range(5):
        assert (drawn.windows(48).features.sum((1, 2, 3)) > 0).all()  # every window shows some of them


def test_a_run_judges_itself_beside_the_animator(people: Path, tmp_path: Path):
    more = settings(
        people, "train_params.iterations=2", "train_params.milestones=[]", "log_params.validation_freq=2",
        "dataset_params.hold_out.clips=['synthetic-00001#000']",
    )  # fmt: skip
    train(read_config("refiner", more), tmp_path / "run", progress=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (judged,) = [row["validation"]["test"] for row in rows if "validation" in row]
    assert {"l1", "psnr", "perceptual", "l1_geometric", "psnr_geometric", "perceptual_geometric"} <= judged.keys()
    assert (tmp_path / "run" / "model.safetensors").exists()
