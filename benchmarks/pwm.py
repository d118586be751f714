"""How fast PWM is, and how well it learns one clip.

    headwarp bench pwm [--real FOLDER] [-o OUT]

Speed: the compact network (pwm_256_s, random weights) on 256 x 256 pictures, batch 1, the source encoded. A frame
costs the head's pose, its guidance and the decoder; the decoder's time is split by kind of work.

One clip: it is fitted, and pwm_128_clip trained on it, in OUT/run; a run that was begun goes on, a finished one is only
judged. Every fifth frame (between training frames: measures memory of the clip) and the last fifth of the clip (nothing
was trained near: measures the model) are held out. All are driven from the first frame. Beside the network:

- source: the first frame, unmoved.
- geometry: the first frame, warped as the mesh moves, and nothing else.
- continued: the same with the motion continued beyond the head, to zero at the border.
- oracle: the training frame that is nearest to the frame in question; knows the answer.

PSNR over whole pictures and over the pixels of the head (no neck, no bust).
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ..assets import example
from ..fitting.fit_videos import fit_files
from ..fitting.options import FitOptions
from ..geom.camera import Camera
from ..geom.head import HeadParams, load_head
from ..media.image import save_image
from ..media.sheet import contact_sheet
from ..nets.inference import optimise
from ..nets.model_file import load_model
from ..nets.pwm import Guide, Pwm
from ..training.batch import Batch
from ..training.config import TrainConfig, read_config
from ..training.data import Request, open_held_out
from ..training.data.clips import find_clips
from ..training.data.frames import FrameStore
from ..training.data.moments import split_frames
from ..training.engine import train
from ..training.steps.pwm import PwmStep, psnr
from .products import products
from .timing import machine, race, write_json

CLIP = "talk_3.mp4"
"""Of the real clips; the first one where it is absent."""
SAMPLES = 60
"""Held-out frames looked at of each kind."""
ROWS = (
    ("source", "psnr_source", "psnr_face_source"),
    ("geometry", "psnr_geometry", "psnr_face_geometry"),
    ("continued", "psnr_continued", "psnr_face_continued"),
    ("oracle", "psnr_oracle", "psnr_face_oracle"),
    ("I_w", "psnr_warped", "psnr_face_warped"),
    ("I_o", "psnr", "psnr_face"),
)
KINDS = {
    "products of convolutions": ("conv", "bmm"),
    "norms, activations": (
        "var_mean",
        "addcmul",
        "leaky_relu",
        "relu",
        "clamp",
        "mul",
        "add",
        "sub",
        "rsqrt",
        "sigmoid",
    ),
    "resizing, copies": ("copy", "pool", "upsample", "cat", "empty", "contiguous"),
}
"""Kind of work -> parts of the names of torch's operators."""


def main(*, real: Path | None = None, output: Path | None = None) -> dict[str, Any]:
    """Measure, print the tables, and write pwm.json and a sheet per kind of held-out frames to `output`."""
    report: dict[str, Any] = {"machine": machine(), "speed": speed()}
    clip = example("driving.mp4")
    if real is not None:
        clips = sorted((real / "clips").glob("*.mp4"))
        clip = next((c for c in clips if c.name == CLIP), clips[0])
    with tempfile.TemporaryDirectory() if output is None else nullcontext(output) as folder:
        report["clip"] = {"name": clip.stem, **learn_clip(clip, Path(folder))}
    if output is not None:
        print(f"wrote {write_json(output, 'pwm', report)}")
    return report


