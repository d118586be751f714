"""The regressor: what it says is a head where the picture shows one, wherever the crop was cut out; it learns."""

from __future__ import annotations

import pytest
import torch

from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadParams, load_head
from headwarp.geom.rotation import axis_angle_to_matrix, euler_to_axis_angle, matrix_to_axis_angle
from headwarp.nets.model_file import load_model, save_model
from headwarp.nets.regressor import HeadCodes, HeadRegressor, RegressorConfig, between_eyes, looking, orthonormal
from headwarp.training.batch import Batch, View
from headwarp.training.steps.regressor import RegressorSettings, RegressorStep

SIDE = 64
SMALL = RegressorConfig(size=SIDE, channels=(8, 16), blocks=1)


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


def batch_of(truth: HeadParams) -> tuple[Batch, Camera]:
    camera = Camera(torch.tensor([180.0]), torch.full((1, 2), SIDE / 2))
    image = torch.rand(len(truth), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return Batch([View(image, truth, camera)], ["a", "b", "c"]), camera


def test_perfect_codes_have_no_error(head, truth):
    batch, camera = batch_of(truth)
    step = RegressorStep(RegressorSettings(SMALL))
    for name, values in step.errors(codes_of(head, truth, camera), batch).items():
        assert values.max() < 2e-3, name


def test_the_step_learns_a_few_pictures_by_heart(truth):
    torch.manual_seed(0)
    batch, _ = batch_of(truth)
    step = RegressorStep(RegressorSettings(SMALL))
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
