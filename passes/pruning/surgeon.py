"""Optimal Brain Surgeon in blocks: what to remove, and how the rest makes up for it.

One-shot and label-free. With inputs X of a layer (columns are positions, ``H = 2 X X^T``),

    loss(W') = 1/2 trace((W' - W) H (W' - W)^T) = sum of squared changes of the outputs

is quadratic, so the best weights on a given set of kept columns S of a filter band are the least
squares solution ``W'_S = (W H)_:S (H_SS)^-1``, and removing unit after unit with the least
increase (``effc.passes.pruning.elimination``) gives a good set. One run per layer orders all units:
``Trace`` holds what each one cost, and any sparsity of the layer follows from it. Bands
compete: the removals of all bands are merged by cost (a band's removals stay in order, as in a
merge of queues: the running maximum of a band's losses is what is compared).

* ``n:m``: a window stops losing channels when ``n`` are left.
* ``pattern``: each block takes the pattern of the layer's library that costs least from the dense
  weights, then whole kernels are removed in order.

``H`` is damped by a fraction of its mean diagonal (Hessians of few samples are singular), which
also bounds how far weights may move. Source: Frantar and Alistarh, Optimal Brain Compression,
NeurIPS 2022, sections 3 and 4; there a band is one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import linalg

from effc.passes.pruning.elimination import Elimination
from effc.passes.pruning.patterns import PATTERNS, library, pattern_costs, pattern_mask
from effc.passes.pruning.project import grid_of, mask_from_scores
from effc.passes.pruning.scheme import Scheme
from effc.passes.pruning.units import Grid

__all__ = [
    "DAMPING",
    "Trace",
    "damped",
    "equal_rows",
    "occupied",
    "output_loss",
    "refit",
    "trace_layer",
]

Array = np.ndarray[Any, Any]
Tick = Callable[[int, int], None]

DAMPING = 0.003
"""Added to the Hessian's diagonal, as a fraction of its mean."""

_RISE = 1 + 1e-6
_FLOOR = 1e-30
"""Costs rise at least this much from removal to removal, so that their order is never lost."""

_BATCH_COLUMNS = 16384
"""Columns of all bands of a batch: enough for NumPy's overhead, few enough for the cache."""


@dataclass(frozen=True)
class Trace:
    """What removing every unit of a layer costs.

    Attributes:
        scheme: What is removed together.
        grid: The units; of ``pattern`` whole kernels.
        costs: ``[bands, units]``: running maximum of a band's losses; infinite for what stays.
        losses: ``[bands, units]``: loss of each removal after those before it in its band.
        energy: ``1/2 trace(W H W^T)`` of the dense layer, the unit of relative losses.
        patterns: Pattern of each unit (``pattern`` only).
        pattern_loss: Loss of the patterns alone.
    """

    scheme: Scheme
    grid: Grid
    costs: Array
    losses: Array
    energy: float
    patterns: Array | None = None
    pattern_loss: float = 0.0

    def mask(self, sparsity: float) -> Array:
        """Weights that stay at a sparsity, bool ``[Cout, Cin / groups, positions]``."""
        if self.patterns is not None:
            return pattern_mask(self.patterns, self.costs, self.grid, sparsity)
        return mask_from_scores(self.costs, self.grid, sparsity)

    def loss(self, sparsity: float) -> float:
        """Loss at a sparsity over the energy of the layer's output."""
        kept = self.mask(sparsity).reshape(self.grid.cout, self.grid.cin, -1)
        removed = self.grid.sum(kept) == 0
        total = float(self.losses[removed].sum()) + self.pattern_loss
        return total / self.energy if self.energy else 0.0


def damped(hessian: Array, damping: float = DAMPING) -> Array:
    """A Hessian with ``damping`` times its mean diagonal added to its diagonal.

    Args:
        hessian: ``[K, K]``; inputs that never were anything but zero give zero rows.
        damping: Fraction.

    Returns:
        A positive definite copy, float64.
    """
    result = hessian.astype(np.float64)
    mean = float(np.trace(result)) / len(result)
    result[np.diag_indices(len(result))] += damping * mean if mean > 0 else 1.0
    return result


