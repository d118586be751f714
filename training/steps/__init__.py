"""One training step per method."""
