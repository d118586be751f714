"""The animator and the command line."""
