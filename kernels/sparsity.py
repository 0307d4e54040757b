"""Zeros of weights: how many, and in which blocks.

The mask is the weights: a pruned model is an ordinary one with zeros in it, pruned here or
elsewhere. Weights are seen as ``[groups, Cout, Cin, taps]``. A *unit* of ``rows x depth`` is one
kernel position of ``rows`` adjacent filters and ``depth`` adjacent input channels (block-punched
sparsity, YOLObile, section 3; with one tap it is plain block sparsity). A sparse kernel computes
every unit that holds any non-zero: the fraction of such units is what a unit size costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from effc.kernels.region import Op

__all__ = [
    "LEAST_ZEROS",
    "UNITS",
    "Structure",
    "covered",
    "filters_of",
    "occupied",
    "similar_order",
    "structure",
]

Unit = tuple[int, int]

UNITS: tuple[Unit, ...] = tuple((rows, depth) for depth in (1, 4) for rows in (1, 2, 4, 8, 16))
"""Unit sizes (filters, input channels) that sparse kernels and recognition look at."""

LEAST_ZEROS = 0.05
"""Weights with a smaller fraction of zeros are dense."""

_ROWS, _DEPTHS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16)  # of blocks that are recognised
_STEPS = 64  # shares are told apart in steps of 1/64
_LOSS = 1.02  # a larger unit is the pattern if it covers at most this many times the non-zeros
_SORTED_ROWS = (4, 8)  # filters per unit for which sorting is tried
_SORTED_GAIN = 0.9  # sorting has to leave at most this share of what a unit covers
_RATIOS = ((1, 8), (1, 4), (2, 8), (2, 4), (4, 8))  # N:M that are looked for, scarcest first
_PATTERN_LIBRARY = 16  # most distinct 4-entry patterns of one layer


@dataclass(frozen=True)
class Structure:
    """Zeros of one layer's weights.

    Attributes:
        density: Fraction of weights that are not zero.
        pattern: ``8x4`` (block-punched), ``2:4``, ``pattern``, ``channel``, ``unstructured``;
            a block behind a blank says which filters and channels share it (``2:4 8x1``).
        units: Per unit size, the fraction of weights in units with any non-zero, in 1/64.
        sorted_units: The same with filters sorted by ``similar_order``, where that helps.
    """

    density: float
    pattern: str
    units: tuple[tuple[Unit, float], ...]
    sorted_units: tuple[tuple[Unit, float], ...] = ()

    @property
    def text(self) -> str:
        """What a measured time of a layer depends on (part of a region's signature)."""
        parts = [f"{r}x{d}={share:.4f}" for (r, d), share in self.units]
        parts += [f"sorted {r}x{d}={share:.4f}" for (r, d), share in self.sorted_units]
        return " ".join(parts)


def filters_of(op: Op) -> np.ndarray | None:
    """Constant weights as ``[groups, Cout, Cin, taps]``, filters first; ``None`` without any.

    ``Conv`` by its attributes; ``Gemm`` and ``MatMul`` by their constant matrix: the columns of the
    right-hand one or the rows of the left-hand one (batched matrices are not looked at). Of integer
    operators those of our domain, whose weights have no zero point.
    """
    if bool(op.domain) != (op.op_type in ("ConvInteger", "MatMulInteger")):
        return None
    if op.op_type in ("Conv", "ConvInteger"):
        array = _weights(op, 1)
        if array is None or array.ndim < 3:
            return None
        groups = int(op.attrs.get("group", 1))
        return array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
    if op.op_type not in ("Gemm", "MatMul", "MatMulInteger"):
        return None
    for index, flag in ((1, "transB"), (0, "transA")):
        array = _weights(op, index)
        if array is not None and array.ndim == 2:
            transposed = bool(op.op_type == "Gemm" and op.attrs.get(flag, 0))
            matrix = array if transposed == (index == 1) else array.T
            return matrix.reshape(1, *matrix.shape, 1)
    return None


def _weights(op: Op, index: int) -> np.ndarray | None:
    """A constant operand, if it holds floats or 8-bit weights."""
    value = op.inputs[index] if len(op.inputs) > index else None
    if value is None or value.const is None:
        return None
    array = value.const
    numbers = np.issubdtype(array.dtype, np.floating) or array.dtype == np.int8
    return array if array.size and numbers else None


def structure(op: Op) -> Structure | None:
    """The zeros of an operator's weights; ``None`` if it has no weights or hardly any zeros."""
    filters = filters_of(op)
    if filters is None:
        return None
    mask = filters != 0
    density = np.count_nonzero(mask) / mask.size
    if density > 1 - LEAST_ZEROS:
        return None
    levels = _pyramid(mask)
    units = tuple((unit, _rounded(_share(levels[unit], mask.shape, unit))) for unit in UNITS)
    ordered = _sorted_units(mask, units)
    return Structure(density, _recognize(mask, density, levels), units, ordered)


def similar_order(mask: np.ndarray, unit: Unit) -> np.ndarray:
    """Filters sorted so that those of a unit need nearly the same inputs: int ``[groups, Cout]``.

    Greedy: the filter with most entries, and those that share most entries with it, make the first
    ``rows`` filters, and so on with what is left.
    """
    wanted = occupied(mask, (1, unit[1]))
    rows, cout = unit[0], mask.shape[1]
    found = np.empty(mask.shape[:2], np.int64)
    for order, group in zip(found, wanted, strict=True):
        entries = group.reshape(cout, -1).astype(np.float32)
        shared = entries @ entries.T
        # More entries of its own make a filter a worse companion.
        score = shared - 0.5 * np.diag(shared)
        left = np.ones(cout, bool)
        seeds = np.argsort(-np.diag(shared), kind="stable")
        place = 0
        for seed in seeds:
            if not left[seed]:
                continue
            left[seed] = False
            near = np.flatnonzero(left)
            near = near[np.argsort(-score[seed, near], kind="stable")][: rows - 1]
            left[near] = False
            order[place : place + 1 + len(near)] = [seed, *near]
            place += 1 + len(near)
    return found


def _sorted_units(
    mask: np.ndarray, units: tuple[tuple[Unit, float], ...]
) -> tuple[tuple[Unit, float], ...]:
    found = []
    for unit, share in units:
        least = share if unit[0] not in _SORTED_ROWS else float(occupied(mask, (1, unit[1])).mean())
        if least <= _SORTED_GAIN * share:
            order = similar_order(mask, unit)
            ordered = np.take_along_axis(mask, order[:, :, None, None], axis=1)
            after = _rounded(covered(ordered, unit))
            if after <= _SORTED_GAIN * share:
                found.append((unit, after))
    return tuple(found)


def _rounded(share: float) -> float:
    return round(share * _STEPS) / _STEPS


def occupied(mask: np.ndarray, unit: Unit) -> np.ndarray:
    """Which units hold a non-zero: bool ``[groups, ceil(Cout/rows), ceil(Cin/depth), taps]``."""
    for axis, size in ((1, unit[0]), (2, unit[1])):
        if size > 1:
            starts = np.arange(0, mask.shape[axis], size)
            mask = np.logical_or.reduceat(mask, starts, axis=axis)
    return mask


def covered(mask: np.ndarray, unit: Unit) -> float:
    """Fraction of all weights that lie in units with any non-zero."""
    return _share(occupied(mask, unit), mask.shape, unit)


def _share(found: np.ndarray, shape: tuple[int, ...], unit: Unit) -> float:
    """``covered``, given which units are occupied; those at the edges are smaller."""
    rows, depth = (
        np.minimum(size, total - np.arange(0, total, size))
        for size, total in zip(unit, shape[1:3], strict=True)
    )
    weights = found.sum(axis=(0, 3))
    return float(rows @ weights @ depth) / prod(shape)


def _pyramid(mask: np.ndarray) -> dict[Unit, np.ndarray]:
    """Occupied units of all sizes that are powers of two, each from the next smaller ones."""
    found = {(1, 1): mask}
    for depth in _DEPTHS:
        if depth > 1:
            found[1, depth] = occupied(found[1, depth // 2], (1, 2))
        for rows in _ROWS[1:]:
            found[rows, depth] = occupied(found[rows // 2, depth], (2, 1))
    return found


def _recognize(mask: np.ndarray, density: float, levels: dict[Unit, np.ndarray]) -> str:
    """Name of the pattern, the most specific one that holds."""
    zeros = mask.size * (1 - density)
    filters, channels = np.any(mask, axis=(2, 3)), np.any(mask, axis=(1, 3))
    dead = ~(filters[:, :, None] & channels[:, None, :])
    if np.count_nonzero(dead) * mask.shape[3] > 0.98 * zeros:
        return "channel"
    block = _largest_block(levels, density)
    suffix = "" if block == (1, 1) else f" {block[0]}x{block[1]}"
    if _is_pattern(mask[:, :: block[0], :: block[1]]):
        return f"pattern{suffix}"
    if block[1] == 1:
        for n, m in _RATIOS:
            if 0.95 * n / m <= density <= n / m and _keeps(mask[:, :: block[0]], n, m):
                return f"{n}:{m}{suffix}"
    return suffix.strip() or "unstructured"


def _largest_block(levels: dict[Unit, np.ndarray], density: float) -> Unit:
    """The largest unit that covers hardly more than the non-zeros."""
    best, shape = (1, 1), levels[1, 1].shape
    for unit, found in levels.items():
        larger = unit[0] * unit[1] > best[0] * best[1]
        if larger and _share(found, shape, unit) <= _LOSS * density:
            best = unit
    return best


def _keeps(mask: np.ndarray, n: int, m: int) -> bool:
    """Whether at most ``n`` of ``m`` successive input channels are kept everywhere."""
    starts = np.arange(0, mask.shape[2], m)
    counts = np.add.reduceat(mask.astype(np.int32), starts, axis=2)
    return mask.shape[2] >= m and bool(counts.max() <= n)


def _is_pattern(mask: np.ndarray) -> bool:
    """Whether every 3x3 kernel is empty or one of few patterns of four entries."""
    if mask.shape[3] != 9:
        return False
    counts = mask.sum(axis=3)
    if not np.isin(counts, (0, 4)).all():
        return False
    kernels = mask.reshape(-1, 9)[counts.reshape(-1) == 4]
    return len(np.unique(kernels, axis=0)) <= _PATTERN_LIBRARY
