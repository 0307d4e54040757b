"""Weights and biases of quantized layers, one layer after the other, from what they really read.

Two models advance side by side: the quantized one, in which the layers before have their final
integer weights, and the float one. For a layer that reads x and should compute y,

    weights:  scales, then integers of least ``E |W' x - y|^2`` (``round_weights``)
    bias:     b' = b + E[y] - W' E[x]

so that the means of all outputs are those of the float model (empirical bias correction), and each
layer makes up for what activations and weights before it lost. Moments are centred, as the bias
takes care of the means. Zeros of pruned layers stay zeros.

Sources: Nagel et al., "Data-free quantization through weight equalization and bias correction"
(ICCV 2019), section 4.2, here from samples; Frantar and Alistarh 2022, section 6, for the order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.pruning.calibration import MEMORY, hessian_bytes
from effc.passes.pruning.channel_moments import Moments, Target
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.paired_walk import paired_moments
from effc.passes.quantization.grid import scales_of
from effc.passes.quantization.insert_weights import input_scale, smallest_scales
from effc.passes.quantization.round_weights import nearest, search_scales, surgical

__all__ = ["INT8", "Fitted", "Form", "fit_weights", "round_alone"]

Array = np.ndarray[Any, Any]
Tick = Callable[[int, int, str], None]

COLUMNS = 1 << 14
"""Of inputs, that are enough for means and for errors of rounding."""

LARGEST = MEMORY // 2
"""Bytes of the covariance of the largest layer that is fitted; larger ones are rounded alone."""


@dataclass(frozen=True)
class Form:
    """What weights become.

    Attributes:
        bits: Of the integers, 8 or 4.
        group: Consecutive weights of a filter with one scale; None for a whole filter.
        rounding: ``nearest`` or ``obq``.
    """

    bits: int = 8
    group: int | None = None
    rounding: str = "obq"

    def spread(self, scales: Array, width: int) -> Array:
        """Scales ``[rows, groups]`` for each weight, ``[rows, width]``."""
        return np.repeat(scales, self.group or width, axis=1)[:, :width]

    def scales(self, rows: Array, weights: Array | None, smallest: Array | float) -> Array:
        """Scales ``[rows, groups]`` that clip nothing, or of least error by weights of columns."""
        width = rows.shape[1]
        found = []
        for start in range(0, width, self.group or width):
            part = slice(start, start + (self.group or width))
            if weights is None:
                found.append(scales_of(rows[:, part], self.bits))
            else:
                found.append(search_scales(rows[:, part], weights[..., part], self.bits))
        return np.asarray(np.maximum(np.stack(found, axis=1).T, smallest).T, np.float32)


@dataclass(frozen=True)
class Fitted:
    """A layer on its grid.

    Attributes:
        weight: On the grid, float32 in the layer's shape.
        bias: Of its output channels; None if it cannot have one.
        scales: Float32 ``[Cout]``, or ``[Cout, groups]`` of groups.
        error: Squared error of its output over its variance, on the samples.
    """

    weight: Array
    bias: Array | None
    scales: Array
    error: float

    def put(self, layer: Layer) -> None:
        """Give a layer these weights and this bias."""
        layer.set_weight(self.weight)
        if self.bias is not None:
            layer.set_bias(self.bias)


INT8 = Form()


def fit_weights(
    model: ir.Model,
    exact: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    names: Collection[str],
    form: Form = INT8,
    *,
    memory: int = MEMORY,
    tick: Tick | None = None,
) -> dict[str, Fitted]:
    """Give layers weights that lie on grids, and biases that make up for it.

    Args:
        model: With quantized activations, or none; weights and biases change in place.
        exact: The float model, with the same names of nodes.
        samples: Inputs of both.
        names: Layers to fit.
        form: What weights become.
        memory: Bytes of values between layers, of both models together.
        tick: Called with (layers done, all layers, name).
    """
    before = {layer.name: layer for layer in find_layers(exact)[0]}
    layers = [
        layer
        for layer in find_layers(model)[0]
        if layer.name in names and hessian_bytes(layer) <= LARGEST
    ]
    targets = [Target(before[x.name], np.ones(x.shape[0], bool)) for x in layers]
    found: dict[str, Fitted] = {}
    pairs = paired_moments(
        model, exact, samples, layers, targets, like=exact, memory=memory, columns=COLUMNS
    )
    for some, others in pairs:
        if others.columns:
            some.merge(others)
        name = some.layer.name
        found[name] = _fit(some, form)
        found[name].put(some.layer)
        if tick is not None:
            tick(len(found), len(layers), name)
    return found


def round_alone(layer: Layer, form: Form) -> Fitted:
    """Weights on grids without samples: least squared error of the weights themselves."""
    rows = layer.weight().reshape(layer.shape[0], -1).astype(np.float64)
    weights = None if form.rounding == "nearest" else np.ones(rows.shape[1])
    scales = form.scales(rows, weights, 0.0)
    wide = form.spread(scales, rows.shape[1]).astype(np.float64)
    new = nearest(rows, wide, form.bits) * wide
    energy = float(np.square(rows).sum())
    error = float(np.square(new - rows).sum()) / energy if energy else 0.0
    single = new.reshape(layer.shape).astype(np.float32)
    return Fitted(single, layer.bias(), _squeezed(scales, form), error)


def _squeezed(scales: Array, form: Form) -> Array:
    return scales[:, 0] if form.group is None else scales


def _fit(moments: Moments, form: Form) -> Fitted:
    layer, target = moments.layer, moments.target
    assert target is not None
    covariance = moments.covariance
    shape = (layer.groups, layer.shape[0] // layer.groups, -1)
    weight = layer.weight().reshape(shape).astype(np.float64)
    bias = target.layer.bias()
    least = np.zeros(layer.shape[0])
    step = input_scale(layer.node)
    if bias is not None and step is not None:
        least = smallest_scales(np.abs(bias), step)
    diagonals = None
    if form.rounding != "nearest":
        diagonals = np.einsum("gkk->gk", covariance).repeat(shape[1], axis=0)
    scales = form.scales(weight.reshape(layer.shape[0], -1), diagonals, least)
    wide = form.spread(scales, weight.shape[2]).astype(np.float64).reshape(weight.shape)
    new = np.empty(weight.shape)
    for group, rows in enumerate(weight):
        if form.rounding == "nearest":
            integers = nearest(rows, wide[group], form.bits)
        else:
            integers = surgical(rows, covariance[group], wide[group], form.bits, kept=rows != 0)
        new[group] = integers * wide[group]
    if bias is not None and layer.bias() is not None:
        bias = bias + (moments.target_mean - np.einsum("gok,gk->go", new, moments.mean)).reshape(-1)
    else:
        bias = None
    found = _squeezed(scales, form)
    single = new.reshape(layer.shape).astype(np.float32)
    return Fitted(single, bias, found, _error(moments, new))


def _error(moments: Moments, weight: Array) -> float:
    """``E |W x - y|^2`` without means, over the variance of y."""
    variance = moments.target_variance
    crossed = float(np.vdot(weight, moments.target_covariance))
    own = float(np.vdot(np.matmul(weight, moments.covariance), weight))
    return max(0.0, (variance - 2 * crossed + own) / variance) if variance > 0 else 0.0
