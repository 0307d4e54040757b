"""The weights of a layer, cut into the units that a scheme removes as a whole.

``Grid`` maps between a weight ``[Cout, Cin, positions]`` and units in two dimensions: *bands* of
``bf`` filters (never across convolution groups), and per band *units* of ``bc`` columns. Columns of
one band are numbered ``k = c * positions + p``, as the weight lies in memory. ``cheapest`` chooses
units of least total cost that reach a number of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Grid", "cheapest"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Grid:
    """Bands and units of one layer.

    Attributes:
        cout: Filters, all groups together.
        cin: Input channels per group.
        positions: Entries of one kernel.
        groups: Convolution groups.
        block: ``(bf, bc)``.
        whole_kernels: The unit is all positions of a block, not one.
    """

    cout: int
    cin: int
    positions: int
    groups: int
    block: tuple[int, int]
    whole_kernels: bool = False

    @cached_property
    def bands(self) -> tuple[tuple[int, int], ...]:
        """``[begin, end)`` of the filters of each band, in order."""
        size, bf = self.cout // self.groups, self.block[0]
        return tuple(
            (g * size + start, g * size + min(start + bf, size))
            for g in range(self.groups)
            for start in range(0, size, bf)
        )

    @cached_property
    def _channel_starts(self) -> Array:
        return np.arange(0, self.cin, self.block[1])

    @property
    def units(self) -> int:
        """Units of one band."""
        return len(self._channel_starts) * (1 if self.whole_kernels else self.positions)

    @cached_property
    def columns(self) -> Array:
        """Columns ``[units, width]`` of each unit; -1 fills the smaller ones."""
        bc, p = self.block[1], self.positions
        channel = self._channel_starts[:, None] + np.arange(bc)
        k = channel[:, :, None] * p + np.arange(p)
        k = np.where(channel[:, :, None] < self.cin, k, -1)
        if self.whole_kernels:
            return k.reshape(len(channel), bc * p)
        return k.transpose(0, 2, 1).reshape(-1, bc)

    @cached_property
    def sizes(self) -> Array:
        """Weights ``[bands, units]`` in each unit, int64."""
        rows = np.array([end - begin for begin, end in self.bands])
        return np.asarray(rows[:, None] * (self.columns >= 0).sum(axis=1))

    def sum(self, values: Array) -> Array:
        """Sums ``[bands, units]`` of values ``[Cout, Cin, positions]``, float64."""
        starts = [begin for begin, _ in self.bands]
        bands = np.add.reduceat(values.astype(np.float64), starts, axis=0)
        blocks = np.add.reduceat(bands, self._channel_starts, axis=1)
        if self.whole_kernels:
            return np.asarray(blocks.sum(axis=2))
        return np.asarray(blocks.reshape(len(starts), -1))

    def spread(self, units: Array) -> Array:
        """Values ``[bands, units]`` at every weight, ``[Cout, Cin, positions]``."""
        rows = [end - begin for begin, end in self.bands]
        per_band = units.reshape(len(rows), len(self._channel_starts), -1)
        channels = np.repeat(per_band, self.block[1], axis=1)[:, : self.cin]
        if self.whole_kernels:
            channels = np.broadcast_to(channels, (*channels.shape[:2], self.positions))
        return np.repeat(channels, rows, axis=0)


def cheapest(costs: Array, sizes: Array, target: float) -> Array:
    """Units of least total cost whose sizes sum to the number nearest to ``target``.

    Among units of one size the cheapest come first (the earlier one on ties); so, without ragged
    edges, a larger target removes the same units and more. There are four sizes at most.

    Args:
        costs: Cost of removing each unit, any shape; infinite ones are never removed.
        sizes: Weights in each unit, same shape.
        target: Number of weights to remove.

    Returns:
        True where a unit is removed, in the shape of ``costs``.
    """
    flat, size_of = costs.reshape(-1), np.broadcast_to(sizes, costs.shape).reshape(-1)
    kinds = sorted({int(s) for s in size_of}, reverse=True)
    orders, sums = [], []
    for size in kinds:
        where = np.flatnonzero((size_of == size) & np.isfinite(flat))
        order = where[np.argsort(flat[where], kind="stable")]
        orders.append(order)
        sums.append(np.concatenate([[0.0], np.cumsum(flat[order])]))
    removed = np.zeros(flat.size, bool)
    for order, count in zip(orders, _counts(kinds, sums, target), strict=True):
        removed[order[:count]] = True
    return removed.reshape(costs.shape)


def _counts(kinds: list[int], sums: list[Array], target: float) -> list[int]:
    """How many units of each size: nearest to the target first, then cheapest.

    All combinations of the smaller kinds are looked at (edges are short); how many
    of the most frequent kind are needed follows.
    """
    main = max(range(len(kinds)), key=lambda i: len(sums[i]))
    others = [i for i in range(len(kinds)) if i != main]
    shape = [len(sums[i]) for i in others]
    weights, cost = np.zeros(shape), np.zeros(shape)
    for axis, i in enumerate(others):
        along = [1] * len(shape)
        along[axis] = -1
        weights = weights + kinds[i] * np.arange(len(sums[i])).reshape(along)
        cost = cost + sums[i].reshape(along)
    most = len(sums[main]) - 1
    need = np.clip((target - weights) / kinds[main], 0, most)
    best: tuple[float, float] | None = None
    chosen: list[int] = []
    for count in (np.floor(need).astype(int), np.ceil(need).astype(int)):
        gap = np.round(np.abs(weights + count * kinds[main] - target), 6)
        total = cost + sums[main][count]
        at = int(np.where(gap == gap.min(), total, np.inf).argmin())
        key = (float(gap.reshape(-1)[at]), float(total.reshape(-1)[at]))
        if best is None or key < best:
            best = key
            index = np.unravel_index(at, shape) if shape else ()
            chosen = [0] * len(kinds)
            for axis, i in enumerate(others):
                chosen[i] = int(index[axis])
            chosen[main] = int(count.reshape(-1)[at])
    return chosen
