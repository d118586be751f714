"""Who is drawn: deterministic by seed, and colours that occur in people."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headwarp.geom.head import load_head
from headwarp.render.synthetic import noise, sample_appearance, sample_identity, sample_motion
from headwarp.render.synthetic.hair import STYLES, sample_style
from headwarp.render.synthetic.palette import FAMILIES, sample_colouring, skin_colour


@pytest.fixture(scope="module")
def head():
    return load_head()


def test_same_seed_is_the_same_person(head):
    one, two = (sample_appearance(5, head, resolution=128) for _ in range(2))
    assert torch.equal(one.skin, two.skin)
    assert torch.equal(one.face_hair.points, two.face_hair.points)
    assert torch.equal(one.backdrop, two.backdrop)
    assert torch.equal(sample_identity(5, head), sample_identity(5, head))
    assert not torch.equal(sample_identity(5, head), sample_identity(6, head))


def test_detail_does_not_change_the_person(head):
    low, high = (sample_appearance(5, head, resolution=r) for r in (128, 384))
    assert low.style == high.style
    assert low.garment.cut == high.garment.cut
    np.testing.assert_array_equal(low.colouring.skin, high.colouring.skin)
    assert torch.equal(low.lighting.radiance, high.lighting.radiance)
    assert torch.equal(low.backdrop, high.backdrop)
    assert high.skin.shape[1] > low.skin.shape[1]


def test_colours_go_together():
    people = [sample_colouring(np.random.default_rng(k)) for k in range(3000)]
    dark = [p for p in people if p.melanin > 0.7]
    assert len(dark) > 150
    assert {p.iris_name for p in dark} <= {"dark brown", "brown"}
    assert {p.hair_name for p in dark} <= {"black", "dark brown"}
    assert all(p.freckles == 0 for p in dark)
    young = [p for p in people if p.age < 34]
    assert all(p.grey == 0 for p in young)
    old = [p.grey for p in people if p.age > 65]
    assert np.mean(old) > 0.4
    blue = [p.melanin for p in people if p.iris_name == "blue"]
    assert max(blue) < 0.45
    for p in people:
        for colour in (p.skin, p.lips, p.hair, p.brows, p.iris_outer):
            assert ((colour > 0) & (colour <= 1)).all()
        assert p.skin[0] > p.skin[1] > p.skin[2], "skin is redder than green, greener than blue"
        assert p.brows.mean() <= max(p.hair.mean(), 0.2) + 1e-6


def test_every_family_occurs_about_as_often_as_it_says():
    counts = np.bincount(
        [sample_colouring(np.random.default_rng(k)).family for k in range(3000)], minlength=len(FAMILIES)
    )
    np.testing.assert_allclose(counts / 3000, [f.share for f in FAMILIES], atol=0.035)


def test_skin_darkens_with_melanin():
    ramp = np.stack([skin_colour(m) for m in np.linspace(0, 1, 20)])
    assert (np.diff(ramp, axis=0) < 0).all()


def test_tight_curls_are_never_combed_straight():
    rng = np.random.default_rng(0)
    tight = [p for p in (sample_colouring(np.random.default_rng(k)) for k in range(800)) if p.curl > 0.6]
    assert tight
    drawn = {sample_style(rng, p, float(rng.random())) for p in tight}
    assert drawn.isdisjoint({"bob", "long", "slick", "parted"})


def test_unknown_style_names_the_known_ones(head):
    with pytest.raises(ValueError, match="afro"):
        sample_appearance(0, head, resolution=128, style="mohawk")
    assert "mohawk" not in STYLES


def test_noise_is_centred_and_bounded():
    points = np.random.default_rng(0).random((20000, 3)) * 0.2
    values = noise.fractal(points, 100, 4, seed=3)
    assert abs(values.mean()) < 0.01
    assert 0.1 < values.std() < 0.25
    assert np.abs(values).max() <= 1
    assert np.array_equal(values, noise.fractal(points, 100, 4, seed=3))
    assert not np.array_equal(values, noise.fractal(points, 100, 4, seed=4))
    # Continuous: a step of a hundredth of a cell changes little.
    assert np.abs(noise.fractal(points + 1e-4, 100, 1) - noise.fractal(points, 100, 1)).max() < 0.06


def test_motion_is_smooth_plausible_and_repeatable(head):
    params = sample_motion(3, 150, 25.0, head)
    assert len(params) == 150
    again = sample_motion(3, 150, 25.0, head)
    assert all(torch.equal(a, b) for a, b in zip(params.asdict().values(), again.asdict().values(), strict=True))
    assert params.neck.norm(dim=1).max() < np.radians(50)
    assert params.neck.diff(dim=0).norm(dim=1).max() < np.radians(5), "no head jumps five degrees in 40 ms"
    assert params.eyelids.min() >= 0
    assert params.eyelids.max() > 0.9, "six seconds without a blink"
    assert params.jaw[:, 0].max() > np.radians(2), "six seconds without a word"
    assert params.eyes.abs().max() < np.radians(45)


def test_motion_wants_frames(head):
    with pytest.raises(ValueError, match="frames"):
        sample_motion(0, 0, 25.0, head)
