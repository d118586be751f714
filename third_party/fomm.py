"""The user's FOMM checkpoints. See fomm.md beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..nets.dense_motion import DenseMotionConfig
from ..nets.fomm import CommonParams, Fomm, FommConfig
from ..nets.generator import GeneratorConfig
from ..nets.keypoints import KeypointConfig
from .torch_files import State, fill, part_of, read_torch

WHAT = "a FOMM checkpoint"


def load_fomm(path: str | Path, *, align_corners: bool = False) -> Fomm:
    """The model of a FOMM checkpoint, such as vox-adv-cpk.pth.tar; its settings are read off the tensors.

    Args:
        align_corners: how pictures are warped: False as the code of the authors does it today, True as it did when
            their weights were trained (torch before 1.3).
    Raises:
        FileNotFoundError, ValueError: no such file, or another one.
    """
    content = read_torch(path, WHAT)
    detector, generator = (part_of(content, name, path, WHAT) for name in ("kp_detector", "generator"))
    if "AttnModule.gamma" in generator:
        raise ValueError(f"{path} is a DaGAN checkpoint: `headwarp convert dagan` reads it.")
    common, keypoints, channels = detector_settings(detector, path, WHAT)
    if channels != 3:
        raise ValueError(f"{path}: FOMM's keypoint detector sees 3 channels, this one {channels}.")
    config = FommConfig(
        common_params=common,
        kp_detector_params=keypoints,
        generator_params=generator_settings(generator, common.num_kp, path, WHAT),
        align_corners=align_corners,
    )
    model = Fomm(config)
    fill(model.kp_detector, detector, path, "the keypoint detector")
    fill(model.generator, generator, path, "the generator")
    return model.eval()


def detector_settings(state: State, path: str | Path, what: str) -> tuple[CommonParams, KeypointConfig, int]:
    """Keypoints, hourglass and the number of channels that a keypoint detector sees."""
    try:
        num_kp = len(state["kp.weight"])
        channels = state["predictor.encoder.down_blocks.0.conv.weight"].shape[1]
        expansion, features, blocks = _hourglass(state, "predictor")
        jacobian = state.get("jacobian.weight")
        keypoints = KeypointConfig(
            block_expansion=expansion,
            max_features=features,
            num_blocks=blocks,
            scale_factor=_scale(state.get("down.weight")),
            single_jacobian_map=jacobian is not None and len(jacobian) == 4 and num_kp > 1,
        )
    except KeyError as error:
        raise ValueError(f"{path} is not {what}: its keypoint detector has no {error}.") from None
    return CommonParams(num_kp, estimate_jacobian=jacobian is not None), keypoints, channels


def generator_settings(state: State, num_kp: int, path: str | Path, what: str) -> GeneratorConfig:
    """Widths and depths of a generator.

    Raises:
        ValueError: it is no generator, or one for another number of keypoints.
    """
    try:
        motions = len(state["dense_motion_network.mask.weight"])
        if motions != num_kp + 1:
            raise ValueError(
                f"{path}: the generator is made for {motions - 1} keypoints, the keypoint detector has {num_kp}; the "
                "two do not belong together."
            )
        downs = _count(state, "down_blocks.")
        first = len(state["first.conv.weight"])
        widths = [len(state[f"down_blocks.{i}.conv.weight"]) for i in range(downs)]
        expansion, features, blocks = _hourglass(state, "dense_motion_network.hourglass")
    except KeyError as error:
        raise ValueError(f"{path} is not {what}: its generator has no {error}.") from None
    capped = [width for i, width in enumerate(widths) if width < first * 2 ** (i + 1)]
    return GeneratorConfig(
        block_expansion=first,
        max_features=capped[0] if capped else max([GeneratorConfig.max_features, *widths]),
        num_down_blocks=downs,
        num_bottleneck_blocks=_count(state, "bottleneck.r"),
        estimate_occlusion_map="dense_motion_network.occlusion.weight" in state,
        dense_motion_params=DenseMotionConfig(
            expansion, features, blocks, _scale(state.get("dense_motion_network.down.weight"))
        ),
    )


def _hourglass(state: State, prefix: str) -> tuple[int, int, int]:
    """block_expansion, max_features, num_blocks."""
    blocks = _count(state, f"{prefix}.encoder.down_blocks.")
    expansion = len(state[f"{prefix}.decoder.up_blocks.{blocks - 1}.conv.weight"])
    deepest = len(state[f"{prefix}.encoder.down_blocks.{blocks - 1}.conv.weight"])
    return expansion, deepest, blocks


def _count(state: State, prefix: str) -> int:
    """How many numbered blocks have names that start so."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _scale(blur: Any) -> float:
    """The factor of an `AntiAlias` from its kernel: 1 + 2 round(2 (s - 1)) taps for 1 / s."""
    return 1.0 if blur is None else 1 / (1 + (blur.shape[-1] - 1) // 4)
