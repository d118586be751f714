"""`headwarp doctor`: what is installed, what works, which external models are present and how to get the others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from .. import __version__

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "numba",
    "ai-edge-litert",
    "av",
    "opencv-python-headless",
    "opencv-python",
    "pillow",
    "safetensors",
    "tyro",
)

OPTIONAL = {
    "triton": "CUDA rasteriser and warp; comes with CUDA builds of torch",
    "pytorch3d": "parity tests of the rasteriser; conda: see environment.yml",
    "scikit-image": "the demo's photograph: pip install 'headwarp[demo]'",
    "trimesh": "mesh files: pip install 'headwarp[full]'",
    "face-alignment": "68-point landmarks for AKD as published: pip install 'headwarp[full]'",
    "wandb": "experiment tracking: pip install 'headwarp[full]'",
}


@dataclass(frozen=True)
class Check:
    """One thing that was tried: its name, whether it works, and what was seen."""

    name: str
    works: bool
    seen: str


def versions() -> list[tuple[str, str]]:
    """Installed packages this project stands on, as (name, version); absent ones say so."""
    rows = [
        ("headwarp", __version__),
        ("python", platform.python_version()),
        ("platform", platform.platform()),
    ]
    for name in PACKAGES:
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            if name != "opencv-python":
                rows.append((name, "MISSING"))
    return rows


def optional() -> list[tuple[str, str]]:
    """Optional packages as (name, version or what for and how to get it)."""
    rows = []
    for name, purpose in OPTIONAL.items():
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, f"not installed ({purpose})"))
    return rows


def external_models() -> list[tuple[str, str]]:
    """Models that the user may add, as (name, where it is or how to get it)."""
    from ..geom.head_files import FLAME_HELP, find_flame

    path = find_flame()
    return [("FLAME head", str(path) if path else f"absent. {FLAME_HELP}")]


def _try(name: str, action: Callable[[], str]) -> Check:
    start = time.perf_counter()
    try:
        seen = action()
    except Exception as error:  # the doctor reports whatever is broken and goes on
        return Check(name, False, f"{type(error).__name__}: {error}")
    return Check(name, True, f"{seen} ({1e3 * (time.perf_counter() - start):.0f} ms)")


def _opencv() -> str:
    try:
        import cv2
    except ImportError as error:
        if "libGL" in str(error) or "libgthread" in str(error):
            raise ImportError(
                "this machine has no libGL, which opencv-python needs; run: "
                "pip uninstall -y opencv-python && pip install --force-reinstall --no-deps opencv-python-headless"
            ) from error
        raise
    return f"OpenCV {cv2.__version__}"


def _head() -> str:
    from ..geom.head import load_head

    head = load_head("open")
    return f"open head, {len(head.v_template)} vertices, {head.n_shape} shape + {head.n_expression} expression"


def _raster() -> str:
    import torch

    from ..geom.camera import Camera
    from ..geom.head import HeadParams, load_head
    from ..render import rasterize

    head = load_head("open")
    params = HeadParams.zeros(head, 1).replace(translation=torch.tensor([[0.0, 0.0, -0.9]]))
    camera = Camera(torch.tensor([256.0]), torch.tensor([[64.0, 64.0]]))
    fragments = rasterize(camera.ndc(head(params), (128, 128)), head.faces, (128, 128))
    covered = float((fragments.face_id >= 0).float().mean())
    if not 0.02 < covered < 0.98:
        raise RuntimeError(f"the head covers {covered:.0%} of the image, which cannot be right")
    return f"head rasterised, {covered:.0%} of the pixels covered"


def _face() -> str:
    from ..assets import example
    from ..fitting.faces import find_faces
    from ..media.image import load_image

    faces = find_faces(load_image(example("portrait.png")))
    if len(faces) != 1:
        raise RuntimeError(f"{len(faces)} faces found in the example portrait, which shows one")
    return f"face found, score {faces[0].score:.2f}"


def _video() -> str:
    from ..assets import example
    from ..media.video import VideoReader

    with VideoReader(example("driving.mp4")) as reader:
        frame = next(iter(reader))
    return f"example clip decoded, {frame.image.shape[1]}x{frame.image.shape[0]}"


def checks() -> list[Check]:
    """Try each part of the chain on the files that ship with the package."""
    return [
        _try("OpenCV", _opencv),
        _try("video", _video),
        _try("head model", _head),
        _try("rasteriser", _raster),
        _try("face models", _face),
    ]


def report() -> bool:
    """Print the whole report; true when everything needed works."""
    import torch

    def table(title: str, rows: list[tuple[str, str]]) -> None:
        print(f"\n{title}")
        width = max(len(name) for name, _ in rows) + 2
        for name, value in rows:
            print(f"  {name:<{width}}{value}")

    table("Installed", versions())
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (everything runs on the CPU)"
    table(
        "Machine", [("cpu cores", str(os.cpu_count())), ("torch threads", str(torch.get_num_threads())), ("gpu", cuda)]
    )
    has_numba = importlib.util.find_spec("numba") is not None
    backend = "triton" if torch.cuda.is_available() else "numba" if has_numba else "torch (slow: install numba)"
    table("Backends", [("rasterise, interpolate, warp", backend)])
    table("Optional packages", optional())
    table("External models", external_models())
    results = checks()
    table("Tried now", [(c.name, ("ok      " if c.works else "BROKEN  ") + c.seen) for c in results])
    if not all(c.works for c in results):
        print("\nSomething is broken: the lines above say what.", file=sys.stderr)
    return all(c.works for c in results)
