"""Geometry critics against golden numbers of G3FA's training, and what their gradient reaches."""

from __future__ import annotations

import pytest
import torch

from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadParams, load_head
from headwarp.nets.config import build
from headwarp.nets.depth import FaceDepth
from headwarp.nets.discriminators import FommDiscriminatorConfig
from headwarp.nets.g3fa import G3fa, G3faConfig
from headwarp.nets.geometry_critics import (
    Ensemble,
    EnsembleConfig,
    FaceDepthGeometry,
    Geometry,
    HeadGeometry,
    Unsup3dGeometry,
)
from headwarp.nets.layers import rename_spectral
from headwarp.nets.losses import PerceptualLoss, feature_matching, gaussian_pyramid
from headwarp.nets.perceptual import Vgg19
from headwarp.nets.unsup3d import DepthReader, EDDeconv, Unsup3dConfig
from headwarp.training.keypoint_losses import RandomTransform, TransformParams, equivariance

SMALL = FommDiscriminatorConfig(block_expansion=8, max_features=32, sn=True)
OFFICIAL = (1.0, 0.25, 0.25)
TINY = {
    "common_params": {"num_kp": 5},
    "kp_detector_params": {"block_expansion": 8, "max_features": 32, "num_blocks": 3},
    "generator_params": {
        "dense_motion_params": {"block_expansion": 8, "max_features": 32, "num_blocks": 3},
        "render_params": {"simpled_channel_rgb": 64, "simpled_channel_sigma": 64, "floor_num": 4, "hidden_size": 32},
    },
}


def official_shapes(module):
    """Names and shapes as the older spectral norm has them, its two vectors left out."""
    names = {k.replace("parametrizations.weight.original", "weight_orig"): v for k, v in module.state_dict().items()}
    return {k: tuple(v.shape) for k, v in names.items() if "parametrizations" not in k}


def fill_ensemble(ensemble, named_weights, arrays):
    for tag, part in [
        ("discriminator", ensemble.picture),
        ("discriminator2", ensemble.depth),
        ("discriminator3", ensemble.normal),
    ]:
        state = named_weights(official_shapes(part), tag, lambda name: 1.4)
        vectors = {k.removeprefix(f"{tag}/"): v for k, v in arrays.items() if k.startswith(f"{tag}/")}
        part.load_state_dict(rename_spectral(state | vectors))
    return ensemble.eval()


@pytest.fixture(scope="module")
def tiny(golden):
    return golden("golden_g3fa_tiny")


@pytest.fixture(scope="module")
def ensemble(tiny, named_weights):
    return fill_ensemble(Ensemble(EnsembleConfig(OFFICIAL, discriminator_params=SMALL)), named_weights, tiny.arrays)


def test_names_and_shapes_are_the_official_ones(official_names):
    networks = official_names("g3fa")["networks"]
    whole = Ensemble()
    for tag, part in [
        ("discriminator", whole.picture),
        ("discriminator2", whole.depth),
        ("discriminator3", whole.normal),
    ]:
        expected = {name: tuple(shape) for name, shape, _ in networks[tag] if not name.endswith(("_u", "_v"))}
        assert official_shapes(part) == expected


@torch.no_grad()
def test_each_critic_agrees_with_the_official_one(ensemble, tiny):
    image = tiny.arrays["input.driving"]
    shown = {"discriminator": image, "discriminator2": 0.2 * image[:, :1] + 0.9, "discriminator3": 2 * image - 1}
    parts = {"discriminator": ensemble.picture, "discriminator2": ensemble.depth, "discriminator3": ensemble.normal}
    for tag, part in parts.items():
        features = part(shown[tag])[0]
        for i, feature in enumerate(features[:-1]):
            tiny.near(feature, f"{tag}.feature_{i}")
        tiny.near(features[-1], f"{tag}.prediction_map_1")


@pytest.fixture(scope="module")
def training(golden):
    return golden("golden_g3fa_losses")


@pytest.fixture(scope="module")
def model(named_weights):
    """The golden G3FA."""
    model = G3fa(build(G3faConfig, TINY))
    for tag in ("generator", "kp_detector"):
        own = getattr(model, tag).state_dict()

        def gain(name, tag=tag):
            if tag == "generator":
                return (
                    2.2 if name.startswith("dense_motion_network.hourglass.") and name.endswith("conv.weight") else 1.4
                )
            return {"kp.weight": 1.0, "jacobian.weight": 0.3}.get(name, 1.8)

        state = named_weights({k: tuple(v.shape) for k, v in own.items()}, tag, gain)
        state |= {k: v for k, v in own.items() if k.endswith("down.weight")}
        if "jacobian.bias" in state:
            state["jacobian.bias"] += torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(5)
        getattr(model, tag).load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def renderer(named_weights):
    """Unsup3D's netD with the golden weights; G3FA's border depth."""
    network = EDDeconv(1, 64, 64, 256, tanh=False)
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    strides = {"network.13.weight": 4, "network.17.weight": 2, "network.23.weight": 2, "network.29.weight": 2}
    state = named_weights(shapes, "netD", lambda name: 0.06 if name == "network.42.weight" else 2**0.5, strides)
    network.load_state_dict(state)
    return Unsup3dGeometry(DepthReader(network, Unsup3dConfig(border_depth=1.05)))


