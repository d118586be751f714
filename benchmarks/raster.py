"""How fast meshes are rasterised and attributes interpolated.

    headwarp bench raster [-o OUT]

The open head in random poses, 256 x 256, 16 channels. The peer is pytorch3d where it is installed; the plain torch
reference runs beside it in any case, and the bound is a memory copy as large as the image. Before anything is timed the
contenders' results are compared. Times are milliseconds per mesh, forward calls through the public functions.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..geom.camera import Camera
from ..geom.head import HeadParams, load_head
from ..render import interpolate, rasterize
from .timing import machine, race, write_json

SIZE = (256, 256)
CHANNELS = 16
BATCHES = (1, 8)

# A fresh process draws its first picture. Wall and processor seconds of numba's own start, then of the call.
FIRST_CALL = """
import time, torch, numba
from headwarp.render import interpolate, rasterize
vertices = torch.tensor([[[-1.0, -1.0, 2.0], [-1.0, 0.0, 2.0], [0.0, -1.0, 2.0]]])
faces = torch.tensor([[0, 1, 2]])
@numba.njit
def nothing():
    return 0
marks = [(time.perf_counter(), time.process_time())]
nothing()
marks.append((time.perf_counter(), time.process_time()))
fragments = rasterize(vertices, faces, (64, 64))
interpolate(vertices, fragments, vertices, faces)
marks.append((time.perf_counter(), time.process_time()))
print(*(after - before for a, b in zip(marks, marks[1:]) for before, after in zip(a, b)))
"""


def main(*, real: Path | None = None, output: Path | None = None) -> dict[str, Any]:
    """Measure, print the table, and write raster.json to `output`. `real` is not used: the meshes are the head's."""
    results: dict[str, Any] = {"machine": machine(), "size": SIZE, "channels": CHANNELS, "batches": {}}
    peer = "pytorch3d" if importlib.util.find_spec("pytorch3d") else None
    print(f"rasterise, {SIZE[1]} x {SIZE[0]}, {CHANNELS} channels; {_describe(results['machine'])}")
    print("pytorch3d runs along" if peer else "pytorch3d is not installed: the reference is the peer")
    for batch in BATCHES:
        vertices, faces = poses(batch)
        covered = _check(vertices, faces, peer)
        timings = race(_contenders(vertices, faces, peer))
        results["batches"][batch] = {"covered": covered, "timings": timings}
        print(f"\nbatch {batch}, {len(faces)} triangles, {100 * covered:.0f} % covered, ms per mesh")
        print(f"  {'':44s}{'median':>9s} {'± IQR / 2':10s} {'processor':>9s}")
        reference = timings["rasterize, torch"].median
        for name, timing in timings.items():
            ratio = f"{reference / timing.median:8.1f} x the reference" if name.startswith("rasterize,") else ""
            spread = f"± {timing.spread / 2 / batch:.3f}{' *' if timing.disturbed else ''}"
            numbers = f"{timing.median / batch:9.3f} {spread:10s} {timing.processor / batch:9.3f}"
            print(f"  {name:44s}{numbers}  n={timing.samples:<3d}{ratio}")
        both = timings["rasterize + interpolate, kept image"].median / batch
        print(f"  goal at batch 8: rasterise + interpolate at most 0.6 ms: {both:.3f}")
    results["first_call"] = first_call()
    print("\nfirst call in a fresh process, s wall (processor)")
    for name, (start, start_cpu, call, call_cpu) in results["first_call"].items():
        print(f"  {name:8s}numba's own start {start:.2f} ({start_cpu:.2f}), call {call:.2f} ({call_cpu:.2f})")
    print("* fewer samples than wanted ran undisturbed by other processes; all were taken")
    if output is not None:
        print(f"wrote {write_json(output, 'raster', results)}")
    return results


def poses(batch: int) -> tuple[Tensor, Tensor]:
    """NDC vertices (B, V, 3) of the open head, turned and shaped at random to fill the picture, and its triangles."""
    head = load_head("open")
    generator = torch.Generator().manual_seed(0)
    params = HeadParams.zeros(head, batch).replace(
        shape=0.7 * torch.randn(batch, head.n_shape, generator=generator),
        rotation=torch.randn(batch, 3, generator=generator) * torch.tensor([0.2, 0.4, 0.1]),
        translation=torch.tensor([0.0, 0.0, -0.9]).expand(batch, 3),
    )
    camera = Camera.portrait(SIZE, field_of_view=18)
    return camera.ndc(head(params), SIZE), head.faces


def _contenders(vertices: Tensor, faces: Tensor, peer: str | None) -> dict[str, Callable[[], object]]:
    batch = len(vertices)
    fragments = rasterize(vertices, faces, SIZE, perspective=True)
    attributes = torch.randn(1, vertices.shape[1], CHANNELS, generator=torch.Generator().manual_seed(1))
    kept = torch.empty(batch, CHANNELS, *SIZE).contiguous(memory_format=torch.channels_last)
    source, grad = torch.randn_like(kept), torch.randn_like(kept)
    inputs = attributes.clone().requires_grad_(), vertices.clone().requires_grad_()
    image = interpolate(inputs[0], fragments, inputs[1], faces, perspective=True)

    def both() -> None:
        drawn = rasterize(vertices, faces, SIZE, perspective=True)
        interpolate(attributes, drawn, vertices, faces, perspective=True, out=kept)

    contenders: dict[str, Callable[[], object]] = {
        "copy of the image": lambda: kept.copy_(source),
        "rasterize, ours": lambda: rasterize(vertices, faces, SIZE, perspective=True),
        "rasterize, torch": lambda: rasterize(vertices, faces, SIZE, perspective=True, backend="torch"),
        "interpolate, new image": lambda: interpolate(attributes, fragments, vertices, faces, perspective=True),
        "interpolate, kept image": lambda: interpolate(
            attributes, fragments, vertices, faces, perspective=True, out=kept
        ),
        "rasterize + interpolate, kept image": both,
        "backward to attributes and vertices": lambda: torch.autograd.grad(image, inputs, grad, retain_graph=True),
    }
    if peer is not None:
        contenders["rasterize, pytorch3d"] = lambda: rasterize(vertices, faces, SIZE, perspective=True, backend=peer)
    return contenders


def _check(vertices: Tensor, faces: Tensor, peer: str | None) -> float:
    """Refuses to time what does not agree; returns the covered share of the pixels."""
    ours = rasterize(vertices, faces, SIZE, perspective=True)
    theirs = rasterize(vertices, faces, SIZE, perspective=True, backend="torch")
    if not (torch.equal(ours.face_id, theirs.face_id) and torch.equal(ours.depth, theirs.depth)):
        raise RuntimeError("bench raster: the fast backend and the reference show different triangles; nothing timed.")
    if peer is not None:
        other = rasterize(vertices, faces, SIZE, perspective=True, backend=peer)
        differing = (other.face_id != ours.face_id).float().mean().item()
        print(f"pytorch3d shows another triangle in {100 * differing:.3f} % of the pixels")
    return (ours.face_id >= 0).float().mean().item()


def first_call() -> dict[str, tuple[float, ...]]:
    """Wall and processor seconds of numba's own start, then of the first call: compiling ("cold"), and with kernels
    from the cache on disk ("cached")."""
    taken = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        for name in ("cold", "cached"):
            command = [sys.executable, "-c", FIRST_CALL]
            answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            taken[name] = tuple(float(word) for word in answer.split())
    return taken


def _describe(facts: dict[str, Any]) -> str:
    return f"{facts['threads']} threads of {facts['cores']} x {facts['processor']}, load {facts['load']}"
