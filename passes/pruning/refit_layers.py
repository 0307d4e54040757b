"""Least-squares refit of a smaller network's layers to the original's, from calibration data.

For a layer that reads x in the pruned model and whose original computes y = W0 x0 + b0 from what
it reads in the original model, for the same samples,

    W' = W + (cov(y, x) - W cov(x)) (cov(x) + d I)^-1,    b' = b0 + E[y] - W' E[x]

are the weights and bias of least squared error, regularized (d) towards the weights W that the
layer has: of a few dampings the one whose solution on three quarters of the batches is best on the
others; then all are used. Inputs are those of the pruned model with the layers before already
refitted, so each layer makes up for what was lost before it, too. Where the result is added to
another value r (a residual), the sum is what has to be right: y becomes y + r0 - r.

Both models advance together from layer to layer (``effc.passes.pruning.paired_walk``).

Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017),
sections 3.2 and 3.3; here with bias, with zeros that stay zeros, and for all layers behind the
first changed one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy import linalg

from effc.passes.pruning.calibration import MEMORY, hessian_bytes
from effc.passes.pruning.channel_moments import Moments, Target
from effc.passes.pruning.layers import Layer, find_layers, from_first_change
from effc.passes.pruning.paired_walk import paired_moments
from effc.passes.pruning.surgeon import DAMPING, damped, equal_rows

__all__ = ["refit_layers"]

Array = np.ndarray[Any, Any]
Tick = Callable[[int, int, str], None]

LARGEST = MEMORY // 2
"""Bytes of the covariance of the largest layer that is refitted."""

_ROUNDING = 1e-5
"""Of a covariance, relative to the mean square: of inputs that hardly vary nothing else is left."""

_DENSE = 0.9
"""Density from which on a layer's zeros are accidental."""

_DAMPINGS = (DAMPING, 10 * DAMPING, 100 * DAMPING, 1000 * DAMPING)

_TRIED = 8
"""Bands, about, on which dampings are compared."""


@dataclass(frozen=True)
class _Band:
    """Consecutive filters of a convolution group that keep the same columns."""

    group: int
    begin: int
    end: int
    stays: Array


@dataclass(frozen=True)
class _Seen:
    """What the moments of some samples say; taken once, as covariances are large."""

    covariance: Array
    wanted: Array
    power: Array

    @staticmethod
    def of(moments: Moments) -> _Seen:
        return _Seen(moments.covariance, moments.target_covariance, moments.power)


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
    """Refit layers from the first changed one on, but no gigantic ones.

    First layers have unchanged inputs: those that did not change themselves are right as they are.

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
    layers = [x for x in from_first_change(original, model) if _fits(x, before[x.name])]
    targets = [Target(before[layer.name], kept[layer.name]) for layer in layers]
    errors: dict[str, float] = {}
    for fit, check in paired_moments(model, original, samples, layers, targets, memory=memory):
        name = fit.layer.name
        errors[name] = _refit(fit, check, zeros)
        if tick is not None:
            tick(len(errors), len(layers), name)
    return errors


def _fits(layer: Layer, before: Layer) -> bool:
    if hessian_bytes(layer) > LARGEST:
        return False
    return layer.role != "first" or not np.array_equal(layer.weight(), before.weight())


def _refit(fit: Moments, check: Moments, zeros: Collection[str]) -> float:
    """Give the layer its best weights; the relative error that is left."""
    layer, target = fit.layer, fit.target
    assert target is not None
    shape = (layer.groups, layer.shape[0] // layer.groups, -1)
    weight = layer.weight().reshape(shape).astype(np.float64)
    kept = weight != 0
    if layer.name not in zeros and kept.mean() >= _DENSE:
        kept[:] = True
    bands = [
        _Band(group, begin, end, np.flatnonzero(kept[group, begin]))
        for group in range(layer.groups)
        for begin, end in equal_rows(kept[group])
    ]
    damping = _best_damping(fit, check, weight, bands)
    if check.columns:
        fit.merge(check)
    seen = _Seen.of(fit)
    weight = _solve(seen, weight, bands, damping)
    layer.set_weight(weight.reshape(layer.shape))
    bias = target.layer.bias()
    if bias is not None and layer.bias() is not None:
        shift = fit.target_mean - np.einsum("gok,gk->go", weight, fit.mean)
        layer.set_bias(bias[target.kept] + shift.reshape(-1))
    variance = fit.target_variance
    explained = _explained(seen, weight, bands)
    return max(0.0, 1 - explained / variance) if variance > 0 else 0.0


def _best_damping(fit: Moments, check: Moments, weight: Array, bands: Sequence[_Band]) -> float:
    """The damping whose solution for ``fit`` explains most of ``check``, tried on some bands."""
    if not check.columns:
        return DAMPING
    some = bands[:: max(1, len(bands) // _TRIED)]
    seen, unseen = _Seen.of(fit), _Seen.of(check)
    return max(
        _DAMPINGS, key=lambda damping: _explained(unseen, _solve(seen, weight, some, damping), some)
    )


def _solve(seen: _Seen, weight: Array, bands: Sequence[_Band], damping: float) -> Array:
    """Weights ``[groups, Cout / groups, K]`` with those of the bands refitted."""
    result = weight.copy()
    covariance, wanted, power = seen.covariance, seen.wanted, seen.power
    for group, own in groupby(bands, key=lambda band: band.group):
        exact = damped(covariance[group], damping)
        exact[np.diag_indices(len(exact))] += _ROUNDING * power[group]
        for band in own:
            if len(band.stays):
                rows = slice(band.begin, band.end)
                change = wanted[group][rows] - weight[group][rows] @ covariance[group]
                small = exact[np.ix_(band.stays, band.stays)]
                found = linalg.cho_solve(
                    linalg.cho_factor(small, overwrite_a=True), change[:, band.stays].T
                )
                result[group][rows, band.stays] += found.T
    return result


def _explained(seen: _Seen, weight: Array, bands: Sequence[_Band]) -> float:
    """Variance of the targets that the weights of some bands explain."""
    covariance, wanted = seen.covariance, seen.wanted
    total = 0.0
    for band in bands:
        rows = weight[band.group, band.begin : band.end]
        total += 2 * float(np.vdot(rows, wanted[band.group, band.begin : band.end]))
        total -= float(np.vdot(rows @ covariance[band.group], rows))
    return total
