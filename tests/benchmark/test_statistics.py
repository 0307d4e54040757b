"""Ratios: coverage of their intervals on simulated measurements, symmetry, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effc.benchmark.session import order
from effc.benchmark.statistics import paired_ratio, spread_interval, unpaired_ratio
from effc.errors import UsageError

SERIES = st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=12)


def simulate(rng: np.random.Generator, rounds: int, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Two artifacts on a machine whose speed drifts much more than they differ."""
    drift = np.exp(np.cumsum(rng.normal(0, 0.1, rounds)))
    noise = np.exp(rng.normal(0, 0.01, (2, rounds)))
    return 5.0 * ratio * drift * noise[0], 5.0 * drift * noise[1]


def test_coverage() -> None:
    """About 95 of 100 intervals hold the true ratio (binomial bounds for 400 trials)."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = paired_ratio(*simulate(rng, 8, 1.02))
        held += found.low <= 1.02 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_pairs_cancel_drift() -> None:
    """Alternating shows 5 % where two separate runs show nothing."""
    values, base = simulate(np.random.default_rng(1), 10, 1.05)
    assert paired_ratio(values, base).verdict == "slower"
    assert paired_ratio(base, values).verdict == "faster"
    assert unpaired_ratio(values, base).verdict == "no difference shown"


def test_unpaired_coverage() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        values = 7.0 * np.exp(rng.normal(0, 0.05, 5))
        base = 5.0 * np.exp(rng.normal(0, 0.01, 12))
        found = unpaired_ratio(values, base)
        held += found.low <= 1.4 <= found.high
    assert 0.92 <= held / 400 <= 0.98


@given(SERIES)
def test_a_series_equals_itself(values: list[float]) -> None:
    found = paired_ratio(values, values)
    assert found.ratio == found.low == found.high == 1.0
    assert found.verdict == "no difference shown"
    same = unpaired_ratio(values, values)
    assert same.low <= 1.0 <= same.high


@given(SERIES, st.floats(0.1, 10))
def test_scale_and_direction(values: list[float], factor: float) -> None:
    scaled = [factor * value for value in values]
    found, back = paired_ratio(scaled, values), paired_ratio(values, scaled)
    assert found.ratio == pytest.approx(factor)
    assert found.low == pytest.approx(1 / back.high)
    assert found.high == pytest.approx(1 / back.low)


@pytest.mark.parametrize("ratio", [paired_ratio, unpaired_ratio])
def test_too_few_rounds(ratio: object) -> None:
    with pytest.raises(UsageError, match="two rounds"):
        ratio([1.0], [2.0])  # type: ignore[operator]


def test_spread_of_medians() -> None:
    assert spread_interval([1.0, 2.0]) is None
    interval = spread_interval([0.99, 1.0, 1.01])
    assert interval is not None
    assert interval[0] < 1.0 < interval[1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_order_of_rounds(count: int) -> None:
    """Each subject runs once per round, and before any other as often as behind it."""
    rounds = [order(count, n) for n in range(2 * count)]
    assert all(sorted(places) == list(range(count)) for places in rounds)
    for a in range(count):
        for b in range(count):
            before = sum(places.index(a) < places.index(b) for places in rounds)
            assert a == b or before == count
    assert [order(2, n) for n in range(4)] == [[0, 1], [1, 0], [1, 0], [0, 1]]
