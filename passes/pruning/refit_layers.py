"""Least-squares refit of a smaller network's layers to the original's, from calibration data.

For a layer that reads x in the pruned model and whose original computes y = W0 x0 + b0 from what
it reads in the original model, for the same samples,

    W' = W + (cov(y, x) - W cov(x)) (cov(x) + d I)^-1,    b' = b0 + E[y] - W' E[x]

are the weights and bias of least squared error, regularized (d) towards the weights W that the
layer has. Inputs are those of the pruned model with the layers before already refitted, so each
layer makes up for what was lost before it, too. Where the result is added to another value r
(a residual), the sum is what has to be right: y becomes y + r0 - r.

Both models advance together from layer to layer (``effc.passes.pruning.walk``). What lies between
is in memory for all samples; where values are large, fewer samples have room (and have more columns
each), and once more have room the models start again with more.

Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017),
sections 3.2 and 3.3; here with bias, with zeros that stay zeros, and for all layers behind the
first changed one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy import linalg

from effc.passes.graph import shape_of, single_user
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.calibration import MEMORY, hessian_bytes
from effc.passes.pruning.channel_moments import Moments, Target
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.surgeon import damped, equal_rows
from effc.passes.pruning.walk import Walk, live_bytes

__all__ = ["refit_layers"]

Array = np.ndarray[Any, Any]
Tick = Callable[[int, int, str], None]

LARGEST = MEMORY // 2
"""Bytes of the covariance of the largest layer that is refitted."""

_FEWEST = 16
"""Samples, however large the values."""

_DENSE = 0.9
"""Density from which on a layer's zeros are accidental."""


def refit_layers(
    model: ir.Model,
    original: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    kept: Mapping[str, Array],
    *,
    zeros: Collection[str] = (),
    memory: int = MEMORY,
    tick: Tick | None = None,
) -> dict[str, float]:
    """Refit all layers but the first ones (whose inputs are unchanged) and gigantic ones.

    Args:
        model: Pruned; its weights change in place.
        original: The model before pruning, with the same names of nodes and values.
        samples: Inputs of both.
        kept: By layer, which output channels of the original are left.
        zeros: Layers of which zeros stay zeros, however few; others may lose accidental ones.
        memory: Bytes of values between layers, of both models together.
        tick: Called with (layers done, all layers, name of the layer).

    Returns:
        Squared error of each layer's output relative to its variance, after the refit.
    """
    before = {layer.name: layer for layer in find_layers(original)[0]}
    layers = [x for x in find_layers(model)[0] if x.name in before and _fits(x)]
    errors: dict[str, float] = {}
    start = 0
    counts = _sample_counts(original, [before[x.name] for x in layers], len(samples), memory)
    for count, group in groupby(counts):
        ours, theirs = _walks((model, original), samples[:count], layers[start:])
        for layer in layers[start : start + len(list(group))]:
            for walk in (ours, theirs):
                while _input(layer) not in walk.values:
                    walk.advance()
            target = Target(before[layer.name], kept[layer.name])
            errors[layer.name] = _refit(_collect(layer, target, ours, theirs, count), zeros)
            for node in layer.nodes:
                ours.update(node)
            if tick is not None:
                tick(len(errors), len(layers), layer.name)
        start = len(errors)
    return errors


def _fits(layer: Layer) -> bool:
    return layer.role != "first" and hessian_bytes(layer) <= LARGEST


def _input(layer: Layer) -> str:
    value = layer.node.inputs[0]
    assert value is not None
    return value.name or ""


def _walks(
    models: tuple[ir.Model, ir.Model],
    samples: Sequence[Mapping[str, Array]],
    layers: Sequence[Layer],
) -> Iterator[Walk]:
    """Walks that halt where the layers' inputs are known."""
    runners = [SampleRunner(model, samples) for model in models]
    size = min(runner.batch_size(()) for runner in runners)
    inputs = {_input(layer) for layer in layers}
    for model, runner in zip(models, runners, strict=True):
        made = [value.name or "" for node in model.graph for value in node.outputs]
        # The last value is no halt: up to there Walk keeps what is still to be read.
        yield Walk(runner, [name for name in made if name in inputs] + made[-1:], size)


def _sample_counts(
    model: ir.Model, layers: Sequence[Layer], available: int, memory: int
) -> list[int]:
    """How many samples each layer is refitted with; they at least double where they change."""
    live = live_bytes(model)
    places = {node: index for index, node in enumerate(model.graph)}
    end = max((places[layer.node] for layer in layers), default=0)
    counts: list[int] = []
    for layer in layers:
        largest = max(live[places[layer.node] : end + 1])
        room = min(available, max(_FEWEST, memory // (2 * largest)))
        grown = not counts or room >= 2 * counts[-1] or room == available
        counts.append(room if grown else counts[-1])
    return counts


def _collect(layer: Layer, target: Target, ours: Walk, theirs: Walk, samples: int) -> Moments:
    moments = Moments(layer, samples, target)
    beside = _beside(layer, ours)
    name = _input(layer)
    for index, (here, there) in enumerate(zip(ours.values[name], theirs.values[name], strict=True)):
        missing = None
        if beside is not None:
            axis = 1 if layer.kernel else -1
            left = np.compress(target.kept, theirs.values[beside][index], axis)
            missing = left - ours.values[beside][index]
        moments.add(here, there, missing)
    return moments


def _beside(layer: Layer, walk: Walk) -> str | None:
    """What is added to a layer's result, if it is known already."""
    result = layer.node.outputs[0]
    add = single_user(result)
    if add is None or add.domain or add.op_type != "Add" or layer.bias() is None:
        return None
    other = add.inputs[1] if add.inputs[0] is result else add.inputs[0]
    if other is None or other.name not in walk.values or shape_of(other) != shape_of(result):
        return None
    return other.name


def _refit(moments: Moments, zeros: Collection[str]) -> float:
    """Give the layer its best weights; the relative error that is left."""
    layer, target = moments.layer, moments.target
    assert target is not None
    shape = (layer.groups, layer.shape[0] // layer.groups, -1)
    weight = layer.weight().reshape(shape).astype(np.float64)
    kept = weight != 0
    if layer.name not in zeros and kept.mean() >= _DENSE:
        kept[:] = True
    covariance, wanted = moments.covariance, moments.target_covariance
    for group, exact in enumerate(map(damped, covariance)):
        change = wanted[group] - weight[group] @ covariance[group]
        for begin, end in equal_rows(kept[group]):
            stays = np.flatnonzero(kept[group, begin])
            if len(stays):
                factor = linalg.cho_factor(exact[np.ix_(stays, stays)], overwrite_a=True)
                found = linalg.cho_solve(factor, change[begin:end, stays].T)
                weight[group][begin:end, stays] += found.T
    layer.set_weight(weight.reshape(layer.shape))
    bias = target.layer.bias()
    if bias is not None and layer.bias() is not None:
        shift = moments.target_mean - np.einsum("gok,gk->go", weight, moments.mean)
        layer.set_bias(bias[target.kept] + shift.reshape(-1))
    variance = moments.target_variance
    explained = 2 * (weight * wanted).sum() - ((weight @ covariance) * weight).sum()
    return max(0.0, 1 - float(explained) / variance) if variance > 0 else 0.0
