"""From a histogram to the range of a grid.

* ``minmax``: nothing is clipped.
* ``percentile``: a ten-thousandth of the values is clipped, the outermost on both sides.
* ``mse``: least mean squared error. Between the ends of the range rounding costs ``scale^2 / 12``,
  beyond them clipping costs the squared distance.
* ``entropy``: least divergence of the histogram on the grid from the clipped histogram
  (S. Migacz, "8-bit inference with TensorRT", GTC 2017; here with both signs).

All ranges hold 0. The last two shrink both ends, from the observed ones, by fractions; each end
in turn until none moves, as one may be an outlier and the other not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from effc.passes.quantization.histogram import BINS, Histogram

__all__ = ["RANGES", "choose_range"]

Array = np.ndarray[Any, Any]
Range = tuple[float, float]

CLIPPED = 1e-4
"""Of ``percentile``: fraction of all values outside."""

_FRACTIONS = np.geomspace(1, 1 / 64, 96)
"""Tried of each end."""

_ROUNDS = 4


def choose_range(histogram: Histogram, method: str, bits: int = 8) -> Range:
    """The range of a value, within what was observed.

    Args:
        histogram: Of the value.
        method: One of ``RANGES``.
        bits: Of the grid.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if not histogram.counts.any() or low == high:
        return low, high
    return RANGES[method](histogram, (low, high), bits)


def _minmax(histogram: Histogram, whole: Range, bits: int) -> Range:
    return whole


def _percentile(histogram: Histogram, whole: Range, bits: int) -> Range:
    counts = histogram.counts.copy()
    counts[BINS // 2] += histogram.zeros
    below = np.cumsum(counts) / counts.sum()
    edges = histogram.edges
    low = edges[np.searchsorted(below, CLIPPED / 2)]
    high = edges[np.searchsorted(below, 1 - CLIPPED / 2) + 1]
    return max(min(low, 0.0), whole[0]), min(max(high, 0.0), whole[1])


def _mse(histogram: Histogram, whole: Range, bits: int) -> Range:
    edges = histogram.edges
    centres = (edges[:-1] + edges[1:]) / 2
    counts = histogram.counts

    def error(low: float, high: float) -> float:
        beyond = centres - np.clip(centres, low, high)
        step = (high - low) / (2**bits - 1)
        inside = counts[beyond == 0].sum()
        return float(inside * step**2 / 12 + np.dot(counts, np.square(beyond)))

    return _shrink(whole, error)


def _entropy(histogram: Histogram, whole: Range, bits: int) -> Range:
    edges = histogram.edges
    centres = (edges[:-1] + edges[1:]) / 2
    counts = histogram.counts
    filled = counts > 0

    def divergence(low: float, high: float) -> float:
        step = (high - low) / (2**bits - 1)
        inside = (centres >= low) & (centres <= high)
        if not (inside & filled).any():
            return np.inf
        place = np.rint(np.clip(centres, low, high) / step).astype(np.int64)
        place -= place.min()
        clipped = np.where(inside, counts, 0.0)
        first, last = np.flatnonzero(inside)[[0, -1]]
        wanted = clipped.copy()
        wanted[first] += counts[:first].sum()
        wanted[last] += counts[last + 1 :].sum()
        used = inside & filled
        totals = np.bincount(place[used], clipped[used])
        widths = np.bincount(place[used])
        got = np.zeros(BINS)
        got[used] = (totals / np.maximum(widths, 1))[place[used]]
        both = (wanted > 0) & (got > 0)
        lost = wanted[(wanted > 0) & ~(got > 0)].sum()
        p, q = wanted[both] / wanted.sum(), got[both] / got.sum()
        return float(np.sum(p * np.log(p / q))) + float(lost / wanted.sum()) * _UNSEEN

    return _shrink(whole, divergence)


_UNSEEN = 16.0
"""Divergence of a value that the grid never gives, about log(BINS) and more."""


def _shrink(whole: Range, cost: Callable[[float, float], float]) -> Range:
    """Ends of least cost, one in turn after the other."""
    low, high = whole
    best = cost(low, high)
    for _ in range(_ROUNDS):
        before = best
        for fraction in _FRACTIONS:
            found = cost(low, whole[1] * fraction) if whole[1] else np.inf
            if found < best:
                best, high = found, float(whole[1] * fraction)
        for fraction in _FRACTIONS:
            found = cost(whole[0] * fraction, high) if whole[0] else np.inf
            if found < best:
                best, low = found, float(whole[0] * fraction)
        if best == before:
            break
    return low, high


RANGES: dict[str, Callable[[Histogram, Range, int], Range]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
"""Methods by name."""
