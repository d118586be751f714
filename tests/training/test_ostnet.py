"""OSTNet's training: its losses, and that scale transformation learns from them."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import Tensor
from torch.optim import Adam

from headwarp.benchmarks.scale import judge, keypoint_errors
from headwarp.nets.config import build
from headwarp.nets.keypoints import Motion, gaussian
from headwarp.nets.layers import corner_grid
from headwarp.nets.ostnet import PAPER, OstNetConfig
from headwarp.nets.scale import random_stretches, stretch
from headwarp.training.batch import Batch, View
from headwarp.training.config import from_dict, read_config
from headwarp.training.keypoint_losses import RandomTransform, TransformParams, crowding, equivariance
from headwarp.training.steps.ostnet import OstNetSettings, OstNetStep, OstNetWeights, fixed_stretches

TINY = {
    "common_params": {"num_kp": 5},
    "kp_detector_params": {"block_expansion": 8, "max_features": 32, "num_blocks": 2, "scale_factor": 0.5},
    "generator_params": {
        "block_expansion": 4,
        "max_features": 16,
        "num_down_blocks": 2,
        "num_bottleneck_blocks": 0,
        "dense_motion_params": {"block_expansion": 4, "max_features": 16, "num_blocks": 2, "scale_factor": 0.5},
    },
}


def settings(**weights: float) -> OstNetSettings:
    """A tiny model whose losses need no backbone."""
    model = {"base_params": TINY, "scale_params": {"hidden": [64], "code": 32}}
    return OstNetSettings(
        model_params=build(OstNetConfig, model),
        loss_weights=OstNetWeights(**{"perceptual": 0.0, "rectified": 0.0, **weights}),
    )


def faces(batch: int, random: torch.Generator, size: int = 32) -> Batch:
    """Pairs of pictures of drawn faces: a disc with two eyes and a mouth, at two places."""
    line = (torch.arange(size) * 2 + 1) / size - 1

    def number(low: float, high: float) -> Tensor:
        return torch.rand(batch, 1, 1, generator=random) * (high - low) + low

    skin, ground = torch.rand(2, batch, 3, 1, 1, generator=random)
    skin, ground = 0.55 + 0.45 * skin, 0.35 * ground

    def blob(x: Tensor, y: Tensor, wide: float, high: float) -> Tensor:
        r = (((line - x) / wide).square() + ((line[:, None] - y) / high).square()).sqrt()
        return ((1 - r) * size * min(wide, high)).sigmoid()[:, None]

    def picture() -> View:
        x, y = number(-0.15, 0.15), number(-0.15, 0.15)
        image = torch.lerp(ground, skin, blob(x, y, 0.6, 0.7))
        dark = blob(x - 0.2, y - 0.15, 0.11, 0.11) + blob(x + 0.2, y - 0.15, 0.11, 0.11) + blob(x, y + 0.3, 0.2, 0.09)
        return View(image * (1 - 0.9 * dark.clamp(max=1)))

    return Batch([picture(), picture()], [f"face-{i}" for i in range(batch)])


def test_scale_transformation_learns_to_undo_stretches():
    """On faces that were not trained on, the rectified picture is much nearer to the truth than what was given."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(1)
    step = OstNetStep(settings())
    model = step.model.train()
    trained = [*model.kp_detector.parameters(), *model.localisation.parameters(), *model.transformation.parameters()]
    optimizer = Adam(trained, 5e-3)
    for _ in range(100):
        batch = faces(16, random)
        target = batch.driving.image
        state = model.encode_source(batch.source.image)
        motion = model.read_motion(stretch(target, *random_stretches(16, 0.3)), state)
        loss = 10 * (motion.rectified - target).abs().mean() + crowding(motion.seen.value, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metrics = step.judge(step.model.eval(), faces(64, random)).metrics
    given, rectified = metrics["l1_stretched"].mean(), metrics["l1_rectified"].mean()
    assert rectified < 0.6 * given, f"{rectified:.4f}, and {given:.4f} was given"


def test_every_term_reaches_what_it_trains():
    """Keypoints, localisation, fiducial points and the generator get gradients; a weight of 0 leaves a term out."""
    torch.manual_seed(0)
    step = OstNetStep(settings(l1=1.0, l1_rectified=1.0, keypoint_distance=0.0))
    terms, _ = step.losses(faces(2, torch.Generator().manual_seed(0)))
    assert set(terms) == {"l1", "l1_rectified", "equivariance_value", "equivariance_jacobian"}
    assert all(term.shape == () and term > 0 for term in terms.values())
    terms["l1_rectified"].backward()
    assert step.model.transformation.move.weight.grad.abs().sum() > 0
    assert step.model.generator.final.weight.grad is None
    terms, _ = step.losses(faces(2, torch.Generator().manual_seed(0)))
    terms["l1"].backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in step.model.generator.scale_embedding.weights)


