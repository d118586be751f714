from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from headwarp.fitting.fit_videos import fit_files
from headwarp.fitting.options import FitOptions
from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadModel, HeadParams
from headwarp.media.errors import InputError
from headwarp.nets.discriminators import PatchGanConfig
from headwarp.nets.model_file import load_model
from headwarp.nets.pwm import Guide, PwmConfig
from headwarp.render.guidance import code_image, nmfc_codes
from headwarp.render.warp import warp
from headwarp.training.batch import Batch, View
from headwarp.training.config import read_config
from headwarp.training.data import Request, open_held_out
from headwarp.training.engine import train
from headwarp.training.steps.pwm import ImageWeights, PerceptualParams, PwmSettings, PwmStep, PwmWeights, psnr

REAL = Path(os.environ.get("HEADWARP_REAL", Path(__file__).parents[3] / "shared" / "data" / "real"))
SIZE = 64
TINY = PwmConfig(size=SIZE, base_channels=8, max_channels=16, spade_hidden=8, spade_residual=False)
SMALL_CRITIC = PatchGanConfig(scales=2, base_channels=4, layers=2)
L1 = PwmWeights(output=ImageWeights(l1=1.0), warped=ImageWeights(l1=1.0))


def view(head: HeadModel, turns: tuple[float, ...]) -> View:
    """Heads with a stripy face, turned so many radians to their left."""
    count = len(turns)
    params = HeadParams.zeros(head, count)
    params = params.replace(
        rotation=torch.tensor([[0.0, turn, 0.0] for turn in turns]),
        translation=torch.tensor([[0.0, 0.03, -0.9]]).repeat(count, 1),
    )
    camera = Camera.portrait((SIZE, SIZE), batch=count)
    guide = Guide(head, PwmConfig())
    posed = guide.pose(params, camera, (SIZE, SIZE))
    stripes = 0.5 + 0.5 * torch.sin(8 * nmfc_codes(head.v_template))
    return View(code_image(stripes, posed.vertices, guide.faces, posed.size, perspective=True), params, camera)


@pytest.fixture(scope="module")
def pair(head: HeadModel) -> Batch:
    return Batch([view(head, (0.1, -0.1)), view(head, (0.35, 0.15))], ["a", "b"])


def settings(**values: object) -> PwmSettings:
    return dataclasses.replace(
        PwmSettings(model_params=TINY, loss_weights=L1, discriminator_params=SMALL_CRITIC),
        **values,  # type: ignore[arg-type]
    )


def test_only_weighted_terms_are_computed(pair):
    step = PwmStep(settings())
    assert step.critic is None
    assert step.perceptual is None
    losses, _ = step.losses(pair)
    assert set(losses) == {"output_l1", "warped_l1"}


def test_every_term_and_the_critic_train(pair):
    every = ImageWeights(l1=1.0, perceptual=1.0, adversarial=1.0, feature_matching=1.0)
    step = PwmStep(
        settings(
            loss_weights=PwmWeights(every, every),
            perceptual_params=PerceptualParams("efficientnet_lite0", 1, relative=True),
        )
    )
    for block in step.model.warps:
        torch.nn.init.constant_(block.gain, 0.1)
    step.critic.requires_grad_(False)
    losses, shared = step.losses(pair)
    terms = ("l1", "perceptual", "adversarial", "feature_matching")
    assert set(losses) == {f"{picture}_{term}" for picture in ("output", "warped") for term in terms}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.model.parameters())
    step.critic.requires_grad_(True)
    theirs = step.critic_losses(pair, shared)
    assert set(theirs) == {"critic_output", "critic_warped"}
    before = [p.grad.clone() for p in step.model.parameters()]
    sum(theirs.values()).backward()
    # All but the last bias, on which the two halves of the hinge cancel at the start.
    assert all(p.grad is not None and p.grad.any() for p in step.critic.parameters() if p.ndim > 1)
    assert all(torch.equal(p.grad, b) for p, b in zip(step.model.parameters(), before, strict=True))
    # A critic that follows its loss tells real from generated.
    optimiser = torch.optim.Adam(step.critic.parameters(), 1e-3)
    for _ in range(20):
        total = sum(step.critic_losses(pair, shared).values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    assert total < sum(theirs.values())


@pytest.mark.parametrize("guidance", ["displacement", "neural_codes", "nmfc", "displacement+neural_codes"])
def test_it_learns_a_pair(pair, guidance):
    torch.manual_seed(0)
    step = PwmStep(settings(model_params=dataclasses.replace(TINY, guidance=guidance, code_channels=4)))
    optimiser = torch.optim.Adam(step.model.parameters(), 5e-3)
    history = []
    for _ in range(20):
        losses, _ = step.losses(pair)
        total = sum(losses.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        history.append(float(total.detach()))
    assert history[-1] < 0.75 * history[0]


def test_the_verdict_has_its_references(pair):
    step = PwmStep(
        settings(model_params=dataclasses.replace(TINY, residual_displacement=True, extrapolate=True))
    ).eval()
    judged = step.judge(step.model, pair)
    values = {name: value.mean().item() for name, value in judged.metrics.items()}
    assert values["psnr_face_geometry"] > values["psnr_face_source"] + 2
    assert values["psnr_face_warped"] > values["psnr_face_source"] + 2  # untrained, it follows the mesh
    assert all(value.shape == (2,) for value in judged.metrics.values())
    assert all(picture.shape == (2, 3, SIZE, SIZE) for picture in judged.pictures.values())


def test_the_source_shape_drives(head, pair):
    """Another person's shape in the driving parameters changes nothing."""
    step = PwmStep(settings()).eval()
    other = pair.driving.params.replace(shape=torch.full_like(pair.driving.params.shape, 1.5))
    changed = Batch([pair.source, dataclasses.replace(pair.driving, params=other)], pair.clips)
    results = [step.generate(step.model, batch).warped for batch in (pair, changed)]
    assert torch.equal(*results)


def test_clips_without_a_fit_are_refused(pair):
    bare = Batch([View(v.image) for v in pair.views], pair.clips)
    with pytest.raises(ValueError, match=r"lack .*params"):
        PwmStep(settings()).losses(bare)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("model_params.size=63", "PwmConfig.size must be a multiple of 16"),
        ("model_params={guidance: neural_codes, vertices: 10}", "codes for 10 vertices .* has 5059"),
    ],
)
def test_settings_of_another_head_or_size_are_refused_at_once(tmp_path, setting, sentence):
    with pytest.raises(InputError, match=sentence):
        train(read_config("smoke", [setting]), tmp_path / "run", progress=False)


