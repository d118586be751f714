"""The observation model's file fits the head that comes with the package."""

from __future__ import annotations

import numpy as np
from safetensors import safe_open

from headwarp.fitting.reading import ASSET, made_for, reading_for
from headwarp.geom import arkit


def test_the_file_was_made_for_this_head(head):
    """If this fails the head or its landmarks changed: run assets/build_landmark_reading.py."""
    with safe_open(ASSET, framework="np") as file:
        metadata = file.metadata()
    for key, value in made_for(head).items():
        assert metadata[key] == value, f"{ASSET.name} was made for another head ({key})"


def test_what_was_measured_is_plausible(head):
    reading = reading_for(head)
    assert reading is not None
    embedding = head.embeddings["mediapipe"]
    points = embedding.points(head.v_template[None])[0].numpy()
    places = np.full((478, 3), np.nan)
    places[:468] = reading.places
    away = np.linalg.norm(places[embedding.indices.numpy()] - points, axis=1)
    assert np.nanmedian(away) < 4e-3
    assert np.nanmax(away) < 15e-3
    # mirrored data: left and right must be mirror images of each other
    names = [name for name in arkit.NAMES if name.endswith("Left") and not name.startswith("eyeLook")]
    for name in names:
        left = np.abs(reading.units[..., arkit.INDEX[name]]).sum()
        right = np.abs(reading.units[..., arkit.INDEX[name.replace("Left", "Right")]]).sum()
        np.testing.assert_allclose(left, right, rtol=0.02, atol=1e-4)
    assert reading.noise.min() > 1e-4
    assert reading.noise.max() < 5e-3


def test_heads_that_nothing_was_measured_for_have_none(head):
    import copy

    other = copy.copy(head)
    other.name = "somebody's"
    assert reading_for(other) is None
