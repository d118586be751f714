"""G3FA and FNeVR against golden numbers of the official code; the folded forms against the plain ones."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from headwarp.nets.config import build
from headwarp.nets.fomm import CommonParams
from headwarp.nets.g3fa import FNEVR, G3fa, G3faConfig, G3faGeneratorConfig
from headwarp.nets.inference import optimise
from headwarp.nets.keypoints import Motion, normalise
from headwarp.nets.model_file import load_model, save_model
from headwarp.third_party import g3fa as official

TINY = {
    "common_params": {"num_kp": 5},
    "kp_detector_params": {"block_expansion": 8, "max_features": 32, "num_blocks": 3},
    "generator_params": {
        "dense_motion_params": {"block_expansion": 8, "max_features": 32, "num_blocks": 3},
        "render_params": {"simpled_channel_rgb": 64, "simpled_channel_sigma": 64, "floor_num": 4, "hidden_size": 32},
    },
}


def gain_of(tag):
    def gain(name):
        if tag == "generator":
            dense = name.startswith("dense_motion_network.hourglass.") and name.endswith("conv.weight")
            return 2.2 if dense else 1.4
        return {"kp.weight": 1.0, "jacobian.weight": 0.3}.get(name, 1.8)

    return gain


def golden_states(model: G3fa, named_weights) -> dict[str, dict[str, torch.Tensor]]:
    """The golden weights as a checkpoint; blur kernels stay."""
    checkpoint = {}
    for tag in ("generator", "kp_detector"):
        own = getattr(model, tag).state_dict()
        state = named_weights({k: tuple(v.shape) for k, v in own.items()}, tag, gain_of(tag))
        state |= {k: v for k, v in own.items() if k.endswith("down.weight")}
        if "jacobian.bias" in state:
            state["jacobian.bias"] += torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(len(state["jacobian.bias"]) // 4)
        checkpoint[tag] = state
    return checkpoint


@pytest.fixture(scope="module")
def model(named_weights):
    config = build(G3faConfig, TINY)
    model = G3fa(config)
    for part, state in golden_states(model, named_weights).items():
        getattr(model, part).load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def tiny(golden):
    return golden("golden_g3fa_tiny")


@torch.no_grad()
def test_every_stage_agrees_with_the_official_code(model, tiny, outputs_of):
    generator = model.generator
    parts = {
        "dm_hourglass": generator.dense_motion_network.hourglass,
        "rgb_volume": generator.Render_model.rgb_predict,
        "sigma_volume": generator.Render_model.sigma_predict,
        "mlp_sigma": generator.Render_model.nerf_module,
        "dec_seg": generator.decoder.seg_conv,
        "dec_spade0": generator.decoder.SPADE_0,
        "dec_spade1": generator.decoder.SPADE_1,
    }
    source = model.encode_source(tiny.arrays["input.source"])
    driving = model.read_motion(tiny.arrays["input.driving"])
    with outputs_of(parts) as seen:
        output = model.render(source, driving)
    for motion, name in [(source.motion, "kp_source"), (driving, "kp_driving")]:
        tiny.near(motion.value, f"{name}.value")
        tiny.near(motion.jacobian, f"{name}.jacobian")
    tiny.near(source.small, "dm_source_small")
    tiny.near(source.features, "gen_encoded")
    tiny.near(output.dense.mask, "mask")
    tiny.near(output.dense.deformation, "deformation")
    tiny.near(output.dense.occlusion, "occlusion_map")
    tiny.near(output.dense.sparse_deformed, "sparse_deformed")
    tiny.near(output.features, "fvr_in")
    for name in ("rgb_volume", "sigma_volume"):
        tiny.near(seen[name].permute(0, 3, 4, 2, 1), name)
    tiny.near(seen["mlp_sigma"][0], "mlp_sigma")
    tiny.near(output.rendered, "render")
    for name in ("dm_hourglass", "dec_seg", "dec_spade0", "dec_spade1"):
        tiny.near(seen[name], name)
    tiny.near(output.image, "prediction")
    assert output.mini is None


@torch.no_grad()
def test_relative_motion_of_the_live_demo_agrees(model, tiny):
    source = model.encode_source(tiny.arrays["input.source"])
    driving = model.read_motion(tiny.arrays["input.driving"])
    first = model.read_motion(tiny.arrays["input.driving_initial"])
    motion = normalise(driving, first, source.motion, adapt_scale=True)
    tiny.near(motion.value, "kp_norm.value")
    tiny.near(motion.jacobian, "kp_norm.jacobian")
    tiny.near(model.render(source, motion).image, "prediction_relative")


def test_names_and_shapes_are_the_official_ones(official_names):
    networks = official_names("g3fa")["networks"]
    with torch.device("meta"):
        model = G3fa()
    for part in ("generator", "kp_detector"):
        ours = {name: list(value.shape) for name, value in getattr(model, part).state_dict().items()}
        assert ours == {name: shape for name, shape, _ in networks[part]}


def test_fnevr_is_a_setting_of_it(official_names):
    with torch.device("meta"):
        model = G3fa(FNEVR)
    extra = {k: v for k, v in model.generator.state_dict().items() if "mini_decoder" in k}
    expected = {name: shape for name, shape, _ in official_names("g3fa")["fnevr_extra"] if "*" not in name}
    assert {k: list(v.shape) for k, v in extra.items() if k in expected} == expected
    assert len(extra) == 14
    assert model.kp_detector.kp.out_channels == 10


@pytest.mark.parametrize("planes", [1, 4])
@torch.no_grad()
def test_the_folded_volume_gives_the_same(planes):
    torch.manual_seed(0)
    config = build(
        G3faGeneratorConfig,
        {
            "render_params": {
                "simpled_channel_rgb": 16 * planes,
                "simpled_channel_sigma": 16 * planes,
                "floor_num": planes,
                "hidden_size": 16,
            }
        },
    )
    volume = used(G3fa(G3faConfig(CommonParams(3), generator_params=config)).generator.Render_model)
    features = torch.randn(2, 256, 7, 5)
    plain, fast = volume(features), volume.folded()(features)
    assert plain.std() > 1e-3
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 3), (6, 5)])
@torch.no_grad()
def test_the_folded_decoder_gives_the_same(size):
    """Also at the borders, where the zero padding belongs to the enlarged label map."""
    torch.manual_seed(0)
    decoder = used(G3fa(build(G3faConfig, TINY)).generator.decoder)
    x = torch.randn(2, 512, *size)
    label = decoder.seg_conv(x)
    folded = decoder.folded()
    for k, pair in enumerate([decoder.SPADE_0, decoder.SPADE_1, decoder.SPADE_2, decoder.SPADE_3]):
        factor = (1, 2, 4, 4)[k]
        y = torch.randn(2, pair.conv_0.in_channels, factor * size[0], factor * size[1])
        plain, fast = pair(y, label), folded.pairs[k](y, label)
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-4 * plain.abs().max().item())
    torch.testing.assert_close(folded(x), decoder(x), rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_optimised_model_gives_the_same_picture(model, tiny):
    fast = optimise(model)
    driving = tiny.arrays["input.driving"]
    source, source_fast = (m.encode_source(tiny.arrays["input.source"]) for m in (model, fast))
    plain, quick = model.render(source, model.read_motion(driving)), fast.render(source_fast, fast.read_motion(driving))
    torch.testing.assert_close(quick.image, plain.image, rtol=0, atol=1e-4)
    for part in ("decoder", "Render_model"):
        assert type(getattr(fast.generator, part)) is not type(getattr(model.generator, part))


def used(module: nn.Module) -> nn.Module:
    """As after training: every norm has statistics and scales of its own."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
        elif isinstance(norm, nn.Linear):
            nn.init.normal_(norm.weight, std=(2 / norm.in_features) ** 0.5)
    return module.eval()


