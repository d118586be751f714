"""Training steps with geometry critics: G3FA's own, and those put beside another method."""

from __future__ import annotations

import pytest
import torch

from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadParams, load_head
from headwarp.media.errors import InputError
from headwarp.nets.config import build
from headwarp.nets.model_file import save_model
from headwarp.nets.unsup3d import Unsup3d, Unsup3dConfig
from headwarp.training.batch import Batch, View
from headwarp.training.config import read_config
from headwarp.training.steps import step_class
from headwarp.training.steps.geometry import GeometryParams, open_renderer
from headwarp.training.steps.unsup3d import Unsup3dStep, depth_errors, true_depth

CRITIC = {"discriminator_params": {"block_expansion": 8, "max_features": 16, "sn": True}}


@pytest.fixture(scope="module")
def unsup3d(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "unsup3d.safetensors"
    save_model(path, Unsup3d(Unsup3dConfig(image_size=32, width=8, code=16)))
    return str(path)


def make_view() -> View:
    head = load_head("open")
    params = HeadParams.zeros(head, 2).replace(translation=torch.tensor([[0.0, 0.0, -0.9]] * 2))
    camera = Camera(torch.full((2,), 200.0), torch.full((2, 2), 32.0))
    return View(torch.rand(2, 3, 64, 64), params, camera)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return Batch([make_view(), make_view()], ["a", "b"])


def train_once(step, batch):
    """One step of the engine; which parameters got a gradient."""
    step.critic.requires_grad_(False)
    losses, shared = step.losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    step.critic.requires_grad_(True)
    critic = step.critic_losses(batch, shared)
    torch.stack(list(critic.values())).sum().backward()
    assert all(torch.isfinite(loss) for loss in (losses | critic).values())
    return losses, critic


@pytest.mark.parametrize("renderer", ["unsup3d", "head"])
def test_g3fa_trains_with_each_geometry(batch, unsup3d, renderer):
    tree = read_config("g3fa_small").as_dict()
    geometry = {"inverse_renderer": renderer, "model": unsup3d, "ensemble": CRITIC}
    kind = step_class("g3fa")
    own = {"model_params": tree["model_params"], "geometry_params": geometry}
    weights = {"loss_weights": {"perceptual": 0, "l1": 1}}
    step = kind(build(kind.Settings, own | weights))
    assert step.needs == (frozenset({"params", "camera"}) if renderer == "head" else frozenset())
    losses, _ = train_once(step, batch)
    assert {"l1", "adversarial", "feature_matching", "equivariance_value", "equivariance_jacobian"} == losses.keys()
    assert all(p.grad is not None for p in step.model.parameters())
    assert all(p.grad is not None for p in step.critic.parameters())
    judged = step.judge(step.model.eval(), batch)
    assert judged.metrics["psnr"].shape == (2,)


def test_geometry_critics_stand_beside_pwm(batch, unsup3d):
    kind = step_class("pwm+geometry")
    settings = build(
        kind.Settings,
        {
            "model_params": {"size": 64, "base_channels": 8, "max_channels": 16, "spade_hidden": 8},
            "loss_weights": {"output": {"l1": 1.0, "adversarial": 1.0}, "warped": {"l1": 1.0}},
            "discriminator_params": {"scales": 1, "base_channels": 8},
            "geometry_params": {"model": unsup3d, "weight": 2.0, "ensemble": CRITIC},
        },
    )
    step = kind(settings)
    losses, critic = train_once(step, batch)
    assert {"output_l1", "geometry"} <= losses.keys()
    assert {"critic_output", "critic_geometry"} <= critic.keys()
    assert {name.split(".")[0] for name, _ in step.critic.named_parameters()} == {"geometry", "inner"}


SMALL_NETWORKS = {
    "kp_detector_params": {"block_expansion": 8, "max_features": 16, "num_blocks": 3},
    "generator_params": {
        "block_expansion": 8,
        "max_features": 16,
        "num_bottleneck_blocks": 1,
        "dense_motion_params": {"block_expansion": 8, "max_features": 16, "num_blocks": 3},
    },
}


@pytest.mark.parametrize("method", ["fomm", "ostnet"])
def test_geometry_critics_stand_beside_keypoint_models(batch, unsup3d, method):
    kind = step_class(f"{method}+geometry")
    base = {"common_params": {"num_kp": 4}, **SMALL_NETWORKS}
    own = {"loss_weights": {"perceptual": 0}, "geometry_params": {"model": unsup3d, "ensemble": CRITIC}}
    if method == "fomm":
        own["discriminator_params"] = {"block_expansion": 8, "max_features": 16, "use_kp": True}
        own["model_params"] = base
    else:
        own["loss_weights"] = {"perceptual": 0, "rectified": 0}
        own["model_params"] = {"base_params": base, "scale_transform": False, "scale_embedding": False}
    step = kind(build(kind.Settings, own))
    losses, critic = train_once(step, batch)
    assert losses["geometry"] > 0
    assert "critic_geometry" in critic
    assert step.model.generator.first.conv.weight.grad.abs().sum() > 0


def test_geometry_s_gradient_can_be_cut(batch, unsup3d):
    """Then depth and normals say nothing to a generator whose own losses are all off."""
    kind = step_class("g3fa")
    tree = read_config("g3fa_small").as_dict()["model_params"]
    weights = {"perceptual": 0, "feature_matching": 0, "equivariance_value": 0, "equivariance_jacobian": 0}
    for flows in (True, False):
        ensemble = CRITIC | {"weights": [0.0, 0.5, 0.5], "geometry_gradient": flows}
        geometry = {"model": unsup3d, "ensemble": ensemble}
        own = {"model_params": tree, "loss_weights": weights, "geometry_params": geometry}
        step = kind(build(kind.Settings, own))
        losses, _ = step.losses(batch)
        losses["adversarial"].backward()
        norm = sum(p.grad.abs().sum() for p in step.model.parameters() if p.grad is not None)
        assert bool(norm > 0) is flows


def test_unsup3d_trains_on_every_moment(batch):
    kind = Unsup3dStep.Settings
    own = {"model_params": {"image_size": 64, "width": 8, "code": 16}, "loss_weights": {"perceptual": 0, "smooth": 0.1}}
    step = Unsup3dStep(build(kind, own))
    losses, _ = step.losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    assert {"photometric", "photometric_flip", "smooth"} == losses.keys()
    assert all(p.grad is not None for name, p in step.model.named_parameters() if "out_net2" not in name)
    judged = step.judge(step.model.eval(), batch)
    assert {picture.shape for picture in judged.pictures.values()} == {(2, 3, 64, 64)}


def test_true_depth_is_measured_in_units_of_the_network_s_camera():
    """A face's truth has no error against itself; moved away and magnified by the same factor it is the same shape."""
    size = 64
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    bump = 0.05 * (x**2 + y**2)
    skin = torch.ones(1, size, size, dtype=torch.uint8)

    def view(distance: float, focal: float) -> View:
        camera = Camera(torch.tensor([focal]), torch.tensor([[32.0, 32.0]]))
        return View(torch.zeros(1, 3, size, size), None, camera, depth=(distance + bump)[None, None], segmentation=skin)

    camera = Unsup3d(Unsup3dConfig(width=8, code=16)).camera
    near, far = view(0.9, 300.0), view(1.8, 600.0)
    truth, mask = true_depth(near, camera)
    assert mask.all()
    other, _ = true_depth(far, camera)
    torch.testing.assert_close(truth, other, rtol=1e-3, atol=1e-3)
    errors = depth_errors(truth, near, camera)
    assert errors["side"].item() < 1e-3
    assert errors["mad"].item() < 0.1
    flat = depth_errors(torch.ones_like(truth), near, camera)
    assert flat["side"].item() > 1
    assert flat["mad"].item() > 5


def test_a_missing_inverse_renderer_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWARP_UNSUP3D", str(tmp_path))
    with pytest.raises(InputError, match=r"checkpoint030\.pth was not found"):
        open_renderer(GeometryParams())
    with pytest.raises(InputError, match="model file is needed"):
        open_renderer(GeometryParams("face_depth"))
