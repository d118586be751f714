"""`headwarp export`: a model as ONNX files that run anywhere, without this package's networks.

    source.onnx   once per portrait:  picture -> features (keypoint models: and its keypoints)
    motion.onnx   keypoint models, once per driving frame:  picture -> keypoints
    frame.onnx    once per frame:  features, motion -> picture
    config.json   method, sizes, names and shapes of inputs and outputs, measured differences from PyTorch
    example.py    runs the files with onnxruntime

The graphs hold standard operators only: this project's warp becomes GridSample, the inverse of the keypoints' 2 x 2
maps its formula. Batch and size are fixed, so that every runtime can plan its memory. Each file is run with onnxruntime
on random input and compared with PyTorch before it gets its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

METHODS = ("pwm", "fomm", "dagan", "g3fa")
TOLERANCE = 1e-3
"""Largest difference from PyTorch, relative to the largest value of an output (at least 1)."""
OPSET = 18


@dataclass
class Export:
    """Write a model as ONNX files, checked against PyTorch, with an example that runs them.

    Needs `pip install 'headwarp[export]'`. Writes source.onnx, frame.onnx, for keypoint models motion.onnx, config.json
    and example.py.
    """

    model: str
    """pwm, or a model file: pwm, fomm, dagan or g3fa."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """Folder to write."""
    size: int | None = None
    """Side of the pictures in pixels; by default what the model was trained on (keypoint models: 256)."""
    torch_export: bool = False
    """Also write the graphs for torch.export.load: source.pt2 ..."""

    def run(self) -> None:
        from ..media.errors import InputError
        from ..nets.model_file import load_model, read_header
        from .models import model_file

        try:
            file = model_file(self.model)
            header = read_header(file)
            network = load_model(file)
        except (FileNotFoundError, ValueError) as error:
            raise InputError(str(error)) from None
        written = export_model(
            network,
            header.method,
            self.output,
            size=self.size,
            facts=header.facts,
            torch_export=self.torch_export,
        )
        for path, difference in written.items():
            told = "" if difference is None else f"  (differs from PyTorch by at most {difference:.1e})"
            print(f"{path}{told}")


@dataclass(frozen=True)
class Part:
    """One graph: a network with names for what goes in and out."""

    network: nn.Module
    inputs: dict[str, Tensor]
    """Examples, of the shapes that the graph will have."""
    outputs: list[str]


def export_model(
    model: nn.Module,
    method: str,
    folder: Path,
    *,
    size: int | None = None,
    facts: Mapping[str, str] | None = None,
    torch_export: bool = False,
) -> dict[Path, float | None]:
    """Write the files.

    Args:
        model: in evaluation mode; it is not changed.
        method: one of `METHODS`.
        folder: made where it is missing.
        size: side of the pictures in pixels.
        facts: what the model file says of itself, for config.json (licence, source).
        torch_export: also write .pt2 files.
    Returns:
        The files, and how far the graphs are from PyTorch.
    Raises:
        InputError: a model of another kind, a size that it cannot work at, or the packages are missing.
        RuntimeError: a graph computes something else than PyTorch.
    """
    import torch

    from ..media.errors import InputError
    from ..media.files import atomic_write
    from ..nets.layers import fold_spectral_norm

    if method not in METHODS:
        raise InputError(f"A {method} model cannot be exported; {', '.join(METHODS)} can.")
    _check_packages()
    settings: Any = model.config
    network = deepcopy(model).eval().requires_grad_(False)
    fold_spectral_norm(network)
    side = size or (int(settings.size) if method == "pwm" else 256)
    try:
        parts = _pwm_parts(network, side) if method == "pwm" else _keypoint_parts(network, side)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"The model does not work at {side} pixels: {error}") from None
    written: dict[Path, float | None] = {}
    graphs: dict[str, Any] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        path = folder / f"{name}.onnx"
        program = _program(part)
        with atomic_write(path) as temporary:
            written[path] = _write(part, program, temporary)
        if torch_export:
            with atomic_write(path.with_suffix(".pt2")) as temporary:
                torch.export.save(program, temporary)
            written[path.with_suffix(".pt2")] = None
        graphs[name] = {
            "inputs": {key: list(value.shape) for key, value in part.inputs.items()},
            "outputs": part.outputs,
            "difference": written[path],
        }
    config: dict[str, Any] = {"method": method, "size": side, "graphs": graphs, "facts": dict(facts or {})}
    example = _KEYPOINT_EXAMPLE
    if method == "pwm":
        example = _PWM_EXAMPLE
        config |= {"head": settings.head, "guidance": settings.guidance}
        codes = getattr(network, "codes", None)
        config["codes"] = None if codes is None else codes.tolist()
    for name, text in (("config.json", json.dumps(config, indent=1)), ("example.py", example)):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written[folder / name] = None
    return written


def _check_packages() -> None:
    from ..media.errors import InputError

    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"Exporting needs {error.name}: pip install 'headwarp[export]'.") from None


def _program(part: Part) -> ExportedProgram:
    """The graph of standard operators."""
    import warnings

    import torch

    # With gradients on, as networks then take their plain ways, without writing into parts of shared memory.
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(part.network, tuple(part.inputs.values()), strict=False)
        return program.run_decompositions(_plain_operators())


def _write(part: Part, program: ExportedProgram, path: Path) -> float:
    """Write a graph as ONNX; the largest difference of its outputs from PyTorch's.

    Raises:
        RuntimeError: it is more than `TOLERANCE`.
    """
    import logging
    import warnings

    import numpy as np
    import onnxruntime
    import torch

    logging.disable(logging.WARNING)  # it warns about torchvision's operators, which nobody needs here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program,
                (),
                str(path),
                input_names=list(part.inputs),
                output_names=part.outputs,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        logging.disable(logging.NOTSET)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(part.outputs, {name: value.numpy() for name, value in part.inputs.items()})
    with torch.no_grad():
        wanted = part.network(*part.inputs.values())
    worst = 0.0
    for name, ours, theirs in zip(part.outputs, wanted, found, strict=True):
        values = ours.numpy()
        difference = float(np.abs(values - theirs).max() / max(1.0, float(np.abs(values).max())))
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"{path.name}: {name} differs from PyTorch by {difference:.1e}, more than {TOLERANCE:g}."
            )
        worst = max(worst, difference)
    return worst


def _plain_operators() -> dict[Any, Callable[..., Any]]:
    """What stands in the graph for operators that ONNX does not have."""
    import torch
    import torch.nn.functional as F

    from ..render import warp  # noqa: F401 - registers headwarp::warp

    def warp_by_grid(features: Tensor, field: Tensor, axes: list[float], zeros: bool, backend: str) -> Tensor:
        height, width = features.shape[-2:]
        if field.shape[-2:] != (height, width):
            field = F.interpolate(field, (height, width), mode="bilinear", align_corners=False)
        grid = []
        for axis, (length, values) in enumerate(((width, field[:, 0]), (height, field[:, 1]))):
            base, offset, scale = axes[3 * axis : 3 * axis + 3]
            steps = torch.arange(length, dtype=values.dtype)
            place = base * (steps if axis == 0 else steps[:, None]) + offset + scale * values
            grid.append((2 * place + 1) / length - 1)
        padding = "zeros" if zeros else "border"
        return F.grid_sample(features, torch.stack(grid, -1), padding_mode=padding, align_corners=False)

    def inverse_of_two(matrix: Tensor) -> Tensor:
        (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
        adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
        return adjugate / (a * d - b * c)[..., None, None]

    def area(image: Tensor, size: list[int]) -> Tensor:
        kernel = image.shape[-2] // size[0], image.shape[-1] // size[1]
        if (kernel[0] * size[0], kernel[1] * size[1]) != tuple(image.shape[-2:]):
            raise ValueError(f"means over areas of unequal size, {tuple(image.shape[-2:])} to {tuple(size)}")
        return F.avg_pool2d(image, kernel)

    return {
        torch.ops.headwarp.warp.default: warp_by_grid,
        torch.ops.aten.linalg_inv.default: inverse_of_two,
        torch.ops.aten._adaptive_avg_pool2d.default: area,
        torch.ops.aten.adaptive_avg_pool2d.default: area,
    }


def _pwm_parts(model: Any, side: int) -> dict[str, Part]:
    import torch
    from torch import nn

    from ..nets.pwm import Guidance, SourceState, extrapolate

    config = model.config
    levels = config.levels
    features = [f"features{i}" for i in range(levels)]

    class Source(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor, codes: Tensor | None = None) -> tuple[Tensor, ...]:
            return tuple(self.model.encode_source(image, codes).features)

    class Frame(nn.Module):
        """`displacement` and `codes` are drawn on the driving head, 0 elsewhere; `mask` is 1 on the head."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            state = SourceState(image, list(rest[:levels]))
            drawn = list(rest[levels:])
            displacement = None
            if config.has_displacement:
                mask = drawn.pop(0)
                displacement = drawn[0]
                if config.extrapolate:
                    displacement = extrapolate(displacement, mask > 0)
            made = self.model.render(state, Guidance(torch.cat(drawn, 1), displacement))
            return made.image, made.warped, made.displacement

    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, side, side, generator=generator)
    half = side // 2
    source_inputs = {"image": image}
    if config.source_channels:
        source_inputs["codes"] = torch.randn(1, config.source_channels, side, side, generator=generator)
    with torch.no_grad():
        made = model.encode_source(*source_inputs.values()).features
    frame_inputs = {"image": image, **dict(zip(features, made, strict=True))}
    if config.has_displacement:
        mask = torch.zeros(1, 1, half, half)
        mask[..., half // 4 : -half // 4, half // 4 : -half // 4] = 1
        frame_inputs["mask"] = mask
        frame_inputs["displacement"] = 0.1 * mask * torch.randn(1, 2, half, half, generator=generator)
    if config.source_channels:
        frame_inputs["codes"] = torch.randn(1, config.source_channels, half, half, generator=generator)
    return {
        "source": Part(Source(), source_inputs, features),
        "frame": Part(Frame(), frame_inputs, ["picture", "warped", "moved_by"]),
    }


def _keypoint_parts(model: Any, side: int) -> dict[str, Part]:
    import torch
    from torch import nn

    from ..nets.generator import SourceState
    from ..nets.keypoints import Motion

    generator = torch.Generator().manual_seed(0)
    image, other = (torch.rand(1, 3, side, side, generator=generator) for _ in range(2))
    with torch.no_grad():
        state = model.encode_source(image)
        motion = model.read_motion(other)
        model.render(state, motion)
    has_maps = motion.jacobian is not None
    keypoints = ["value", "jacobian"] if has_maps else ["value"]
    # The picture itself goes into the decoder of SPADE_DaGAN only, the query exists with attention by depth.
    whole = getattr(model.generator, "decoder", None) is not None and hasattr(model.generator, "AttnModule")
    optional = (["query"] if state.query is not None else []) + (["image"] if whole else [])
    kept = [*(f"source_{name}" for name in keypoints), "small", "features", *optional]

    def flat(motion: Motion) -> list[Tensor]:
        return [motion.value] if motion.jacobian is None else [motion.value, motion.jacobian]

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return tuple(flat(self.model.read_motion(image)))

    class Source(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            state = self.model.encode_source(image)
            return (*flat(state.motion), state.small, state.features, *([state.query] if "query" in optional else []))

    class Frame(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
            named = dict(zip([*kept, *keypoints], given, strict=True))
            state = SourceState(
                named.get("image", named["small"]),
                Motion(named["source_value"], named.get("source_jacobian")),
                named["small"],
                named["features"],
                None,
                named.get("query"),
            )
            return (self.model.render(state, Motion(named["value"], named.get("jacobian"))).image,)

    values = [*flat(state.motion), state.small, state.features]
    values += ([state.query] if "query" in optional else []) + ([image] if whole else [])
    frame_inputs = dict(zip([*kept, *keypoints], [*values, *flat(motion)], strict=True))
    return {
        "source": Part(Source(), {"image": image}, [name for name in kept if name != "image"]),
        "motion": Part(Read(), {"image": image}, keypoints),
        "frame": Part(Frame(), frame_inputs, ["picture"]),
    }


_KEYPOINT_EXAMPLE = '''"""python example.py SOURCE.png DRIVING.mp4 OUT.mp4: face crops in, a face crop out."""

import json
import sys
from pathlib import Path

import av
import numpy as np
import onnxruntime
from PIL import Image

here = Path(__file__).parent
config = json.loads((here / "config.json").read_text())
side = config["size"]
graphs = {name: onnxruntime.InferenceSession(here / f"{name}.onnx") for name in config["graphs"]}


def run(name, inputs):
    wanted = config["graphs"][name]
    return dict(zip(wanted["outputs"], graphs[name].run(wanted["outputs"], {k: inputs[k] for k in wanted["inputs"]})))


def tensor(image):
    return np.float32(image.convert("RGB").resize((side, side))).transpose(2, 0, 1)[None] / 255


source, driving, output = sys.argv[1:]
picture = tensor(Image.open(source))
state = {**run("source", {"image": picture}), "image": picture}
first = None
with av.open(driving) as video, av.open(output, "w") as result:
    stream = result.add_stream("libx264", rate=video.streams.video[0].average_rate)
    stream.width = stream.height = side
    for frame in video.decode(video=0):
        motion = run("motion", {"image": tensor(frame.to_image())})
        first = first or motion  # relative motion: the first frame is the driver's rest
        moved = {"value": motion["value"] - first["value"] + state["source_value"]}
        if "jacobian" in motion:
            moved["jacobian"] = motion["jacobian"] @ np.linalg.inv(first["jacobian"]) @ state["source_jacobian"]
        made = run("frame", {**state, **moved})["picture"][0].transpose(1, 2, 0)
        pixels = np.ascontiguousarray((made * 255).round().clip(0, 255).astype(np.uint8))
        result.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    result.mux(stream.encode(None))
'''

_PWM_EXAMPLE = '''"""python example.py SOURCE.png OUT.png YAW: turns a face; the head is headwarp's, not the network."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from headwarp.fitting.fit import fit_image
from headwarp.geom.head import load_head
from headwarp.geom.rotation import axis_angle_to_matrix, euler_to_matrix, matrix_to_axis_angle
from headwarp.render.guidance import code_image, displacement_map, nmfc_codes
from headwarp.render.rasterize import rasterize
from PIL import Image

here = Path(__file__).parent
config = json.loads((here / "config.json").read_text())
side, names = config["size"], config["graphs"]["frame"]["inputs"]
source, frame = (onnxruntime.InferenceSession(here / f"{name}.onnx") for name in ("source", "frame"))
head = load_head(config["head"])
codes = nmfc_codes(head.v_template) if config["guidance"] == "nmfc" else None
codes = torch.tensor(config["codes"]) if config["codes"] else codes
kept = torch.ones(len(head.faces), dtype=torch.bool)
kept[head.part_faces("neck")] = False  # fits do not know how the neck moves
faces = head.faces[kept]

image = np.array(Image.open(sys.argv[1]).convert("RGB").resize((side, side)))
track = fit_image(image, head=head)
turn = euler_to_matrix(torch.tensor([float(sys.argv[3])])) @ axis_angle_to_matrix(track.params.rotation)
target = track.params.replace(rotation=matrix_to_axis_angle(turn))
before, after = (track.camera.ndc(head(params), (side, side)) for params in (track.params, target))
half = (side // 2, side // 2)
fragments = rasterize(after, faces, half, perspective=True)
shown = {"perspective": True, "fragments": fragments}
inputs = {"image": np.float32(image).transpose(2, 0, 1)[None] / 255}
inputs["mask"] = np.float32(fragments.face_id[:, None].numpy() >= 0)
inputs["displacement"] = displacement_map(before, after, faces, half, **shown).numpy()
if codes is not None:
    inputs["codes"] = code_image(codes, before, faces, (side, side), perspective=True).numpy()
features = source.run(None, {k: inputs[k] for k in config["graphs"]["source"]["inputs"]})
inputs.update(zip(config["graphs"]["source"]["outputs"], features))
if codes is not None:
    inputs["codes"] = code_image(codes, after, faces, half, **shown).numpy()
picture = frame.run(["picture"], {name: np.ascontiguousarray(inputs[name]) for name in names})[0][0]
Image.fromarray((picture.transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)).save(sys.argv[2])
'''
