"""Exported files compute what the networks compute, and run without them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from headwarp.app.export import export_model
from headwarp.media.image import load_image, save_image
from headwarp.nets.dagan import DaGan, DaGanConfig
from headwarp.nets.dense_motion import DenseMotionConfig
from headwarp.nets.fomm import Fomm, FommConfig
from headwarp.nets.g3fa import G3fa, G3faConfig, G3faGeneratorConfig
from headwarp.nets.generator import GeneratorConfig
from headwarp.nets.keypoints import KeypointConfig, Motion
from headwarp.nets.model_file import save_model
from headwarp.nets.pwm import Guidance, Pwm, PwmConfig

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIDE = 64
DETECTOR = KeypointConfig(block_expansion=4, max_features=16, num_blocks=2)
DENSE = DenseMotionConfig(block_expansion=4, max_features=16, num_blocks=2)
GENERATOR = GeneratorConfig(block_expansion=8, max_features=32, num_bottleneck_blocks=1, dense_motion_params=DENSE)


def lively(model: nn.Module) -> nn.Module:
    """Random weights, and no gate that starts at zero left shut: every branch shows in the output."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3) if not parameter.any() else None
    return model.eval()


def fomm() -> nn.Module:
    torch.manual_seed(0)
    model = lively(Fomm(FommConfig(kp_detector_params=DETECTOR, generator_params=GENERATOR)))
    model.generator.final.weight.data *= 30  # contrast: random pictures are grey
    return model


def pwm() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"size": SIDE, "levels": 2, "base_channels": 8, "max_channels": 16, "spade_hidden": 8}
    return lively(Pwm(PwmConfig(**sizes, residual_displacement=True, extrapolate=True)))


