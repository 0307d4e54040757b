"""What calibration samples say about half precision: ranges, corrected means, noise, sums.

1. *Ranges*: values that come near the largest float16 (``UseHalfPrecision`` keeps their nodes).
2. *Bias*: takes back by how much rounded weights shift means (``passes.half.rounded_layers``).
3. *Noise*: of every value that could be rounded, at the outputs, measured on a few samples
   (``passes.half.noise``). Weights and sums of a layer are compared, on a few of its inputs, with
   rounding its results: so their noise at the outputs is known as well.
4. *Selection*: which nodes become float16, and how many products each adds up there, so that most
   time is saved within the limit (``passes.half.select_nodes``). What is selected is measured
   together; if errors do not add up as independent ones, the next selection gets another limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log10
from typing import Any

import onnx_ir as ir

from effc.options import CompileOptions
from effc.passes.graph import shape_of
from effc.passes.half.noise import value_ranges
from effc.passes.half.rounded_layers import round_layers
from effc.passes.half.select_nodes import Way, select
from effc.passes.half.study import ValueStudy, WeightStudy, work_of
from effc.passes.half.use_half_precision import TERMS, StoreHalfWeights, UseHalfPrecision
from effc.samples import Arrays, Tensor, load_samples

__all__ = ["GOAL_DB", "Findings", "examine"]

GOAL_DB = 57.0
"""Signal-to-noise ratio of the outputs that half precision may cost, on the calibration samples."""

_SAMPLES = 64
_WORK = 1e11
"""Multiply-adds that measuring noise may take, about; it takes at least two samples."""

_FEW, _MORE = 8, 8
"""Samples for single values at most; how many times as many for whole selections."""

_TRIES = 6
_GOOD = 0.7
"""Share of the noise that is allowed with which a selection is good enough."""

Make = Callable[[Mapping[str, str], Mapping[str, float]], UseHalfPrecision | StoreHalfWeights]
"""The pass, given why nodes stay float32 and the ranges of values."""


@dataclass
class Findings:
    """What the samples showed.

    Attributes:
        ranges: Largest absolute value by tensor.
        keep: Why nodes stay float32, by name.
        settings: For the report.
    """

    ranges: dict[str, float]
    keep: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def examine(
    model: ir.Model,
    options: CompileOptions,
    make: Make,
    keep: Mapping[str, str],
    progress: Callable[[int, int, str], None],
) -> Findings:
    """Measure, correct biases, and write down how layers add up; the graph stays float32.

    Raises:
        ModelError: The calibration data does not fit the model.
    """
    samples = _samples(model, options)
    progress(0, 4, "ranges")
    findings = Findings(value_ranges(model, samples))
    layers = round_layers(model, samples)
    conversion = make(keep, findings.ranges)
    nodes, _ = conversion.choose(model.graph)
    progress(1, 4, "noise of rounding")
    kind = ValueStudy if isinstance(conversion, UseHalfPrecision) else WeightStudy
    few = _few(model, nodes)
    study = kind(model, samples[: few * _MORE], few, layers, nodes)
    progress(2, 4, "selection")
    ways, noise = _select(study)
    progress(3, 4, "")
    inside = {id(node): way for node, way in zip(nodes, ways, strict=True) if way is not None}
    for node in nodes:
        if id(node) not in inside:
            findings.keep[node.name or ""] = "rounding it costs too much accuracy"
    ours = [layer for layer in layers if id(layer.layer.node) in inside]
    for layer in ours:
        node = layer.layer.node
        if inside[id(node)].terms:
            node.metadata_props[TERMS] = str(inside[id(node)].terms)
        if layer.bias is not None:
            layer.layer.set_bias(layer.bias)
    findings.settings = {
        "samples": len(samples),
        "goal_db": GOAL_DB,
        "expected_db": round(-10 * log10(max(noise, 1e-30)), 1),
        "corrected": sum(layer.bias is not None for layer in ours),
    }
    progress(4, 4, "")
    return findings


def _samples(model: ir.Model, options: CompileOptions) -> Sequence[Arrays]:
    assert options.calibration is not None
    inputs = [
        Tensor(v.name or "", v.dtype.numpy().name, shape_of(v))  # type: ignore[union-attr]
        for v in model.graph.inputs
    ]
    return load_samples(options.calibration, inputs).samples[: options.samples or _SAMPLES]


def _few(model: ir.Model, nodes: Sequence[ir.Node]) -> int:
    """Samples for the noise of single values, each of which takes a run of the model."""
    work = sum(work_of(node) for node in model.graph) * max(len(nodes), 1)
    return int(min(max(_WORK / max(work, 1), 2), _FEW))


def _select(study: WeightStudy) -> tuple[list[Way | None], float]:
    """The way of each node, and the noise of all."""
    limit = budget = 10.0 ** (-GOAL_DB / 10)
    items = study.items(limit)
    best: tuple[list[Way | None], float] = ([None] * len(items), 0.0)
    for _ in range(_TRIES):
        ways = select(items, study.noise, study.borders, budget)
        noise = study.measure(ways)
        if best[1] <= noise <= limit:
            best = (ways, noise)
        if _GOOD * limit <= noise <= limit:
            break
        budget *= min(max(0.9 * limit / max(noise, 1e-30), 0.1), 3.0)
    return best
