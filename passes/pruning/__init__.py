"""Pruning: zeros in weights, and whole channels removed."""
