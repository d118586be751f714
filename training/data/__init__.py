"""Training data: clip folders, FOMM's folders, tar shards, synthetic people, and mixtures of them."""

from __future__ import annotations

from .source import Mixture, Request, Source, Split

__all__ = ["Mixture", "Request", "Source", "Split"]
