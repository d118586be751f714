"""`headwarp convert`: the published checkpoints of other projects become model files of this one.

A new kind is a function here that gives the model and the files it came from, an entry in `KINDS`, and its name in
`Kind`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["fomm", "dagan", "depth", "g3fa", "fnevr", "unsup3d"]


@dataclass
class Convert:
    """Turn official checkpoints into one model file for --model, weights and settings in it.

    Nothing inside a checkpoint is run. Sizes, keypoints and the kind of generator are read off the tensors. The weights
    keep the licence of their authors.
    """

    kind: Annotated[Kind, Positional]
    """Whose checkpoint: fomm (vox-cpk.pth.tar, vox-adv-cpk.pth.tar ...), dagan (DaGAN_vox_adv_256.pth.tar,
    SPADE_DaGAN_vox_adv_256.pth.tar ...), depth (a face depth network alone), g3fa (G3FA.pth), fnevr, unsup3d
    (checkpoint030.pth)."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """Model file to write, NAME.safetensors."""
    checkpoint: Path | None = None
    """The checkpoint."""
    depth_encoder: Path | None = None
    """encoder.pth of the face depth network; for dagan and depth."""
    depth_decoder: Path | None = None
    """depth.pth of the face depth network; for dagan and depth."""
    pose_encoder: Path | None = None
    """pose_encoder.pth, to train a face depth network further; for depth."""
    pose_decoder: Path | None = None
    """pose.pth, the same."""
    align_corners: bool = False
    """Warp as torch did before version 1.3, with which FOMM's published weights were trained. Without it, as the
    authors' code does today; try both (docs/dagan.md)."""

    def run(self) -> None:
        from ..media.errors import InputError
        from ..media.files import write_error
        from ..nets.model_file import file_hash, save_model

        if self.output.suffix != ".safetensors":
            raise InputError(f"A model file ends with .safetensors, got {self.output}.")
        if not self.output.parent.is_dir():
            raise InputError(f"There is no folder {self.output.parent} to write {self.output.name} to.")
        try:
            model, files = KINDS[self.kind](self)
        except (ValueError, FileNotFoundError) as error:
            raise InputError(str(error)) from None
        facts = {
            "source": ", ".join(file.name for file in files),
            "sha256": ", ".join(file_hash(file) for file in files),
            "licence": LICENCES[self.kind],
        }
        try:
            save_model(self.output, model, facts)
        except OSError as error:
            raise write_error(self.output, error) from None
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"{self.output}: {self.kind}, {millions:.1f} million parameters, {describe(model)}")

    def need(self, flag: str) -> Path:
        """The file of a flag that this kind cannot do without.

        Raises:
            InputError: it was not given.
        """
        from ..media.errors import InputError

        path: Path | None = getattr(self, flag)
        if path is None:
            raise InputError(f"headwarp convert {self.kind} needs --{flag.replace('_', '-')} FILE.")
        return path


def _fomm(options: Convert) -> tuple[nn.Module, list[Path]]:
    from ..third_party.fomm import load_fomm

    path = options.need("checkpoint")
    return load_fomm(path, align_corners=options.align_corners), [path]


def _dagan(options: Convert) -> tuple[nn.Module, list[Path]]:
    from ..third_party.dagan import load_dagan

    path = options.need("checkpoint")
    encoder, decoder = options.depth_encoder, options.depth_decoder
    model = load_dagan(path, encoder, decoder, align_corners=options.align_corners)
    used = [encoder, decoder] if model.depth is not None else []
    return model, [path, *(file for file in used if file is not None)]


def _depth(options: Convert) -> tuple[nn.Module, list[Path]]:
    from ..third_party.dagan import load_face_depth

    files = [options.need("depth_encoder"), options.need("depth_decoder")]
    pose = [options.pose_encoder, options.pose_decoder]
    return load_face_depth(files[0], files[1], *pose), [*files, *(file for file in pose if file is not None)]


def _g3fa(options: Convert) -> tuple[nn.Module, list[Path]]:
    from ..third_party.g3fa import load_g3fa

    path = options.need("checkpoint")
    model = load_g3fa(path)
    found = "fnevr" if model.config.generator_params.mini_decoder else "g3fa"
    if found != options.kind:
        raise ValueError(f"{path} is a checkpoint of the other of the two: headwarp convert {found} reads it.")
    return model, [path]


def _unsup3d(options: Convert) -> tuple[nn.Module, list[Path]]:
    from ..third_party.unsup3d import load_unsup3d

    path = options.need("checkpoint")
    return load_unsup3d(path), [path]


KINDS: dict[str, Callable[[Convert], tuple[nn.Module, list[Path]]]] = {
    "fomm": _fomm,
    "dagan": _dagan,
    "depth": _depth,
    "g3fa": _g3fa,
    "fnevr": _g3fa,
    "unsup3d": _unsup3d,
}
LICENCES = {
    "fomm": "MIT (code); the weights were given out with it",
    "dagan": "CC BY-NC 4.0, not for commercial use; depth network: Monodepth2 licence, not for commercial use",
    "depth": "Monodepth2 licence, not for commercial use",
    "g3fa": "see https://github.com/dfki-av/G3FA",
    "fnevr": "see https://github.com/zengbohan0217/FNeVR",
    "unsup3d": "MIT (code); the weights were given out with it",
}


def describe(model: nn.Module) -> str:
    """What the settings of a model say, in a few words."""
    from ..nets.dagan import DaGan
    from ..nets.depth import FaceDepth
    from ..nets.fomm import Fomm
    from ..nets.g3fa import G3fa
    from ..nets.unsup3d import Unsup3d

    if isinstance(model, Fomm | G3fa):
        return f"{model.config.common_params.num_kp} keypoints"
    if isinstance(model, DaGan):
        config = model.config
        depth = f", ResNet-{config.depth_params.num_layers} depth" if config.uses_depth else ""
        return (
            f"{config.common_params.num_kp} keypoints from {config.keypoint_input}, attention {config.attention}, "
            f"{config.decoder} decoder{depth}"
        )
    if isinstance(model, FaceDepth):
        return f"ResNet-{model.config.num_layers}" + (", with pose network" if model.config.pose else "")
    if isinstance(model, Unsup3d):
        return f"{model.config.image_size} x {model.config.image_size} pixels"
    return type(model).__name__
