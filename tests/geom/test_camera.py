from __future__ import annotations

import pytest
import torch

from headwarp.geom.camera import (
    Camera,
    WeakPerspective,
    apply_crop,
    invert_crop,
    ndc_to_pixels,
    pixels_to_ndc,
)

SIZE = (24, 40)


def cameras() -> list[Camera | WeakPerspective]:
    focal, principal = torch.tensor([50.0, 60.0]), torch.tensor([[20.0, 12.0], [17.5, 9.0]])
    return [Camera(focal, principal), WeakPerspective(focal * 5, principal, 3.0)]


def points(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 7, 3, generator=generator) * 0.1 - torch.tensor([0.0, 0.0, 0.9])


@pytest.mark.parametrize("camera", cameras(), ids=["perspective", "weak"])
def test_unproject_inverts_project(camera):
    p = points()
    torch.testing.assert_close(camera.unproject(camera.project(p)), p, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("camera", cameras(), ids=["perspective", "weak"])
def test_crop_is_the_same_picture_scaled_and_shifted(camera):
    transform = torch.tensor([[1.5, 3.0, -4.0], [0.5, -1.0, 2.0]])
    seen = camera.project(points())
    expected = torch.cat([apply_crop(transform, seen[..., :2]), seen[..., 2:]], -1)
    torch.testing.assert_close(camera.crop(transform).project(points()), expected)
    back = camera.crop(transform).crop(invert_crop(transform))
    torch.testing.assert_close(back.project(points()), seen, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("camera", cameras(), ids=["perspective", "weak"])
def test_depth_is_positive_and_grows_away_from_the_viewer(camera):
    near = torch.tensor([[[0.0, 0.0, -0.8]]])
    far = torch.tensor([[[0.0, 0.0, -1.2]]])
    a, b = (camera[0].project(p)[0, 0, 2] for p in (near, far))
    assert 0 < a < b


@pytest.mark.parametrize("camera", cameras(), ids=["perspective", "weak"])
def test_indexing_keeps_the_batch_axis(camera):
    assert len(camera[1]) == len(camera[-1]) == len(camera[:1]) == 1
    torch.testing.assert_close(camera[-1].principal, camera.principal[1:])


def test_one_camera_serves_a_batch():
    single = cameras()[0][0]
    torch.testing.assert_close(single.project(points())[:1], single.project(points()[:1]))


def test_ndc_is_the_picture_from_minus_one_to_one():
    corners = torch.tensor([[[0.0, 0.0, 1.0], [40.0, 24.0, 1.0], [20.5, 12.5, 2.0]]])
    ndc = pixels_to_ndc(corners, SIZE)
    torch.testing.assert_close(ndc[0, :2], torch.tensor([[-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]]))
    assert ndc[0, 2].tolist() == pytest.approx([(2 * 20 + 1) / 40 - 1, (2 * 12 + 1) / 24 - 1, 2.0], abs=1e-6)
    torch.testing.assert_close(ndc_to_pixels(ndc, SIZE), corners)


def test_field_of_view_spans_the_longer_side():
    camera = Camera.portrait(SIZE, field_of_view=30.0)
    half = 0.9 * torch.tan(torch.deg2rad(torch.tensor(15.0))).item()
    seen = camera.project(torch.tensor([[[half, 0.0, -0.9], [-half, 0.0, -0.9]]]))
    assert seen[0, :, 0].tolist() == pytest.approx([40.0, 0.0], abs=1e-4)


def test_deca_camera_round_trip_and_formula():
    cam = torch.tensor([[8.0, 0.02, -0.03], [9.0, 0.0, 0.01]])
    camera = WeakPerspective.from_deca(cam, (224, 224))
    p = points()
    expected = cam[:, None, :1] * (p[..., :2] + cam[:, None, 1:]) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(camera.ndc(p, (224, 224))[..., :2], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(camera.to_deca((224, 224)), cam, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="square crop"):
        WeakPerspective.from_deca(cam, SIZE)


def test_apply_crop_scales_a_third_column():
    moved = apply_crop((2.0, 5.0, 7.0), torch.tensor([[1.0, 1.0, 3.0]]))
    assert moved.tolist() == [[7.0, 9.0, 6.0]]


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"focal must be \(B,\)"):
        Camera(torch.ones(2), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"points must be \(B, N, 3\), got \(5, 3\)"):
        cameras()[0].project(torch.ones(5, 3))
    with pytest.raises(ValueError, match="2 cameras cannot serve 3 sets"):
        cameras()[0].project(torch.ones(3, 4, 3))
    with pytest.raises(ValueError, match="scale, tx, ty"):
        cameras()[0].crop((1.0, 2.0))
