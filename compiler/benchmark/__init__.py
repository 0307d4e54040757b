"""Latency of artifacts on devices: measuring, comparing, and saying how far to trust the figures.

``session`` starts the benchmark program (``runtimes/runner/``) as often as asked, ``measurement``
reads its answers, ``statistics`` makes intervals of them, ``reliability`` looks for what spoils
figures, ``report`` draws them.
"""
