"""The smallest arena for a given order, by an integer program.

Offsets are continuous variables in units of the alignment; every two roots that are alive
together choose one of the intervals between their forbidden distances (one binary variable per
choice). With the choices fixed, what is left are difference constraints, whose vertices are
integral. HiGHS (``scipy.optimize.milp``) either finds a smaller arena than the one given, or proves
that there is none. Its work is limited by nodes, never by time, so that results are reproducible.

The formulation of placement follows Zhang et al., "COSMA" (2023), with distances between pairs
instead of plain disjointness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from effc.placement import Interval, Problem

__all__ = ["Rows", "choose_segments", "segments", "solve"]

_NODES = 2_000

Segment = tuple[int | None, int | None]


def solve(
    problem: Problem, best: dict[str, int], bound: int, most: int
) -> tuple[dict[str, int], bool]:
    """Look for a smaller plan.

    Args:
        problem: What is placed.
        best: A valid plan.
        bound: No plan is smaller.
        most: Choices of a problem that is not too large to try.

    Returns:
        The smallest plan found, and whether no plan (at aligned offsets) is smaller.
    """
    unit = problem.alignment
    size = problem.size(best)
    names = list(problem.reserved())
    position = {name: i for i, name in enumerate(names)}
    choices = [(a, b, segments(ranges, unit, size)) for a, b, ranges in problem.conflicts()]
    if sum(len(s) for _, _, s in choices) > most:
        return best, False
    if not all(s for _, _, s in choices):
        return best, True
    rows = Rows(len(names) + 1)  # one variable per offset; the last one is the size
    top = len(names)
    for name, parts in problem.reserved().items():
        end = max(-(-(p.offset + p.nbytes) // unit) for p in parts)
        rows.add({position[name]: 1.0, top: -1.0}, upper=-end)
    for a, b, allowed in choices:
        choose_segments(rows, {position[b]: 1.0, position[a]: -1.0}, allowed, size // unit)
    rows.limits[top] = (bound / unit, size / unit - 1)
    found = rows.minimize(top, size // unit, _NODES)
    if found is None:
        return best, False
    values, optimal = found
    if values is None:
        return best, optimal
    better = {**best, **{name: round(values[i]) * unit for name, i in position.items()}}
    return better, optimal


def segments(ranges: Sequence[Interval], unit: int, size: int) -> list[Segment]:
    """What is left between open intervals of bytes, in whole units within ``+-size``."""
    found: list[Segment] = []
    low: int | None = None
    for begin, end in ranges:
        high = begin // unit
        if (low is None or low <= high) and -high * unit <= size:
            found.append((low, high))
        low = -(-end // unit)
    if low is None or low * unit <= size:
        found.append((low, None))
    return found


def choose_segments(
    rows: Rows,
    terms: Mapping[int, float],
    allowed: Sequence[Segment],
    big: int,
    or_else: Sequence[int] = (),
) -> None:
    """Let the sum of ``terms`` lie in one of the segments, or a binary of ``or_else`` be 1."""
    if len(allowed) == 1 and not or_else:
        low, high = allowed[0]
        rows.add(terms, lower=low, upper=high)
        return
    chosen = [rows.binary() for _ in allowed]
    for z, (low, high) in zip(chosen, allowed, strict=True):
        if high is not None:  # terms <= high + big * (1 - z), |terms| <= big
            slack = float(big - high)
            rows.add({**terms, z: slack}, upper=high + slack)
        if low is not None:
            slack = float(big + low)
            rows.add({**terms, z: -slack}, lower=low - slack)
    rows.add(dict.fromkeys((*chosen, *or_else), 1.0), lower=1)


@dataclass
class Rows:
    """An integer program that grows row by row.

    Attributes:
        variables: How many there are; those given at the start are not negative and continuous.
        limits: Bounds of single variables, where they are not those.
    """

    variables: int
    limits: dict[int, tuple[float, float]] = field(default_factory=dict)
    binaries: list[int] = field(default_factory=list)
    _entries: list[tuple[int, int, float]] = field(default_factory=list)
    _lower: list[float] = field(default_factory=list)
    _upper: list[float] = field(default_factory=list)

    def binary(self) -> int:
        """A further variable, 0 or 1."""
        self.binaries.append(self.variables)
        self.limits[self.variables] = (0.0, 1.0)
        self.variables += 1
        return self.variables - 1

    def add(
        self,
        terms: Mapping[int, float],
        lower: float | None = None,
        upper: float | None = None,
    ) -> None:
        """A row ``lower <= sum(terms) <= upper``."""
        row = len(self._lower)
        self._entries += [(row, column, value) for column, value in terms.items()]
        self._lower.append(-np.inf if lower is None else lower)
        self._upper.append(np.inf if upper is None else upper)

    def minimize(
        self, objective: int, largest: float, nodes: int
    ) -> tuple[np.ndarray | None, bool] | None:
        """Minimize one variable.

        Args:
            objective: The variable.
            largest: Upper bound of variables without limits.
            nodes: Of the search tree, at most.

        Returns:
            Values, ``None`` if there are none, and whether that is proven; ``None`` if the
            search ended before it found or proved anything.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        cost = np.zeros(self.variables)
        cost[objective] = 1.0
        integral = np.zeros(self.variables)
        integral[self.binaries] = 1
        low, high = np.zeros(self.variables), np.full(self.variables, float(largest))
        for variable, (a, b) in self.limits.items():
            low[variable], high[variable] = a, b
        row, column, value = zip(*self._entries, strict=True)
        matrix = coo_array((value, (row, column)), shape=(len(self._lower), self.variables))
        if np.any(low > high):
            return None, True
        result = milp(
            cost,
            integrality=integral,
            bounds=Bounds(low, high),
            constraints=LinearConstraint(matrix.tocsr(), self._lower, self._upper),
            options={"node_limit": nodes, "mip_rel_gap": 0.0},
        )
        if result.status == 2:  # infeasible
            return None, True
        if result.x is None:
            return None
        return result.x, result.status == 0
