"""Head models, skinning, cameras, rotations, landmark embeddings and parameter tracks. Imports nothing of ours."""

from .camera import Camera, WeakPerspective
from .head import HeadModel, HeadParams, load_head

__all__ = ["Camera", "HeadModel", "HeadParams", "WeakPerspective", "load_head"]
