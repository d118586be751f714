"""A small data set: two people's clips of rendered pictures, in the layout of `headwarp fit` and in FOMM's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headwarp.assets import example
from headwarp.evaluation.backbones import Features
from headwarp.evaluation.suite import Suite
from headwarp.media.image import load_image, save_image
from headwarp.media.video import VideoReader

SIZE = 192
"""Pixels; the smallest that five scales of SSIM take is 176."""
FRAMES = (0, 12, 24, 36)
"""Of the example clip."""


@pytest.fixture(scope="session")
def frames() -> list[np.ndarray]:
    """Four pictures (192, 192, 3) of the package's example clip."""
    wanted = set(FRAMES)
    found = [f.image for f in VideoReader(example("driving.mp4"), max_side=SIZE) if f.index in wanted]
    assert len(found) == len(FRAMES)
    return found


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, frames: list[np.ndarray]) -> Path:
    """FOMM's layout: test/id1#a.mp4/*.png, two of them mirrored as id2#b.mp4; a clip in train/ must not count."""
    root = tmp_path_factory.mktemp("fomm")
    for number, frame in enumerate(frames):
        save_image(root / "test" / "id1#a.mp4" / f"{10 * number:07d}.png", frame)
        if number % 3 == 0:
            save_image(root / "test" / "id2#b.mp4" / f"{number:07d}.png", np.ascontiguousarray(frame[:, ::-1]))
        save_image(root / "train" / "id3#c.mp4" / f"{number:07d}.png", frame)
    return root


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    return load_image(example("portrait.png"))


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """The metrics without anybody's weights; features are kept for all tests."""
    empty = tmp_path_factory.mktemp("weights")
    return Suite(Features(tmp_path_factory.mktemp("features")), empty)
