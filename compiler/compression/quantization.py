"""The step of a compression that turns a float model into a quantized one.

The graph is simplified first as for compilation, so that what one kernel computes is one operator
(activations recognized, transposes moved away), and values between kernels are what is quantized.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from effc.compiled import PassRecord
from effc.passes.pruning.batching import SampleRunner
from effc.passes.quantization.grid import Grid, grid_of
from effc.passes.quantization.histogram import Histogram, observe
from effc.passes.quantization.insert_activations import InsertActivations
from effc.passes.quantization.insert_weights import InsertWeights
from effc.passes.quantization.points import Group, Points, find_points
from effc.passes.quantization.ranges import choose_range
from effc.passes.registry import simplify

if TYPE_CHECKING:
    import onnx_ir as ir

    from effc.compression.workflow import Work

__all__ = ["quantize_step"]


def quantize_step(work: Work) -> None:
    """Quantize the model of ``work``, if that is asked for."""
    if work.recipe.quantize is None:
        return
    model = simplify(work.model)[0]
    work.exact = model.clone()
    points = _points(work, model)
    grids = _grids(work, work.exact, points)
    inserted = InsertActivations(points, grids)
    inserted.run(model)
    weights = InsertWeights(points.units)
    weights.run(model)
    settings = {
        "quantize": work.recipe.quantize,
        "ranges": work.recipe.ranges,
        "rounding": work.recipe.rounding,
        "calibration_samples": len(work.samples),
    }
    applied = tuple(
        f"{name}: scale {grids[name].scale:.6g}, zero point {grids[name].zero}"
        for name in points.values
    )
    refused = tuple(f"{where}: {why}" for where, why in points.refused)
    work.passes.append(PassRecord("quantize", applied, refused, settings))
    work.model = model


def _points(work: Work, model: ir.Model) -> Points:
    """What is quantized, as the recipe wants it; notes precisions of layers."""
    wanted = {node.name or "": work.recipe.of_layer(node.name or "") for node in model.graph}
    skip = {name for name, entry in wanted.items() if entry.get("precision") == "float"}
    bits = {name: entry.get("activation_bits", 8) for name, entry in wanted.items()}
    points = find_points(model, skip, bits)
    work.precisions |= {node.name or "": "float" for node in model.graph}
    work.precisions |= {unit.node.name or "": "int8" for unit in points.units}
    return points


def _grids(work: Work, model: ir.Model, points: Points) -> dict[str, Grid]:
    """Of every quantized value, from histograms over the samples."""
    runner = SampleRunner(model, work.samples)
    constants = {name for name in model.graph.initializers}
    names = [
        name
        for group in points.groups
        if group.fixed is None
        for name in group.values
        if name not in constants
    ]
    histograms = observe(runner, names, partial(work.report, "calibrate"))
    for name in constants.intersection(points.values):
        histograms[name] = Histogram()
        value = model.graph.initializers[name].const_value
        assert value is not None
        histograms[name].add(value.numpy())
    grids: dict[str, Grid] = {}
    for group in points.groups:
        grid = _grid(group, histograms, work.recipe.ranges)
        grids |= dict.fromkeys(group.values, grid)
    return grids


def _grid(group: Group, histograms: dict[str, Histogram], method: str) -> Grid:
    if group.fixed is not None:
        return grid_of(*group.fixed, group.bits)
    whole = Histogram()
    for name in group.values:
        whole.merge(histograms[name])
    low, high = choose_range(whole, method, group.bits)
    return grid_of(min(low, *group.holds, 0.0), max(high, *group.holds, 0.0), group.bits)
