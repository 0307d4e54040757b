"""What calibration samples say about half precision: ranges, corrected means, noise, sums.

1. *Ranges*: values that come near the largest float16 (``UseHalfPrecision`` keeps their nodes).
2. *Bias*: rounded weights shift the mean of a layer's results, by ``dW E[x]``. The bias, which
   stays float32, takes that back (Nagel et al., Data-Free Quantization through Weight Equalization
   and Bias Correction, ICCV 2019); of the error of a network's outputs it is the larger part.
3. *Noise*: nodes whose rounding costs too much of the signal-to-noise ratio stay float32
   (``passes.half.noise``).
4. *Sums*: how many products each layer adds up in float16 (``passes.half.terms``), so that all of
   them together add no more noise than is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log10
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.options import CompileOptions
from effc.passes.graph import const, shape_of
from effc.passes.half.noise import NoiseProbe, keep_exact, value_ranges
from effc.passes.half.terms import choose_terms
from effc.passes.half.use_half_precision import TERMS, StoreHalfWeights, UseHalfPrecision
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.calibration import unfold
from effc.passes.pruning.layers import Layer, find_layers
from effc.samples import Arrays, Tensor, load_samples

__all__ = ["GOAL_DB", "Findings", "examine"]

GOAL_DB = 57.0
"""Signal-to-noise ratio of the outputs that half precision may cost, on the calibration samples."""

_ROUNDING_SHARE = 0.6
"""Of the noise that is allowed, what rounding may make; the rest is for sums."""

_SAMPLES = 64
_NOISE_SAMPLES = 2
_COLUMNS = 16

Array = np.ndarray[Any, Any]
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


@dataclass
class _Layer:
    """A layer with weights, and what it reads.

    Attributes:
        layer: Of the graph.
        rounded: Its weights as float16.
        mean: Of what output positions read, ``[groups, K]``.
        columns: A few of them, ``[positions, K]``, of the first group.
        bias: With the shift of the rounded weights taken back; None if it cannot be changed.
    """

    layer: Layer
    rounded: Array
    mean: Array
    columns: Array
    bias: Array | None


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
    layers = _layers(model, samples)
    chosen, _ = make(keep, findings.ranges).choose(model.graph)
    progress(1, 4, "noise of rounding")
    error = _Errors(model, samples[:_NOISE_SAMPLES], layers, _rounds_values(make, findings))
    limit = 10.0 ** (-GOAL_DB / 10)
    kept, noise = keep_exact(chosen, error.of, _ROUNDING_SHARE * limit)
    for node in kept:
        findings.keep[node.name or ""] = "rounding it costs too much accuracy"
    names = {id(node) for node in kept}
    halves = [node for node in chosen if id(node) not in names]
    progress(2, 4, "sums")
    inside = {id(node) for node in halves}
    ours = [layer for layer in layers if id(layer.layer.node) in inside]
    findings.settings = {
        "samples": len(samples),
        "goal_db": GOAL_DB,
        "rounding_db": round(_db(noise), 1),
        "corrected": sum(layer.bias is not None for layer in ours),
    }
    if error.rounds_values:
        share = (limit - noise) / max(error.of_values(halves), 1e-30)
        for layer in ours:
            _set_terms(layer, share)
    for layer in ours:
        if layer.bias is not None:
            layer.layer.set_bias(layer.bias)
    progress(4, 4, "")
    return findings


def _rounds_values(make: Make, findings: Findings) -> bool:
    return isinstance(make({}, findings.ranges), UseHalfPrecision)


def _db(noise: float) -> float:
    return -10 * log10(max(noise, 1e-30))


def _samples(model: ir.Model, options: CompileOptions) -> Sequence[Arrays]:
    assert options.calibration is not None
    inputs = [
        Tensor(v.name or "", v.dtype.numpy().name, shape_of(v))  # type: ignore[union-attr]
        for v in model.graph.inputs
    ]
    return load_samples(options.calibration, inputs).samples[: options.samples or _SAMPLES]


def _layers(model: ir.Model, samples: Sequence[Arrays]) -> list[_Layer]:
    """Layers with float32 weights and the statistics of their inputs."""
    found = [layer for layer in find_layers(model)[0] if layer.weight().dtype == np.float32]
    for layer in found:
        bias = layer.bias()
        if bias is not None and not bias.any() and len(layer.node.inputs) < 3:
            layer.set_bias(bias)  # there must be one to replace
    if not found:
        return []
    runner = SampleRunner(model, samples)
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    columns: dict[str, Array] = {}
    rng = np.random.default_rng(0)
    for batch in runner.values(list(dict.fromkeys(layer.reads for layer in found))):
        for layer in found:
            share = min(1.0, 512 / max(_positions(layer), 1))
            read = unfold(layer, batch[layer.reads], share, rng)
            sums[layer.name] = sums.get(layer.name, 0) + read.sum(axis=1, dtype=np.float64)
            counts[layer.name] = counts.get(layer.name, 0) + read.shape[1]
            if layer.name not in columns:
                step = max(read.shape[1] // _COLUMNS, 1)
                columns[layer.name] = read[0, ::step][:_COLUMNS].copy()
    return [
        _corrected(layer, sums[layer.name] / counts[layer.name], columns[layer.name])
        for layer in found
    ]


def _positions(layer: Layer) -> int:
    shape = shape_of(layer.node.outputs[0])
    return int(np.prod(shape)) // layer.shape[0]


def _corrected(layer: Layer, mean: Array, columns: Array) -> _Layer:
    weight = layer.weight()
    rounded = weight.astype(np.float16).astype(np.float32)
    delta = (rounded.astype(np.float64) - weight).reshape(layer.groups, -1, mean.shape[1])
    shift = np.einsum("gok,gk->go", delta, mean).reshape(-1)
    bias = layer.bias()
    return _Layer(layer, rounded, mean, columns, None if bias is None else bias - shift)


def _set_terms(layer: _Layer, share: float) -> None:
    filters = layer.rounded.reshape(layer.layer.shape[0], -1)[
        : layer.layer.shape[0] // layer.layer.groups
    ]
    bias = None if layer.bias is None else layer.bias[: len(filters)]
    terms = choose_terms(layer.columns, filters, bias, share)
    layer.layer.node.metadata_props[TERMS] = str(terms)


class _Errors:
    """Noise of the outputs when nodes become half precision."""

    def __init__(
        self,
        model: ir.Model,
        samples: Sequence[Arrays],
        layers: Sequence[_Layer],
        rounds_values: bool,
    ) -> None:
        self.rounds_values = rounds_values
        self._replaced = {id(layer.layer.node): _replacements(layer) for layer in layers}
        names = {name for arrays in self._replaced.values() for name in arrays}
        self._probe = NoiseProbe(model, samples, names)

    def of(self, nodes: Sequence[ir.Node]) -> float:
        """With their weights, and what they read and make, rounded."""
        replaced: dict[str, Array] = {}
        for node in nodes:
            replaced |= self._replaced.get(id(node), {})
        return self._probe.noise(self._values(nodes), replaced)

    def of_values(self, nodes: Sequence[ir.Node]) -> float:
        """With what they read and make rounded."""
        return self._probe.noise(self._values(nodes), {})

    def _values(self, nodes: Sequence[ir.Node]) -> set[str]:
        if not self.rounds_values:
            return set()
        return {
            v.name or ""
            for node in nodes
            for v in (*node.inputs, *node.outputs)
            if v is not None and const(v) is None
        }


def _replacements(layer: _Layer) -> dict[str, Array]:
    """Rounded weights, and the bias that goes with them, by initializer."""
    node = layer.layer.node
    weight = node.inputs[1]
    assert weight is not None
    found = {weight.name or "": layer.layer.stored(layer.rounded)}
    if layer.bias is not None:
        found |= layer.layer.stored_bias(layer.bias)
    return found