def test_psnr_over_a_mask():
    target = torch.zeros(2, 3, 4, 4)
    image = target.clone()
    image[:, :, 0, 0] = 0.1
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[:, :, 0, :2] = True
    assert psnr(image, target, mask)[0] == pytest.approx(20 + 10 * torch.tensor(2.0).log10().item(), abs=1e-4)
    assert psnr(image, target)[1] == pytest.approx(20 + 10 * torch.tensor(16.0).log10().item(), abs=1e-4)


@pytest.mark.parametrize("name", ["pwm_256", "pwm_256_s", "pwm_128_clip", "pwm_128_synthetic", "pwm_128_ablation"])
def test_the_configurations_are_read(name):
    config = read_config(name)
    assert config.method == "pwm"
    assert config.dataset_params.size == (config.settings.model_params.size,) * 2
    for guidance in ("displacement", "neural_codes", "nmfc", "displacement+neural_codes"):
        changes = [f"model_params.guidance={guidance}"]
        if not guidance.startswith("displacement"):
            changes += ["model_params.residual_displacement=false", "model_params.extrapolate=false"]
        assert read_config(name, changes).settings.model_params.guidance == guidance


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "clips" / "talk_3.mp4").is_file(), reason="needs the real footage")
def test_it_learns_a_real_clip(tmp_path):
    """120 steps on a clip: already better than the source, and driven by its motion, not by its mirror image."""
    assert fit_files([REAL / "clips" / "talk_3.mp4"], tmp_path / "fits", FitOptions(layout="clips", workers=1))
    changes = {
        "dataset_params.root_dir": tmp_path / "fits",
        "dataset_params.cache_dir": tmp_path / "cache",
        "train_params.iterations": 120,
        "run_params.workers": 0,
        "log_params.tensorboard": "false",
    }
    config = read_config("pwm_128_clip", [f"{key}={value}" for key, value in changes.items()])
    folder = train(config, tmp_path / "run", progress=False)
    step = PwmStep(config.settings).eval()
    model = load_model(folder / "model.safetensors")
    request = Request(config.dataset_params.size, 2, PwmStep.needs)
    source = open_held_out(config.dataset_params, request, 16)["every"]
    samples = [source.sample(i, np.random.default_rng(0)) for i in range(0, len(source), len(source) // 12)]
    batch = Batch.cat(samples).to("cpu")
    values = {name: value.mean().item() for name, value in step.judge(model, batch).metrics.items()}
    assert values["psnr"] > values["psnr_source"] + 3
    assert values["psnr"] > values["psnr_geometry"]
    assert values["psnr_warped"] > values["psnr_source"] + 5
    with torch.no_grad():
        displacement = step.generate(model, batch).displacement
    wrong = psnr(warp(batch.source.image, -displacement), batch.driving.image).mean()
    assert wrong < values["psnr_source"]
