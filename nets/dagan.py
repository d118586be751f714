"""DaGAN: FOMM with the depth of faces (Hong et al., "Depth-aware generative adversarial network for talking head video
generation", CVPR 2022), under the names of the published checkpoints.

    frame --depth--> disparity;   (frame, disparity) --kp_detector--> keypoints --normalise--> motion
    (source, its disparity, its keypoints; motion) --generator with attention by depth--> picture

The parts switch on and off as in the paper's ablations: `keypoint_input` (its FDN) and `attention` (its CAM).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from .depth import DepthConfig, FaceDepth
from .fomm import CommonParams
from .generator import Generator, GeneratorConfig, Output, SourceState
from .keypoints import KeypointConfig, KeypointDetector, Motion

CHANNELS = {"rgb": 3, "rgbd": 4, "depth": 1}


@dataclass(frozen=True)
class DaGanConfig:
    """DaGAN's `model_params`, and which of its parts are on.

    The paper's table 4: Baseline = "rgb", "none"; with FDN = "rgbd", "none"; with CAM = "rgb", "depth"; ours = "rgbd",
    "depth"; ours (SA) = "rgbd", "self". FOMM with the same parts has 10 keypoints.
    """

    common_params: CommonParams = field(default_factory=lambda: CommonParams(num_kp=15))
    kp_detector_params: KeypointConfig = field(default_factory=KeypointConfig)
    generator_params: GeneratorConfig = field(default_factory=GeneratorConfig)
    depth_params: DepthConfig = field(default_factory=DepthConfig)
    keypoint_input: Literal["rgb", "rgbd", "depth"] = "rgbd"
    """What the keypoint detector sees."""
    attention: Literal["none", "self", "depth"] = "depth"
    """Who asks in the attention: nobody, the warped features, or the depth of the source."""
    decoder: Literal["residual", "spade"] = "residual"
    """The paper's, or the second published one (SPADE_DaGAN)."""
    align_corners: bool = False

    @property
    def uses_depth(self) -> bool:
        return self.keypoint_input != "rgb" or self.attention == "depth"


class DaGan(nn.Module):
    """The three networks of DaGAN behind the three verbs; the depth network is frozen and always in evaluation mode.

    Pictures are (B, 3, H, W) in [0, 1], published weights expect 256 x 256.
    """

    Config = DaGanConfig

    def __init__(self, config: DaGanConfig = DaGanConfig()) -> None:
        super().__init__()
        self.config = config
        common = config.common_params
        self.kp_detector = KeypointDetector(
            common.num_kp,
            CHANNELS[config.keypoint_input],
            estimate_jacobian=common.estimate_jacobian,
            config=config.kp_detector_params,
        )
        self.generator = Generator(
            common.num_kp,
            common.num_channels,
            config=config.generator_params,
            attention=config.attention,
            decoder=config.decoder,
            align_corners=config.align_corners,
        )
        self.depth: FaceDepth | None = None
        if config.uses_depth:
            self.depth = FaceDepth(config.depth_params).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> DaGan:
        super().train(mode)
        if self.depth is not None:
            self.depth.eval()
        return self

    def disparity(self, image: Tensor) -> Tensor | None:
        """(B, 1, H, W) in (0, 1), 1 is near; None where no part uses it."""
        return None if self.depth is None else self.depth(image)

    def read_motion(self, image: Tensor) -> Motion:
        """Keypoints of driving frames."""
        disparity = None if self.config.keypoint_input == "rgb" else self.disparity(image)
        return self.keypoints(image, disparity)

    def keypoints(self, image: Tensor, disparity: Tensor | None) -> Motion:
        """Keypoints of frames whose disparity is known."""
        kind = self.config.keypoint_input
        if kind == "rgb" or disparity is None:
            seen = image
        else:
            seen = disparity if kind == "depth" else torch.cat([image, disparity], 1)
        motion: Motion = self.kp_detector(seen)
        return motion

    def encode_source(self, image: Tensor) -> SourceState:
        """Everything about the source that is the same for all frames, its keypoints included."""
        disparity = self.disparity(image)
        return self.generator.encode(image, self.keypoints(image, disparity), disparity)

    def render(self, state: SourceState, motion: Motion) -> Output:
        """The source with the motion of B frames (see `keypoints.normalise`)."""
        output: Output = self.generator(state, motion)
        return output
