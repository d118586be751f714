"""Compiles the Triton kernels for a GPU that need not be there; prints what ptxas says of them as JSON.

    python tests/render/compile_kernels.py 90 [NAME ...]

A program of its own, since TRITON_INTERPRET must be off while the kernels are defined.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headwarp.render.interpolate import gpu as interpolate
from headwarp.render.rasterize import gpu as rasterize
from headwarp.render.warp import gpu as warp

POINTERS = {
    **dict.fromkeys(("vertices", "s", "depth", "d_attributes", "d_vertices", "field", "d_features"), "*fp32"),
    **dict.fromkeys(("d_field", "corners", "result"), "*fp32"),
    **dict.fromkeys(("x", "y", "faces", "face_id"), "*i32"),
    **dict.fromkeys(("nearest", "order", "ends"), "*i64"),
}
FLOATS = re.compile("scale_|base_|offset_|background")


def build(kernel: Any, capability: int, dtype: str = "fp32", fused: bool = True, **constants: Any) -> dict[str, Any]:
    """Registers, spilled bytes and instructions of one kernel; pointers and strides divisible by 16."""
    kinds, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            kinds[name] = "constexpr"
        elif FLOATS.match(name):
            kinds[name] = "fp32"
        elif name in POINTERS or name in ("attributes", "image", "features", "grad"):
            kinds[name] = POINTERS.get(name, f"*{dtype}")
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            kinds[name] = "i32"
            if name.endswith(("_b", "_y", "_x")) and constants["C"] % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, kinds, {(kernel.arg_names.index(k),): v for k, v in constants.items()}, attributes)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": fused, "num_warps": 4}
    )
    assembly = compiled.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(assembly)
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell"
        target = f"sm_{capability}a" if capability == 90 else f"sm_{capability}"
        command = [str(tool), "-v", f"--gpu-name={target}", str(path), "-o", str(Path(folder, "kernel.cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),  # type: ignore[index]
        "spilled": sum(int(n) for n in re.findall(r"(\d+) bytes spill", report)),
        "min64": "min.s64" in assembly,
        "wide_load": len(re.findall(r"ld\.global\S*\.v4", assembly)),
        "wide_store": len(re.findall(r"st\.global\S*\.v4", assembly)),
        "wide_add": len(re.findall(r"(?:red|atom)\.\S*add\S*\.v4", assembly)),
        "fused": len(re.findall(r"\bfma\.rn\.f32", assembly)),
    }


def kernels() -> dict[str, Callable[[int], dict[str, Any]]]:
    plans: dict[str, tuple[Any, dict[str, Any]]] = {
        "snap": (rasterize.snap, {"PERSPECTIVE": True, "BLOCK": 256, "fused": False}),
        "resolve": (rasterize.resolve, {"PERSPECTIVE": True, "BLOCK": 256, "fused": False}),
        "collect": (interpolate.collect, {"C": 16, "BLOCK": 32, "CHANNELS": 16}),
    }
    for small, (triangles, pixels) in rasterize.BLOCKS.items():
        constants = {"CULL": True, "IS_SMALL": small, "TRIANGLES": triangles, "PIXELS": pixels, "fused": False}
        plans["scatter small" if small else "scatter large"] = rasterize.scatter, constants
    for channels in (2, 16):
        shape = {"C": channels, "PERSPECTIVE": True, "CHANNELS": channels}
        asked = {**shape, "TO_ATTRIBUTES": True, "TO_VERTICES": True}
        plans[f"interpolate {channels}"] = interpolate.forward, {**shape, "BLOCK": interpolate._PIXELS}
        plans[f"interpolate backward {channels}"] = (
            interpolate.backward,
            {**asked, "BLOCK": interpolate._BACKWARD_PIXELS},
        )
        plans[f"interpolate backward by faces {channels}"] = (
            interpolate.backward_by_faces,
            {**asked, "FACES": interpolate._FACES, "PIXELS": interpolate._FACE_PIXELS},
        )
    for channels in (64, 256, 512):
        pixels, block = warp.blocks(channels, warp._FORWARD_ELEMENTS)
        shape = {"C": channels, "ZEROS": False, "PIXELS": pixels, "CHANNELS": block}
        plans[f"warp {channels} bf16"] = warp.forward, {**shape, "dtype": "bf16"}
        plans[f"warp {channels} fp32"] = warp.forward, shape
        pixels, block = warp.blocks(channels, warp._BACKWARD_ELEMENTS)
        shape = {"C": channels, "ZEROS": False, "PIXELS": pixels, "CHANNELS": block}
        plans[f"warp backward {channels} bf16"] = warp.backward, {**shape, "dtype": "bf16"}
        plans[f"warp backward {channels} fp32"] = warp.backward, shape
    return {
        name: lambda capability, kernel=kernel, options=options: build(kernel, capability, **options)
        for name, (kernel, options) in plans.items()
    }


if __name__ == "__main__":
    capability = int(sys.argv[1])
    wanted = sys.argv[2:]
    print(json.dumps({name: make(capability) for name, make in kernels().items() if not wanted or name in wanted}))
