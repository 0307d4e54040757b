"""Coefficients of layer errors, and scores of networks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effc.compression.allocation import Allocation
from effc.compression.sensitivity import quadratic_prior, search_coefficients
from effc.compression.stitching import Stitcher, divergence
from effc.frontend import import_model
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.correct_statistics import CorrectStatistics
from effc.passes.pruning.layers import find_layers
from effc.passes.pruning.prune_weights import PruneWeights, Setting, magnitude
from effc.passes.pruning.scheme import parse_scheme
from effc.passes.registry import simplify
from tests.small_net import images, small_net


def test_quadratic_prior_spans_zero_to_one() -> None:
    offered = np.array([[True, True, True], [True, True, False]])
    assert quadratic_prior(offered).tolist() == [[0, 0.25, 1], [0, 1, 0]]


def test_search_finds_the_layer_that_matters() -> None:
    """All layers look alike; only the first one hurts the network."""
    layers, levels = 6, 5
    times = np.tile(np.linspace(1.0, 0.2, levels), (layers, 1))
    errors = np.tile(np.linspace(0, 1, levels) ** 2, (layers, 1))
    scored: list[tuple[int, ...]] = []

    def solve(table: np.ndarray) -> tuple[int, ...]:
        point = Allocation(times, table, 500).best(3.5)
        assert point is not None
        return point.levels

    def score(chosen: tuple[int, ...]) -> float:
        scored.append(chosen)
        return 10.0 * chosen[0] + sum(chosen[1:])

    def confirm(chosen: tuple[int, ...]) -> float:
        return 10.0 * chosen[0] + sum(chosen[1:])

    found = search_coefficients(errors, np.isfinite(times), solve, score, confirm, 60)
    assert found.evaluations == len(scored) == len(set(scored)) <= 60
    assert found.score == confirm(solve(found.errors)) <= found.plain_score
    assert found.score < found.plain_score
    assert solve(found.errors)[0] < solve(errors)[0]
    again = search_coefficients(errors, np.isfinite(times), solve, score, confirm, 60)
    assert np.array_equal(again.errors, found.errors)
    # what only looked good on the samples of the search is not taken
    plain = search_coefficients(
        errors, np.isfinite(times), solve, score, lambda chosen: -confirm(chosen), 60
    )
    assert plain.score <= plain.plain_score
    assert solve(plain.errors)[0] >= solve(found.errors)[0]


@given(st.integers(0, 1000))
def test_divergence_is_zero_for_equal_outputs_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((4, 7)).astype(np.float32)
    maps = rng.standard_normal((4, 2, 3, 3)).astype(np.float32)
    whole = rng.integers(0, 5, (4, 1))
    same = [scores, maps, whole]
    assert divergence(same, same) == pytest.approx(0, abs=1e-9)
    assert divergence(same, [scores, maps, whole + 1]) == pytest.approx(0, abs=1e-9)
    assert divergence(same, [scores + np.eye(4, 7, dtype=np.float32), maps, whole]) > 1e-4
    assert divergence(same, [scores, maps + 1, whole]) > 1e-4
    # a constant added to all scores changes no distribution
    assert divergence([scores], [scores + 3]) == pytest.approx(0, abs=1e-6)


def test_stitched_network_is_the_pruned_and_corrected_one() -> None:
    model = simplify(import_model(small_net()))[0]
    samples = [{"x": x[None]} for x in images(24)]
    layers = [layer for layer in find_layers(model)[0] if layer.role == "inner"]
    settings = [Setting(parse_scheme("block-punched", "4x1"), s) for s in (0.0, 0.4, 0.7)]
    levels = [1 + index % 2 for index in range(len(layers))]

    def weight(index: int, level: int) -> np.ndarray:
        return magnitude(layers[index], settings[level]).weight

    for correct in ("none", "bias", "statistics"):
        stitcher = Stitcher(model, SampleRunner(model, samples), layers, weight, correct)
        assert stitcher.score([0] * len(layers)) == pytest.approx(0, abs=1e-9)
        pruned = model.clone()
        chosen = {y.name: settings[s] for y, s in zip(layers, levels, strict=True)}
        PruneWeights(chosen).run(pruned)
        if correct != "none":
            CorrectStatistics(model, samples, bias_only=correct == "bias").run(pruned)
        outputs = [
            np.concatenate([batch["y"] for batch in SampleRunner(m, samples).values(["y"])])
            for m in (model, pruned)
        ]
        expected = divergence([outputs[0]], [outputs[1]])
        assert stitcher.score(levels) == pytest.approx(expected, rel=1e-3)
