"""The user's DaGAN checkpoints and face depth networks. See dagan.md beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..nets.dagan import CHANNELS, DaGan, DaGanConfig
from ..nets.depth import DepthConfig, FaceDepth
from ..nets.layers import rename_spectral
from .fomm import detector_settings, generator_settings
from .torch_files import State, fill, part_of, read_torch, state_of

WHAT = "a DaGAN checkpoint"
ENCODER, DECODER = "a depth encoder (encoder.pth)", "a depth decoder (depth.pth)"
POSE_ENCODER, POSE = "a pose encoder (pose_encoder.pth)", "a pose decoder (pose.pth)"
_LAST = {18: 512, 50: 2048}  # channels of the last map


def load_dagan(
    path: str | Path,
    depth_encoder: str | Path | None = None,
    depth_decoder: str | Path | None = None,
    *,
    align_corners: bool = False,
) -> DaGan:
    """The model of a DaGAN checkpoint and of its depth network; all settings are read off the tensors.

    Args:
        path: DaGAN_vox_adv_256.pth.tar, SPADE_DaGAN_vox_adv_256.pth.tar, or one of one's own training.
        depth_encoder, depth_decoder: encoder.pth and depth.pth, needed unless the model uses no depth. Which training
            of the depth network belongs to a checkpoint cannot be seen in the files; the released ones want the pair
            of 18 layers.
        align_corners: how pictures are warped; the published weights were made with False.
    Raises:
        FileNotFoundError, ValueError: a file is not there, is another one, or does not belong to the others.
    """
    content = read_torch(path, WHAT)
    detector, generator = (part_of(content, name, path, WHAT) for name in ("kp_detector", "generator"))
    common, keypoints, channels = detector_settings(detector, path, WHAT)
    kinds = {count: kind for kind, count in CHANNELS.items()}
    if channels not in kinds:
        raise ValueError(f"{path}: the keypoint detector sees {channels} channels; 3, 4 (with depth) or 1 are known.")
    attention: Literal["none", "self", "depth"] = "none"
    if "AttnModule.gamma" in generator:
        attention = "depth" if "src_first.conv.weight" in generator else "self"
    spade = "decoder.fc.weight" in generator
    if kinds[channels] == "rgb" and attention == "none" and not spade:
        raise ValueError(f"{path} has neither depth nor attention, which makes it a FOMM: use `headwarp convert fomm`.")
    config = DaGanConfig(
        common_params=common,
        kp_detector_params=keypoints,
        generator_params=generator_settings(generator, common.num_kp, path, WHAT),
        keypoint_input=kinds[channels],  # type: ignore[arg-type]
        attention=attention,
        decoder="spade" if spade else "residual",
        align_corners=align_corners,
    )
    if not config.uses_depth:
        model = DaGan(config)
    else:
        if depth_encoder is None or depth_decoder is None:
            raise ValueError(
                f"{path} uses depth ({_uses(config)}): its face depth network is needed too, encoder.pth and depth.pth "
                "of the folder depth/models/weights_19 that DaGAN's authors give out."
            )
        depth = load_face_depth(depth_encoder, depth_decoder)
        model = DaGan(_with_depth(config, depth.config))
        assert model.depth is not None
        model.depth.load_state_dict(depth.state_dict())
    fill(model.kp_detector, detector, path, "the keypoint detector")
    fill(model.generator, rename_spectral(generator), path, "the generator")
    return model.eval()


def load_face_depth(
    encoder: str | Path,
    decoder: str | Path,
    pose_encoder: str | Path | None = None,
    pose: str | Path | None = None,
) -> FaceDepth:
    """The face depth network of its files; the depth of the ResNet is read off the tensors.

    Args:
        pose_encoder, pose: both or none; wanted to continue a training.
    Raises:
        FileNotFoundError, ValueError: a file is not there, is another one, or does not belong to the others.
    """
    if (pose_encoder is None) != (pose is None):
        raise ValueError("The pose network is two files, pose_encoder.pth and pose.pth; give both or none.")
    states = {
        "depth_encoder": _encoder(encoder, ENCODER),
        "depth_decoder": state_of(read_torch(decoder, DECODER)),
    }
    layers = _layers(states["depth_encoder"], encoder)
    first = states["depth_decoder"].get("decoder.0.conv.conv.weight")
    if first is None:
        raise ValueError(f"{decoder} is not {DECODER}: it has no decoder.0.conv.conv.weight.")
    if first.shape[1] != _LAST[layers]:
        theirs = {channels: n for n, channels in _LAST.items()}.get(first.shape[1])
        made = f"a ResNet-{theirs}" if theirs else f"{first.shape[1]} channels"
        raise ValueError(
            f"{encoder} and {decoder} do not belong together: the encoder is a ResNet-{layers}, the decoder is made "
            f"for {made}."
        )
    files: dict[str, str | Path] = {"depth_encoder": encoder, "depth_decoder": decoder}
    if pose_encoder is not None and pose is not None:
        states |= {"pose_encoder": _encoder(pose_encoder, POSE_ENCODER), "pose": state_of(read_torch(pose, POSE))}
        files |= {"pose_encoder": pose_encoder, "pose": pose}
    model = FaceDepth(DepthConfig(layers, pose=pose is not None, intrinsics="official" if pose else "learned"))
    for name, state in states.items():
        fill(getattr(model, name), state, files[name], name.replace("_", " "))
    return model.eval()


def _encoder(path: str | Path, what: str) -> State:
    """Without the classifier that the files carry and nobody uses."""
    state = state_of(read_torch(path, what))
    return {name: value for name, value in state.items() if not name.startswith("encoder.fc.")}


def _layers(state: State, path: str | Path) -> Literal[18, 50]:
    if "encoder.layer1.0.conv1.weight" not in state:
        raise ValueError(f"{path} is not {ENCODER}: it has no encoder.layer1.0.conv1.weight.")
    return 50 if "encoder.layer1.0.conv3.weight" in state else 18


def _with_depth(config: DaGanConfig, depth: DepthConfig) -> DaGanConfig:
    return DaGanConfig(**{**vars(config), "depth_params": depth})


def _uses(config: DaGanConfig) -> str:
    parts = []
    if config.keypoint_input != "rgb":
        parts.append("its keypoint detector sees it")
    if config.attention == "depth":
        parts.append("its attention asks with it")
    return " and ".join(parts)
