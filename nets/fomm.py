"""FOMM: a source picture moved by keypoints and their local affine maps (Siarohin et al., "First order motion model for
image animation", NeurIPS 2019), under the names of the published checkpoints.

    driving frame --kp_detector--> keypoints --normalise--> motion --generator (with the source's state)--> picture
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from .generator import Generator, GeneratorConfig, Output, SourceState
from .keypoints import KeypointConfig, KeypointDetector, Motion


@dataclass(frozen=True)
class CommonParams:
    """`common_params` of FOMM's YAML files."""

    num_kp: int = 10
    num_channels: int = 3
    estimate_jacobian: bool = True


@dataclass(frozen=True)
class FommConfig:
    """FOMM's `model_params`. The published weights were trained before torch changed `grid_sample`: they were made with
    `align_corners` True, and anybody who runs the original code today runs it with False (docs/dagan.md)."""

    common_params: CommonParams = CommonParams()
    kp_detector_params: KeypointConfig = field(default_factory=KeypointConfig)
    generator_params: GeneratorConfig = field(default_factory=GeneratorConfig)
    align_corners: bool = False


class Fomm(nn.Module):
    """The two networks of FOMM behind the three verbs. Pictures are (B, 3, H, W) in [0, 1], published weights expect
    256 x 256."""

    Config = FommConfig

    def __init__(self, config: FommConfig = FommConfig()) -> None:
        super().__init__()
        self.config = config
        common = config.common_params
        self.kp_detector = KeypointDetector(
            common.num_kp,
            common.num_channels,
            estimate_jacobian=common.estimate_jacobian,
            config=config.kp_detector_params,
        )
        self.generator = Generator(
            common.num_kp, common.num_channels, config=config.generator_params, align_corners=config.align_corners
        )

    def read_motion(self, image: Tensor) -> Motion:
        """Keypoints of driving frames."""
        motion: Motion = self.kp_detector(image)
        return motion

    def encode_source(self, image: Tensor) -> SourceState:
        """Everything about the source that is the same for all frames, its keypoints included."""
        return self.generator.encode(image, self.read_motion(image))

    def render(self, state: SourceState, motion: Motion) -> Output:
        """The source with the motion of B frames (see `keypoints.normalise`)."""
        output: Output = self.generator(state, motion)
        return output
