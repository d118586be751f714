"""headwarp: one-shot face animation driven by explicit 3D geometry.

animator = headwarp.Animator("portrait.jpg")
animator.animate("clip.mp4", "out.mp4")
picture = animator.edit(yaw=15, expression={"mouthSmileLeft": 0.8})
track = headwarp.fit("clip.mp4")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Animator", "FaceTrack", "InputError", "__version__", "fit", "load_head"]

if TYPE_CHECKING:
    from .app.animator import Animator
    from .fitting.fit import fit
    from .geom.head import load_head
    from .geom.track import FaceTrack
    from .media.errors import InputError

_HOMES = {
    "Animator": ".app.animator",
    "FaceTrack": ".geom.track",
    "InputError": ".media.errors",
    "fit": ".fitting.fit",
    "load_head": ".geom.head",
}


def __getattr__(name: str) -> Any:
    """Public names load when first used, so that `import headwarp` takes no torch, video or OpenCV library."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