@torch.no_grad()
def test_rays_are_integrated_front_to_back_own_point_included():
    """Summing before the last, linear layer changes nothing; the sum is written out here as the paper has it."""
    volume = G3fa(build(G3faConfig, TINY)).generator.Render_model
    shape, colour = torch.randn(1, 2, 3, 4, 16), torch.randn(1, 2, 3, 4, 16)
    density, hidden = volume.nerf_module(shape, colour)
    colours = volume.nerf_module.layer6(hidden)
    total, passed = torch.zeros(1, 2, 3, 256), torch.ones(1, 2, 3, 1)
    for i in range(4):
        s = F.relu(density[..., i, :])
        passed = passed * torch.exp(-s)
        total += passed * (1 - torch.exp(-s)) * colours[..., i, :]
    torch.testing.assert_close(
        volume._along_rays(shape, colour), total.sigmoid().permute(0, 3, 1, 2), rtol=0, atol=1e-6
    )


@torch.no_grad()
def test_one_source_serves_many_motions(model, tiny):
    source = model.encode_source(tiny.arrays["input.source"])
    driving = model.read_motion(tiny.arrays["input.driving"])
    both = Motion(
        torch.cat([source.motion.value, driving.value]), torch.cat([source.motion.jacobian, driving.jacobian])
    )
    images = model.render(source, both).image
    torch.testing.assert_close(images[1:], model.render(source, driving).image, rtol=0, atol=1e-4)