class Graphs:
    """A folder of exported files."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.sessions = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in self.config["graphs"]}

    def __call__(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wanted = self.config["graphs"][name]
        given = {key: inputs[key] for key in wanted["inputs"]}
        return dict(zip(wanted["outputs"], self.sessions[name].run(wanted["outputs"], given), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, lab: SimpleNamespace) -> tuple[Path, str]:
    """What the command wrote for FOMM, and what it said."""
    folder = tmp_path_factory.mktemp("fomm")
    save_model(folder / "fomm.safetensors", fomm(), {"licence": "CC0-1.0"})
    call = ("export", "--model", folder / "fomm.safetensors", "-o", folder / "out", "--torch-export", "--size", SIDE)
    done = lab.headwarp(*call)
    assert done.code == 0, done.err
    return folder / "out", done.out


@pytest.fixture(scope="module")
def fomm_folder(exported: tuple[Path, str]) -> Path:
    return exported[0]


def test_keypoint_graphs_follow_other_inputs_than_they_were_traced_with(fomm_folder: Path):
    model, graphs = fomm(), Graphs(fomm_folder)
    source, driving = torch.rand(2, 1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        state, motion = model.encode_source(source), model.read_motion(driving)
        moves = [motion, Motion(motion.value + 0.3, 1.2 * motion.jacobian)]
        wanted = [model.render(state, move).image.numpy() for move in moves]
    once = {**graphs("source", {"image": source.numpy()}), "image": source.numpy()}
    read = graphs("motion", {"image": driving.numpy()})
    np.testing.assert_allclose(read["value"], motion.value.numpy(), atol=1e-4)
    for move, picture in zip(moves, wanted, strict=True):
        now = {"value": move.value.numpy(), "jacobian": move.jacobian.numpy()}
        np.testing.assert_allclose(graphs("frame", {**once, **now})["picture"], picture, atol=1e-3)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01, "the motion shows"


def test_graphs_hold_standard_operators_only(fomm_folder: Path):
    for path in fomm_folder.glob("*.onnx"):
        graph = onnx.load(path)
        assert {domain.domain for domain in graph.opset_import if domain.domain not in ("", "ai.onnx")} <= {
            "pkg.onnxscript.torch_lib",
            "pkg.onnxscript.torch_lib.common",
        }
        assert all(node.domain == "" for node in graph.graph.node)
        onnx.checker.check_model(graph)


def test_the_example_animates_without_this_package(fomm_folder: Path, driving: Path, crop: Path, tmp_path: Path, lab):
    code = (fomm_folder / "example.py").read_text()
    assert "headwarp" not in code
    assert "torch" not in code
    assert len(code.splitlines()) <= 50
    out = tmp_path / "out.mp4"
    subprocess.run([sys.executable, "-I", fomm_folder / "example.py", crop, driving, out], check=True)
    result = lab.frames(out)
    assert len(result) == 10
    assert result[0].shape == (SIDE, SIDE, 3)


def test_pwm_graphs_follow_other_guidance(tmp_path: Path, crop: Path):
    model = pwm()
    norms = {name: value.clone() for name, value in model.state_dict().items()}
    export_model(model, "pwm", tmp_path)
    assert all(torch.equal(value, norms[name]) for name, value in model.state_dict().items()), "the model is as before"
    graphs = Graphs(tmp_path)
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(1, 3, SIDE, SIDE, generator=generator)
    mask = torch.zeros(1, 1, SIDE // 2, SIDE // 2)
    mask[..., 5:20, 8:30] = 1
    displacement = 0.2 * mask * torch.randn(1, 2, SIDE // 2, SIDE // 2, generator=generator)
    from headwarp.nets.pwm import extrapolate

    with torch.no_grad():
        wanted = model.render(model.encode_source(image), Guidance(displacement, extrapolate(displacement, mask > 0)))
        still = model.render(model.encode_source(image), Guidance(0 * displacement, 0 * displacement))
    inputs = {"image": image.numpy(), "mask": mask.numpy(), "displacement": displacement.numpy()}
    found = graphs("frame", {**inputs, **graphs("source", inputs)})
    np.testing.assert_allclose(found["picture"], wanted.image.numpy(), atol=1e-3)
    np.testing.assert_allclose(found["moved_by"], wanted.displacement.numpy(), atol=1e-3)
    assert (wanted.image - still.image).abs().max() > 0.01

    code = (tmp_path / "example.py").read_text()
    assert "headwarp.nets" not in code
    assert len(code.splitlines()) <= 50
    subprocess.run([sys.executable, tmp_path / "example.py", crop, tmp_path / "out.png", "15"], check=True)
    assert load_image(tmp_path / "out.png").shape == (SIDE, SIDE, 3)


def test_the_command_says_what_it_wrote_and_how_exact_it_is(exported: tuple[Path, str]):
    folder, out = exported
    assert out.count("differs from PyTorch") == 3
    graphs = {f"{name}.{ending}" for name in ("source", "motion", "frame") for ending in ("onnx", "pt2")}
    assert {path.name for path in folder.iterdir()} == {*graphs, "config.json", "example.py"}
    assert json.loads((folder / "config.json").read_text())["facts"] == {"licence": "CC0-1.0"}
    program = torch.export.load(folder / "motion.pt2").module()
    image = torch.rand(1, 3, SIDE, SIDE)
    torch.testing.assert_close(program(image)[0], fomm().read_motion(image).value, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported_is_said_in_a_sentence(lab: SimpleNamespace, tmp_path: Path):
    model = tmp_path / "fomm.safetensors"
    assert "no model file" in lab.refused("export", "--model", model, "-o", tmp_path / "out")
    save_model(model, fomm())
    assert "does not work at 2 " in lab.refused("export", "--model", model, "-o", tmp_path / "out", "--size", 2)
    assert "pwm, fomm, dagan, g3fa can" in str(_refusal(tmp_path))
    save_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert "damaged" in lab.refused("export", "--model", tmp_path / "a.png", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _refusal(folder: Path) -> Exception:
    with pytest.raises(ValueError, match="cannot be exported") as error:
        export_model(fomm(), "ostnet", folder / "out")
    return error.value


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dagan", "spade", "g3fa", "codes"])
def test_the_other_networks_go_too(tmp_path: Path, name: str):
    torch.manual_seed(0)
    common = {"kp_detector_params": DETECTOR, "generator_params": GENERATOR}
    if name == "g3fa":
        generator = G3faGeneratorConfig(dense_motion_params=DENSE)
        model: nn.Module = G3fa(G3faConfig(kp_detector_params=DETECTOR, generator_params=generator))
    elif name == "codes":
        sizes = {"size": SIDE, "levels": 3, "base_channels": 8, "max_channels": 16, "spade_hidden": 8}
        model = Pwm(PwmConfig(**sizes, guidance="displacement+neural_codes"))
    else:
        model = DaGan(DaGanConfig(**common, decoder="spade" if name == "spade" else "residual"))
    method = {"spade": "dagan", "codes": "pwm"}.get(name, name)
    written = export_model(lively(model), method, tmp_path, size=SIDE)
    assert max(value for value in written.values() if value is not None) < 1e-3
