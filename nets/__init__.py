"""Published networks, one file per method, under the names of their official checkpoints."""
