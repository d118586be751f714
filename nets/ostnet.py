"""OSTNet: keypoint animation without an anchor frame (Hong et al., "Learning online scale transformation for talking
head video generation"): the driving picture is first brought to the proportions of the source.

    driving --keypoints--+
    source  --keypoints--+--> code z --> rectified driving picture --keypoints--> motion (absolute)
                               z + every block of the generator;  source's state, motion --> picture

The two parts (`nets.scale`) are plugged into a model that is complete without them: FOMM, DaGAN or G3FA. FOMM with 15
keypoints and three blocks down and up is the paper's OSTNet (`PAPER`). Untrained parts change nothing, so the weights
of a trained base can be the start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from torch import Tensor, nn

from .config import as_dict, build
from .dagan import DaGan, DaGanConfig
from .fomm import Fomm, FommConfig
from .g3fa import G3fa, G3faConfig
from .generator import Generator, Output, SourceState
from .keypoints import Motion
from .scale import ScaleConfig, ScaledMotion, ScaleLocalisation, ScaleTransformation

_BASES: dict[str, tuple[type[Any], type[Any]]] = {
    "fomm": (Fomm, FommConfig),
    "dagan": (DaGan, DaGanConfig),
    "g3fa": (G3fa, G3faConfig),
}


@dataclass(frozen=True)
class OstNetConfig:
    """The paper's tables 3 to 5 switch parts off and change the base."""

    base: Literal["fomm", "dagan", "g3fa"] = "fomm"
    base_params: dict[str, Any] = field(default_factory=dict)
    """`model_params` of the base; kept with every default filled in."""
    scale_transform: bool = True
    """ST: keypoints are read from the rectified driving picture."""
    scale_embedding: bool = True
    """SE: the code is added to the blocks of the generator. Not for G3FA and SPADE decoders."""
    scale_params: ScaleConfig = field(default_factory=ScaleConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_params", as_dict(self.base_config()))
        if self.scale_embedding and self.base == "g3fa":
            raise ValueError("scale_embedding must be false with the base g3fa, whose decoder has no blocks to add to.")

    def base_config(self) -> Any:
        """The base's own config."""
        return build(_BASES[self.base][1], self.base_params, "base_params.")


PAPER = OstNetConfig(
    base_params={
        "common_params": {"num_kp": 15},
        "generator_params": {"num_down_blocks": 3, "num_bottleneck_blocks": 0},
    }
)
"""Section 3.3 and appendix A: N = 3 as TPSM's; eq. 5 has nothing between the down and the up blocks."""


class OstNet(nn.Module):
    """A keypoint model with scale transformation and scale embedding, behind the three verbs.

    Pictures are (B, 3, H, W) in [0, 1]. Unlike in other keypoint models the motion is read for a source, and is taken
    over as it is: `normalise` has no place here.
    """

    Config = OstNetConfig

    def __init__(self, config: OstNetConfig = PAPER) -> None:
        super().__init__()
        self.config = config
        base = config.base_config()
        self.base: Fomm | DaGan | G3fa = _BASES[config.base][0](base)
        scale = config.scale_params
        self.localisation: ScaleLocalisation | None = None
        self.transformation: ScaleTransformation | None = None
        if config.scale_transform or config.scale_embedding:
            self.localisation = ScaleLocalisation(base.common_params.num_kp, scale)
        if config.scale_transform:
            self.transformation = ScaleTransformation(scale)
        if config.scale_embedding:
            cast(Generator, self.base.generator).embed_scale(scale.code)

    @property
    def kp_detector(self) -> nn.Module:
        return self.base.kp_detector

    @property
    def generator(self) -> nn.Module:
        return self.base.generator

    def encode_source(self, image: Tensor) -> SourceState:
        """Everything about the source that is the same for all frames, its keypoints included."""
        return self.base.encode_source(image)

    def read_motion(self, image: Tensor, state: SourceState | None = None) -> Motion:
        """The motion of driving frames in the proportions of a source.

        Args:
            image: (B, 3, H, W) frames, not rectified.
            state: of the source, batch 1 or B. None gives the keypoints of the pictures as they are.
        Returns:
            Keypoints, with the code and the rectified picture where there is a state.
        """
        seen = self.base.read_motion(image)
        if state is None or self.localisation is None:
            return seen
        code = self.localisation(state.motion.value.expand_as(seen.value), seen.value)
        if self.transformation is None:
            return ScaledMotion(seen.value, seen.jacobian, code, seen=seen)
        fiducials = self.transformation.fiducials(code)
        rectified = self.transformation(image, fiducials)
        motion = self.base.read_motion(rectified)
        return ScaledMotion(motion.value, motion.jacobian, code, fiducials, rectified, seen)

    def render(self, state: SourceState, motion: Motion) -> Output:
        """The source with the motion of B frames.

        Raises:
            ValueError: the model has a scale embedding, and the motion was not read for a source.
        """
        return self.base.render(state, motion)
