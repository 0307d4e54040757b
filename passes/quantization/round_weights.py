"""Round weights so that a layer's outputs, not the weights, change least.

With H the second moments of what the layer reads, a row w as q costs ``(q - w) H (q - w)^T``.

1. *Scales.* Of fractions of the scale that clips nothing, the one with the least rounding cost,
   each weight's squared error weighted by the diagonal of H.
2. *Rounding.* Column after column is rounded, and all columns not yet rounded move to make up for
   it: by the error, over the diagonal of the Cholesky factor of ``H^-1``, times the factor's row.
   Columns with large inputs come first.
3. *Descent.* Weights move one by one to the best integer while all others stay, in two sweeps.

Weights that are zero by a mask stay zero: for step 2 their grid is 0 alone, and columns that no
row keeps are left out, as if the layer did not read them.

Sources: Frantar and Alistarh, Optimal Brain Compression (NeurIPS 2022), section 5; Frantar et al.,
GPTQ (ICLR 2023), for the common order and the factor; Behdin et al., QuantEase (2023), for 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import linalg

from effc.passes.pruning.surgeon import damped, equal_rows
from effc.passes.quantization.grid import SMALLEST_SCALE, largest_integer, scales_of

__all__ = ["nearest", "rounding_loss", "search_scales", "surgical"]

Array = np.ndarray[Any, Any]

DAMPING = 0.01
"""Of the Hessian, as a fraction of its mean diagonal."""

_FRACTIONS = np.linspace(1.0, 0.5, 51)
"""Of the scale that clips nothing."""

_BLOCK = 128
"""Columns whose corrections of the columns behind them are made at once."""

_SWEEPS = 2

_BANDS = 1 << 36
"""Multiply-adds, about, that inverses of single bands may take; else all rows share one."""


def search_scales(
    rows: Array, diagonal: Array, bits: int = 8, smallest: Array | float = 0.0
) -> Array:
    """Scales of least weighted squared rounding error, float32 ``[rows]``.

    Args:
        rows: ``[rows, K]``.
        diagonal: Weight of each column, ``[K]``, or of each weight, ``[rows, K]``.
        bits: Of the integers.
        smallest: Lower bounds.
    """
    widest = scales_of(rows, bits)
    best = widest.copy()
    least = np.full(len(rows), np.inf)
    for fraction in _FRACTIONS:
        scales = (widest * fraction).astype(np.float32)
        error = nearest(rows, scales, bits) * scales[:, None].astype(np.float64) - rows
        cost = (np.square(error) * diagonal).sum(axis=1)
        better = (cost < least) & (scales >= SMALLEST_SCALE)
        least, best = np.where(better, cost, least), np.where(better, scales, best)
    return np.asarray(np.maximum(best, smallest), np.float32)


def nearest(rows: Array, scales: Array, bits: int = 8) -> Array:
    """The integers next to weights, float64 ``[rows, K]``; scales ``[rows]`` or ``[rows, K]``."""
    most = largest_integer(bits)
    return np.clip(np.rint(rows / _of_weights(scales, rows.shape[1])), -most, most)


def _of_weights(scales: Array, width: int) -> Array:
    """Scales ``[rows]`` or ``[rows, K]`` as float64 ``[rows, K]``."""
    wide = scales.astype(np.float64)
    return np.broadcast_to(wide[:, None] if wide.ndim == 1 else wide, (len(wide), width))


def surgical(
    rows: Array, hessian: Array, scales: Array, bits: int = 8, kept: Array | None = None
) -> Array:
    """Integers of weights whose outputs differ little, float64 ``[rows, K]``.

    Args:
        rows: ``[rows, K]`` float64.
        hessian: ``[K, K]``, not damped.
        scales: ``[rows]``, or ``[rows, K]`` where columns have scales of their own.
        bits: Of the integers.
        kept: Weights that may differ from zero; all if None.
    """
    exact = damped(hessian, DAMPING)
    result = np.zeros(rows.shape)
    scales = _of_weights(scales, rows.shape[1])
    stays = np.ones(rows.shape, bool) if kept is None else kept
    bands = list(equal_rows(stays))
    if len(bands) * float(rows.shape[1]) ** 3 > _BANDS:
        bands = [(0, len(rows))]
    for begin, end in bands:
        band = slice(begin, end)
        columns = np.flatnonzero(stays[band].any(axis=0))
        if not len(columns):
            continue
        own = exact[np.ix_(columns, columns)]
        free = stays[band][:, columns]
        grid = _Rows(rows[band][:, columns], scales[band][:, columns], largest_integer(bits), free)
        rounded = _descend(grid, _eliminate(grid, own), own)
        result[band, columns] = rounded
    return result


class _Rows:
    """Weights ``[rows, K]`` and their scales, and which of them may differ from zero."""

    def __init__(self, weight: Array, scales: Array, most: int, free: Array) -> None:
        self.weight = weight
        self.scales = scales
        self.most = most
        self.free = free

    def in_order(self, order: Array) -> _Rows:
        """The same with columns in another order."""
        return _Rows(self.weight[:, order], self.scales[:, order], self.most, self.free[:, order])

    def round(self, values: Array, column: int) -> Array:
        """Nearest integers of the values of a column."""
        steps = np.rint(values / self.scales[:, column])
        return np.clip(steps, -self.most, self.most) * self.free[:, column]


def _eliminate(grid: _Rows, hessian: Array) -> Array:
    """Step 2, with columns in order of the Hessian's diagonal."""
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = _inverse_factor(hessian[np.ix_(order, order)])
    ordered = grid.in_order(order)
    left = ordered.weight.copy()
    width = left.shape[1]
    found = np.empty(left.shape)
    for start in range(0, width, _BLOCK):
        end = min(start + _BLOCK, width)
        errors = np.empty((len(left), end - start))
        for column in range(start, end):
            found[:, column] = ordered.round(left[:, column], column)
            lost = left[:, column] - found[:, column] * ordered.scales[:, column]
            errors[:, column - start] = lost / factor[column, column]
            left[:, column:end] -= np.outer(errors[:, column - start], factor[column, column:end])
        left[:, end:] -= errors @ factor[start:end, end:]
    result = np.empty(found.shape)
    result[:, order] = found
    return result


def _inverse_factor(matrix: Array) -> Array:
    """Upper U with ``U^T U`` the inverse of a positive definite matrix."""
    factor, _ = linalg.lapack.dpotrf(matrix, lower=1)
    inverse, _ = linalg.lapack.dpotri(factor, lower=1)
    upper, _ = linalg.lapack.dpotrf(np.tril(inverse) + np.tril(inverse, -1).T, lower=0)
    return np.triu(upper)


def _descend(grid: _Rows, integers: Array, hessian: Array) -> Array:
    """Step 3: never worse than what it starts with."""
    result = integers.copy()
    gradient = (result * grid.scales - grid.weight) @ hessian
    for _ in range(_SWEEPS):
        for column in range(result.shape[1]):
            now = result[:, column] * grid.scales[:, column]
            best = grid.round(now - gradient[:, column] / hessian[column, column], column)
            change = best - result[:, column]
            moved = np.flatnonzero(change)
            if len(moved):
                result[moved, column] = best[moved]
                step = change[moved] * grid.scales[moved, column]
                gradient[moved] += np.outer(step, hessian[column])
    return result


def rounding_loss(rows: Array, new: Array, hessian: Array) -> float:
    """``trace((new - rows) H (new - rows)^T)``."""
    change = new - rows
    return float(np.vdot(change @ hessian, change))
