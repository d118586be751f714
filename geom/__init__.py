"""Head models, skinning, cameras, rotations, landmark embeddings and parameter tracks. Imports nothing of ours."""
