"""headwarp: one-shot face animation driven by explicit 3D geometry."""

__version__ = "0.1.0"