def test_the_pyramid_compares_output_and_rectified_picture_with_the_truth():
    torch.manual_seed(0)
    step = OstNetStep(settings(l1=0.0))
    step.perceptual = lambda image, target: (image - target).square().mean()
    step.settings = OstNetSettings(step.settings.model_params, OstNetWeights())
    batch = faces(2, torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    terms, _ = step.losses(batch)
    torch.manual_seed(3)
    stretched = stretch(batch.driving.image, *random_stretches(2, 0.3))
    wanted = 10 * (stretched - batch.driving.image).square().mean()  # an untrained model rectifies nothing
    torch.testing.assert_close(terms["perceptual_rectified"], wanted)
    assert terms["perceptual"] > 0


def test_without_its_parts_it_trains_the_base():
    """Neither scale code nor rectified picture, and no stretch: two keypoint readings and a picture."""
    model = build(OstNetConfig, {"base_params": TINY, "scale_transform": False, "scale_embedding": False})
    step = OstNetStep(
        OstNetSettings(model, OstNetWeights(perceptual=0, rectified=0, l1=1, l1_rectified=1), stretch=0.0)
    )
    batch = faces(2, torch.Generator().manual_seed(0))
    step.model.eval()
    terms, _ = step.losses(batch)
    base = step.model.base
    image = base.render(base.encode_source(batch.source.image), base.read_motion(batch.driving.image)).image
    torch.testing.assert_close(terms["l1"], (image - batch.driving.image).abs().mean())
    assert "l1_rectified" not in terms
    assert "rectified" not in step.judge(step.model, batch).pictures


def test_judging_stretches_alike_every_time():
    batch = faces(3, torch.Generator().manual_seed(0))
    step = OstNetStep(settings())
    step.model.eval()
    torch.manual_seed(1)
    first = step.judge(step.model, batch)
    torch.manual_seed(2)
    again = step.judge(step.model, batch)
    for name, values in first.metrics.items():
        torch.testing.assert_close(again.metrics[name], values, rtol=0, atol=0)
    torch.testing.assert_close(fixed_stretches(2), fixed_stretches(5)[:2], rtol=0, atol=0)
    # an untrained one changes nothing
    torch.testing.assert_close(first.metrics["psnr_rectified"], first.metrics["psnr_stretched"])


def test_the_table_of_scales_counts_what_it_says():
    """An untrained model scores as without the parts, what is given scores as itself; stretches are the same again."""
    batch = faces(5, torch.Generator().manual_seed(0))
    samples = [Batch([View(view.image[k : k + 1]) for view in batch.views], [batch.clips[k]]) for k in range(5)]
    model = OstNetStep(settings()).model.eval()
    scores = judge({"model": model}, samples, batch=2)
    assert scores["driving"].values("l1", stretched=False).tolist() == [0] * 5
    given, rectified = (scores[name].values("psnr", stretched=True) for name in ("driving", "model rectified"))
    assert given.shape == (10,)
    assert (given < 99).all()
    torch.testing.assert_close(rectified, given)
    torch.testing.assert_close(judge({}, samples, batch=5)["driving"].values("psnr", stretched=True), given)
    source = scores["source"].values("ssim", stretched=False)
    torch.testing.assert_close(scores["source"].values("ssim", stretched=True), source.repeat(2))


def test_the_jacobian_of_the_random_transform_is_its_derivative():
    torch.manual_seed(0)
    transform = RandomTransform(2, TransformParams(sigma_tps=0.05))
    transform.affine, transform.weights = transform.affine.double(), transform.weights.double()
    transform.controls = transform.controls.double()
    places = torch.rand(2, 4, 2, dtype=torch.float64) * 1.6 - 0.8
    found = transform.jacobian(places)
    for b in range(2):
        for k in range(4):
            wanted = torch.autograd.functional.jacobian(
                lambda p, b=b, k=k: transform(places.index_put((torch.tensor(b), torch.tensor(k)), p))[b, k],
                places[b, k],
            )
            torch.testing.assert_close(found[b, k], wanted)


def test_equivariance_is_zero_for_keypoints_that_move_with_the_picture():
    torch.manual_seed(0)
    transform = RandomTransform(3, TransformParams())
    moved = Motion(torch.rand(3, 4, 2) - 0.5, torch.eye(2) + 0.1 * torch.randn(3, 4, 2, 2))
    motion = Motion(transform(moved.value), transform.jacobian(moved.value) @ moved.jacobian)
    value, jacobian = equivariance(motion, moved, transform)
    assert value < 1e-6
    assert jacobian < 1e-5
    value, jacobian = equivariance(moved, moved, transform)
    assert value > 1e-3
    assert jacobian > 1e-3


def test_pictures_move_as_the_random_transform_says():
    """A spot at T(p) is seen at p."""
    torch.manual_seed(0)
    transform = RandomTransform(1, TransformParams(sigma_affine=0.08))
    place = torch.tensor([[[0.2, -0.1]]])
    image = gaussian(transform(place), 96, 96, 0.002)
    moved = transform.picture(image)[0, 0]
    weights = moved / moved.sum()
    centre = (weights[..., None] * corner_grid(96, 96, moved)).sum((0, 1))
    torch.testing.assert_close(centre, place[0, 0], rtol=0, atol=0.02)


def test_crowded_keypoints_are_pushed_apart():
    value = torch.tensor([[[0.0, 0.0], [0.04, 0.0], [0.9, 0.9]]], requires_grad=True)
    loss = crowding(value, 0.1)
    torch.testing.assert_close(loss, torch.tensor(2 / 6 * 0.6), rtol=1e-4, atol=0)
    loss.backward()
    pull = -value.grad[0]
    assert pull[0, 0] < 0 < pull[1, 0]
    assert (pull[2] == 0).all()
    assert crowding(torch.tensor([[[0.0, 0.0], [0.2, 0.0]]]), 0.1) == 0


@pytest.mark.parametrize("name", ["ostnet", "ostnet_small", "fomm_scale_small", "dagan_scale_small"])
def test_configurations_are_read_and_written(name):
    config = read_config(name)
    again = from_dict(yaml.safe_load(config.as_yaml()), name)
    assert again == config
    if name == "ostnet":
        assert config.settings.model_params == PAPER
    plain = read_config(name, ["model_params.scale_transform=false", "model_params.scale_embedding=false"])
    assert plain.settings.model_params.base_params == config.settings.model_params.base_params


def test_keypoints_that_drive_are_held_against_those_of_the_truth():
    batch = faces(3, torch.Generator().manual_seed(0))
    samples = [Batch([View(view.image[k : k + 1]) for view in batch.views], [batch.clips[k]]) for k in range(3)]
    model = OstNetStep(settings()).model.eval()
    stretched, driving = keypoint_errors({"model": model}, samples, batch=2)["model"]
    assert 0 < stretched < 100
    assert driving == pytest.approx(stretched)  # untrained, it changes nothing
    with torch.no_grad():
        model.transformation.move.bias += 0.3
    assert keypoint_errors({"model": model}, samples)["model"][1] != pytest.approx(stretched)
