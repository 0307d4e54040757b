"""Euclidean projection onto the weights that a scheme allows.

    project(W) = argmin ||V - W||  over all V with the scheme's zeros and the given sparsity

For every scheme the mask is separable: removing a unit costs the sum of its squared weights, so the
cheapest units whose sizes reach the count are the optimum (of ``n:m`` the smallest of every
window; of ``pattern`` the best pattern of each block from the layer's library, then the
cheapest whole kernels). Pure NumPy and idempotent: a training loop calls it as the projection
step of ADMM (Boyd et al. 2011, section 9.1) or for a straight-through estimator, see
docs/COMPRESSION.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from effc.errors import UsageError
from effc.passes.pruning.patterns import library, pattern_costs, pattern_mask
from effc.passes.pruning.scheme import Scheme, check_sparsity
from effc.passes.pruning.units import Grid, cheapest

__all__ = ["grid_of", "mask_from_scores", "project", "projection_mask", "window_mask"]

Array = np.ndarray[Any, Any]


def project(
    weight: Array,
    scheme: Scheme,
    sparsity: float | None,
    *,
    groups: int = 1,
    scores: Array | None = None,
) -> Array:
    """The nearest weights that the scheme allows.

    Args:
        weight: ``[Cout, Cin / groups, *kernel]`` or ``[Cout, Cin]``, any float type.
        scheme: What is removed together.
        sparsity: Fraction of zeros to reach; None for the scheme's own (``n:m``, ``pattern``).
        groups: Groups of a grouped convolution.
        scores: Cost of removing each weight instead of its square, in the weight's shape.

    Returns:
        A copy of ``weight`` with zeros where the mask is False.

    Raises:
        UsageError: The scheme cannot have this sparsity or does not fit the weight.
    """
    mask = projection_mask(weight, scheme, sparsity, groups=groups, scores=scores)
    return np.where(mask, weight, np.zeros((), weight.dtype))


def projection_mask(
    weight: Array,
    scheme: Scheme,
    sparsity: float | None,
    *,
    groups: int = 1,
    scores: Array | None = None,
) -> Array:
    """Where :func:`project` keeps weights: bool in the weight's shape. Arguments as there."""
    target = check_sparsity(scheme, sparsity)
    if target == 0:
        return np.ones(weight.shape, bool)
    costs = weight.astype(np.float64) ** 2 if scores is None else scores.astype(np.float64)
    costs = costs.reshape(weight.shape[0], weight.shape[1], -1)
    if scheme.kind == "n:m":
        mask = window_mask(costs, scheme, groups)
    elif scheme.kind == "pattern":
        mask = _pattern_mask(costs, scheme, target, groups)
    else:
        grid = grid_of(costs.shape, scheme, groups)
        mask = mask_from_scores(grid.sum(costs), grid, target)
    return mask.reshape(weight.shape)


def grid_of(shape: tuple[int, ...], scheme: Scheme, groups: int = 1) -> Grid:
    """The units of a weight ``[Cout, Cin / groups, positions]``.

    Raises:
        UsageError: ``channel``, which removes channels from the graph and makes no zeros.
    """
    if scheme.kind == "channel":
        raise UsageError("channels are removed from the graph, not zeroed", where=str(scheme))
    cout, cin, positions = shape
    return Grid(cout, cin, positions, groups, scheme.block, scheme.kind == "pattern")


def mask_from_scores(costs: Array, grid: Grid, sparsity: float) -> Array:
    """Keep all but the cheapest units.

    Args:
        costs: Cost of removing each unit, ``[bands, units]``.
        grid: The units.
        sparsity: Fraction of zeros; the count nearest to it that whole units allow is reached.

    Returns:
        True where weights stay, ``[Cout, Cin / groups, positions]``.
    """
    sizes = grid.sizes
    return grid.spread(~cheapest(costs, sizes, sparsity * int(sizes.sum())))


def window_mask(costs: Array, scheme: Scheme, groups: int = 1) -> Array:
    """The ``n`` most costly of every ``m`` channels, for each kernel position.

    Args:
        costs: Cost of removing each weight, ``[Cout, Cin / groups, positions]``.
        scheme: An ``n:m`` scheme.
        groups: Convolution groups.
    """
    grid = grid_of(costs.shape, scheme, groups)
    per_unit = grid.sum(costs).reshape(len(grid.bands), grid.cin, grid.positions)
    kept = np.zeros(per_unit.shape, bool)
    for start in range(0, grid.cin, scheme.window):
        window = per_unit[:, start : start + scheme.window]
        best = np.argsort(-window, axis=1, kind="stable")[:, : scheme.keep]
        np.put_along_axis(kept[:, start : start + scheme.window], best, True, axis=1)
    return grid.spread(kept.reshape(len(grid.bands), -1))


def _pattern_mask(costs: Array, scheme: Scheme, target: float, groups: int) -> Array:
    """Best pattern of each block, then whole kernels up to the sparsity."""
    grid = grid_of(costs.shape, scheme, groups)
    removed, kept = pattern_costs(costs, grid)
    candidates = library(kept)
    patterns = candidates[removed[..., candidates].argmin(axis=-1)]
    retained = np.take_along_axis(kept, patterns[..., None], axis=-1)[..., 0]
    return pattern_mask(patterns, retained, grid, target)
