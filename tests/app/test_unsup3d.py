"""`headwarp unsup3d`: files, light and turning. Weights are random; only what holds for any weights is tested."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from headwarp.app.convert import Convert
from headwarp.app.unsup3d import Unsup3dCommand, decompose
from headwarp.media.errors import InputError
from headwarp.nets.model_file import load_model, save_model
from headwarp.nets.unsup3d import Unsup3d, Unsup3dConfig


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "unsup3d.safetensors"
    save_model(path, Unsup3d(Unsup3dConfig(image_size=32, width=8, code=16)))
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "face.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)).save(path)
    return path


def test_everything_is_written(model_file, picture, tmp_path):
    Unsup3dCommand(picture, tmp_path / "out", model=model_file, no_crop=True, size=48).run()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = "canonical_depth normals albedo shading canonical reconstruction relit turned sheet"
    assert names == {*(f"{name}.png" for name in pictures.split()), "factors.json"}
    depth = Image.open(tmp_path / "out/canonical_depth.png")
    assert (depth.size, depth.mode[:4]) == ((48, 48), "I;16")
    assert Image.open(tmp_path / "out/turned.png").size == (5 * 48, 48)
    facts = json.loads((tmp_path / "out/factors.json").read_text())
    assert np.linalg.norm(facts["light_direction"]) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_light_from_the_left_brightens_what_faces_left(model_file):
    """A bump in the middle: its left flank is brighter under the first light of the strip, its right under the last."""
    model = load_model(model_file)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    bump = 1.05 - 0.08 * torch.exp(-3 * (x**2 + y**2))
    plain = model.factors

    def bumpy(image):
        factors = plain(image)
        factors.depth, factors.albedo = bump[None, None], torch.zeros(1, 3, 32, 32)
        return factors

    model.factors = bumpy
    results, _ = decompose(model, torch.rand(1, 3, 32, 32), size=32)
    first, last = results["relit"][..., :32], results["relit"][..., -32:]
    left, right = (
        (slice(None), slice(None), slice(12, 20), slice(8, 13)),
        (slice(None), slice(None), slice(12, 20), slice(19, 24)),
    )
    assert first[left].mean() > first[right].mean() + 0.05
    assert last[right].mean() > last[left].mean() + 0.05


def test_bad_input_is_told(model_file, picture, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWARP_UNSUP3D", str(tmp_path))
    with pytest.raises(InputError, match=r"checkpoint030\.pth was not found"):
        Unsup3dCommand(picture, tmp_path / "out", no_crop=True).run()
    with pytest.raises(InputError, match="--size must be at least 16"):
        Unsup3dCommand(picture, tmp_path / "out", model=model_file, size=4).run()
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="a part of that path is a file"):
        Unsup3dCommand(picture, picture, model=model_file, no_crop=True).run()


def test_an_official_checkpoint_becomes_a_model_file(tmp_path):
    model = Unsup3d()
    parts = {name: getattr(model, name).state_dict() for name in ("netD", "netA", "netL", "netV", "netC")}
    torch.save({**parts, "epoch": 30}, tmp_path / "checkpoint030.pth")
    Convert("unsup3d", tmp_path / "unsup3d.safetensors", checkpoint=tmp_path / "checkpoint030.pth").run()
    assert torch.equal(
        load_model(tmp_path / "unsup3d.safetensors").netD.network[0].weight, model.netD.network[0].weight
    )
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match="that is a folder"):
        Convert("unsup3d", tmp_path / "folder.safetensors", checkpoint=tmp_path / "checkpoint030.pth").run()
