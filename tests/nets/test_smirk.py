"""SMIRK's encoder against numbers of timm's modules, its names, its ranges, its crop, its checkpoint."""

from __future__ import annotations

import hashlib

import pytest
import torch

from headwarp.geom.camera import apply_crop
from headwarp.geom.head import load_head
from headwarp.nets.smirk import SmirkEncoder
from headwarp.third_party import smirk

# sha256 of the sorted lines "name shape" of the official network, its backbones made by timm 0.9.16 (and by 1.0.31)
NAMES = "4ae075c1a93d72572d473e166c0ca842586aaa78c1a249fd58d21e6160a4de04"
# what it says of picture("smirk", 1, 224, 224) with the weights of `filled`, by timm 0.9.16 and torch 2.13
ROTATION = [0.026834, 0.241183, 0.386511]
CAM = [-0.337647, -0.060153, 0.039694]
SHAPE_BY_50 = [0.127666, 0.860413, -0.111518, 0.239701, -0.169405, 0.066885]
EXPRESSION_BY_10 = [4.101605, -0.487845, 1.017922, 5.903265, -3.897853]
EYELIDS = [1.0, 0.300726]  # 2.586438 before the clamp
JAW = [3.845045, -0.2, -0.2]  # 3.845045, -1.984283, -4.769677 before it


@pytest.fixture(scope="module")
def filled(formula) -> dict[str, torch.Tensor]:
    """A state dict whose values follow from its names, scaled so that signals neither vanish nor explode."""
    state = SmirkEncoder().state_dict()
    gains = {f"smirk.{name}": 0.7 for name in state if name.endswith("conv_pwl.weight")}
    gains |= {f"smirk.{n}": 0.2 if "pose" in n else 0.05 for n in state if n.endswith("layers.0.weight")}
    return formula(state, "smirk", gains)


@pytest.fixture
def model(filled) -> SmirkEncoder:
    model = SmirkEncoder()
    model.load_state_dict(filled)
    return model.eval()


def test_the_encoder_agrees_with_timms_modules(model, golden_picture):
    codes = model.encode(golden_picture("smirk", 1, 224, 224).float() / 255)
    for ours, theirs in (
        (codes.rotation, ROTATION),
        (codes.cam, CAM),
        (codes.shape[:, ::50], SHAPE_BY_50),
        (codes.expression[:, ::10], EXPRESSION_BY_10),
        (codes.eyelids, EYELIDS),
        (codes.jaw, JAW),
    ):
        torch.testing.assert_close(ours, torch.tensor([theirs]), rtol=1e-4, atol=2e-5)


def test_names_and_shapes_are_the_official_ones():
    lines = sorted(f"{name} {tuple(value.shape)}" for name, value in SmirkEncoder().state_dict().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == NAMES


def test_jaw_and_eyelids_stay_in_their_ranges(model):
    last = model.expression_encoder.get_submodule("expression_layers.0")
    torch.nn.init.zeros_(last.weight)
    crop = torch.zeros(1, 3, 224, 224)
    for raw, lids, jaw in (
        ([0.4, -0.5, 0.3, 0.1, -0.15], [0.4, 0.0], [0.3, 0.1, -0.15]),
        ([1.5, 1.0, -0.3, 0.7, -0.7], [1.0, 1.0], [0.0, 0.2, -0.2]),
    ):
        last.bias.data[50:] = torch.tensor(raw)
        codes = model.encode(crop)
        torch.testing.assert_close(codes.eyelids, torch.tensor([lids]))
        torch.testing.assert_close(codes.jaw, torch.tensor([jaw]))


def test_other_crops_and_other_heads_are_refused(model):
    with pytest.raises(ValueError, match=r"crops must be \(B, 3, 224, 224\)"):
        model.encode(torch.zeros(1, 3, 256, 256))
    codes = model.encode(torch.zeros(1, 3, 224, 224))
    with pytest.raises(ValueError, match="300 shape and 50 expression"):
        codes.params(load_head())


def test_a_checkpoint_file_is_found_and_loaded(filled, tmp_path, monkeypatch):
    content = {f"smirk_encoder.{name}": value for name, value in filled.items()}
    torch.save(content | {"smirk_generator.x": torch.zeros(1)}, tmp_path / "SMIRK_em1.pt")
    monkeypatch.setenv("HEADWARP_SMIRK", str(tmp_path))
    loaded = smirk.load_encoder()
    assert not loaded.training
    assert all(torch.equal(value, filled[name]) for name, value in loaded.state_dict().items())


def test_a_missing_or_wrong_checkpoint_is_told(filled, tmp_path, monkeypatch):
    path = tmp_path / "SMIRK_em1.pt"
    monkeypatch.setenv("HEADWARP_SMIRK", str(path))
    with pytest.raises(FileNotFoundError, match=r"SMIRK_em1\.pt was not found.*HEADWARP_SMIRK"):
        smirk.load_encoder()
    torch.save({"E_flame": {"weight": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match="not a checkpoint of SMIRK"):
        smirk.load_encoder()
    short = {f"smirk_encoder.{name}": value for name, value in filled.items() if "shape_layers" not in name}
    torch.save(short, path)
    with pytest.raises(ValueError, match=r"lacks 2 parameters, such as shape_encoder\.shape_layers"):
        smirk.load_encoder()
    path.write_bytes(b"no torch file")
    with pytest.raises(ValueError, match="not a checkpoint of SMIRK"):
        smirk.load_encoder()


def test_the_crop_maps_three_corners_as_smirk_does():
    """(c - s/2, c + s/2) -> (0, 223) in indices of pixels, s = int(1.4 (w + h) / 2); c are MediaPipe's coordinates."""
    points = torch.tensor([[100.0, 60.0], [180.0, 171.0], [140.0, 100.0]])
    size = int(1.4 * (80 + 111) / 2)
    corners = torch.tensor([[140.0 - size / 2, 115.5 - size / 2], [140.0 + size / 2, 115.5 + size / 2]])
    mapped = apply_crop(smirk.crop_of_landmarks(points), corners + 0.5) - 0.5
    torch.testing.assert_close(mapped, torch.tensor([[0.0, 0.0], [223.0, 223.0]]), rtol=0, atol=1e-3)
