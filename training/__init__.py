"""Training: clips and synthetic data, one step per method, and the engine that all of them share."""
