"""Levels by dynamic programming: against brute force, monotone, infeasible budgets."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effc.compression.allocation import Allocation


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers of seconds, so that a bucket of one second loses nothing."""
    layers, levels = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = layers * levels
    times = draw(st.lists(st.integers(1, 30), min_size=size, max_size=size))
    errors = draw(st.lists(st.integers(0, 50), min_size=size, max_size=size))
    missing = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    table = np.array(times, float).reshape(layers, levels)
    gone = np.array(missing).reshape(layers, levels)
    gone[:, 0] = False
    return np.where(gone, np.inf, table), np.array(errors, float).reshape(layers, levels)


def brute_force(times: np.ndarray, errors: np.ndarray, budget: float) -> float:
    least = np.inf
    for levels in product(range(times.shape[1]), repeat=len(times)):
        index = (np.arange(len(times)), np.array(levels))
        if times[index].sum() <= budget:
            least = min(least, errors[index].sum())
    return float(least)


@given(problems(), st.integers(0, 130))
def test_equals_brute_force_on_whole_seconds(
    problem: tuple[np.ndarray, np.ndarray], budget: int
) -> None:
    times, errors = problem
    probe = Allocation(times, errors, 1)
    exact = Allocation(times, errors, max(round(probe.slowest - probe.fastest), 1))
    point = exact.best(budget)
    least = brute_force(times, errors, budget)
    if point is None:
        assert least == np.inf
        return
    assert point.seconds <= budget
    assert point.error == least
    assert point == exact.point(point.levels)


@given(problems(), st.floats(0, 130), st.integers(1, 200))
def test_coarse_buckets_never_exceed_the_budget(
    problem: tuple[np.ndarray, np.ndarray], budget: float, buckets: int
) -> None:
    times, errors = problem
    solved = Allocation(times, errors, buckets)
    point = solved.best(budget)
    assert (point is None) == (budget < solved.fastest)
    if point is not None:
        assert point.seconds <= budget * (1 + 1e-9)
        # rounding up costs each layer less than a bucket
        lost = len(times) * (solved.slowest - solved.fastest) / buckets
        assert point.error <= brute_force(times, errors, budget - lost) + 1e-9


@given(problems())
def test_more_time_never_means_more_error(problem: tuple[np.ndarray, np.ndarray]) -> None:
    solved = Allocation(*problem, 50)
    budgets = np.linspace(solved.fastest, solved.slowest, 20)
    errors = [point.error for budget in budgets if (point := solved.best(budget)) is not None]
    assert len(errors) == len(budgets)
    assert all(a >= b for a, b in pairwise(errors))
    best = np.where(np.isfinite(problem[0]), problem[1], np.inf).min(axis=1).sum()
    assert errors[-1] == best


@given(problems())
def test_front_has_no_dominated_point(problem: tuple[np.ndarray, np.ndarray]) -> None:
    solved = Allocation(*problem)
    front = solved.front(40)
    for one, other in pairwise(front):
        assert one.seconds < other.seconds
        assert one.error > other.error
    first = solved.best(solved.fastest)
    assert first is not None
    assert front[0].seconds <= first.seconds + 1e-12


def test_layers_without_times_or_errors_are_refused() -> None:
    with pytest.raises(ValueError, match="level with a time"):
        Allocation(np.array([[np.inf]]), np.zeros((1, 1)))
    with pytest.raises(ValueError, match="needs an error"):
        Allocation(np.ones((1, 1)), np.full((1, 1), np.nan))
