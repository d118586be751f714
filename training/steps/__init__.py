"""One training step per method."""

from __future__ import annotations

import importlib

from ..step import Step

STEPS = {
    "pwm": "pwm:PwmStep",
    "refiner": "refiner:RefinerStep",
    "fomm": "fomm:FommStep",
    "dagan": "dagan:DaGanStep",
    "g3fa": "g3fa:G3faStep",
    "ostnet": "ostnet:OstNetStep",
    "depth": "depth:DepthStep",
    "unsup3d": "unsup3d:Unsup3dStep",
    "regressor": "regressor:RegressorStep",
}
"""Method -> module and class of this package."""
WITH_GEOMETRY = "+geometry"
"""Behind the name of a method that makes pictures: critics of their depth and normals besides, see `geometry`."""
STEPS |= {name + WITH_GEOMETRY: STEPS[name] for name in ("pwm", "fomm", "dagan", "ostnet")}


def step_class(method: str) -> type[Step]:
    """The step of a method, imported when it is asked for."""
    module, name = STEPS[method].split(":")
    found: type[Step] = getattr(importlib.import_module(f".{module}", __package__), name)
    if method.endswith(WITH_GEOMETRY):
        from .geometry import with_geometry

        return with_geometry(found)  # type: ignore[arg-type]
    return found
