"""Losses of the training steps of FOMM, DaGAN and face depth against golden numbers of the official code."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from headwarp.nets.config import build
from headwarp.nets.depth import DepthConfig
from headwarp.nets.discriminators import FommDiscriminatorConfig
from headwarp.nets.losses import PerceptualLoss, gaussian_pyramid
from headwarp.nets.model_file import save_model
from headwarp.nets.perceptual import FIRST, Vgg19
from headwarp.training.batch import Batch, View
from headwarp.training.keypoint_losses import RandomTransform, TransformParams
from headwarp.training.steps import dagan as dagan_step
from headwarp.training.steps.dagan import DaGanSettings, DaGanStep, DaGanWeights
from headwarp.training.steps.depth import DepthSettings, DepthStep, photometric
from headwarp.training.steps.fomm import FommSettings, FommStep, FommWeights

NAMES = {
    "perceptual": "perceptual",
    "generator_gan": "gen_gan",
    "feature_matching": "feature_matching",
    "equivariance_value": "equivariance_value",
    "equivariance_jacobian": "equivariance_jacobian",
    "kp_distance": "kp_distance",
    "kp_scale": "kp_scale",
    "depth_constraint": "depth_constraint",
}


def given_transform(golden) -> RandomTransform:
    transform = RandomTransform(2, TransformParams())
    transform.affine = golden.arrays["input.transform_theta"]
    transform.weights = golden.arrays["input.transform_control_params"][:, 0]
    return transform


def settings_of(kind, golden, **more):
    given = golden.facts["config"]
    values = {
        "model_params": {
            "common_params": given["common"],
            "kp_detector_params": given["kp"],
            "generator_params": given["gen"],
        },
        "discriminator_params": {k: v for k, v in given["disc"].items() if k != "scales"},
    }
    return dataclasses.replace(build(kind, values), **more)


def filled_step(step, golden, formula):
    step.model.kp_detector.load_state_dict(golden.weights("kp_detector"))
    step.model.generator.load_state_dict(golden.weights("generator"))
    step.critic.load_state_dict(golden.weights("discriminator"))
    vgg = Vgg19(FIRST)
    vgg.load_state_dict(formula(vgg.state_dict(), "vgg19", golden.facts["gains"]))
    step.perceptual = PerceptualLoss(vgg.freeze(), 3, shrink=gaussian_pyramid)
    return step


def check_losses(step, golden, mode: str) -> None:
    batch = Batch([View(golden.pictures("source")), View(golden.pictures("driving"))], ["a", "b"])
    step.model.train(mode == "train")
    step.critic.train(mode == "train")
    losses, made = step.losses_under(batch, given_transform(golden))
    for name, value in losses.items():
        golden.near(value.detach(), f"loss_{mode}.{NAMES[name]}")
    golden.near(sum(losses.values()).detach(), f"loss_{mode}.total_generator")
    critic = step.critic_losses(batch, made)
    golden.near(critic["discriminator_gan"].detach(), f"loss_{mode}.disc_gan")
    if mode == "eval":
        sum(losses.values()).backward()
        for net in ("kp_detector", "generator"):
            norms = [p.grad.norm() for p in getattr(step.model, net).parameters()]
            golden.near(torch.stack(norms), f"grad_eval.{net}", times=2e-3)
        step.critic.zero_grad()
        critic["discriminator_gan"].backward()
        norms = [p.grad.norm() for p in step.critic.parameters()]
        golden.near(torch.stack(norms), "grad_eval.discriminator", times=2e-3)
    else:
        norm = step.model.generator.first.norm
        golden.near(norm.running_mean, "train.generator.first.norm.running_mean_after_1_step")
        golden.near(norm.running_var, "train.generator.first.norm.running_var_after_1_step")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_fomm(golden, formula, mode):
    file = golden("golden_fomm_tiny")
    settings = settings_of(FommSettings, file, loss_weights=FommWeights(perceptual=0))
    step = filled_step(FommStep(settings), file, formula)
    step.settings = dataclasses.replace(settings, loss_weights=FommWeights())
    check_losses(step, file, mode)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_dagan(golden, formula, tmp_path, mode):
    file = golden("golden_dagan_tiny")
    depth = dagan_step.FaceDepth()
    for net in ("depth_encoder", "depth_decoder"):
        part = getattr(depth, net)
        part.load_state_dict(formula(part.state_dict(), net, file.facts["gains"]))
    save_model(tmp_path / "depth.safetensors", depth)
    settings = settings_of(
        DaGanSettings,
        file,
        loss_weights=DaGanWeights(perceptual=0),
        depth_model=str(tmp_path / "depth.safetensors"),
        kp_distance="official",
    )
    step = filled_step(DaGanStep(settings), file, formula)
    step.settings = dataclasses.replace(settings, loss_weights=DaGanWeights(kp_scale=10, depth_constraint=10))
    check_losses(step, file, mode)


def test_the_transformation(golden):
    file = golden("golden_dagan_tiny")
    transform = given_transform(file)
    file.near(transform.picture(file.pictures("driving")), "transform.frame")
    moved = file.arrays["kp.driving.value"]
    file.near(transform(moved), "transform.warped_kp")
    file.near(transform.jacobian(moved), "transform.jacobian_at_kp", times=1e-3)


@pytest.fixture(scope="module")
def triplet(golden, golden_picture):
    big = golden_picture("pretrain", 2, 72, 72).float() / 255
    return [big[:, :, y : y + 64, x : x + 64] for y, x in ((4, 2), (4, 4), (5, 6))]


def pretraining(golden, formula, intrinsics) -> DepthStep:
    gains = golden.facts["pretrain"]["gains"]
    step = DepthStep(DepthSettings(DepthConfig(pose=True, intrinsics=intrinsics)))
    for net in ("depth_encoder", "depth_decoder", "pose_encoder", "pose"):
        part = getattr(step.model, net)
        part.load_state_dict(formula(part.state_dict(), net, gains))
    step.model.eval()
    return step


def test_depth_pretraining(golden, formula, triplet):
    file = golden("golden_dagan_tiny")
    step = pretraining(file, formula, "official")
    losses = step.losses_of(*triplet, noise=0.0)
    file.near(sum(losses.values()).detach(), "pretrain.loss")
    sum(losses.values()).backward()
    wanted = file.facts["pretrain"]["pose_decoder_param_grad_norms"]
    for name, parameter in step.model.pose.named_parameters():
        norm = 0.0 if parameter.grad is None else float(parameter.grad.norm())
        assert norm == pytest.approx(wanted[name], rel=5e-3)
    with torch.no_grad():
        before, now, after = triplet
        forwards = step.model.camera_motion(now, after)
        file.near(forwards.intrinsics, "pretrain.K_before")
        file.near(step.intrinsics(forwards, forwards), "pretrain.K_after_inplace_trunc")
        file.near(forwards.matrix(), "pretrain.cam_T_cam.1")
        file.near(step.model.camera_motion(before, now).matrix(inverse=True), "pretrain.cam_T_cam.-1")
        made = file.arrays["pretrain.warped.1.scale0"]
        file.near(photometric(made, now), "pretrain.reprojection.1.scale0")


def test_learned_intrinsics_learn(golden, formula, triplet):
    """The gradient that the published code lacks."""
    step = pretraining(golden("golden_dagan_tiny"), formula, "learned")
    sum(step.losses_of(*triplet, noise=0.0).values()).backward()
    for index in (4, 5):
        assert step.model.pose.net[index].weight.grad.abs().max() > 0


def test_the_official_keypoint_distance_cannot_learn_and_ours_can():
    value = torch.tensor([[[0.0, 0.0], [0.1, 0.0], [0.9, 0.9]]])
    assert float(dagan_step.official_distance(value, 0.2)) == pytest.approx(2 * 2 / 9)
    near = value.clone().requires_grad_()
    dagan_step.crowding(near, 0.2).backward()
    assert near.grad[0, 0, 0] > 0 > near.grad[0, 1, 0]  # descent moves them apart
    assert torch.all(near.grad[0, 2] == 0)


def test_a_generator_without_adversary_has_no_critic():
    settings = FommSettings(
        loss_weights=FommWeights(perceptual=0, generator_gan=0), discriminator_params=FommDiscriminatorConfig()
    )
    assert FommStep(settings).critic is None


def test_depth_is_needed_where_it_is_used():
    with pytest.raises(ValueError, match="depth_model"):
        DaGanStep(DaGanSettings(loss_weights=DaGanWeights(perceptual=0)))


def test_photometric_error():
    image = torch.rand(2, 3, 12, 16)
    assert float(photometric(image, image).abs().max()) < 1e-6
    assert float(photometric(image, 1 - image).min()) > 0
    assert photometric(image, F.pad(image, (1, 0, 0, 0))[..., :-1]).shape == (2, 1, 12, 16)
