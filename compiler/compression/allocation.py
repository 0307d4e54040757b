"""One level per layer: the least total error that a time budget allows.

    minimise  sum_l error[l, s_l]   subject to   sum_l time[l, s_l] <= budget

A multiple-choice knapsack, solved by dynamic programming over a discretised budget (Frantar and
Alistarh, SPDY, ICML 2022, section 3.2). What a layer takes beyond its fastest level is counted
in buckets, rounded up, so a solution never exceeds the budget and the fastest one is always
reachable exactly. The table of one run holds the solution of every budget: it is the Pareto
front of latency against error as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["BUCKETS", "Allocation", "Point"]

Array = np.ndarray[Any, Any]

BUCKETS = 10_000
"""Steps between the fastest and the slowest network: 0.01 % of that range each."""

_EPSILON = 1e-9  # of a bucket: times that are exact multiples stay exact


@dataclass(frozen=True)
class Point:
    """One choice of levels.

    Attributes:
        levels: Index of the level of each layer.
        seconds: Sum of the layers' times.
        error: Sum of their errors.
    """

    levels: tuple[int, ...]
    seconds: float
    error: float


class Allocation:
    """The solved problem, for every budget.

    Args:
        times: Seconds ``[layers, levels]``; infinite where a layer has no such level.
        errors: Errors of the same shape, finite where the times are.
        buckets: Resolution of the budget.

    Raises:
        ValueError: A layer has no level at all, or an error is not finite.
    """

    def __init__(self, times: Array, errors: Array, buckets: int = BUCKETS) -> None:
        offered = np.isfinite(times)
        if times.shape != errors.shape or not offered.any(axis=1).all():
            raise ValueError("every layer needs a level with a time")
        if not np.isfinite(errors[offered]).all():
            raise ValueError("every level with a time needs an error")
        self.times, self.errors = times, errors
        self.fastest = float(times.min(axis=1).sum())
        self.slowest = float(np.where(offered, times, -np.inf).max(axis=1).sum())
        slack = times - times.min(axis=1, keepdims=True)
        self._bucket = (self.slowest - self.fastest) / buckets or 1.0
        steps = np.ceil(np.where(offered, slack, 0.0) / self._bucket - _EPSILON)
        self._steps = np.where(offered, np.maximum(steps, 0), -1).astype(np.int64)
        self._buckets = int(self._steps.max(axis=1).sum())
        self._solve()

    def _solve(self) -> None:
        """Best last level for every number of buckets, layer by layer."""
        least = np.zeros(self._buckets + 1)
        self._choices = np.zeros((len(self.times), len(least)), np.int16)
        for layer, steps in enumerate(self._steps):
            best = np.full(len(least), np.inf)
            for level in np.flatnonzero(steps >= 0):
                step = int(steps[level])
                total = least[: len(least) - step] + self.errors[layer, level]
                better = total < best[step:]
                best[step:][better] = total[better]
                self._choices[layer, step:][better] = level
            least = best

    def best(self, budget: float) -> Point | None:
        """The least error within a budget in seconds, or None if nothing is that fast."""
        left = budget - self.fastest
        if left < -1e-9 * max(self.fastest, budget):
            return None
        if budget >= self.slowest:  # rounded up, the slowest levels need more buckets than it has
            return self._point(self._buckets)
        return self._point(min(int(left / self._bucket + _EPSILON), self._buckets))

    def _point(self, bucket: int) -> Point:
        levels = []
        for layer in reversed(range(len(self.times))):
            level = int(self._choices[layer, bucket])
            bucket -= int(self._steps[layer, level])
            levels.append(level)
        return self.point(levels[::-1])

    def point(self, levels: list[int] | tuple[int, ...]) -> Point:
        """Time and error of given levels."""
        index = (np.arange(len(levels)), np.asarray(levels, dtype=np.int64))
        seconds, error = float(self.times[index].sum()), float(self.errors[index].sum())
        return Point(tuple(int(level) for level in levels), seconds, error)

    def front(self, count: int) -> list[Point]:
        """Solutions of ``count`` budgets from the fastest to the slowest, without repetitions."""
        budgets = np.linspace(0, self._buckets, count).round().astype(int)
        found = {point.levels: point for point in map(self._point, budgets.tolist())}
        ordered = sorted(found.values(), key=lambda p: (p.seconds, p.error))
        kept: list[Point] = []
        for point in ordered:
            if not kept or point.error < kept[-1].error:
                kept.append(point)
        return kept
