"""How a portrait is animated: one set of options for the command line and for Python, free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class AnimateOptions:
    """Options of `animate`; the command line's flags are these fields."""

    model: str = "geometric"
    """What moves the portrait: geometric (no learned weights), refined (the same, and a small network of the package
    improves it), pwm (a network of the package makes the picture), or a model file: pwm, refiner, or a keypoint model
    (fomm, dagan, g3fa, ostnet) that `headwarp convert` or `headwarp train` made."""
    motion: Literal["relative", "absolute"] = "relative"
    """relative: the source's own pose and expression are the neutral, the driver's first face is its rest.
    absolute: take the driver's pose and expression as they are."""
    region: Literal["all", "pose", "expression", "eyes", "mouth"] = "all"
    """Which part of the motion to transfer."""
    strength: float = 1.0
    """Multiplies relative motion, 0 to 3; 1 = as driven."""
    rest: str = "first"
    """Driving frame that counts as rest in relative motion: first, best (most neutral and frontal, with a keypoint
    model the most like the source; reads the clip twice) or a frame number."""
    smooth: float = 1.0
    """Smoothing of the motion over time: 0 = none, 1 = takes the jitter away, more = lazier motion."""
    adapt_scale: bool = False
    """Keypoint models: movements grow or shrink with the size of the face; the others always do so."""
    jacobian: bool = True
    """Keypoint models: --no-jacobian keeps the driver's local affine maps in relative motion."""
    explain: Path | None = None
    """Keypoint models: a folder for one picture a frame of what the network saw and did: keypoints, depth, occlusion,
    the warped source, attention."""
    explain_at: tuple[float, float] | None = None
    """Pixel x y of the 256 x 256 result whose attention --explain shows; by default its middle."""
    crop_only: bool = False
    """Write the animated face crop, without pasting it back."""
    no_crop: bool = False
    """Source and driving are face crops already: no detection, no crop, no paste-back."""
    size: int = 512
    """Pixels of the square that the motion is computed in, 128 to 1024; --crop-only results have this size."""
    max_side: int = 1920
    """Larger sources are reduced to this longer side."""
    source_face: int = 0
    """Which face of the source, 0 = largest."""
    driving_face: int = 0
    """Which face of the driving video, 0 = largest in its first frame."""
    audio: bool = True
    """Keep the driving clip's sound; --no-audio leaves it out."""
    side_by_side: bool = False
    """Also write OUT_concat.EXT: source, driving and result next to each other."""
    save_motion: Path | None = None
    """Also write the driver's motion as a track (.safetensors), which --driving takes in place of the clip."""
    provenance: bool = True
    """Say inside the file that it is AI-generated; --no-provenance leaves the note out."""


DEFAULTS = AnimateOptions()
