"""A toy method under the name `toy`, and small data sets."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.track import FaceTrack
from headwarp.media.image import save_image
from headwarp.media.video import VideoWriter
from headwarp.nets.model_file import METHODS
from headwarp.training.steps import STEPS


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tests/training/toy.py, known to the package."""
    spec = importlib.util.spec_from_file_location("headwarp_toy", Path(__file__).with_name("toy.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "headwarp_toy", module)
    spec.loader.exec_module(module)
    for name in ("headwarp.nets.toy", "headwarp.training.steps.toy"):
        monkeypatch.setitem(sys.modules, name, module)
    for names in (METHODS, STEPS):
        monkeypatch.setitem(names, "toy", "")
    module.register()
    return module


def blocks(rng: np.random.Generator, size: int = 16) -> np.ndarray:
    """(size, size, 3) uint8 of random squares: nothing that a video codec or JPEG would lose much of."""
    return np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((size // 4, size // 4, 1))).astype(np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """FOMM's kind of data set: 4 clips of 3 people to train on, 1 for testing, 6 pictures of 16 x 16 each."""
    rng = np.random.default_rng(0)
    for name in ("train/id0#a#1", "train/id0#b#1", "train/id1#a#1", "train/id2#a#1", "test/id3#a#1"):
        for frame in range(6):
            save_image(tmp_path / "pictures" / name / f"{frame:07d}.png", blocks(rng))
    return tmp_path / "pictures"


@pytest.fixture(scope="session")
def head() -> HeadModel:
    return load_head()


def _make_track(head: HeadModel, frames: int, *, camera: Camera | None = None, seed: int = 0) -> FaceTrack:
    generator = torch.Generator().manual_seed(seed)
    zeros = HeadParams.zeros(head, frames)
    params = {name: torch.randn(value.shape, generator=generator) for name, value in zeros.asdict().items()}
    params["translation"] = torch.tensor([0.01, 0.02, -0.9]).repeat(frames, 1)
    return FaceTrack(
        params=HeadParams(**params),
        camera=camera or Camera(torch.tensor([400.0]), torch.tensor([[100.0, 50.0]])),
        landmarks=torch.rand(frames, 478, 3, generator=generator) * 100,
        confidence=torch.ones(frames),
        blendshapes=torch.rand(frames, 52, generator=generator),
        times=torch.arange(frames) / 25,
        crop=torch.stack([torch.full((frames,), 0.8), torch.arange(frames) * 0.5, torch.full((frames,), -3.0)], -1),
        fps=25.0,
        image_size=(100, 200),
        head_name=head.name,
        head_sha256=head.sha256,
    )


@pytest.fixture
def make_track(head: HeadModel) -> Callable[..., FaceTrack]:
    """make_track(frames) -> a track with random content; its crop leads from 200 x 100 pixels to those of a clip."""
    return partial(_make_track, head)


@pytest.fixture
def make_clip() -> Callable[..., np.ndarray]:
    """make_clip(folder, track, frames) writes clip.mp4 and clip.safetensors as `headwarp fit` does.

    Returns the pictures (T, 64, 64, 3)."""
    return _make_clip


def _make_clip(folder: Path, track: FaceTrack | None, frames: int, size: int = 64, seed: int = 0) -> np.ndarray:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    images = np.stack([blocks(rng, size) for _ in range(frames)])
    with VideoWriter(folder / "clip.mp4", (size, size), 25) as writer:
        for image in images:
            writer.write(image)
    if track is not None:
        track.save(folder / "clip.safetensors")
    return images
