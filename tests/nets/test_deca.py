"""DECA's encoder against golden numbers of the official code, its names, its crop, its checkpoint."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from headwarp.geom.camera import apply_crop
from headwarp.nets.deca import CODES, DecaEncoder
from headwarp.third_party import deca

GOLDEN = Path(os.environ.get("HEADWARP_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the golden vectors, see HEADWARP_GOLDEN")


def uniform(seed: int, count: int) -> np.ndarray:
    """The golden files' generator: u in [0, 1) of the numbers 1 ... count (splitmix64)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def golden_state(model: torch.nn.Module, tag: str, gain: float, gains: dict[str, float]) -> dict[str, torch.Tensor]:
    """A state dict whose values follow from its names alone."""
    state = {}
    for name, value in model.state_dict().items():
        seed = zlib.crc32(f"{tag}/{name}".encode())
        v = 2 * uniform(seed, value.numel()) - 1
        if name.endswith("num_batches_tracked"):
            v = np.zeros(1)
        elif name.endswith("running_var"):
            v = 1 + 0.3 * v
        elif name.endswith(("running_mean", "bias")):
            v = 0.1 * v
        elif value.ndim == 1:
            v = 1 + 0.2 * v
        else:
            v = gains.get(name, gain) * (3.0 / np.prod(value.shape[1:])) ** 0.5 * v
        state[name] = torch.from_numpy(v).to(value.dtype).reshape(value.shape)
    return state


@needs_golden
def test_the_encoder_agrees_with_the_official_one():
    from safetensors.torch import load_file

    arrays = load_file(GOLDEN / "golden_deca_encoder.safetensors")
    model = DecaEncoder()
    state = golden_state(model, "E_flame", 2**0.5, {"layers.2.weight": 0.25})
    state |= {name.removeprefix("bn/"): value for name, value in arrays.items() if name.startswith("bn/")}
    model = DecaEncoder.from_official({"E_flame": state, "E_detail": {}, "D_detail": {}})
    crops = arrays["input_uint8"].permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(model(crops), arrays["parameters"], rtol=0, atol=1e-4)
    codes = model.encode(crops)
    for name in CODES:
        torch.testing.assert_close(getattr(codes, name), arrays[f"code.{name}"], rtol=0, atol=1e-4)


@needs_golden
def test_names_and_shapes_are_the_official_ones():
    networks = json.loads((GOLDEN / "deca_state_dict.json").read_text())["networks"]
    official = {name: tuple(shape) for name, shape, _ in networks["E_flame"]}
    ours = {name: tuple(value.shape) for name, value in DecaEncoder().state_dict().items()}
    assert ours == official


def test_a_checkpoint_file_is_found_and_loaded(tmp_path, monkeypatch):
    model = DecaEncoder()
    torch.save({"E_flame": model.state_dict(), "E_detail": {"x": torch.zeros(1)}}, tmp_path / "deca_model.tar")
    monkeypatch.setenv("HEADWARP_DECA", str(tmp_path))
    loaded = deca.load_encoder()
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_missing_or_wrong_checkpoint_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWARP_DECA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"deca_model\.tar"):
        deca.load_encoder()
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "deca_model.tar")
    with pytest.raises(ValueError, match=r"lacks .* parameters"):
        deca.load_encoder()
    (tmp_path / "deca_model.tar").write_bytes(b"no torch file")
    with pytest.raises(ValueError, match="not a checkpoint of DECA"):
        deca.load_encoder()


def test_the_crop_maps_three_corners_as_deca_does():
    """(c - s/2, c + s/2) -> (0, 223) in indices of pixels, s = int(1.25 * 1.1 (w + h) / 2); spec of TestData."""
    points = torch.tensor([[100.0, 60.0], [180.0, 170.0], [140.0, 100.0]]) + 0.5  # indices + 0.5
    crop = deca.crop_of_landmarks(points)
    size = int(1.25 * 1.1 * (80 + 110) / 2)
    corners = torch.tensor([[140.0 - size / 2, 115.0 - size / 2], [140.0 + size / 2, 115.0 + size / 2]])
    mapped = apply_crop(crop, corners + 0.5) - 0.5
    torch.testing.assert_close(mapped, torch.tensor([[0.0, 0.0], [223.0, 223.0]]), rtol=0, atol=1e-3)
