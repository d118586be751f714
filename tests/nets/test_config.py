from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from headwarp.nets.config import as_dict, build


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()
    limit: int | None = None
    weights: dict[str, float] = field(default_factory=dict)


def test_what_is_written_is_read_again():
    config = Outer("x", "b", Inner(0.5, (3,)), 7, {"l1": 2.0})
    assert build(Outer, as_dict(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "name is missing"),
        ({"name": "x", "inner": {"rat": 1}}, "inner.rat is no setting of Inner; did you mean rate?"),
        ({"name": "x", "kind": "c"}, "kind must be one of 'a', 'b', got 'c'"),
        ({"name": "x", "limit": 1.5}, "limit must be"),
        ({"name": "x", "inner": {"sizes": 3}}, "inner.sizes must be"),
        ({"name": "x", "weights": {"l1": "much"}}, "weights.l1 must be float"),
        ({"name": True}, "name must be str"),
    ],
)
def test_bad_settings_are_named(values: dict, message: str):
    with pytest.raises(ValueError, match=message.replace("?", r"\?").replace(".", r"\.")):
        build(Outer, values)


def test_numbers_as_yaml_gives_them():
    assert build(Inner, {"rate": "1e-4"}).rate == 1e-4
    assert build(Inner, {"rate": 2}).rate == 2.0
    assert isinstance(build(Inner, {"rate": 2}).rate, float)
