"""Measurements that print a table: speed as ratios against a peer in the same run, fidelity against known motion."""
