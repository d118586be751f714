"""Images and videos in and out, face crops and paste-back, contact sheets. Imports nothing of ours."""
