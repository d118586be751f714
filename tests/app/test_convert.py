"""`headwarp convert`: official files of every shape in, one model file out."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from headwarp.app.convert import Convert
from headwarp.media.errors import InputError
from headwarp.nets.config import as_dict
from headwarp.nets.dagan import DaGan, DaGanConfig
from headwarp.nets.dense_motion import DenseMotionConfig
from headwarp.nets.depth import DepthConfig, FaceDepth
from headwarp.nets.fomm import CommonParams, Fomm, FommConfig
from headwarp.nets.generator import GeneratorConfig
from headwarp.nets.keypoints import KeypointConfig
from headwarp.nets.model_file import load_model, read_header
from headwarp.third_party.torch_files import read_torch

GENERATOR = GeneratorConfig(16, 512, 2, 3, dense_motion_params=DenseMotionConfig(8, 64, 3))
KEYPOINTS = KeypointConfig(block_expansion=8, max_features=64, num_blocks=3)


def old_spectral(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as `torch.nn.utils.spectral_norm` writes them."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("parametrizations.weight.original", "weight_orig")
        renamed[name.replace("parametrizations.weight.0._", "weight_")] = value
    return renamed


def checkpoint(model: Fomm | DaGan, path: Path, *, prefix: str = "", without: str = "") -> Path:
    """As the official training scripts write it; `prefix` as DistributedDataParallel does."""
    parts = {"generator": old_spectral(model.generator.state_dict()), "kp_detector": model.kp_detector.state_dict()}
    content = {
        name: {prefix + key: value for key, value in state.items() if not (without and key.endswith(without))}
        for name, state in parts.items()
    }
    torch.save({**content, "optimizer_generator": {"state": {}, "param_groups": []}, "epoch": 3}, path)
    return path


def depth_files(depth: FaceDepth, folder: Path) -> tuple[Path, Path]:
    encoder = depth.depth_encoder.state_dict()
    width = depth.depth_encoder.encoder.channels_out[-1]
    fc = {"encoder.fc.weight": torch.zeros(1000, width), "encoder.fc.bias": torch.zeros(1000)}
    torch.save({**encoder, **fc, "height": 256, "width": 256, "use_stereo": False}, folder / "encoder.pth")
    torch.save(depth.depth_decoder.state_dict(), folder / "depth.pth")
    return folder / "encoder.pth", folder / "depth.pth"


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items() if "num_batches" not in k)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_fomm(tmp_path, prefix, capsys):
    model = Fomm(FommConfig(CommonParams(num_kp=7), KEYPOINTS, GENERATOR, align_corners=True))
    path = checkpoint(model, tmp_path / "vox.pth.tar", prefix=prefix, without="num_batches_tracked")
    Convert("fomm", tmp_path / "fomm.safetensors", path, align_corners=True).run()
    loaded = load_model(tmp_path / "fomm.safetensors")
    assert same(model, loaded)
    found = as_dict(loaded.config)
    assert found["common_params"] == {"num_kp": 7, "num_channels": 3, "estimate_jacobian": True}
    assert found["kp_detector_params"] == as_dict(KEYPOINTS)
    assert found["generator_params"] == as_dict(GENERATOR)
    assert found["align_corners"] is True
    facts = read_header(tmp_path / "fomm.safetensors").facts
    assert facts["source"] == "vox.pth.tar"
    assert "7 keypoints" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"decoder": "spade"},
        {"keypoint_input": "rgb"},
        {"keypoint_input": "depth"},
        {"attention": "self"},
        {"keypoint_input": "rgb", "attention": "none", "decoder": "spade"},
        {"depth_params": DepthConfig(50)},
    ],
    ids=str,
)
def test_dagan(tmp_path, change):
    config = dataclasses.replace(
        DaGanConfig(CommonParams(num_kp=6), KEYPOINTS, dataclasses.replace(GENERATOR, max_features=40)), **change
    )
    model = DaGan(config)
    path = checkpoint(model, tmp_path / "dagan.pth.tar", prefix="module.")
    encoder, decoder = (None, None) if model.depth is None else depth_files(model.depth, tmp_path)
    Convert("dagan", tmp_path / "dagan.safetensors", path, encoder, decoder).run()
    loaded = load_model(tmp_path / "dagan.safetensors")
    assert same(model, loaded)
    for name in ("keypoint_input", "attention", "decoder", "depth_params", "common_params"):
        assert getattr(loaded.config, name) == getattr(config, name)
    assert loaded.config.generator_params.max_features == 40


def test_face_depth(tmp_path):
    model = FaceDepth(DepthConfig(18, pose=True, intrinsics="official"))
    encoder, decoder = depth_files(model, tmp_path)
    torch.save(model.pose_encoder.state_dict(), tmp_path / "pose_encoder.pth")
    torch.save(model.pose.state_dict(), tmp_path / "pose.pth")
    pose = {"pose_encoder": tmp_path / "pose_encoder.pth", "pose_decoder": tmp_path / "pose.pth"}
    Convert("depth", tmp_path / "d.safetensors", depth_encoder=encoder, depth_decoder=decoder, **pose).run()
    loaded = load_model(tmp_path / "d.safetensors")
    assert loaded.config == model.config
    assert same(model, loaded)


def test_what_does_not_belong_together_is_told(tmp_path):
    small = DaGanConfig(CommonParams(num_kp=6), KEYPOINTS, GENERATOR)
    path = checkpoint(DaGan(small), tmp_path / "dagan.pth.tar")
    encoder, _ = depth_files(FaceDepth(), tmp_path)
    (tmp_path / "deep").mkdir()
    _, deep = depth_files(FaceDepth(DepthConfig(50)), tmp_path / "deep")
    output = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match=r"ResNet-18.*ResNet-50"):
        Convert("dagan", output, path, encoder, deep).run()
    with pytest.raises(InputError, match="depth network is needed"):
        Convert("dagan", output, path).run()
    with pytest.raises(InputError, match="DaGAN checkpoint"):
        Convert("fomm", output, path).run()
    plain = checkpoint(Fomm(FommConfig(CommonParams(num_kp=6), KEYPOINTS, GENERATOR)), tmp_path / "fomm.pth.tar")
    with pytest.raises(InputError, match=r"makes it a FOMM: use `headwarp convert fomm`"):
        Convert("dagan", output, plain).run()
    with pytest.raises(InputError, match="needs --checkpoint"):
        Convert("fomm", output).run()

    content = torch.load(path, weights_only=True)
    other = DaGan(dataclasses.replace(small, common_params=CommonParams(num_kp=9)))
    torch.save({**content, "kp_detector": other.kp_detector.state_dict()}, path)
    with pytest.raises(InputError, match="6 keypoints, the keypoint detector has 9"):
        Convert("dagan", output, path, encoder, tmp_path / "depth.pth").run()
    assert not output.exists()


def test_other_files_are_told(tmp_path):
    output = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match="no file"):
        Convert("fomm", output, tmp_path / "nothing.tar").run()
    (tmp_path / "text.tar").write_text("no torch file")
    with pytest.raises(InputError, match="read safely"):
        Convert("fomm", output, tmp_path / "text.tar").run()
    torch.save({"model": {}}, tmp_path / "other.tar")
    with pytest.raises(InputError, match="no entry 'kp_detector', but model"):
        Convert("fomm", output, tmp_path / "other.tar").run()
    torch.save({"generator": Fomm, "kp_detector": {}}, tmp_path / "code.tar")  # would run code
    with pytest.raises(InputError, match=r"read safely: it holds headwarp\.nets\.fomm\.Fomm") as told:
        Convert("fomm", output, tmp_path / "code.tar").run()
    assert "weights_only" not in str(told.value)  # torch recommends to switch the safeguard off
    with pytest.raises(InputError, match="ends with"):
        Convert("fomm", tmp_path / "out.pth", tmp_path / "other.tar").run()


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_is_broken_in_a_file_is_told_in_a_sentence(tmp_path, zipped):
    path = tmp_path / "broken.tar"
    torch.save({"generator": {"a": torch.ones(3, 2)}, "kp_detector": {}}, path, _use_new_zipfile_serialization=zipped)
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    broken = [b"", b"a", b"hello", b"PK\3\4", whole[: len(whole) // 2], *(_damaged(whole, random) for _ in range(100))]
    for content in broken:
        path.write_bytes(content)
        with suppress(ValueError):  # anything else fails the test; damaged numbers are numbers
            read_torch(path, "a checkpoint")
            continue
        refused += 1
    assert refused > 50


def _damaged(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in random.integers(len(changed), size=4):
        changed[place] = random.integers(256)
    return bytes(changed)