def speed(name: str = "pwm_256_s") -> dict[str, Any]:
    """Milliseconds of the parts of a frame."""
    torch.manual_seed(0)
    plain = Pwm(read_config(name).settings.model_params)
    model = optimise(plain)  # as the verbs use it
    head = load_head(model.config.head)
    guide = Guide(head, model.config)
    size = (model.config.size,) * 2
    camera = Camera.portrait(size)
    still = HeadParams.zeros(head).replace(translation=torch.tensor([[0.0, 0.03, -0.9]]))
    turned = still.replace(rotation=torch.tensor([[0.1, 0.3, 0.0]]))
    image = torch.rand(1, 3, *size)
    with torch.inference_mode():
        source, driving = guide.pose(still, camera, size), guide.pose(turned, camera, size)
        drawn = guide.source(source, model.codes)
        state = model.encode_source(image, drawn)
        guidance = guide.driving(source, driving, model.codes)
        with products(model) as found:
            model.render(state, guidance)
        gmac = sum(found) / 1e9
        timings = race(
            {
                "pose": lambda: guide.pose(turned, camera, size),
                "guidance": lambda: guide.driving(source, driving, model.codes),
                "decoder": lambda: model.render(state, guidance),
                "source (once)": lambda: model.encode_source(image, drawn),
            }
        )
        shares = _shares(lambda: model.render(state, guidance))
    frame = sum(timings[part].median for part in ("pose", "guidance", "decoder"))
    millions = sum(p.numel() for p in plain.parameters()) / 1e6
    print(f"{name}: {millions:.1f} M parameters, {gmac:.1f} GMAC a frame, {torch.get_num_threads()} threads")
    for part, timing in timings.items():
        print(f"  {part:20s}{timing!s:>18s} ms, processor {timing.processor:.1f} ms")
    print(f"  a frame {frame:.1f} ms, {1e3 / frame:.1f} frames/s")
    if any(timing.disturbed for timing in timings.values()):
        print("  * other processes were at work; the processor time is what it takes alone, over all threads")
    print("  of the decoder: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()) + "\n")
    return {"parameters_M": millions, "gmac": gmac, "ms": timings, "frame_ms": frame, "decoder_shares": shares}


def learn_clip(clip: Path, folder: Path) -> dict[str, Any]:
    """Fit and train, as far as that is not done yet, and judge."""
    fits = folder / "fits"
    if not any(fits.glob("*/clip.safetensors")) and not fit_files([clip], fits, FitOptions(layout="clips")):
        raise RuntimeError(f"bench pwm: {clip} could not be fitted; see {fits / 'failures.csv'}.")
    changes = [f"dataset_params.root_dir={fits}", f"dataset_params.cache_dir={folder / 'cache'}"]
    config = read_config("pwm_128_clip", changes)
    train(config, folder / "run")
    model = load_model(folder / "run" / "model.safetensors")
    return judge(config, model, folder)


def judge(config: TrainConfig, model: nn.Module, folder: Path) -> dict[str, Any]:
    """The table of a model that was trained on one clip; sheets are written to `folder`."""
    step = PwmStep(config.settings).eval()
    request = Request(config.dataset_params.size, 2, PwmStep.needs)
    sets = open_held_out(config.dataset_params, request, SAMPLES)
    known = _training_frames(config)
    report: dict[str, Any] = {}
    for kind, held_out in sets.items():
        count = min(SAMPLES, len(held_out))
        values: dict[str, list[float]] = {}
        rows: dict[str, list[Tensor]] = {}
        for k in range(count):
            sample = held_out.sample(k * len(held_out) // count, np.random.default_rng(0))
            batch = Batch.cat([sample]).to("cpu")
            judged = step.judge(model, batch)
            metrics = judged.metrics | _oracle(known, batch, step)
            for name, value in metrics.items():
                values.setdefault(name, []).append(float(value))
            if k % max(1, count // 6) == 0:
                for title, picture in judged.pictures.items():
                    rows.setdefault(title, []).append(picture[0])
        means = {name: sum(found) / count for name, found in values.items()}
        report[kind] = {"samples": count, **means}
        _print(kind, count, means)
        cells = [[_bytes(picture) for picture in row] for row in rows.values()]
        save_image(folder / f"pwm_{kind}.png", contact_sheet(cells, list(rows), cell=config.dataset_params.size[0]))
    return report


def _training_frames(config: TrainConfig) -> Tensor:
    """(N, 3, H, W) in [0, 1]."""
    params = config.dataset_params
    assert params.root_dir is not None
    assert params.cache_dir is not None
    clip = find_clips(Path(params.root_dir), FrameStore(params.size, Path(params.cache_dir), params.cache_gb * 1e9))[0]
    frames = clip.frames.read(split_frames(len(clip), params.hold_out)["train"].tolist())
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255


def _oracle(known: Tensor, batch: Batch, step: PwmStep) -> dict[str, Tensor]:
    target = batch.driving.image
    mask = step.head_pixels(batch).expand(len(known), -1, -1, -1)
    return {
        "psnr_oracle": psnr(known, target.expand_as(known)).max(),
        "psnr_face_oracle": psnr(known, target.expand_as(known), mask).max(),
    }


def _print(kind: str, count: int, means: dict[str, float]) -> None:
    over = {name: means["psnr"] - means[f"psnr_{name}"] for name in ("geometry", "continued")}
    print(f"{kind}, {count} frames: PSNR in dB     whole    head")
    for name, whole, face in ROWS:
        print(f"  {name:28s}{means[whole]:8.2f}{means[face]:8.2f}")
    print(f"  I_o over geometry {over['geometry']:+.2f}, over continued {over['continued']:+.2f}\n")


def _shares(work: Any, runs: int = 5) -> dict[str, float]:
    """Shares of the time of `work` by kind. What no operator of torch accounts for is the loops of
    numba (warps, Winograd's transforms) and calls."""
    with profile(activities=[ProfilerActivity.CPU]) as record, torch.profiler.record_function("all"):
        for _ in range(runs):
            work()
    events = {event.key: event for event in record.key_averages()}
    total = events.pop("all").cpu_time_total
    shares = dict.fromkeys(KINDS, 0.0)
    for key, event in events.items():
        kind = next((kind for kind, names in KINDS.items() if any(name in key for name in names)), None)
        if kind is not None:
            shares[kind] += event.self_cpu_time_total / total
    return {**shares, "warps, transforms, calls": 1 - sum(shares.values())}


def _bytes(picture: Tensor) -> np.ndarray:
    return (255 * picture.permute(1, 2, 0).clamp(0, 1)).round().byte().numpy()
