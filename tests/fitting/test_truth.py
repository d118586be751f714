"""The measure itself: exact parameters have no error, known errors have their size, and pictures are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from headwarp.benchmarks.fit import errors
from headwarp.benchmarks.truth import HEADS, SIZE, Subject, draw
from headwarp.geom.head import HeadParams, load_head
from headwarp.geom.rotation import euler_to_axis_angle
from headwarp.geom.track import FaceTrack


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("truth")


@pytest.fixture(scope="module")
def subject(cache) -> Subject:
    return draw(HEADS[0], cache=cache)


def track_of(subject: Subject, params: HeadParams) -> FaceTrack:
    count = len(params)
    return FaceTrack(
        params=params,
        camera=subject.camera,
        landmarks=torch.zeros(count, 478, 3),
        confidence=torch.ones(count),
        blendshapes=torch.zeros(count, 52),
        times=torch.arange(count) / 25,
        crop=torch.tensor([[1.0, 0.0, 0.0]]).repeat(count, 1),
        fps=25.0,
        image_size=(SIZE, SIZE),
        head_name="open",
        head_sha256="",
    )


def test_the_cache_gives_the_same_subject(subject, cache):
    (path,) = cache.iterdir()
    before = path.stat().st_mtime_ns
    again = draw(HEADS[0], cache=cache)
    assert path.stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.images[0], subject.images[0])
    torch.testing.assert_close(again.params.shape, subject.params.shape, rtol=0, atol=0)
    path.write_bytes(path.read_bytes()[:1000])  # damaged: it is drawn again, and is the same
    np.testing.assert_array_equal(draw(HEADS[0], cache=cache).images[0], subject.images[0])


def test_exact_parameters_have_no_error(subject):
    found = errors(subject, track_of(subject, subject.params))
    for name in ("rotation deg", "jaw deg", "gaze deg", "eyelids", "expression mm", "identity mm", "landmarks %"):
        assert np.all(found[name] < 0.06), name
    assert found["translation across mm"].max() < 1e-3
    assert found["mean head mm"] > 0.5
    assert found["no expression mm"] > 0.1


def test_known_errors_have_their_size(subject):
    """Five degrees of yaw, one of the neck's; a jaw 3 degrees wider; 2 mm to the side."""
    head = load_head()
    true = subject.params.replace(rotation=torch.zeros(1, 3))
    subject = replace(subject, params=true)
    four, one = (euler_to_axis_angle(*torch.tensor([[a], [0.0], [0.0]])) for a in (4.0, 1.0))
    aside = true.translation + torch.tensor([[0.002, 0.0, 0.0]])
    found = errors(subject, track_of(subject, true.replace(rotation=four, neck=one)))
    assert abs(found["rotation deg"][0] - 5) < 1e-3
    found = errors(subject, track_of(subject, true.replace(jaw=true.jaw + torch.tensor([[0.0523599, 0.0, 0.0]]))))
    assert abs(found["jaw deg"][0] - 3) < 0.1
    found = errors(subject, track_of(subject, true.replace(translation=aside)))
    assert abs(found["translation across mm"][0] - 2) < 0.02
    assert found["rotation deg"][0] < 0.05
    found = errors(subject, track_of(subject, true.replace(shape=torch.zeros(1, head.n_shape))))
    np.testing.assert_allclose(found["identity mm"], found["mean head mm"], rtol=1e-5)
