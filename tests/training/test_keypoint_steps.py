"""The training steps of FOMM, DaGAN and face depth learn, and judge what they should; golden losses: tests/nets."""

from __future__ import annotations

import pytest
import torch
from torch.optim import Adam

from headwarp.geom.camera import Camera
from headwarp.nets.config import build
from headwarp.nets.dagan import DaGanConfig
from headwarp.nets.discriminators import FommDiscriminatorConfig
from headwarp.nets.fomm import FommConfig
from headwarp.render.synthetic import CLASSES
from headwarp.training.batch import Batch, View
from headwarp.training.config import read_config
from headwarp.training.steps.dagan import DaGanSettings, DaGanStep, DaGanWeights
from headwarp.training.steps.depth import DepthStep
from headwarp.training.steps.fomm import FommSettings, FommStep, FommWeights

TINY = {
    "common_params": {"num_kp": 5},
    "kp_detector_params": {"block_expansion": 8, "max_features": 32, "num_blocks": 2, "scale_factor": 0.5},
    "generator_params": {
        "block_expansion": 8,
        "max_features": 32,
        "num_down_blocks": 2,
        "num_bottleneck_blocks": 1,
        "dense_motion_params": {"block_expansion": 8, "max_features": 32, "num_blocks": 2, "scale_factor": 0.5},
    },
}
CRITIC = FommDiscriminatorConfig(block_expansion=8, max_features=16, num_blocks=4, use_kp=True)


def blobs(count: int, moments: int, size: int = 64) -> Batch:
    """Clips of a soft disc that moves over stripes."""
    random = torch.Generator().manual_seed(5)
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    start, step = torch.rand(2, count, 2, 1, 1, generator=random) * 0.6 - 0.3
    colour = torch.rand(count, 3, 1, 1, generator=random)
    views = []
    for moment in range(moments):
        x, y = (start + moment * step).unbind(1)
        disc = (12 * (0.5 - ((line - x).square() + (line[:, None] - y).square()).sqrt())).sigmoid()[:, None]
        ground = 0.3 + 0.2 * torch.sin(9 * line).expand(count, 3, size, size)
        views.append(View(torch.lerp(ground, colour.expand_as(ground), disc)))
    return Batch(views, [str(i) for i in range(count)])


def train(step, batch: Batch, steps: int, lr: float = 2e-3) -> list[float]:
    optimiser = Adam(step.model.parameters(), lr, (0.5, 0.999))
    totals = []
    step.model.train()
    for _ in range(steps):
        losses, _ = step.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(float(total))
    return totals


def test_fomm_learns_and_its_critic_too():
    torch.manual_seed(0)
    weights = FommWeights(perceptual=0, l1=10)
    step = FommStep(FommSettings(build(FommConfig, TINY), weights, discriminator_params=CRITIC))
    batch = blobs(2, 2)
    totals = train(step, batch, 15)
    assert totals[-1] < 0.8 * totals[0]
    _, made = step.losses(batch)
    terms = step.critic_losses(batch, made)
    terms["discriminator_gan"].backward()
    assert all(p.grad is not None for p in step.critic.parameters())
    judged = step.judge(step.model.eval(), batch)
    assert judged.metrics["psnr"].shape == (2,)
    assert set(judged.pictures) == {"source", "driving", "output", "warped source"}


def test_dagan_without_depth_learns():
    torch.manual_seed(0)
    model = build(DaGanConfig, {**TINY, "keypoint_input": "rgb", "attention": "self"})
    weights = DaGanWeights(perceptual=0, generator_gan=0, l1=10)
    step = DaGanStep(DaGanSettings(model, weights))
    totals = train(step, blobs(2, 2), 15)
    assert totals[-1] < 0.8 * totals[0]
    assert float(step.model.generator.AttnModule.gamma) != 0


def test_face_depth_learns_and_is_judged_with_truth():
    torch.manual_seed(0)
    step = DepthStep()
    batch = blobs(2, 3)
    totals = train(step, batch, 3, lr=1e-4)
    assert totals[-1] < totals[0]
    now = batch.views[1]
    now.depth = torch.full((2, 1, 64, 64), torch.inf)
    now.depth[:, :, 16:48, 16:48] = 0.9
    now.segmentation = torch.full((2, 64, 64), CLASSES.index("skin"), dtype=torch.uint8)
    now.camera = Camera(torch.full((2,), 200.0), torch.full((2, 2), 32.0))
    metrics = step.judge(step.model.eval(), batch).metrics
    torch.testing.assert_close(metrics["side_flat"], torch.zeros(2), rtol=0, atol=1e-4)  # the truth is flat
    torch.testing.assert_close(metrics["normals_flat"], torch.zeros(2), rtol=0, atol=0.1)
    assert torch.all(metrics["side"] > 0)


@pytest.mark.parametrize("name", ["vox-256", "vox-adv-256", "dagan", "dagan_small", "face_depth", "face_depth_small"])
def test_configurations_can_be_read(name):
    assert read_config(name).method in ("fomm", "dagan", "depth")