def test_fnevr_s_small_decoder_works_in_training_only():
    config = build(G3faConfig, {**TINY, "generator_params": {**TINY["generator_params"], "mini_decoder": True}})
    model = G3fa(config)
    source = model.encode_source(torch.rand(2, 3, 64, 64))
    output = model.render(source, source.motion)
    assert output.mini.shape == (2, 3, 64, 64)
    with torch.no_grad():
        assert model.eval().render(source, source.motion).mini is None


def test_checkpoints_become_model_files(tmp_path, model):
    """As distributed training writes them, with `module.`; FNeVR is recognised by its own parameters."""
    prefixed = {
        part: {f"module.{k}": v for k, v in getattr(model, part).state_dict().items()}
        for part in ("generator", "kp_detector")
    }
    torch.save({**prefixed, "epoch": 3, "optimizer_generator": {"state": {}}}, tmp_path / "g3fa.pth")
    loaded = official.load_g3fa(tmp_path / "g3fa.pth", model.config)
    save_model(tmp_path / "g3fa.safetensors", loaded, {"source": "a test"})
    again = load_model(tmp_path / "g3fa.safetensors")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_bad_checkpoints_and_settings_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"G3FA\.pth"):
        official.load_g3fa(tmp_path / "G3FA.pth")
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no entry 'kp_detector', but model"):
        official.load_g3fa(tmp_path / "other.pth")
    torch.save({"generator": {}, "kp_detector": {}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"empty\.pth .* has no kp\.bias"):
        official.load_g3fa(tmp_path / "empty.pth")
    small = G3fa(G3faConfig(CommonParams(num_kp=2)))
    states = {name: getattr(small, name).state_dict() for name in ("generator", "kp_detector")}
    torch.save(states | {"generator": {"first.conv.bias": torch.zeros(64)}}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"the generator lacks \d+ parameters, such as dense"):
        official.load_g3fa(tmp_path / "part.pth")
    states["generator"]["first.conv.bias"][0] = torch.nan
    torch.save(states, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"first\.conv\.bias holds values that are not finite"):
        official.load_g3fa(tmp_path / "nan.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="read safely"):
        official.load_g3fa(tmp_path / "text.pth")
    with pytest.raises(ValueError, match="256 channels"):
        G3fa(G3faConfig(generator_params=G3faGeneratorConfig(block_expansion=32)))


def test_it_trains_through_volume_and_decoder():
    torch.manual_seed(0)
    model = G3fa(build(G3faConfig, TINY))
    source, driving = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    output = model.render(model.encode_source(source), model.read_motion(driving))
    (output.image - driving).abs().mean().backward()
    lost = [name for name, p in model.named_parameters() if p.grad is None]
    assert lost == []
    assert all(math.isfinite(p.grad.abs().sum().item()) for p in model.parameters())