@pytest.fixture(scope="module")
def vgg(named_weights):
    """VGG-19 with the golden weights; official slices 1 to 5 hold torchvision's numbers."""
    backbone = Vgg19()
    ends = {0: 1, 2: 2, 5: 2, 7: 3, 10: 3, 12: 4, 14: 4, 16: 4, 19: 4, 21: 5, 23: 5, 25: 5, 28: 5}
    names = {k: f"slice{ends[int(k.split('.')[1])]}.{k.split('.', 1)[1]}" for k in backbone.state_dict()}
    state = named_weights({names[k]: tuple(v.shape) for k, v in backbone.state_dict().items()}, "vgg19")
    backbone.load_state_dict({k: state[official] for k, official in names.items()})
    return backbone.freeze()


def test_the_whole_training_step_agrees(training, model, ensemble, renderer, vgg):
    """Every loss of generator and critics, and the gradient norms that the official code has."""
    arrays, values = training.arrays, training.facts["values"]
    source, driving = arrays["input.source"], arrays["input.driving"]
    motion = model.read_motion(driving)
    output = model.render(model.encode_source(source), motion)
    output.image.retain_grad()
    training.near(output.image, "prediction")

    transform = RandomTransform(2, TransformParams())
    transform.affine = arrays["tps_theta_noise"] + torch.eye(2, 3)
    transform.weights = arrays["tps_control_params"][:, 0]
    frame = transform.picture(driving)
    training.near(frame, "transformed_frame")
    moved = model.read_motion(frame)
    training.near(moved.value, "kp_transformed.value")
    value, jacobian = equivariance(motion, moved, transform)

    for scale, small in zip((0.5, 0.25, 0.125), gaussian_pyramid(driving, 4)[1:], strict=True):
        training.near(small, f"pyramid_driving_{scale}")
    perceptual = PerceptualLoss(vgg, 4, shrink=gaussian_pyramid)(output.image, driving)

    with torch.no_grad():
        real = ensemble(driving, renderer(driving))
        fake_geometry = renderer(output.image)  # cut off, as there
    for name, geometry in [("real", renderer(driving)), ("generated", fake_geometry)]:
        training.near(geometry.depth, f"unsup_depth_{name}")
        training.near(geometry.normals, f"unsup_normal_{name}")
    fake = ensemble(output.image, fake_geometry)
    ours = {
        "perceptual": 10 * perceptual,
        "gen_gan": ensemble.fooling(fake),
        "feature_matching": 10 * feature_matching(real.features, fake.features),
        "equivariance_value": 10 * value,
        "equivariance_jacobian": 10 * jacobian,
    }
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(values["generator_losses"][name], rel=1e-4), name
    gradient = torch.autograd.grad(ours["gen_gan"], output.image, retain_graph=True)[0]
    assert gradient.norm().item() == pytest.approx(values["grad_gen_gan_wrt_prediction"]["norm"], rel=1e-3)

    model.zero_grad()
    total = torch.stack(list(ours.values())).sum()
    assert total.item() == pytest.approx(values["generator_total"], rel=1e-4)
    total.backward()
    for part, group in [(model.generator, "grad_norms_generator"), (model.kp_detector, "grad_norms_kp")]:
        for name, norm in values[group].items():
            # float32 sums in another order; small gradients are differences of large ones
            assert part.get_parameter(name).grad.norm().item() == pytest.approx(norm, rel=5e-3), name

    ensemble.zero_grad()
    image = output.image.detach()
    loss = ensemble.telling(ensemble(driving, renderer(driving)), ensemble(image, fake_geometry))
    assert loss.item() == pytest.approx(values["discriminator_losses"]["disc_gan"], rel=1e-4)
    loss.backward()
    for k, part in enumerate([ensemble.picture, ensemble.depth, ensemble.normal], 1):
        norms = values[f"grad_norms_discriminator{k}"]
        rounding = 5e-5 * max(norms.values())  # what is left of sums that cancel depends on their order
        for name, norm in norms.items():
            ours_name = name.replace("weight_orig", "parametrizations.weight.original")
            gradient = part.get_parameter(ours_name).grad.norm().item()
            assert gradient == pytest.approx(norm, rel=2e-3, abs=rounding), name


