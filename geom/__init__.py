"""Head models, skinning, cameras, rotations, landmark embeddings and parameter tracks. Imports nothing of ours."""

from .camera import Camera, WeakPerspective
from .head import HeadModel, HeadParams, load_head
from .track import FaceTrack

__all__ = ["Camera", "FaceTrack", "HeadModel", "HeadParams", "WeakPerspective", "load_head"]
