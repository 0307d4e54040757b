"""How much each layer's zeros hurt the whole network, found by trying.

Errors of layers do not add up to the error of a network: some layers matter more than others. Per
layer l the error of level s is taken as ``c_l * prior[l, s]``; the coefficients c are searched
so that the levels which dynamic programming then chooses give a network with outputs close
to those of the dense one (Frantar and Alistarh, SPDY, ICML 2022, sections 3.3 and 3.4). Two priors
are tried: SPDY's ``(i / (levels - 1))^2`` with i the index of the level on a geometric grid, and
the measured errors of the layers themselves.

First random coefficients for both priors, then from the best ones on local search: a tenth of
the coefficients is drawn again, a better network is kept, and fewer are drawn the longer
nothing improves. Every network is scored once. No labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from scipy.special import log_softmax

from effc.passes.pruning.batching import SampleRunner, open_session
from effc.passes.pruning.layers import Layer

__all__ = ["Coefficients", "Stitcher", "divergence", "quadratic_prior", "search_coefficients"]

Array = np.ndarray[Any, Any]
Levels = tuple[int, ...]

_RANDOM = 0.4
"""Share of the evaluations for random coefficients."""

_PATIENCE = 8
"""Fruitless evaluations after which one coefficient fewer is drawn again."""


def quadratic_prior(offered: Array) -> Array:
    """SPDY's prior ``[layers, levels]`` for a mask of existing levels of that shape."""
    last = np.maximum(offered.sum(axis=1, keepdims=True) - 1, 1)
    return np.asarray(np.where(offered, (np.arange(offered.shape[1]) / last) ** 2, 0.0))


@dataclass(frozen=True)
class Coefficients:
    """The result of a search.

    Attributes:
        errors: Error of every layer and level.
        score: Divergence of the network with the levels that follow from them.
        plain_score: The same for the errors of layers as they are, without coefficients.
        prior: ``quadratic`` or ``layer errors``.
        values: One coefficient per layer.
        evaluations: Networks that were scored.
    """

    errors: Array
    score: float
    plain_score: float
    prior: str
    values: Array
    evaluations: int


def search_coefficients(
    layer_errors: Array,
    offered: Array,
    solve: Callable[[Array], Levels],
    score: Callable[[Levels], float],
    evaluations: int,
    tick: Callable[[int, int], None] | None = None,
) -> Coefficients:
    """Coefficients that lead to the best network.

    Args:
        layer_errors: Measured errors ``[layers, levels]``.
        offered: Which levels exist, of the same shape.
        solve: Levels that errors lead to.
        score: Divergence of a network with these levels.
        evaluations: Most networks to score; distinct ones, so usually fewer are.
        tick: Called with (tries done, all tries).
    """
    layers = len(layer_errors)
    priors = {"layer errors": layer_errors, "quadratic": quadratic_prior(offered)}
    rng = np.random.default_rng(0)
    scores: dict[Levels, float] = {}
    done = 0

    def attempt(prior: str, values: Array) -> tuple[float, str, Array]:
        nonlocal done
        levels = solve(priors[prior] * values[:, None])
        if levels not in scores:
            scores[levels] = score(levels)
        done += 1
        if tick is not None:
            tick(done, max(evaluations, done))
        return scores[levels], prior, values

    best = plain = attempt("layer errors", np.ones(layers))
    tries = [attempt("quadratic", np.ones(layers))]
    while done < evaluations * _RANDOM:
        tries.append(attempt(list(priors)[done % 2], rng.uniform(0, 1, layers)))
    best = min([best, *tries], key=lambda item: item[0])
    drawn, fruitless = ceil(layers / 10), 0
    while done < evaluations:
        values = best[2].copy()
        values[rng.choice(layers, drawn, replace=False)] = rng.uniform(0, 1, drawn)
        new = attempt(best[1], values)
        if new[0] < best[0]:
            best, fruitless = new, 0
        else:
            fruitless += 1
        if fruitless >= _PATIENCE:
            drawn, fruitless = max(1, drawn - 1), 0
    errors = priors[best[1]] * best[2][:, None]
    return Coefficients(errors, best[0], plain[0], best[1], best[2], len(scores))


class Stitcher:
    """Scores networks whose layers are taken from ready-made pruned ones.

    Args:
        runner: The dense model and calibration samples.
        layers: Its layers, in the order of the levels.
        weight: Weights of a layer (by index) at a level (by index), in the layer's shape.
    """

    def __init__(
        self,
        runner: SampleRunner,
        layers: Sequence[Layer],
        weight: Callable[[int, int], Array],
    ) -> None:
        self._runner = runner
        self._layers = layers
        self._weight = weight
        self._dense = self._outputs(runner.proto)

    def score(self, levels: Levels) -> float:
        """Divergence of the outputs from the dense ones, see :func:`divergence`."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._runner.proto)
        places = {tensor.name: tensor for tensor in proto.graph.initializer}
        for index, (layer, level) in enumerate(zip(self._layers, levels, strict=True)):
            value = layer.node.inputs[1]
            if level and value is not None:
                name = value.name or ""
                stored = layer.stored(self._weight(index, level))
                places[name].CopyFrom(numpy_helper.from_array(stored, name))
        return divergence(self._dense, self._outputs(proto))

    def _outputs(self, proto: onnx.ModelProto) -> list[Array]:
        session = open_session(proto)
        runs = [session.run(None, batch) for batch in self._runner.inputs()]
        return [np.concatenate([np.atleast_1d(a) for a in arrays]) for arrays in zip(*runs)]


def divergence(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """How far outputs are from expected ones, summed over outputs.

    For one row of class scores per sample the mean Kullback-Leibler divergence of their
    distributions (scores that are no distribution go through softmax); for any other floating
    point output the squared error over the variance. Integers do not count.
    """
    total = 0.0
    for want, have in zip(expected, got, strict=True):
        if want.dtype.kind != "f":
            continue
        want, have = want.astype(np.float64), have.astype(np.float64)
        rows = want.reshape(len(want), -1)
        if rows.shape[1] == want.shape[-1] >= 2:
            total += _kullback_leibler(rows, have.reshape(rows.shape))
        else:
            spread = float(np.square(want - want.mean()).sum())
            total += float(np.square(have - want).sum()) / max(spread, 1e-30)
    return total if np.isfinite(total) else float("inf")


def _kullback_leibler(want: Array, have: Array) -> float:
    if (want >= 0).all() and np.allclose(want.sum(axis=1), 1, atol=1e-3):
        one, other = (np.log(np.maximum(a, 1e-12)) for a in (want, have))
    else:
        one, other = log_softmax(want, axis=1), log_softmax(have, axis=1)
    return float((np.exp(one) * (one - other)).sum(axis=1).mean())
