"""How much each layer's zeros hurt the whole network, found by trying.

Errors of layers do not add up to the error of a network: some layers matter more than others. Per
layer l the error of level s is taken as ``c_l * prior[l, s]``; the coefficients c are searched
so that the levels which dynamic programming then chooses give a network with outputs close
to those of the dense one (Frantar and Alistarh, SPDY, ICML 2022, sections 3.3 and 3.4). Three
priors are tried: SPDY's ``(i / (levels - 1))^2`` with i the index of the level on a geometric grid,
the measured errors of the layers themselves, and the sum of both, each over its largest value.

First random coefficients for all priors, within a factor of e of 1, then from the best ones on
local search: a third of the coefficients is changed a little, a better network is kept, and fewer
are changed the longer nothing improves. Every network is scored once. No labels are needed.

A search fits its samples: the better of many networks is in part the luckier one. So in the end
the best networks found and those of the plain priors are scored on samples that the search has not
seen, and the best there is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

__all__ = ["Coefficients", "quadratic_prior", "search_coefficients"]

Array = np.ndarray[Any, Any]
Levels = tuple[int, ...]

_RANDOM = 0.3
"""Share of the evaluations for random coefficients."""

_STEP = 0.5
"""Standard deviation of a change of a coefficient's logarithm."""

_CONFIRMED = 5
"""Best networks of a search that are scored again on other samples."""

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
        score: Divergence of the network with the levels that follow from them, on samples that
            the search has not seen.
        plain_score: The same for the errors of layers as they are, without coefficients.
        prior: ``quadratic``, ``layer errors`` or ``quadratic + layer errors``.
        values: One coefficient per layer.
        evaluations: Networks that were scored while searching.
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
    confirm: Callable[[Levels], float],
    evaluations: int,
    tick: Callable[[int, int], None] | None = None,
) -> Coefficients:
    """Coefficients that lead to the best network.

    Args:
        layer_errors: Measured errors ``[layers, levels]``.
        offered: Which levels exist, of the same shape.
        solve: Levels that errors lead to.
        score: Divergence of a network with these levels on samples to search with.
        confirm: The same on other samples.
        evaluations: Most networks to score while searching; distinct ones, so usually fewer are.
        tick: Called with (tries done, all tries).
    """
    layers = len(layer_errors)
    priors = {"layer errors": layer_errors, "quadratic": quadratic_prior(offered)}
    largest = float(layer_errors.max()) or 1.0
    priors["quadratic + layer errors"] = priors["quadratic"] + layer_errors / largest
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

    tries = [attempt(name, np.ones(layers)) for name in priors]
    plain = list(tries)
    while done < evaluations * _RANDOM:
        tries.append(attempt(list(priors)[done % 3], np.exp(rng.uniform(-1, 1, layers))))
    best = min(tries, key=lambda item: item[0])
    drawn, fruitless = ceil(layers / 3), 0
    while done < evaluations:
        values = best[2].copy()
        values[rng.choice(layers, drawn, replace=False)] *= np.exp(_STEP * rng.normal(size=drawn))
        new = attempt(best[1], values)
        tries.append(new)
        if new[0] < best[0]:
            best, fruitless = new, 0
        else:
            fruitless += 1
        if fruitless >= _PATIENCE:
            drawn, fruitless = max(1, drawn - 1), 0
    tries.sort(key=lambda item: item[0])
    results = []
    confirmed: dict[Levels, float] = {}
    for _, prior, values in [*plain, *tries]:
        errors = priors[prior] * values[:, None]
        levels = solve(errors)
        if levels not in confirmed and len(confirmed) < len(plain) + _CONFIRMED:
            confirmed[levels] = confirm(levels)
        if levels in confirmed:
            results.append((confirmed[levels], errors, prior, values))
    best_score, errors, prior, values = min(results, key=lambda item: item[0])
    return Coefficients(errors, best_score, results[0][0], prior, values, len(scores))
