"""Judging models: pairs of pictures by protocol, metrics that say what they are, reports and paired comparisons."""
