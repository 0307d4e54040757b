"""Least-squares refit of a smaller network's layers to the original's, from calibration data.

For a layer that reads x in the pruned model and whose original computes y = W0 x0 + b0 from what
it reads in the original model, for the same samples,

    W' = W + (cov(y, x) - W cov(x)) (cov(x) + d I)^-1,    b' = b0 + E[y] - W' E[x]

are the weights and bias of least squared error, regularized (d) towards the weights W that the
layer has. How strongly is decided by the error on a quarter of the samples that the rest is fitted
without (a classifier may have more inputs than there are samples); then all are used. Inputs are
those of the pruned model with the layers before already refitted, so each layer makes up for what
was lost before it, too. Where the result is added to another value r (a residual), the sum is what
has to be right: y becomes y + r0 - r.

Every *round* runs both models once, up to the layers of the round. One layer per round is exact;
where that would take too long a round has several consecutive layers.

Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017),
sections 3.2 and 3.3; here with bias, and for all layers behind the first removed channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy import linalg

from effc.passes.graph import const, shape_of, single_user
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.calibration import MEMORY, columns_of, hessian_bytes
from effc.passes.pruning.channel_moments import Moments, Target
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.surgeon import damped

__all__ = ["refit_layers"]

Array = np.ndarray[Any, Any]
Tick = Callable[[int, int, str], None]

LARGEST = MEMORY // 2
"""Bytes of the covariance of the largest layer that is refitted."""

DAMPINGS = (0.01, 0.001, 0.1)
"""Regularizations to try, as fractions of the covariance's mean diagonal; the first is the default.

More than that lowers the error of single layers of few samples, but accuracy with it: what is
fitted to noise shrinks from layer to layer.
"""

BUDGET = 5e13
"""Multiply-accumulates of the original model over all rounds and samples: minutes."""


@dataclass(frozen=True)
class _Fit:
    """One layer to refit.

    Attributes:
        layer: In the pruned model.
        target: In the original model.
        beside: Name, in both models, of what is added to the layer's result, or None.
    """

    layer: Layer
    target: Target
    beside: str | None


def refit_layers(
    model: ir.Model,
    original: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    kept: Mapping[str, Array],
    *,
    skip: Collection[str] = (),
    tick: Tick | None = None,
) -> dict[str, float]:
    """Refit all layers but the first ones (whose inputs are unchanged) and gigantic ones.

    Args:
        model: Pruned; its weights change in place.
        original: The model before pruning, with the same names of nodes and values.
        samples: Inputs of both.
        kept: By layer, which output channels of the original are left.
        skip: Layers to leave as they are, because their zeros have a pattern.
        tick: Called with (layers done, all layers, name of the layer).

    Returns:
        Squared error of each layer's output relative to its variance, after the refit.
    """
    before = {layer.name: layer for layer in find_layers(original)[0]}
    layers = [x for x in find_layers(model)[0] if x.name in before and _fits(x, skip)]
    macs = sum(layer.size * columns_of(layer) for layer in before.values())
    rounds = max(1, int(BUDGET / (macs * max(len(samples), 1))))
    size = -(-len(layers) // rounds)
    places = {node: index for index, node in enumerate(model.graph)}
    reference = SampleRunner(original, samples)
    errors: dict[str, float] = {}
    for start in range(0, len(layers), size):
        part = layers[start : start + size]
        fits = [
            _Fit(x, Target(before[x.name], kept[x.name]), _beside(x, part[0], places)) for x in part
        ]
        for moments, held_out in _collect(SampleRunner(model, samples), reference, fits):
            if tick is not None:
                tick(len(errors), len(layers), moments.layer.name)
            errors[moments.layer.name] = _refit(moments, held_out)
    return errors


def _fits(layer: Layer, skip: Collection[str]) -> bool:
    return layer.role != "first" and layer.name not in skip and hessian_bytes(layer) <= LARGEST


def _beside(layer: Layer, first: Layer, places: Mapping[ir.Node, int]) -> str | None:
    """What is added to a layer's result, if all layers before it are refitted already."""
    result = layer.node.outputs[0]
    add = single_user(result)
    if add is None or add.domain or add.op_type != "Add" or layer.bias() is None:
        return None
    other = add.inputs[1] if add.inputs[0] is result else add.inputs[0]
    producer = None if other is None else other.producer()
    if other is None or producer is None or const(other) is not None:
        return None
    ready = places[producer] < places[first.node] and shape_of(other) == shape_of(result)
    return other.name if ready else None


