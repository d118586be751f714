"""Faces and landmarks in images, head fitting and tracking."""
