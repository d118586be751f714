"""A model in one file: safetensors with the weights, and in its header the method, the settings and the facts.

Metadata (strings): format = "headwarp-model-1"; method, a key of `METHODS`; config, JSON of the method's settings;
anything else is a fact that is kept: licence, data, source, sha256 of the file it was converted from.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import as_dict, build

FORMAT = "headwarp-model-1"
METHODS = {
    "pwm": "pwm:Pwm",
    "refiner": "refiner:Refiner",
    "fomm": "fomm:Fomm",
    "dagan": "dagan:DaGan",
    "g3fa": "g3fa:G3fa",
    "ostnet": "ostnet:OstNet",
    "depth": "depth:FaceDepth",
    "unsup3d": "unsup3d:Unsup3d",
    "regressor": "regressor:HeadRegressor",
}
"""Method -> module and class of this package. The class takes its settings (`Config`) and keeps them as `config`."""
ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = {
    "pwm.safetensors": "77838fb716e46cd99423e593ded3b0d72dabad92cb1df3f71eacc76ab54343fb",
    "refiner.safetensors": "6f9974ea5f20804d1b68165bcf09bf33f1f1f588377de2a91ae519cdd4885dcf",
    "regressor.safetensors": "d6aac0ee39e642358b9b747408275d8813f042403488c9cbf279747b3a472f68",
}
"""Models that come with the package, in `ASSETS`, and their sha256; `load_model` checks it."""


class Model(Protocol):
    """What every entry of `METHODS` is besides an `nn.Module`."""

    Config: type[Any]
    config: Any


@dataclass(frozen=True)
class Header:
    """What a model file says about itself."""

    method: str
    config: dict[str, Any]
    facts: dict[str, str]


def save_model(path: str | Path, model: nn.Module, facts: Mapping[str, str] | None = None) -> None:
    """Write a model; the file appears under its name when it is whole."""
    path = Path(path)
    metadata = {
        **(facts or {}),
        "format": FORMAT,
        "method": _method_of(model),
        "config": json.dumps(as_dict(model.config)),
    }
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, part, metadata)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_header(path: str | Path) -> Header:
    """What the file says about itself, without reading the weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or no model of this project.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no model file {path}.")
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file, or it is damaged ({error}). Official checkpoints (.pth, .tar) become one "
            "with `headwarp convert`."
        ) from None
    if metadata.pop("format", None) != FORMAT or metadata.get("method") not in METHODS:
        raise ValueError(f"{path} holds no model of headwarp. `headwarp convert` makes one from official checkpoints.")
    try:
        config = json.loads(metadata.pop("config"))
    except (KeyError, ValueError):
        raise ValueError(f"{path} lacks its settings; it was not written by headwarp or is damaged.") from None
    return Header(metadata.pop("method"), config, metadata)


def load_model(path: str | Path, *, device: str = "cpu") -> nn.Module:
    """The model of a file, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: as `read_header`; also weights that do not fit the settings or are not finite,
            and a model of the package that is not the one that was published.
    """
    header = read_header(path)
    _check_shipped(Path(path).resolve())
    cls = model_class(header.method)
    model: nn.Module = cls(build(cls.Config, header.config, f"{path}: "))
    tensors: dict[str, Tensor] = {}
    with safe_open(path, "pt", device=device) as file:
        for name in file.keys():  # noqa: SIM118 - a safetensors file, not a dictionary
            tensors[name] = file.get_tensor(name)
            if tensors[name].is_floating_point() and not tensors[name].isfinite().all():
                raise ValueError(f"{path}: {name} holds values that are not finite; the file cannot be used.")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).replace("\n\t", " ").strip()
        raise ValueError(f"{path}: the weights do not fit its settings. {reason}") from None
    return model.to(device).eval()


def file_hash(path: Path | str) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_shipped(path: Path) -> None:
    wanted = SHIPPED.get(path.name) if path.parent == ASSETS.resolve() else None
    if wanted is not None and file_hash(path) != wanted:
        raise ValueError(
            f"{path} is not the file that was published: install headwarp again, or check the repository out whole."
        )


def model_class(method: str) -> Any:
    """The class of a method, imported when it is asked for."""
    module, name = METHODS[method].split(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def _method_of(model: nn.Module) -> str:
    cls = type(model)
    for method, where in METHODS.items():
        module, name = where.split(":")
        if cls.__name__ == name and cls.__module__ == f"{__package__}.{module}":
            return method
    raise ValueError(f"save_model: {cls.__name__} is no method of this project; those are {', '.join(METHODS)}.")