def trace_layer(
    weight: Array,
    hessians: Array,
    scheme: Scheme,
    *,
    damping: float = DAMPING,
    tick: Tick | None = None,
) -> Trace:
    """Order all units of a layer by what their removal costs.

    Args:
        weight: ``[Cout, Cin / groups, *kernel]``.
        hessians: ``[groups, K, K]`` with ``K = Cin / groups * positions``, not damped.
        scheme: What is removed together.
        damping: See :func:`damped`.
        tick: Called with (removals done, all removals).

    Raises:
        UsageError: The scheme does not fit the layer.
    """
    groups = len(hessians)
    rows = weight.reshape(len(weight), weight.shape[1], -1).astype(np.float64)
    rows = _without_dead(rows, hessians)
    grid = grid_of(rows.shape, scheme, groups)
    costs, losses = np.full((2, len(grid.bands), grid.units), np.inf)
    patterns = np.zeros((len(grid.bands), grid.units), np.int64)
    pattern_loss = energy = 0.0
    per_group = len(grid.bands) // groups
    limits = _window_limits(grid, scheme) if scheme.kind == "n:m" else None
    progress = _Progress(tick, grid, scheme, limits)
    for group, hessian in enumerate(hessians):
        exact = damped(hessian, damping)
        own = slice(group * per_group, (group + 1) * per_group)
        bands = [rows[begin:end].reshape(end - begin, -1) for begin, end in grid.bands[own]]
        energy += sum(0.5 * float(np.vdot(band @ hessian, band)) for band in bands)
        if scheme.kind == "pattern":
            found = _trace_patterns(bands, exact, grid, rows[_filters(grid, own)], progress)
            patterns[own], costs[own], losses[own], extra = found
            pattern_loss += extra
        else:
            costs[own], losses[own] = _trace_bands(bands, exact, grid, limits, progress)
    kind = patterns if scheme.kind == "pattern" else None
    return Trace(scheme, grid, costs, losses, energy, kind, pattern_loss)