def _collect(
    runner: SampleRunner, reference: SampleRunner, fits: Sequence[_Fit]
) -> list[tuple[Moments, Moments]]:
    """Moments of each layer, of three quarters of the batches and of the fourth."""
    count = len(runner.samples)
    found = [
        (Moments(fit.layer, count, fit.target), Moments(fit.layer, count, fit.target))
        for fit in fits
    ]
    extra = [fit.beside for fit in fits if fit.beside is not None]
    ours = [_input(fit.layer) for fit in fits] + extra
    theirs = [_input(fit.target.layer) for fit in fits] + extra
    size = min(runner.batch_size(ours), reference.batch_size(theirs), max(1, count // 8))
    pairs = zip(runner.values(ours, size), reference.values(theirs, size), strict=True)
    for index, (here, there) in enumerate(pairs):
        for parts, fit in zip(found, fits, strict=True):
            missing = None
            if fit.beside is not None:
                axis = 1 if fit.layer.kernel else -1
                left = np.compress(fit.target.kept, there[fit.beside], axis)
                missing = left - here[fit.beside]
            moments = parts[index % 4 == 3]
            moments.add(here[_input(fit.layer)], there[_input(fit.target.layer)], missing)
    return found


def _input(layer: Layer) -> str:
    value = layer.node.inputs[0]
    assert value is not None
    return value.name or ""


def _refit(moments: Moments, held_out: Moments) -> float:
    """Give the layer its best weights; the relative error that is left."""
    layer, target = moments.layer, moments.target
    assert target is not None
    shape = (layer.groups, layer.shape[0] // layer.groups, -1)
    weight = layer.weight().reshape(shape).astype(np.float64)
    best, least = DAMPINGS[0], math.inf
    if held_out.columns:
        for damping in DAMPINGS:
            candidate = _solve(moments, weight, damping)
            error = _error(held_out, candidate, _shift(moments, candidate))
            if error < least:
                best, least = damping, error
    moments.merge(held_out)
    weight = _solve(moments, weight, best)
    shift = _shift(moments, weight)
    layer.set_weight(weight.reshape(layer.shape))
    bias = target.layer.bias()
    if bias is not None and layer.bias() is not None:
        layer.set_bias(bias[target.kept] + shift.reshape(-1))
    variance = moments.target_variance
    return _error(moments, weight, shift) / variance if variance > 0 else 0.0


def _solve(moments: Moments, weight: Array, damping: float) -> Array:
    """Weights of least squared error."""
    covariance = moments.covariance
    change = moments.target_covariance - weight @ covariance
    solved = [
        linalg.solve(damped(own, damping), part.T, assume_a="pos").T
        for own, part in zip(covariance, change, strict=True)
    ]
    return np.asarray(weight + np.stack(solved))


def _shift(moments: Moments, weight: Array) -> Array:
    """What the bias has to be beyond the original's, ``[groups, Cout / groups]``."""
    return np.asarray(moments.target_mean - np.einsum("gok,gk->go", weight, moments.mean))


def _error(moments: Moments, weight: Array, shift: Array) -> float:
    """Mean squared error, summed over outputs."""
    missed = moments.target_covariance - 0.5 * (weight @ moments.covariance)
    error = moments.target_variance - 2 * float((weight * missed).sum())
    return max(0.0, error) + float(np.square(_shift(moments, weight) - shift).sum())
