"""Synthetic talking heads: random people on a head model, procedural from skin to background, drawn with exact truth.

    from headwarp.render.synthetic import render_head, sample_appearance, sample_identity, sample_motion

    head = load_head()
    params = sample_motion(seed, 100, 25.0, head, shape=sample_identity(seed, head))
    frame = render_head(head, params, camera, sample_appearance(seed, head), size=(512, 512))

    person = Person(head, sample_identity(seed, head), sample_appearance(seed, head, resolution=256, draft=True))
    frame = person.render(params, camera, size=(256, 256))  # several times faster, for training

The same seed is the same person, light and place, on every machine. No textures or other files are read.
"""

from __future__ import annotations

from .draft import Person
from .flow import Flow, surface_flow
from .motion import Performance, replay_motion, resting_place, sample_face, sample_motion, sample_performance
from .people import Appearance, sample_appearance, sample_identity
from .render import CLASSES, FACE, Frame, face_mask, render_head

__all__ = [
    "CLASSES",
    "FACE",
    "Appearance",
    "Flow",
    "Frame",
    "Performance",
    "Person",
    "face_mask",
    "render_head",
    "replay_motion",
    "resting_place",
    "sample_appearance",
    "sample_face",
    "sample_identity",
    "sample_motion",
    "sample_performance",
    "surface_flow",
]