def refit(weight: Array, hessians: Array, mask: Array, damping: float = DAMPING) -> Array:
    """The best weights on a mask: least squares, band by band.

    Equal to the sequential updates of the removals that led to the mask.

    Args:
        weight: Dense weights ``[Cout, Cin / groups, *kernel]``.
        hessians: ``[groups, K, K]``, not damped.
        mask: Weights that stay, of as many elements; filters with equal rows are solved together.
        damping: As for the trace.

    Returns:
        New weights in the shape and dtype of ``weight``; a row that loses nothing is unchanged.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    kept = mask.reshape(rows.shape)
    result = np.where(kept, rows, 0.0)
    per_group = len(rows) // len(hessians)
    for group, hessian in enumerate(hessians):
        exact = damped(hessian, damping)
        start = group * per_group
        for begin, end in equal_rows(kept[start : start + per_group]):
            band = slice(start + begin, start + end)
            stays = np.flatnonzero(kept[band.start])
            if len(stays) and rows[band][:, ~kept[band.start]].any():
                target = rows[band] @ exact[:, stays]
                factor = linalg.cho_factor(exact[np.ix_(stays, stays)], overwrite_a=True)
                result[band, stays] = linalg.cho_solve(factor, target.T).T
    return result.reshape(weight.shape).astype(weight.dtype)


def occupied(weight: Array, grid: Grid) -> Array:
    """Weights ``[Cout, Cin / groups, positions]`` whose units are not zero as a whole."""
    units = grid.sum(weight.reshape(grid.cout, grid.cin, -1) != 0)
    return grid.spread(units > 0)


def output_loss(weight: Array, new: Array, hessians: Array) -> float:
    """Squared change of a layer's outputs over their energy, on the calibration samples.

    Args:
        weight, new: Before and after, ``[Cout, Cin / groups, *kernel]``.
        hessians: ``[groups, K, K]``, not damped.
    """
    before = weight.reshape(len(hessians), -1, hessians.shape[1]).astype(np.float64)
    change = new.reshape(before.shape) - before
    energy = float(np.vdot(before @ hessians, before))
    return float(np.vdot(change @ hessians, change)) / energy if energy > 0 else 0.0


def equal_rows(kept: Array) -> Iterator[tuple[int, int]]:
    """Runs of equal rows, ``[begin, end)``."""
    changes = np.flatnonzero((kept[1:] != kept[:-1]).any(axis=1)) + 1
    edges = [0, *changes.tolist(), len(kept)]
    return pairwise(edges)


def _without_dead(rows: Array, hessians: Array) -> Array:
    """Weights of inputs that are always zero do nothing: as zeros they go first, for nothing."""
    live = np.einsum("gkk->gk", hessians) > 0
    shape = (len(hessians), -1, live.shape[1])
    return np.asarray(np.where(live[:, None], rows.reshape(shape), 0.0).reshape(rows.shape))


class _Progress:
    """Counts removals over all batches."""

    def __init__(self, tick: Tick | None, grid: Grid, scheme: Scheme, limits: Any) -> None:
        self.tick = tick
        per_band = grid.units if limits is None else int(limits[1].sum())
        self.total = per_band * len(grid.bands)
        self.done = 0

    def advance(self, count: int) -> None:
        before, self.done = self.done, self.done + count
        if self.tick is not None and self.done * 100 // self.total != before * 100 // self.total:
            self.tick(self.done, self.total)


def _filters(grid: Grid, bands: slice) -> slice:
    own = grid.bands[bands]
    return slice(own[0][0], own[-1][1])


def _window_limits(grid: Grid, scheme: Scheme) -> tuple[Array, Array]:
    """Window of each unit, and how many units each window may lose."""
    channel, position = np.divmod(np.arange(grid.units), grid.positions)
    window = channel // scheme.window * grid.positions + position
    sizes = np.bincount(window)
    return window, np.maximum(sizes - scheme.keep, 0)


def _trace_bands(
    bands: list[Array], hessian: Array, grid: Grid, limits: Any, progress: _Progress
) -> tuple[Array, Array]:
    """Costs and losses ``[bands, units]`` of bands that share a Hessian."""
    columns = grid.columns.T  # [width, units]: component-major
    order, real = columns.reshape(-1), columns.reshape(-1) >= 0
    padded = np.diag(np.where(real, 0.0, 1.0))
    padded[np.ix_(real, real)] = hessian[np.ix_(order[real], order[real])]
    scale = float(np.trace(hessian)) / len(hessian)
    inverse = _inverse(padded / scale)
    height = max(len(band) for band in bands)
    weight = np.zeros((len(bands), height, len(order)), np.float32)
    for target, band in zip(weight, bands, strict=True):
        target[: len(band), real] = band[:, order[real]]
    stacked = weight.reshape(len(bands), height, *columns.shape)
    batch = max(1, _BATCH_COLUMNS // len(order))
    parts = [
        _run(Elimination(stacked[at : at + batch], inverse), limits, progress)
        for at in range(0, len(bands), batch)
    ]
    costs, losses = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return costs * (0.5 * scale), losses * (0.5 * scale)


def _run(state: Elimination, limits: Any, progress: _Progress) -> tuple[Array, Array]:
    """Remove units until none may go; in units of the scaled Hessian, without the half."""
    bands, units = state.bands, state.units
    costs, losses = np.full((2, bands, units), np.inf)
    worst = np.zeros(bands)
    band = np.arange(bands)
    steps, allowed, room = units, None, None
    if limits is not None:
        window, most = limits
        steps, room = int(most.sum()), np.tile(most, (bands, 1))
        allowed = room[:, window] > 0
    for _ in range(steps):
        removed, loss = state.step(allowed)
        worst = np.maximum(worst * _RISE + _FLOOR, loss)
        costs[band, removed], losses[band, removed] = worst, loss
        if allowed is not None and room is not None:
            room[band, window[removed]] -= 1
            allowed = room[:, window] > 0
        progress.advance(bands)
    return costs, losses


def _inverse(matrix: Array) -> Array:
    """Inverse of a positive definite matrix, float32."""
    factor, _ = linalg.lapack.dpotrf(matrix, lower=1, overwrite_a=0)
    inverse, _ = linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    lower = np.tril(inverse)
    return np.asarray(lower + np.tril(lower, -1).T, np.float32)


def _trace_patterns(
    bands: list[Array], hessian: Array, grid: Grid, weight: Array, progress: _Progress
) -> tuple[Array, Array, Array, float]:
    """Patterns, costs and losses ``[bands, blocks]``, and the loss of the patterns alone."""
    inverse = _inverse(hessian).astype(np.float64)
    own = Grid(len(weight), grid.cin, grid.positions, 1, grid.block)
    own = Grid(own.cout, own.cin, own.positions, 1, own.block, True)
    diagonal = np.diag(hessian).reshape(1, grid.cin, grid.positions)
    candidates = library(pattern_costs(np.square(weight) * diagonal, own)[1])
    patterns = np.empty((len(bands), grid.units), np.int64)
    costs, losses = np.empty((2, len(bands), grid.units))
    total = 0.0
    for index, band in enumerate(bands):
        choice = _choose_patterns(band, inverse, grid, candidates)
        patterns[index] = candidates[choice]
        keeps = PATTERNS[patterns[index]]  # [blocks, 9]
        stays = _kept_columns(grid, keeps)
        real = stays.reshape(-1) >= 0
        order = stays.reshape(-1)[real]
        small = hessian[np.ix_(order, order)]
        new = linalg.solve(small, hessian[order] @ band.T, assume_a="pos").T
        change = -band
        change[:, order] += new
        total += 0.5 * float(np.vdot(change @ hessian, change))
        costs[index], losses[index] = _trace_kernels(new, small, stays.shape, real, progress)
    return patterns, costs, losses, total


def _choose_patterns(band: Array, inverse: Array, grid: Grid, candidates: Array) -> Array:
    """For each block the candidate whose zeros cost least."""
    columns = grid.columns.reshape(grid.units, -1, grid.positions)
    best = np.empty((grid.units, len(candidates)))
    for block, own in enumerate(columns):
        for index, pattern in enumerate(candidates):
            out = own[:, ~PATTERNS[pattern]].reshape(-1)
            out = out[out >= 0]
            removed = band[:, out]
            solved = np.linalg.solve(inverse[np.ix_(out, out)], removed.T)
            best[block, index] = float(np.vdot(removed.T, solved))
    return np.asarray(best.argmin(axis=1))


def _kept_columns(grid: Grid, keeps: Array) -> Array:
    """Columns ``[width, blocks]`` that the patterns keep; -1 fills smaller blocks."""
    columns = grid.columns.reshape(grid.units, -1, grid.positions)
    kept = [own[:, keep].reshape(-1) for own, keep in zip(columns, keeps, strict=True)]
    return np.array(kept).T


def _trace_kernels(
    weight: Array, hessian: Array, shape: tuple[int, ...], real: Array, progress: _Progress
) -> tuple[Array, Array]:
    """Order whole kernels of one band whose patterns are already gone."""
    padded = np.diag(np.where(real, 0.0, 1.0))
    padded[np.ix_(real, real)] = hessian
    scale = float(np.trace(hessian)) / len(hessian)
    full = np.zeros((len(weight), len(real)), np.float32)
    full[:, real] = weight
    state = Elimination(full.reshape(1, len(weight), *shape), _inverse(padded / scale))
    costs, losses = _run(state, None, progress)
    return costs[0] * (0.5 * scale), losses[0] * (0.5 * scale)
