from __future__ import annotations

import pytest
import torch

from headwarp.geom import arkit


def test_names_are_the_52_units():
    assert len(arkit.NAMES) == len(set(arkit.NAMES)) == 52
    assert (arkit.NAMES[0], arkit.NAMES[17], arkit.NAMES[51]) == ("eyeBlinkLeft", "jawOpen", "tongueOut")


def test_mediapipe_order():
    assert len(arkit.MEDIAPIPE_NAMES) == 52
    # positions as MediaPipe's blend-shape model card lists them
    known = {
        0: "_neutral",
        1: "browDownLeft",
        9: "eyeBlinkLeft",
        25: "jawOpen",
        38: "mouthPucker",
        51: "noseSneerRight",
    }
    assert {i: arkit.MEDIAPIPE_NAMES[i] for i in known} == known


def test_from_mediapipe_moves_every_score_to_its_name():
    scores = torch.arange(52.0).repeat(2, 1)
    weights = arkit.from_mediapipe(scores)
    for i, name in enumerate(arkit.MEDIAPIPE_NAMES[1:], 1):
        assert weights[1, arkit.INDEX[name]] == i
    assert weights[0, arkit.INDEX["tongueOut"]] == 0


def test_weights_from_names():
    weights = arkit.weights_from_names({"jawOpen": 0.5})
    assert weights.shape == (1, 52)
    assert weights.sum() == weights[0, 17] == 0.5
    with pytest.raises(ValueError, match="'smile' is no ARKit face unit"):
        arkit.weights_from_names({"smile": 1.0})
    with pytest.raises(ValueError, match="did you mean mouthSmileLeft"):
        arkit.weights_from_names({"mouthsmile_left": 1.0})
