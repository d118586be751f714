"""Rasteriser, attribute interpolation, warps, guidance images, shaded heads and the geometric portrait renderer."""
