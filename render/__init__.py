"""Rasteriser, attribute interpolation, warps, guidance images, shaded heads and the geometric portrait renderer."""

from .interpolate import barycentrics, interpolate
from .rasterize import Fragments, rasterize
from .warp import sample, warp

__all__ = ["Fragments", "barycentrics", "interpolate", "rasterize", "sample", "warp"]
