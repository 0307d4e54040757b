"""Kernels: regions of a graph, and templates that turn each into functions and packed weights."""
