"""Checkpoints of G3FA and FNeVR. See g3fa.md beside this file."""

from __future__ import annotations

from pathlib import Path

from ..nets.fomm import CommonParams
from ..nets.g3fa import G3fa, G3faConfig, G3faGeneratorConfig
from .torch_files import fill, part_of, read_torch

WHAT = "a G3FA or FNeVR checkpoint"
G3FA_HELP = (
    "Get G3FA.pth from the link in the README of https://github.com/dfki-av/G3FA (FNeVR's from "
    "https://github.com/zengbohan0217/FNeVR) and pass its path."
)


def load_g3fa(path: Path | str, config: G3faConfig | None = None) -> G3fa:
    """G3FA or FNeVR with the published weights; which one is read off them. Nothing in the file is run.

    Args:
        path: of the checkpoint.
        config: None reads the number of keypoints and FNeVR's small decoder off the weights; other sizes than the
            published ones have to be given.
    Raises:
        FileNotFoundError: it is not there; the message says how to get it. ValueError: it is another file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no {path}. {G3FA_HELP}")
    content = read_torch(path, WHAT)
    detector, generator = (part_of(content, name, path, WHAT) for name in ("kp_detector", "generator"))
    if config is None:
        if "kp.bias" not in detector:
            raise ValueError(f"{path} is not {WHAT}: its keypoint detector has no kp.bias.")
        mini = any(name.startswith("Render_model.mini_decoder.") for name in generator)
        common = CommonParams(num_kp=len(detector["kp.bias"]))
        config = G3faConfig(common, generator_params=G3faGeneratorConfig(mini_decoder=mini))
    model = G3fa(config)
    fill(model.kp_detector, detector, path, "the keypoint detector")
    fill(model.generator, generator, path, "the generator")
    return model.eval()
