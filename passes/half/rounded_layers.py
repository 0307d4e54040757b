"""Layers with rounded weights: how far their results are off, on real inputs.

Rounded weights shift the mean of a layer's results, by ``dW E[x]``. The bias, which stays float32,
takes that back (Nagel et al., Data-Free Quantization through Weight Equalization and Bias
Correction, ICCV 2019); of the error of a network's outputs it is the larger part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import shape_of
from effc.passes.half.terms import noise_by_terms, rounding_error
from effc.passes.pruning.batching import Feeds, SampleRunner
from effc.passes.pruning.calibration import unfold
from effc.passes.pruning.layers import Layer, find_layers

__all__ = ["RoundedLayer", "round_layers"]

Array = np.ndarray[Any, Any]

_POSITIONS = 512
"""Per sample, for means."""

_COLUMNS, _FILTERS = 16, 32
"""Output positions and filters whose sums are looked at."""

_BATCHES = 4


@dataclass
class RoundedLayer:
    """A layer with weights, and what it reads.

    Attributes:
        layer: Of the graph.
        rounded: Its weights as float16.
        mean: Of what output positions read, ``[groups, K]``.
        columns: A few of them, ``[groups, positions, K]``.
        bias: With the shift of the rounded weights taken back; None if it cannot be changed.
    """

    layer: Layer
    rounded: Array
    mean: Array
    columns: Array
    bias: Array | None

    def replacements(self) -> dict[str, Array]:
        """Rounded weights, and the bias that goes with them, by initializer."""
        value = self.layer.node.inputs[1]
        assert value is not None
        found = {value.name or "": self.layer.stored(self.rounded)}
        if self.bias is not None:
            found |= self.layer.stored_bias(self.bias)
        return found

    def noise(self) -> tuple[float, dict[int, float]]:
        """Error of results, as a multiple of the one that rounding them to float16 makes.

        Returns:
            That of rounded weights, and that of sums by the number of products that are added up
            in float16.
        """
        groups = len(self.columns)
        chosen = _spread(groups, _FILTERS)
        shape = (groups, self.layer.shape[0] // groups, -1)
        some = _spread(shape[1], max(_FILTERS // len(chosen), 1))
        index = np.ix_(chosen, some)
        columns = self.columns[chosen]
        exact = self.layer.weight().reshape(shape)[index].astype(np.float64)
        filters = self.rounded.reshape(shape)[index]
        results = columns.astype(np.float64) @ exact.transpose(0, 2, 1)
        moved = columns.astype(np.float64) @ (filters - exact).transpose(0, 2, 1)
        bias = self.layer.bias()
        if bias is not None:
            results += bias.reshape(shape[:2])[index][:, None]
        if self.bias is not None and bias is not None:
            moved += (self.bias - bias).reshape(shape[:2])[index][:, None]
        rounding = rounding_error(results)
        weights = float(np.square(moved).mean()) / max(rounding, np.finfo(np.float64).tiny)
        return weights, noise_by_terms(columns, filters, rounding)


def _spread(count: int, most: int) -> Array:
    """At most ``most`` of ``count`` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def round_layers(model: ir.Model, samples: Sequence[Feeds]) -> list[RoundedLayer]:
    """All layers with float32 weights, rounded. Layers get a bias where one can be added."""
    found = [layer for layer in find_layers(model)[0] if layer.weight().dtype == np.float32]
    for layer in found:
        bias = layer.bias()
        if bias is not None and not bias.any() and len(layer.node.inputs) < 3:
            layer.set_bias(bias)  # there must be one to replace
    if not found:
        return []
    runner = SampleRunner(model, samples)
    batches = 1 if runner.batched else min(_BATCHES, len(samples))
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    columns: dict[str, list[Array]] = {layer.name: [] for layer in found}
    rng = np.random.default_rng(0)
    for batch in runner.values(list(dict.fromkeys(layer.reads for layer in found))):
        for layer in found:
            share = min(1.0, _POSITIONS / max(_positions(layer), 1))
            read = unfold(layer, batch[layer.reads], share, rng)
            sums[layer.name] = sums.get(layer.name, 0) + read.sum(axis=1, dtype=np.float64)
            counts[layer.name] = counts.get(layer.name, 0) + read.shape[1]
            if len(columns[layer.name]) < batches:
                columns[layer.name].append(read[:, _spread(read.shape[1], _COLUMNS // batches)])
    return [
        _corrected(
            layer,
            sums[layer.name] / counts[layer.name],
            np.concatenate(columns[layer.name], axis=1),
        )
        for layer in found
    ]


def _positions(layer: Layer) -> int:
    shape = shape_of(layer.node.outputs[0])
    return int(np.prod(shape)) // layer.shape[0]


def _corrected(layer: Layer, mean: Array, columns: Array) -> RoundedLayer:
    weight = layer.weight()
    rounded = weight.astype(np.float16).astype(np.float32)
    delta = (rounded.astype(np.float64) - weight).reshape(layer.groups, -1, mean.shape[1])
    shift = np.einsum("gok,gk->go", delta, mean).reshape(-1)
    bias = layer.bias()
    return RoundedLayer(layer, rounded, mean, columns, None if bias is None else bias - shift)