def test_how_much_geometry_teaches_in_numbers(training, tiny, named_weights, renderer):
    """Gradient of the adversarial term with respect to the picture, golden weights: the official one comes from the
    picture's critic alone; the part that flows through depth and normals is larger than all of it."""
    norms = {}
    for flows in (False, True):
        config = EnsembleConfig(OFFICIAL, geometry_gradient=flows, discriminator_params=SMALL)
        critics = fill_ensemble(Ensemble(config), named_weights, tiny.arrays)
        image = training.arrays["prediction"].clone().requires_grad_()
        critics.fooling(critics(image, critics.geometry_of(renderer, image))).backward()
        norms[flows] = image.grad
    official = training.facts["values"]["grad_gen_gan_wrt_prediction"]["norm"]
    assert norms[False].norm().item() == pytest.approx(official, rel=1e-4)
    assert (norms[True] - norms[False]).norm() > 1.5 * norms[False].norm()


def test_the_official_averaging_is_a_setting(ensemble, tiny):
    image = tiny.arrays["input.driving"]
    geometry = Geometry(0.2 * image[:, :1] + 0.9, 2 * image - 1)
    with torch.no_grad():
        maps = [ensemble.picture(image), ensemble.depth(geometry.depth), ensemble.normal(geometry.normals)]
        a, b, c = (m[0][-1] for m in maps)
        torch.testing.assert_close(ensemble(image, geometry).total, (a + 0.25 * b + 0.25 * c) / 1.5)


@pytest.fixture(scope="module")
def small_renderer():
    torch.manual_seed(0)
    return Unsup3dGeometry(DepthReader(EDDeconv(1, 32, 8, 16, tanh=False), Unsup3dConfig(image_size=32)))


@pytest.mark.parametrize("flows", [True, False])
def test_geometry_teaches_the_generator_only_if_it_should(small_renderer, flows):
    """Without a critic of the picture nothing else can: the gradient is then all geometry."""
    torch.manual_seed(0)
    critics = Ensemble(EnsembleConfig(geometry_gradient=flows, discriminator_params=SMALL), picture=False)
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    geometry = critics.geometry_of(small_renderer, image)
    assert geometry.depth.requires_grad is flows
    if flows:
        critics.fooling(critics(image, geometry)).backward()
        assert image.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in small_renderer.parameters())


@pytest.mark.parametrize("adversary", ["least_squares", "logistic", "hinge"])
def test_critics_learn_to_tell_depth_from_no_depth(small_renderer, adversary):
    """A few steps on flat against bent maps: real ones come out higher."""
    torch.manual_seed(0)
    critics = Ensemble(EnsembleConfig(adversary=adversary, discriminator_params=SMALL))
    optimiser = torch.optim.Adam(critics.parameters(), 2e-3)
    image = torch.rand(2, 3, 64, 64)
    bent = Geometry(1 + 0.1 * torch.randn(2, 1, 64, 64), torch.randn(2, 3, 64, 64))
    flat = Geometry(torch.ones(2, 1, 64, 64), torch.zeros(2, 3, 64, 64))
    for _ in range(12):
        optimiser.zero_grad()
        critics.telling(critics(image, bent), critics(image, flat)).backward()
        optimiser.step()
    with torch.no_grad():
        assert critics(image, bent).total.mean() > critics(image, flat).total.mean() + 0.1


def test_a_drawn_head_is_judged_beside_the_picture():
    head = load_head("open")
    params = HeadParams.zeros(head, 2)
    params = params.replace(translation=torch.tensor([[0.0, 0.0, -0.9], [0.05, 0.0, -0.9]]))
    camera = Camera(torch.full((2,), 200.0), torch.full((2, 2), 32.0))
    renderer = HeadGeometry(head)
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    geometry = renderer(image, params, camera)
    assert 0.3 < (geometry.depth != 0).float().mean() < 0.95
    assert geometry.depth[0, 0, 32, 32] > 0
    torch.testing.assert_close(geometry.normals.norm(dim=1)[0, 32, 32], torch.tensor(1.0))
    assert not torch.equal(geometry.depth[0], geometry.depth[1])
    critics = Ensemble(EnsembleConfig(discriminator_params=SMALL), picture=False, from_picture=False)
    critics.fooling(critics(image, geometry)).backward()
    assert image.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="heads of the pictures"):
        renderer(image)


def test_the_face_depth_network_gives_geometry_too():
    renderer = FaceDepthGeometry(FaceDepth())
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    geometry = renderer(image)
    assert (geometry.depth.shape, geometry.normals.shape) == ((1, 1, 64, 64), (1, 3, 64, 64))
    (geometry.depth.sum() + geometry.normals[:, 0].sum()).backward()
    assert image.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="square"):
        renderer(torch.rand(1, 3, 64, 96))


def test_bad_weights_are_told():
    with pytest.raises(ValueError, match="not all 0"):
        EnsembleConfig(weights=(0.0, 0.0, 0.0))
