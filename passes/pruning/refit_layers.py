"""Least-squares refit of a smaller network's layers to the original's, from calibration data.

For a layer that reads x in the pruned model and whose original computes y = W0 x0 + b0 from x0 in the
original model, for the same samples,

    W' = W + (cov(y, x) - W cov(x)) (cov(x) + d I)^-1,    b' = b0 + E[y] - W' E[x]

are the weights and bias of least squared error, regularized (d) towards the weights W the layer has.
Inputs are those of the pruned model with the layers before already refitted, so each layer makes up
for what was lost before it, too. Every *round* runs both models once, up to the layers of the round;
one layer per round is exact, for large models a round takes several consecutive layers.

Source: least-squares reconstruction on the pruned model's inputs, He et al., "Channel Pruning for
Accelerating Very Deep Neural Networks" (ICCV 2017), section 3.2; with bias, without images' labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy import linalg

from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.channel_moments import Moments, Target
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.surgeon import damped

__all__ = ["refit_layers"]

Array = np.ndarray[Any, Any]
Tick = Callable[[int, int, str], None]


def refit_layers(
    model: ir.Model,
    original: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    kept: Mapping[str, Array],
    *,
    rounds: int | None = None,
    tick: Tick | None = None,
) -> dict[str, float]:
    """Refit all layers but the first ones (whose inputs are unchanged).

    Args:
        model: Pruned; its weights change in place.
        original: The model before pruning, with the same node names.
        samples: Inputs of both.
        kept: By layer, which output channels of the original are left.
        rounds: At most so many runs of the models; None for one per layer.
        tick: Called with (layers done, all layers, name of the layer).

    Returns:
        Squared error of each layer's output relative to its variance, after the refit.
    """
    before = {layer.name: layer for layer in find_layers(original)[0]}
    layers = [
        layer
        for layer in find_layers(model)[0]
        if layer.name in before and layer.role != "first"
    ]
    size = 1 if rounds is None else -(-len(layers) // rounds)
    reference = SampleRunner(original, samples)
    errors: dict[str, float] = {}
    for start in range(0, len(layers), size):
        part = layers[start : start + size]
        targets = [Target(before[layer.name], kept[layer.name]) for layer in part]
        for moments in _collect(SampleRunner(model, samples), reference, part, targets):
            if tick is not None:
                tick(len(errors), len(layers), moments.layer.name)
            errors[moments.layer.name] = _refit(moments)
    return errors


def _collect(
    runner: SampleRunner,
    reference: SampleRunner,
    layers: Sequence[Layer],
    targets: Sequence[Target],
) -> list[Moments]:
    found = [
        Moments(layer, len(runner.samples), target)
        for layer, target in zip(layers, targets, strict=True)
    ]
    ours = [_input(layer) for layer in layers]
    theirs = [_input(target.layer) for target in targets]
    size = min(runner.batch_size(ours), reference.batch_size(theirs))
    pairs = zip(runner.values(ours, size), reference.values(theirs, size), strict=True)
    for batch, other in pairs:
        for moments, our, their in zip(found, ours, theirs, strict=True):
            moments.add(batch[our], other[their])
    return found


def _input(layer: Layer) -> str:
    value = layer.node.inputs[0]
    assert value is not None
    return value.name or ""


def _refit(moments: Moments) -> float:
    """Give the layer its best weights; the relative error that is left."""
    layer, target = moments.layer, moments.target
    assert target is not None
    shape = (layer.groups, layer.shape[0] // layer.groups, -1)
    weight = layer.weight().reshape(shape).astype(np.float64)
    covariance, wanted = moments.covariance, moments.target_covariance
    for group, exact in enumerate(map(damped, covariance)):
        change = wanted[group] - weight[group] @ covariance[group]
        weight[group] += linalg.solve(exact, change.T, assume_a="pos").T
    layer.set_weight(weight.reshape(layer.shape))
    if layer.has_plain_bias():
        shift = moments.target_mean - np.einsum("gok,gk->go", weight, moments.mean)
        layer.set_bias(target.layer.bias()[target.kept] + shift.reshape(-1))
    variance = moments.target_variance
    explained = 2 * (weight * wanted).sum() - (weight @ covariance * weight).sum()
    return max(0.0, 1 - float(explained) / variance) if variance > 0 else 0.0
