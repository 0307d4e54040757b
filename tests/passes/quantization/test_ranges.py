"""Histograms count what they are given; ranges clip outliers as their methods promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.passes.quantization.grid import grid_of
from effc.passes.quantization.histogram import BINS, Histogram
from effc.passes.quantization.ranges import RANGES, choose_range


def histogram(*arrays: np.ndarray) -> Histogram:
    made = Histogram()
    for array in arrays:
        made.add(array.astype(np.float32))
    return made


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_counts(seed: int, batches: int) -> None:
    """However often the reach doubles, every element is in the bin around it or next to it."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(200) * 4.0 ** rng.integers(-3, 4) for _ in range(batches)]
    arrays[0][:20] = 0
    made = histogram(*arrays)
    whole = np.concatenate(arrays).astype(np.float32)
    assert (made.low, made.high) == (whole.min(), whole.max())
    assert made.counts.sum() + made.zeros == whole.size
    width = made.edges[1] - made.edges[0]
    below = np.concatenate([[0], np.cumsum(made.counts)])
    for quantile in (0.1, 0.5, 0.9):
        edge = np.searchsorted(made.edges, np.quantile(whole, quantile))
        exact = np.count_nonzero(whole[whole != 0] < made.edges[edge])
        near = np.count_nonzero(np.abs(whole - made.edges[edge]) <= width)
        assert abs(below[edge] - exact) <= near


def test_merging_is_counting_together() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(1000), 7 * rng.standard_normal(1000)
    parts = histogram(a)
    parts.merge(histogram(b))
    assert parts.low == min(a.min(), b.min()).astype(np.float32)
    assert parts.high == max(a.max(), b.max()).astype(np.float32)
    assert parts.counts.sum() == 2000
    centres = (parts.edges[:-1] + parts.edges[1:]) / 2
    spread = np.sqrt(np.dot(parts.counts, centres**2) / 2000)
    assert spread == pytest.approx(np.sqrt((a @ a + b @ b) / 2000), rel=20 / BINS)


def test_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        histogram(np.array([1.0, np.inf]))


@pytest.mark.parametrize("method", RANGES)
@pytest.mark.parametrize("sign", [1, -1])
def test_outlier(method: str, sign: int) -> None:
    """One far value of two millions is clipped by all but minmax (of fewer, mse keeps it)."""
    values = np.abs(np.random.default_rng(0).standard_normal(2_000_000)) * sign
    values[0] = 300 * sign
    low, high = choose_range(histogram(values), method)
    assert low * high == 0
    reach = max(-low, high)
    if method == "minmax":
        assert reach == 300
    else:
        assert 3 < reach < 90


@pytest.mark.parametrize("method", RANGES)
def test_ends_move_alone(method: str) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(-2, 1, 2_000_000), [100]])
    low, high = choose_range(histogram(values), method)
    assert low == pytest.approx(-2, rel=0.15)
    assert high == 100 if method == "minmax" else high < 30


@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_least(bits: int) -> None:
    """No range of a fine search has a clearly smaller error than the one that was chosen."""
    values = np.random.default_rng(1).laplace(size=50_000).astype(np.float32)

    def error(low: float, high: float) -> float:
        grid = grid_of(low, high, bits)
        steps = np.clip(np.rint(values / grid.scale) + grid.zero, 0, 2**bits - 1) - grid.zero
        return float(np.mean(np.square(steps * grid.scale - values)))

    chosen = error(*choose_range(histogram(values), "mse", bits))
    reaches = np.linspace(0.05, 1, 60)
    best = min(error(a * values.min(), b * values.max()) for a in reaches for b in reaches[::6])
    assert chosen <= 1.05 * best
