"""Training configurations: YAML in FOMM's schema where it fits, into frozen dataclasses.

    method: pwm                       which step trains (training/steps)
    dataset_params:                   where samples come from
    train_params:                     optimisation; loss_weights are the method's
    run_params:                       device, precision, processes
    log_params:                       how often to log, validate and save
    model_params: ...                 and what else the method's `Settings` has

A key that does not exist is an error that names the nearest one. `section.key=value` on the command line replaces what
the file says.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from .. import configs
from ..media.errors import InputError
from ..nets.config import as_dict, build
from .steps import STEPS, step_class


@dataclass(frozen=True)
class FlipParams:
    horizontal_flip: bool = False
    """Mirror half of the samples. Heads and landmarks of mirrored pictures are unknown: for methods without them."""
    time_flip: bool = False
    """Reverse the order of half of the samples."""


@dataclass(frozen=True)
class JitterParams:
    """Each sample gets one random change of colour, the same for all its views; 0.1 = up to 10 % either way."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """In turns of the colour circle, at most 0.5."""


@dataclass(frozen=True)
class AugmentationParams:
    flip_param: FlipParams = FlipParams()
    jitter_param: JitterParams = JitterParams()


@dataclass(frozen=True)
class HoldOut:
    """What is kept for validation, besides clips in a folder `test`; each kind is a validation set of its own."""

    every: int = 0
    """N > 1: every N-th frame of each clip (frames N-1, 2N-1, ...), validation set "every". 0: none."""
    future: float = 0.0
    """Share of each clip at its end, such as 0.2; validation set "future"."""
    clips: tuple[str, ...] | str = ()
    """Names of whole clips, or a text file with one a line; validation set "test"."""


@dataclass(frozen=True)
class SourceParams:
    """One source of a mixture; exactly one of root_dir, shards and synthetic."""

    root_dir: str | None = None
    """Folder of `headwarp fit` (clip.mp4 and clip.safetensors), or FOMM's with train/ and test/."""
    shards: str | None = None
    """Tar files of `headwarp.training.data.shards`, as a pattern such as data/vox-*.tar."""
    synthetic: dict[str, Any] | None = None
    """Synthetic people; settings of `training.synthetic`."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"dataset_params.sources: a weight must be positive, got {self.weight}; leave that out.")


@dataclass(frozen=True)
class DatasetParams:
    """Where samples come from."""

    root_dir: str | None = None
    """Shorthand for one source; see `SourceParams`."""
    shards: str | None = None
    """The same."""
    synthetic: dict[str, Any] | None = None
    """The same."""
    sources: tuple[SourceParams, ...] = ()
    """A mixture by weight."""
    frame_shape: tuple[int, ...] = (256, 256, 3)
    """Height, width (and FOMM's 3) of the pictures."""
    pairs: Literal["random", "sorted"] = "random"
    """Frames of a sample: any order, or in order of time. Three moments are always in order of time."""
    min_gap: int = 1
    """Frames between the moments of a sample, at least."""
    max_gap: int | None = None
    """At most; None: the whole clip."""
    id_sampling: bool = False
    """Draw a person first (the name up to #), then a clip, so that people with many clips do not dominate."""
    min_confidence: float = 0.5
    """Frames in which the face was seen with less are left out."""
    hold_out: HoldOut = HoldOut()
    augmentation_params: AugmentationParams = AugmentationParams()
    cache_dir: str | None = None
    """Where decoded frames are kept; None: ~/.cache/headwarp/frames."""
    cache_gb: float = 20.0
    """Room for them; clips beyond it are decoded each time. 0: no cache."""

    def __post_init__(self) -> None:
        if len(self.frame_shape) not in (2, 3) or min(self.frame_shape) < 1 or self.frame_shape[2:] not in ((), (3,)):
            raise ValueError(f"dataset_params.frame_shape must be [height, width, 3], got {list(self.frame_shape)}.")
        if self.min_gap < 1 or (self.max_gap is not None and self.max_gap < self.min_gap):
            raise ValueError(
                f"dataset_params: min_gap must be at least 1 and max_gap not below it, got {self.min_gap} and "
                f"{self.max_gap}."
            )
        if self.hold_out.every == 1 or self.hold_out.every < 0 or not 0 <= self.hold_out.future < 1:
            raise ValueError("dataset_params.hold_out: every must be 0 or at least 2, future in [0, 1).")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.frame_shape[0], self.frame_shape[1]

    def all_sources(self) -> tuple[SourceParams, ...]:
        """The mixture, the shorthand included.

        Raises:
            InputError: no source at all, or an entry that does not name exactly one.
        """
        short = SourceParams(self.root_dir, self.shards, self.synthetic)
        found = (*([short] if _kinds(short) else []), *self.sources)
        if not found:
            raise InputError(
                "The file names no data: set dataset_params.root_dir to a folder of `headwarp fit` or of FOMM's"
                " kind, .shards to tar files, or .synthetic."
            )
        for number, source in enumerate(found):
            if _kinds(source) != 1:
                raise InputError(
                    f"dataset_params: source {number + 1} must have exactly one of root_dir, shards and synthetic."
                )
        return found


def _kinds(source: SourceParams) -> int:
    return sum(kind is not None for kind in (source.root_dir, source.shards, source.synthetic))


@dataclass(frozen=True)
class TrainParams:
    """Optimisation: Adam for the model, another Adam for the critic."""

    iterations: int | None = None
    """Optimiser steps of the model; or give num_epochs."""
    num_epochs: int | None = None
    num_repeats: int = 1
    """Each clip is drawn this often in an epoch."""
    batch_size: int = 8
    """Samples of one optimiser step, over all processes."""
    accumulate: int = 1
    """Parts that a process works a step through in, where memory is short; the gradient stays that of the batch."""
    lr: float = 2e-4
    lr_critic: float | None = None
    """None: as lr."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Of Adam, for model and critic."""
    milestones: tuple[int, ...] = ()
    """Steps from which on the learning rates are multiplied with gamma (once more each)."""
    epoch_milestones: tuple[int, ...] = ()
    """The same in epochs."""
    gamma: float = 0.1
    clip_grad: float | None = None
    """Largest norm of the model's gradient, and of the critic's; None: any."""
    ema: float = 0.999
    """Memory of the averaged model, which is validated and saved; min(ema, (1 + t) / (10 + t)) at step t. 0: none."""
    seed: int = 0
    start_from: str | None = None
    """Model file whose weights the model begins with: of a training, or of `headwarp convert`. Critics, optimisers and
    the step begin anew. It must have the same model_params."""

    def __post_init__(self) -> None:
        if (self.iterations is None) == (self.num_epochs is None):
            raise ValueError("train_params: give either iterations or num_epochs.")
        for name in ("iterations", "num_epochs", "num_repeats", "batch_size", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train_params.{name} must be at least 1, got {value}.")
        if self.epoch_milestones and self.num_epochs is None:
            raise ValueError("train_params.epoch_milestones goes with num_epochs; use milestones with iterations.")
        if not 0 <= self.ema < 1 or self.seed < 0:
            raise ValueError("train_params: ema must be in [0, 1) and seed not negative.")
        for name in ("lr", "lr_critic", "clip_grad"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"train_params.{name} must not be negative, got {value}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train_params.betas must be in [0, 1), got {list(self.betas)}.")

    def in_steps(self, clips: int) -> TrainParams:
        """The same with epochs turned into steps, for a source of so many clips."""
        if self.num_epochs is None:
            return self
        epoch = max(1, clips * self.num_repeats // self.batch_size)
        milestones = tuple(epoch * milestone for milestone in self.epoch_milestones)
        return replace(
            self, iterations=epoch * self.num_epochs, num_epochs=None, milestones=milestones, epoch_milestones=()
        )


@dataclass(frozen=True)
class RunParams:
    """Where and how it runs; nothing here changes what is learnt, but for rounding."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | Literal["auto"] = 1
    """Processes, one a device; under torchrun its own number counts."""
    num_nodes: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass; weights, gradients and optimisers are always float32."""
    workers: int | None = None
    """Loader processes for each device; None: the cores that are left, at most 8."""

    def __post_init__(self) -> None:
        for name, least in {"devices": 1, "num_nodes": 1, "workers": 0}.items():
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ValueError(f"run_params.{name} must be at least {least}, got {value}.")


@dataclass(frozen=True)
class LogParams:
    """How often, in steps."""

    log_freq: int = 20
    validation_freq: int = 1000
    validation_samples: int = 32
    """Of each validation set."""
    sheet_rows: int = 8
    """Of the validation sheets."""
    checkpoint_freq: int = 1000
    keep_checkpoints: int = 2
    """The newest ones, besides the best."""
    best: str | None = None
    """Metric by which the best checkpoint is kept, such as psnr; -lpips: lower is better."""
    tensorboard: bool = True
    wandb: Literal["off", "offline", "online"] = "off"

    def __post_init__(self) -> None:
        for name in ("log_freq", "validation_freq", "checkpoint_freq", "keep_checkpoints", "validation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"log_params.{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class TrainConfig:
    """A whole configuration."""

    name: str
    """Stem of the file."""
    method: str
    settings: Any
    """The method's own, an instance of its step's `Settings`."""
    dataset_params: DatasetParams
    train_params: TrainParams
    run_params: RunParams
    log_params: LogParams

    def as_yaml(self) -> str:
        """The configuration with every default filled in; `read_config` reads it back."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)

    def as_dict(self) -> dict[str, Any]:
        """The tree of the YAML file."""
        own = as_dict(self.settings)
        sections = {name: as_dict(getattr(self, name)) for name in _SECTIONS}
        if "loss_weights" in own:
            sections["train_params"]["loss_weights"] = own.pop("loss_weights")
        return {"method": self.method, **sections, **own}


_SECTIONS: dict[str, type[Any]] = {
    "dataset_params": DatasetParams,
    "train_params": TrainParams,
    "run_params": RunParams,
    "log_params": LogParams,
}


def read_config(name: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a file.

    Args:
        name: path of a YAML file, or name of one of the package's.
        overrides: "section.key=value" each, the value in YAML.
    Raises:
        InputError: no such file, no YAML, a key that does not exist, or a value that does not fit.
    """
    path = find_config(name)
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML file: {error}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no configuration; it has method: and the sections {', '.join(_SECTIONS)}.")
    for override in overrides:
        _replace(tree, override)
    try:
        return from_dict(tree, path.stem)
    except ValueError as error:
        raise InputError(f"{path.name}: {error}") from None


def from_dict(tree: Mapping[str, Any], name: str) -> TrainConfig:
    """The configuration of the tree that a YAML file holds.

    Raises:
        ValueError: a key that does not exist, or a value that does not fit.
    """
    values = {key: {} if value is None else value for key, value in tree.items()}
    method = values.pop("method", None)
    if method not in STEPS:
        raise ValueError(f"method must be one of {', '.join(STEPS)}, got {method!r}.")
    kind = step_class(method).Settings
    own_names = [f.name for f in fields(kind)]
    known = [*_SECTIONS, *(n for n in own_names if n != "loss_weights")]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are method, {', '.join(known)}."
            raise ValueError(f"{key} is no section of a {method} configuration; {hint}")
        if not isinstance(values[key], Mapping) and key in _SECTIONS:
            raise ValueError(f"{key} must be a section of its own keys, got {values[key]!r}.")
    train = dict(values.get("train_params", {}))
    own = {key: values[key] for key in values if key in own_names}
    weights = train.pop("loss_weights", None)
    if weights is not None:
        if "loss_weights" not in own_names:
            raise ValueError(f"train_params.loss_weights: the method {method} has none.")
        own["loss_weights"] = weights
    sections = {key: values.get(key, {}) for key in _SECTIONS} | {"train_params": train}
    built = {key: build(cls, sections[key], f"{key}.") for key, cls in _SECTIONS.items()}
    return TrainConfig(name=name, method=method, settings=build(kind, own), **built)


def find_config(name: str | Path) -> Path:
    """The file of a configuration, by path or by the name of one of the package's.

    Raises:
        InputError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(str(resources.files(configs)))
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    stem = path.stem if path.suffix in (".yaml", ".yml") else str(name)
    if stem in names:
        return folder / f"{stem}.yaml"
    near = difflib.get_close_matches(stem, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"the package has {', '.join(names)}."
    raise InputError(f"There is no configuration {name}; {hint}")


def _replace(tree: dict[str, Any], override: str) -> None:
    """Set one value of the tree by "section.key=value"."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"Settings are given as section.key=value, as in train_params.batch_size=4; got '{override}'.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"The value of {key} cannot be read: '{text}'.") from None
    *way, last = key.split(".")
    for name in way:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise InputError(f"{key}: {name} is no section.")
    tree[last] = value
