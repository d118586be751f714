"""Readers for what others own: one file and one page (where to get it, licence, layout) per external model."""
