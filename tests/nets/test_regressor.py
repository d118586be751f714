"""The regressor: what it says is a head where the picture shows one, wherever the crop was cut out; it learns."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from headwarp.fitting.regress import own_crop
from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadParams, load_head
from headwarp.geom.mirror import Mirror
from headwarp.geom.rotation import axis_angle_to_matrix, euler_to_axis_angle, matrix_to_axis_angle
from headwarp.nets.model_file import load_model, save_model
from headwarp.nets.regressor import HeadCodes, HeadRegressor, RegressorConfig, between_eyes, looking, orthonormal
from headwarp.training.batch import Batch, View
from headwarp.training.crops import Variation, crop_heads, vary_heads
from headwarp.training.steps.regressor import RegressorSettings, RegressorStep
from headwarp.training.synthetic import landmark_pixels

SIDE = 64
SMALL = RegressorConfig(size=SIDE, channels=(8, 16), blocks=1)
SAME_COLOURS = Variation(gamma=0.0, gain=0.0, tint=0.0, blur=0.0, noise=0.0)
SAME_CROPS = replace(SAME_COLOURS, zoom=0.0, shift=0.0, mirror=0.0)


@pytest.fixture(scope="module")
def head():
    return load_head()


@pytest.fixture(scope="module")
def truth(head) -> HeadParams:
    generator = torch.Generator().manual_seed(0)
    count = 3

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    eyes = torch.cat([0.1 * random(count, 2), torch.zeros(count, 1)], 1)
    return HeadParams.zeros(head, count).replace(
        shape=0.6 * random(count, head.n_shape),
        expression=0.3 * random(count, head.n_expression),
        rotation=0.3 * random(count, 3),
        jaw=torch.tensor([[0.1, 0.0, 0.0]]).repeat(count, 1),
        eyes=torch.cat([eyes, eyes], 1),
        eyelids=torch.tensor([[0.1, 0.2]]).repeat(count, 1),
        translation=torch.tensor([0.05, 0.02, -0.9]) + 0.02 * random(count, 3),
    )


def codes_of(head, params: HeadParams, camera: Camera) -> HeadCodes:
    """What a perfect network says."""
    seen = camera.project(between_eyes(head, params)[:, None])[:, 0]
    return HeadCodes(
        shape=params.shape,
        expression=params.expression,
        turn=looking(camera, SIDE).mT @ axis_angle_to_matrix(params.rotation),
        place=seen[:, :2] * (2 / SIDE) - 1,
        size=torch.log(camera.focal / (seen[:, 2] * SIDE)),
        jaw=params.jaw,
        gaze=params.eyes[:, :2],
        eyelids=params.eyelids,
    )


def test_perfect_codes_give_the_parameters_back(head, truth):
    camera = Camera(torch.tensor([180.0]), torch.tensor([[90.0, -20.0]]))  # a crop far from the camera's axis
    found = codes_of(head, truth, camera).params(head, camera, SIDE)
    torch.testing.assert_close(head(found), head(truth), rtol=0, atol=2e-6)


def test_the_same_crop_means_the_same_turn_wherever_it_was_cut_out(head, truth):
    """A head carried around the camera, turned with its ray, looks the same and has the same codes."""
    straight = Camera(torch.tensor([180.0]), torch.full((1, 2), SIDE / 2))
    aside = Camera(torch.tensor([180.0]), torch.tensor([[150.0, -60.0]]))
    turn = codes_of(head, truth, straight).turn
    carried = matrix_to_axis_angle(looking(aside, SIDE) @ axis_angle_to_matrix(truth.rotation))
    moved = truth.replace(rotation=carried)
    torch.testing.assert_close(codes_of(head, moved, aside).turn, turn, rtol=0, atol=1e-5)
    torch.testing.assert_close(looking(straight, SIDE), torch.eye(3)[None], rtol=0, atol=1e-7)


def test_two_columns_make_a_rotation():
    matrix = axis_angle_to_matrix(euler_to_axis_angle(*torch.tensor([[30.0], [-20.0], [10.0]])))
    columns = torch.cat([3 * matrix[..., 0], 0.5 * matrix[..., 1] + 0.3 * matrix[..., 0]], -1)
    torch.testing.assert_close(orthonormal(columns), matrix, rtol=0, atol=1e-6)


def test_files_keep_weights_and_settings(tmp_path):
    model = HeadRegressor(SMALL).eval()
    save_model(tmp_path / "r.safetensors", model)
    again = load_model(tmp_path / "r.safetensors")
    crop = torch.rand(2, 3, SIDE, SIDE)
    assert again.config == SMALL
    torch.testing.assert_close(again(crop).turn, model(crop).turn)


def test_the_default_has_less_than_ten_million_parameters():
    assert sum(p.numel() for p in HeadRegressor().parameters()) < 10e6


def test_crops_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 3, 64, 64\)"):
        HeadRegressor(SMALL)(torch.zeros(1, 3, 32, 32))


@pytest.fixture
def batch(head, truth) -> Batch:
    """Noise instead of pictures, 96 x 80, in which the faces are not in the middle."""
    camera = Camera(torch.full((3,), 180.0), torch.tensor([[40.0, 56.0]]).repeat(3, 1))
    image = torch.rand(3, 3, 96, 80, generator=torch.Generator().manual_seed(1))
    points = landmark_pixels(head, head(truth), camera)
    return Batch([View(image, truth, camera, points)], ["a", "b", "c"])


def test_perfect_codes_have_no_error(head, batch):
    step = RegressorStep(RegressorSettings(SMALL))
    crops = crop_heads(batch.views[0], SMALL)
    for name, values in step.errors(codes_of(head, crops.params, crops.camera), crops).items():
        assert values.max() < 2e-3, name


def test_crops_are_those_of_the_fit(batch):
    """`own_crop` at inference, with its landmarks and its resampling of a real picture (no noise: it is smooth)."""
    view = batch.views[0]
    smooth = F.interpolate(view.image[..., ::16, ::16], (96, 80), mode="bicubic", align_corners=False).clamp(0, 1)
    found = crop_heads(replace(view, image=smooth), SMALL)
    for k in range(3):
        face = SimpleNamespace(landmarks=view.landmarks[k].numpy())
        crop = own_crop(face, SimpleNamespace(config=SMALL))
        picture = (255 * smooth[k].permute(1, 2, 0)).round().byte().numpy()
        expected = torch.from_numpy(crop.extract(picture)).permute(2, 0, 1) / 255
        assert (found.image[k] - expected).abs().max() < 0.02
        camera = view.camera[k].crop(torch.from_numpy(crop.matrix[[0, 0, 1], [0, 2, 2]]).float())
        torch.testing.assert_close(found.camera[k].principal, camera.principal, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.camera[k].focal, camera.focal)


def test_whatever_varies_heads_stay_where_their_pictures_show_them(head, batch):
    """Each face is drawn as three dots at its eyes and chin; dots and projected points move alike."""
    points = [33, 263, 152]
    view, spread = batch.views[0], torch.arange(96.0)
    where = view.landmarks[:, points, :2]
    x, y = (spread[:80] + 0.5 - where[..., :1]), (spread + 0.5 - where[..., 1:])
    dots = (-(y[..., :, None] ** 2 + x[..., None, :] ** 2) / 4).exp()  # (B, 3, H, W): a dot in each colour
    torch.manual_seed(0)
    sides = []
    for _ in range(8):
        crops = vary_heads(replace(view, image=dots), SMALL, SAME_COLOURS, Mirror(head))
        weights = crops.image / crops.image.sum((2, 3), keepdim=True)
        grid = torch.arange(SIDE) + 0.5
        seen = torch.stack([weights.sum(2) @ grid, weights.sum(3) @ grid], -1)
        told = landmark_pixels(head, head(crops.params), crops.camera)[:, points, :2]
        swapped = seen[:, 0, 0] > seen[:, 1, 0]  # in the mirror the other eye has this colour
        told = torch.where(swapped[:, None, None], told[:, [1, 0, 2]], told)
        torch.testing.assert_close(seen, told, rtol=0, atol=0.1)
        sides += swapped.tolist()
    assert 4 < sum(sides) < 20  # of 24


def test_crops_without_variation_are_those_of_the_fit(head, batch):
    view = batch.views[0]
    varied, plain = vary_heads(view, SMALL, SAME_CROPS, Mirror(head)), crop_heads(view, SMALL)
    torch.testing.assert_close(varied.image, plain.image, rtol=0, atol=1e-6)
    torch.testing.assert_close(varied.camera.principal, plain.camera.principal)


def test_variation_is_that_of_the_seed(batch):
    step = RegressorStep(RegressorSettings(SMALL))

    def total(seed: int) -> float:
        torch.manual_seed(seed)
        return float(torch.stack(list(step.losses(batch)[0].values())).sum().detach())

    first = total(1)
    assert total(2) != first
    assert total(1) == first


def test_the_step_learns_a_few_pictures_by_heart(truth, batch):
    torch.manual_seed(0)
    step = RegressorStep(RegressorSettings(SMALL, variation=SAME_CROPS))
    assert step.model.config.head_sha256 == load_head().sha256
    optimiser = torch.optim.Adam(step.model.parameters(), 3e-3)
    totals = []
    for _ in range(40):
        losses, _ = step.losses(batch)
        total = sum(losses.values())
        optimiser.zero_grad()
        total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in step.model.parameters())
        optimiser.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.4 * totals[0]
    judged = step.judge(step.model.eval(), batch)
    assert all(values.shape == (len(truth),) for values in judged.metrics.values())
