"""Patterns of 3x3 kernels: the centre and three more entries (PatDNN, Niu et al., ASPLOS 2020).

Of the 56 possible patterns a layer uses at most 8, so that a kernel needs little code for
each. The library holds those that keep most of the layer's magnitude when every block of
kernels takes the pattern that suits it best.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from effc.errors import UsageError
from effc.passes.pruning.units import Grid, cheapest

__all__ = ["PATTERNS", "library", "pattern_costs", "pattern_mask"]

Array = np.ndarray[Any, Any]

_CENTRE = 4
_POSITIONS = 9
_LIBRARY_SIZE = 8


def _all_patterns() -> Array:
    others = [p for p in range(_POSITIONS) if p != _CENTRE]
    patterns = np.zeros((56, _POSITIONS), bool)
    patterns[:, _CENTRE] = True
    for row, chosen in zip(patterns, combinations(others, 3), strict=True):
        row[list(chosen)] = True
    return patterns


PATTERNS = _all_patterns()
"""``[56, 9]``: the entries that each pattern keeps."""


def pattern_costs(costs: Array, grid: Grid) -> tuple[Array, Array]:
    """What each pattern removes from, and keeps of, each block.

    Args:
        costs: Cost of removing each weight, ``[Cout, Cin / groups, 9]``.
        grid: Blocks of whole kernels.

    Returns:
        Two arrays ``[bands, blocks, 56]``.

    Raises:
        UsageError: The kernel is not 3x3.
    """
    if grid.positions != _POSITIONS:
        raise UsageError(
            "patterns are for 3x3 kernels",
            where="pattern",
            expected="9 kernel positions",
            got=grid.positions,
        )
    single = Grid(grid.cout, grid.cin, grid.positions, grid.groups, grid.block)
    per_position = single.sum(costs).reshape(len(grid.bands), grid.units, _POSITIONS)
    return per_position @ ~PATTERNS.T, per_position @ PATTERNS.T


def library(kept: Array) -> Array:
    """Indices of the layer's patterns: those that keep most if each block takes its best.

    Args:
        kept: Cost kept by each pattern, ``[bands, blocks, 56]``.
    """
    flat = kept.reshape(-1, len(PATTERNS))
    best = flat.argmax(axis=1)
    weight = np.bincount(best, flat[np.arange(len(flat)), best], minlength=len(PATTERNS))
    return np.sort(np.argsort(-weight, kind="stable")[:_LIBRARY_SIZE])


def pattern_mask(patterns: Array, costs: Array, grid: Grid, sparsity: float) -> Array:
    """Patterns, and beyond 5/9 zeros also whole kernels.

    Args:
        patterns: Pattern of each block, ``[bands, blocks]``.
        costs: Cost of removing what the pattern keeps of each block, same shape.
        grid: Blocks of whole kernels.
        sparsity: Fraction of zeros to reach.

    Returns:
        True where weights stay, ``[Cout, Cin / groups, 9]``.
    """
    inside = grid.sizes // _POSITIONS * int(PATTERNS[0].sum())
    total = int(grid.sizes.sum())
    extra = sparsity * total - (total - int(inside.sum()))
    kernels = ~cheapest(costs, inside, max(extra, 0.0))
    kept = PATTERNS[patterns] & kernels[..., None]
    single = Grid(grid.cout, grid.cin, grid.positions, grid.groups, grid.block)
    return single.spread(kept.reshape(len(grid.bands), -1))
