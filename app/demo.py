"""`headwarp demo`: a public-domain photograph follows the example clip that this project's own generator made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..assets import example
from ..media.errors import InputError
from ..media.image import save_image
from ..media.sheet import contact_sheet, strip_from_video
from .animate import AnimateOptions, animate
from .animator import Animator

EDITS: dict[str, dict[str, Any]] = {
    "yaw 15": {"yaw": 15.0},
    "yaw -15": {"yaw": -15.0},
    "pitch 10": {"pitch": 10.0},
    "roll 10": {"roll": 10.0},
    "gaze 20,0": {"gaze": (20.0, 0.0)},
    "blink": {"expression": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}},
    "jaw 12": {"jaw": 12.0},
    "brows up": {"expression": {"browInnerUp": 1.0, "browOuterUpLeft": 0.8, "browOuterUpRight": 0.8}},
}
"""Label -> arguments of `Animator.edit` that the contact sheet shows."""


def demo(folder: str | Path) -> list[Path]:
    """Animate scikit-image's `astronaut` (NASA, public domain) and draw a contact sheet; both land in `folder`."""
    try:
        from skimage.data import astronaut
    except ImportError:
        raise InputError("The demo's photograph comes with scikit-image: pip install 'headwarp[demo]'.") from None
    folder = Path(folder)
    photograph = astronaut()
    animator = Animator(photograph)
    square = animator.portrait.square
    video, sheet = folder / "astronaut.mp4", folder / "contact_sheet.png"
    driving = example("driving.mp4")
    animate(animator, driving, video, AnimateOptions(), progress=True)
    rows = [
        strip_from_video(driving, len(EDITS)),
        [square.extract(frame) for frame in strip_from_video(video, len(EDITS), cell=max(photograph.shape))],
        [animator.edit(**arguments, crop_only=True) for arguments in EDITS.values()],
    ]
    save_image(sheet, contact_sheet(rows, ["the driving clip", "the photograph follows", "edits: " + ", ".join(EDITS)]))
    print(f"video:         {video.resolve()}\ncontact sheet: {sheet.resolve()}")
    return [video, sheet]
