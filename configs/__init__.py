"""Training configurations, found by name: `headwarp train smoke`."""
