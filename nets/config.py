"""Settings as frozen dataclasses, from plain dictionaries (a YAML file, the header of a model file) and back."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of a dataclass, its nested dataclasses included.

    Args:
        cls: the dataclass; its fields may be bool, int, float, str, Literal, tuples, dict[str, ...], dataclasses, and
            any of these or None.
        values: for some of the fields; the others keep their defaults.
        where: how the settings are called in messages, such as "train_params.".
    Raises:
        ValueError: a key that is no setting (the message names the nearest one), a missing or an unfitting value.
    """
    hints = get_type_hints(cls)
    fields = [f for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    names = [f.name for f in fields]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}."
            raise ValueError(f"{where}{name} is no setting of {cls.__name__}; {hint}")
    for field in fields:
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in values:
            raise ValueError(f"{where}{field.name} is missing.")
    return cls(**{name: _convert(hints[name], value, f"{where}{name}") for name, value in values.items()})


def as_dict(config: Any) -> dict[str, Any]:
    """A dataclass as dictionaries, lists and plain values, ready for JSON or YAML; `build` reads it back."""
    plain = _plain(config)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        kinds = get_args(kind)
        if value is None and type(None) in kinds:
            return None
        faults = []
        for one in (k for k in kinds if k is not type(None)):
            try:
                return _convert(one, value, where)
            except ValueError as error:
                faults.append(error)
        raise faults[-1] if len(faults) == 1 else _unfit(where, kind, value)
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{where} must be one of {', '.join(map(repr, get_args(kind)))}, got {value!r}.")
        return value
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _unfit(where, kind, value)
        return build(typing.cast(type[Any], kind), value, f"{where}.")
    if origin is tuple:
        return _convert_tuple(kind, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _unfit(where, kind, value)
        inner = get_args(kind)[1]
        return {str(k): _convert(inner, v, f"{where}.{k}") for k, v in value.items()}
    return _convert_scalar(kind, value, where)


def _convert_tuple(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _unfit(where, kind, value)
    kinds = get_args(kind)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_convert(kinds[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(kinds) != len(value):
        raise ValueError(f"{where} must have {len(kinds)} values, got {len(value)}.")
    return tuple(_convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _convert_scalar(kind: Any, value: Any, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            raise _unfit(where, kind, value) from None
    if kind is float and number:
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    raise _unfit(where, kind, value)


def _unfit(where: str, kind: Any, value: Any) -> ValueError:
    name = getattr(kind, "__name__", None) if get_origin(kind) is None else str(kind).replace("typing.", "")
    return ValueError(f"{where} must be {name or kind}, got {value!r}.")
