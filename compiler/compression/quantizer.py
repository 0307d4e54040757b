"""A float model to quantized ones: ranges once, then as many choices of precisions as wanted.

Ranges of all values (``passes.quantization.ranges``), QuantizeLinear and DequantizeLinear behind
them, weights and biases layer by layer (``fit_weights``), integers in their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir

from effc.options import ProgressCallback
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.layers import find_layers
from effc.passes.quantization.fit_weights import Fitted, Form, fit_weights
from effc.passes.quantization.grid import Grid, grid_of
from effc.passes.quantization.histogram import Histogram, observe
from effc.passes.quantization.insert_activations import InsertActivations
from effc.passes.quantization.insert_weights import InsertWeights
from effc.passes.quantization.points import Group, Points, find_points
from effc.passes.quantization.ranges import choose_range
from effc.passes.quantization.refine_ranges import refine_ranges
from effc.samples import Arrays

__all__ = ["Precisions", "Quantized", "Quantizer"]


@dataclass(frozen=True)
class Quantized:
    """A quantized model.

    Attributes:
        model: With QuantizeLinear and DequantizeLinear.
        fitted: Layers with their integer weights, by name.
        points: What was quantized.
    """

    model: ir.Model
    fitted: Mapping[str, Fitted]
    points: Points


@dataclass(frozen=True)
class Precisions:
    """What has another precision than it would have by itself.

    Attributes:
        float: Nodes that stay in float.
        bits: Of values around nodes, by the nodes' names, where they are not 8.
        integer: Nodes that are quantized even if they are a Softmax that makes a model output.
    """

    float: frozenset[str] = frozenset()
    bits: Mapping[str, int] = field(default_factory=dict)
    integer: frozenset[str] = frozenset()


class Quantizer:
    """A float model that can be quantized in several ways.

    Args:
        exact: The float model, simplified; it is not changed.
        samples: To calibrate with.
        ranges, rounding: Methods.
        refine: Whether ranges are then refined by what layers make of errors.
        progress: To report to.
    """

    def __init__(
        self,
        exact: ir.Model,
        samples: Sequence[Arrays],
        ranges: str,
        rounding: str,
        refine: bool = True,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.exact = exact
        self.samples = samples
        self.ranges = ranges
        self.rounding = rounding
        self.refine = refine
        self._progress = progress
        self._histograms: dict[str, Histogram] = {}

    def quantize(
        self, precisions: Precisions, fitted: Mapping[str, Fitted] | None = None
    ) -> Quantized:
        """Quantize the model.

        Args:
            precisions: What is not 8 bits wide.
            fitted: Weights to use in place of new ones.
        """
        model = self.exact.clone()
        points = find_points(model, precisions.float, precisions.bits, precisions.integer)
        grids = self.grids(points)
        _require_opset(model, points)
        InsertActivations(points, grids).run(model)
        names = {unit.node.name or "" for unit in points.units if unit.weighted}
        if fitted is None:
            found = fit_weights(
                model,
                self.exact,
                self.samples,
                names,
                Form(rounding=self.rounding),
                tick=partial(self._report, "quantize"),
            )
        else:
            found = {name: layer for name, layer in fitted.items() if name in names}
            for layer in find_layers(model)[0]:
                if layer.name in found:
                    found[layer.name].put(layer)
        InsertWeights(points.units, {name: layer.scales for name, layer in found.items()}).run(
            model
        )
        return Quantized(model, found, points)

    def grids(self, points: Points) -> dict[str, Grid]:
        """Of every quantized value, from histograms over the samples."""
        self._observe(points)
        found: dict[str, Grid] = {}
        for group in points.groups:
            found |= dict.fromkeys(group.values, self._grid(group))
        if not self.refine:
            return found
        ends = {name: (seen.low, seen.high) for name, seen in self._histograms.items()}
        tick = partial(self._report, "ranges")
        return refine_ranges(self.exact, self.samples, points, found, ends, tick)

    def _observe(self, points: Points) -> None:
        """Histograms of values that were not seen yet."""
        names = [
            name
            for group in points.groups
            if group.fixed is None
            for name in group.values
            if name not in self._histograms
        ]
        for name in names:
            tensor = self.exact.graph.initializers.get(name)
            if tensor is not None and tensor.const_value is not None:
                self._histograms[name] = Histogram()
                self._histograms[name].add(tensor.const_value.numpy())
        missing = [name for name in names if name not in self._histograms]
        if missing:
            runner = SampleRunner(self.exact, self.samples)
            self._histograms |= observe(runner, missing, partial(self._report, "calibrate"))

    def _grid(self, group: Group) -> Grid:
        if group.fixed is not None:
            return grid_of(*group.fixed, group.bits)
        whole = Histogram()
        for name in group.values:
            whole.merge(self._histograms[name])
        low, high = choose_range(whole, self.ranges, group.bits)
        return grid_of(min(low, *group.holds, 0.0), max(high, *group.holds, 0.0), group.bits)

    def _report(self, phase: str, done: int, total: int, detail: str = "") -> None:
        if self._progress is not None:
            self._progress(phase, done, total, detail)


def _require_opset(model: ir.Model, points: Points) -> None:
    """16-bit integers are there from opset 21 on; what the graph has means the same in it."""
    if any(group.bits > 8 for group in points.groups):
        model.graph.opset_imports[""] = max(model.graph.opset_imports[""], 21)
