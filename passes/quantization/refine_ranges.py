"""Ranges of values by what the layers that read them make of the error.

A histogram knows nothing of which values matter. For each group of values with one grid that layers
with weights read, ends of the range are searched around those given so that

    sum over readers   var(W (q(x) - x)) / var(W x)

is least, x being some of what the layer reads in the float model, at random. Constant errors do not
count, as biases make up for them. Readers without weights count as if W were 1.

Source: the search of PTQ4ViT (Yuan et al., ECCV 2022, section 3.2), here with two ends and without
gradients.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.calibration import columns_of, unfold
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.quantization.grid import Grid, grid_of
from effc.passes.quantization.points import Group, Points

__all__ = ["Reader", "best_range", "refine_ranges"]

Array = np.ndarray[Any, Any]
Range = tuple[float, float]

COLUMNS = 4096
"""Of what a layer reads."""

SAMPLES = 128
"""That they are taken from."""

PROJECTED = 16
"""Random directions in which results of layers with more outputs are looked at."""

_FRACTIONS = np.geomspace(2.0, 0.25, 17)
"""Of an end as given; ends beyond the observed ones are not tried."""

_ROUNDS = 2


@dataclass
class Reader:
    """What reads a value.

    Attributes:
        weight: ``[groups, rows, K]``; None for an operator without weights.
        columns: What it reads, ``[groups, columns, K]``.
    """

    weight: Array | None
    columns: Array

    def error(self, grid: Grid) -> float:
        """Variance of the error over that of the result, without means."""
        lost = grid.dequantize(grid.quantize(self.columns)) - self.columns
        return _variance(self._result(lost)) / self._spread

    def __post_init__(self) -> None:
        self._spread = max(_variance(self._result(self.columns)), 1e-30)

    def _result(self, columns: Array) -> Array:
        if self.weight is None:
            return columns
        return np.asarray(np.matmul(columns, self.weight.transpose(0, 2, 1)))


def _variance(array: Array) -> float:
    """Summed over rows, about the mean over columns."""
    return float(np.square(array - array.mean(axis=1, keepdims=True)).sum())


def refine_ranges(
    exact: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    points: Points,
    grids: Mapping[str, Grid],
    observed: Mapping[str, Range],
    tick: Callable[[int, int, str], None] | None = None,
) -> dict[str, Grid]:
    """Other grids for groups that layers with weights read.

    Args:
        exact: The float model.
        samples: Of which the first are used.
        points: What is quantized.
        grids: To start from, by value.
        observed: Least and largest value of each value.
        tick: Called with (groups done, all groups, a value).

    Returns:
        Grids of all values.
    """
    runner = SampleRunner(exact, samples[:SAMPLES])
    readers = _readers(runner, exact, points)
    groups = [g for g in points.groups if any(name in readers for name in g.values)]
    found = dict(grids)
    for index, group in enumerate(groups):
        own = [reader for name in group.values for reader in readers.pop(name, ())]
        if group.fixed is None and any(reader.weight is not None for reader in own):
            grid = grids[group.values[0]]
            ends = [observed[name] for name in group.values]
            whole = min(low for low, _ in ends), max(high for _, high in ends)
            found |= dict.fromkeys(group.values, best_range(own, grid, whole, group))
        if tick is not None:
            tick(index + 1, len(groups), group.values[0])
    return found


def best_range(readers: Sequence[Reader], grid: Grid, observed: Range, group: Group) -> Grid:
    """The grid of least error, ends searched in turn."""
    start = low, high = grid.low, grid.high
    least_low, most_high = min(observed[0], *group.holds, 0.0), max(observed[1], *group.holds, 0.0)

    def made(low: float, high: float) -> Grid:
        low, high = min(low, *group.holds, 0.0), max(high, *group.holds, 0.0)
        return grid_of(max(low, least_low), min(high, most_high), group.bits)

    costs: dict[Grid, float] = {}

    def cost(low: float, high: float) -> float:
        grid = made(low, high)
        if grid not in costs:
            costs[grid] = sum(reader.error(grid) for reader in readers)
        return costs[grid]

    best = cost(low, high)
    for _ in range(_ROUNDS):
        before = best
        for end in (1, 0):
            if not start[end]:
                continue
            for fraction in _FRACTIONS:
                tried = (low, start[1] * fraction) if end else (start[0] * fraction, high)
                found = cost(*tried)
                if found < best:
                    best, (low, high) = found, tried
        if best == before:
            break
    return made(low, high)


def _readers(runner: SampleRunner, exact: ir.Model, points: Points) -> dict[str, list[Reader]]:
    """Of each value that a layer with weights reads, in its group or not: all readers."""
    layers = {layer.name: layer for layer in find_layers(exact)[0]}
    weighted = [
        (unit.reads[0], layers[unit.node.name or ""])
        for unit in points.units
        if unit.weighted and (unit.node.name or "") in layers
    ]
    important = {name for read, _ in weighted for name in points.group_of(read).values}
    constants = set(exact.graph.initializers)
    plain = [
        name
        for unit in points.units
        if not unit.weighted
        for name in unit.reads
        if name in important and name not in constants
    ]
    wanted = list(dict.fromkeys([*(name for name, _ in weighted), *plain]))
    parts: dict[int, list[Array]] = {}
    for number, batch in enumerate(runner.values(wanted) if wanted else ()):
        for index, (name, layer) in enumerate(weighted):
            parts.setdefault(index, []).append(_columns(layer, batch[name], runner, number))
        for index, name in enumerate(plain, len(weighted)):
            flat = batch[name].reshape(-1)
            step = max(1, flat.size * len(runner.samples) // len(batch[name]) // (8 * COLUMNS))
            parts.setdefault(index, []).append(flat[None, ::step, None])
    found: dict[str, list[Reader]] = {}
    for index, (name, layer) in enumerate(weighted):
        columns = np.concatenate(parts.pop(index), axis=1)
        found.setdefault(name, []).append(Reader(_projected(layer), columns))
    for index, name in enumerate(plain, len(weighted)):
        columns = np.concatenate(parts.pop(index), axis=1)
        found.setdefault(name, []).append(Reader(None, columns))
    return found


def _projected(layer: Layer) -> Array:
    """Weights ``[groups, rows, K]``; of many rows some random sums.

    The expected square of a sum with independent normal factors is the sum of squares.
    """
    weight = layer.weight().reshape(layer.groups, layer.shape[0] // layer.groups, -1)
    if weight.shape[1] > PROJECTED:
        rng = np.random.default_rng(zlib.crc32(layer.name.encode()))
        mix = rng.standard_normal((PROJECTED, weight.shape[1])) / np.sqrt(PROJECTED)
        weight = np.matmul(mix, weight.astype(np.float64))
    return weight.astype(np.float32)


def _columns(layer: Layer, inputs: Array, runner: SampleRunner, number: int) -> Array:
    share = COLUMNS / (len(runner.samples) * columns_of(layer))
    rng = np.random.default_rng((zlib.crc32(layer.name.encode()), number))
    return unfold(layer, inputs, min(share, 1.0), rng)
