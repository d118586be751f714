"""Which model moves a portrait: the geometric animator, a learned model of the package, or the file of one."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

from torch import nn

from ..geom.head import HeadModel, HeadParams
from ..media.errors import InputError
from ..nets.inference import optimise
from ..nets.model_file import ASSETS, load_model, read_header
from ..render.geometric import GeometricRenderer, Observation

GEOMETRIC = "geometric"
PACKAGED = {"refined": "refiner.safetensors", "pwm": "pwm.safetensors"}
"""Learned models that come with the package: name -> file."""
NAMES = (GEOMETRIC, *PACKAGED)
"""What is no file."""
HEAD_METHODS = ("pwm", "refiner")
"""Methods that are driven by head parameters: they also edit."""
KEYPOINT_METHODS = ("fomm", "dagan", "g3fa", "ostnet")
"""Methods that read the motion from the driver's pictures."""


class Rendered(Protocol):
    """One frame."""

    image: Any
    """(h, w, 3) uint8 RGB."""


class Renderer(Protocol):
    """What is driven by head parameters."""

    def encode_source(self, source: Observation) -> Any: ...

    def render(self, state: Any, target: HeadParams) -> Rendered: ...


@cache
def open_model(name: str) -> nn.Module | None:
    """The model of a file, loaded once per process and made ready for use; None for the geometric animator.

    Raises:
        InputError: there is no such file, or it holds no model that moves portraits.
    """
    if name == GEOMETRIC:
        return None
    name = model_file(name)
    try:
        method = read_header(name).method
        if method not in (*HEAD_METHODS, *KEYPOINT_METHODS):
            usable = ", ".join((*HEAD_METHODS, *KEYPOINT_METHODS))
            raise InputError(f"{name} is a model of the kind '{method}', which moves no portraits; {usable} do.")
        return optimise(load_model(name))
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from None


def model_file(name: str) -> str:
    """The file of a model, which may be one of the package's."""
    return str(ASSETS / PACKAGED[name]) if name in PACKAGED else name


def is_keypoint_model(model: nn.Module | None) -> bool:
    """Whether the model reads the motion from the driver's pictures."""
    return hasattr(model, "read_motion")


def make_renderer(name: str, head: HeadModel) -> Renderer:
    """The renderer of a model that is driven by head parameters.

    Raises:
        InputError: as `open_model`; or a keypoint model, or one that belongs to another head.
    """
    model = open_model(name)
    if model is None:
        return GeometricRenderer(head)
    if is_keypoint_model(model):
        raise InputError(
            f"{name} is a keypoint model: it copies motion from a video and knows no pose or expression to set. "
            "--model geometric, refined or pwm does this."
        )
    from ..nets.pwm import Pwm
    from ..nets.refiner import Refiner
    from .learned import PwmRenderer, RefinedRenderer

    try:
        if isinstance(model, Refiner):
            return RefinedRenderer(head, model)
        assert isinstance(model, Pwm)
        return PwmRenderer(head, model)
    except ValueError as error:
        raise InputError(str(error)) from None
