"""Optimal Brain Surgeon against brute force: losses, order, weights; constraints of the schemes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.passes.pruning.elimination import Elimination
from effc.passes.pruning.patterns import PATTERNS
from effc.passes.pruning.scheme import Scheme, parse_scheme
from effc.passes.pruning.surgeon import damped, output_loss, refit, trace_layer

Array = np.ndarray[Any, Any]

DAMPING = 0.01


def problem(
    cout: int, cin: int, kernel: tuple[int, ...] = (), groups: int = 1, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Weights, inputs ``[groups, columns, K]`` with correlated columns, and Hessians."""
    rng = np.random.default_rng(seed)
    width = cin * int(np.prod(kernel, dtype=int))
    mix = rng.standard_normal((groups, width, width)) + 0.5
    inputs = np.maximum(rng.standard_normal((groups, 3 * width + 5, width)) @ mix, 0)
    weight = rng.standard_normal((cout * groups, cin, *kernel)).astype(np.float32)
    return weight, inputs, 2 * inputs.transpose(0, 2, 1) @ inputs / inputs.shape[1]


def loss_of(weight: Array, new: Array, hessians: Array) -> float:
    """The damped loss, band of groups by band."""
    rows = weight.reshape(len(hessians), -1, hessians.shape[1]).astype(np.float64)
    change = new.reshape(rows.shape).astype(np.float64) - rows
    return sum(
        0.5 * float(np.vdot(d @ damped(h, DAMPING), d))
        for d, h in zip(change, hessians, strict=True)
    )


def greedy(weight: Array, hessian: Array, columns: list[list[int]], count: int) -> list[float]:
    """Losses of the first removals, each set solved anew by least squares, float64."""
    gone: list[int] = []
    losses = []
    left = list(range(len(columns)))
    before = 0.0
    for _ in range(count):
        best = (np.inf, -1)
        for unit in left:
            out = [*gone, *columns[unit]]
            stays = [k for k in range(len(hessian)) if k not in out]
            new = np.zeros_like(weight)
            if stays:
                new[:, stays] = np.linalg.solve(
                    hessian[np.ix_(stays, stays)], hessian[stays] @ weight.T
                ).T
            change = new - weight
            loss = 0.5 * float(np.vdot(change @ hessian, change))
            best = min(best, (loss, unit))
        losses.append(best[0] - before)
        before = best[0]
        gone += columns[best[1]]
        left.remove(best[1])
    return losses


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, 2), (3, 4), (4, 5)])
def test_each_removal_is_the_cheapest(block: tuple[int, int]) -> None:
    weight, _, hessians = problem(4, 10, seed=block[0])
    trace = trace_layer(weight, hessians, Scheme("block-punched", block), damping=DAMPING)
    columns = [[int(k) for k in unit if k >= 0] for unit in trace.grid.columns]
    for band, (begin, end) in enumerate(trace.grid.bands):
        rows = weight[begin:end].astype(np.float64)
        wanted = greedy(rows, damped(hessians[0], DAMPING), columns, len(columns))
        got = trace.losses[band]
        # Costs are a running maximum, so removals are in order of cost and then of loss.
        order = np.lexsort((got, trace.costs[band]))
        np.testing.assert_allclose(np.sort(got), np.sort(wanted), rtol=2e-3)
        np.testing.assert_allclose(got[order].sum(), sum(wanted), rtol=1e-4)
        np.testing.assert_allclose(trace.costs[band].max(), max(wanted), rtol=1e-3)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 11),
    st.integers(1, 9),
    st.sampled_from([(), (3, 3), (1, 3)]),
    st.integers(1, 2),
    st.sampled_from([(1, 1), (8, 4), (4, 1), (2, 3)]),
    st.floats(0.05, 0.95),
)
def test_trace_predicts_the_loss_of_the_refit(
    cout: int,
    cin: int,
    kernel: tuple[int, ...],
    groups: int,
    block: tuple[int, int],
    sparsity: float,
) -> None:
    """The sequential updates of the removals and the least-squares solution are the same."""
    weight, _, hessians = problem(cout, cin, kernel, groups)
    trace = trace_layer(weight, hessians, Scheme("block-punched", block), damping=DAMPING)
    # Ragged edges may take units out of a band's order; without them all is exact.
    mask = trace.mask(sparsity)
    new = refit(weight, hessians, mask, DAMPING)
    assert not new[~mask.reshape(weight.shape)].any()
    assert abs((~mask).sum() - sparsity * mask.size) <= trace.grid.sizes.max() / 2 + 1e-6
    if len(np.unique(trace.grid.sizes)) == 1:
        predicted = trace.loss(sparsity) * trace.energy
        np.testing.assert_allclose(loss_of(weight, new, hessians), predicted, rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
def test_refit_is_the_least_squares_solution(groups: int) -> None:
    weight, inputs, hessians = problem(5, 4, (3, 3), groups)
    rng = np.random.default_rng(3)
    mask = rng.random(weight.shape) < 0.6
    mask[2] = True
    mask[3] = False
    new = refit(weight, hessians, mask, DAMPING)
    np.testing.assert_array_equal(new[2], weight[2])
    assert not new[3].any()
    rows, kept = weight.reshape(len(weight), -1), mask.reshape(len(weight), -1)
    for index in (0, 1, 4, len(rows) - 1):
        own = inputs[index // 5]
        damping = DAMPING * np.trace(hessians[index // 5]) / hessians.shape[1]
        # Damping is regularization towards the dense weights: rows of the identity below X.
        scaled = own * np.sqrt(2 / len(own))
        system = np.vstack([scaled, np.sqrt(damping) * np.eye(own.shape[1])])
        solution = np.linalg.lstsq(system[:, kept[index]], system @ rows[index], rcond=None)[0]
        np.testing.assert_allclose(
            new.reshape(rows.shape)[index][kept[index]], solution, rtol=1e-3, atol=1e-4
        )


def test_sparsities_are_nested_and_the_loss_grows() -> None:
    weight, _, hessians = problem(16, 8, (3, 3))
    trace = trace_layer(weight, hessians, Scheme("block-punched", (8, 4)))
    levels = np.linspace(0, 0.95, 12)
    masks = [trace.mask(s) for s in levels]
    losses = [trace.loss(s) for s in levels]
    assert losses[0] == 0
    assert (np.diff(losses) >= -1e-12).all()
    for small, large in pairwise(masks):
        assert not (large & ~small).any()


def test_surgeon_beats_magnitude() -> None:
    from effc.passes.pruning.project import projection_mask

    weight, _, hessians = problem(16, 16, (3, 3), seed=5)
    for text, block in [("unstructured", None), ("block-punched", "8x4"), ("2:4", None)]:
        scheme = parse_scheme(text, block)
        mask = projection_mask(weight, scheme, 0.5)
        plain = output_loss(weight, weight * mask, hessians)
        ours = trace_layer(weight, hessians, scheme).mask(0.5)
        assert output_loss(weight, refit(weight, hessians, ours), hessians) < plain / 3


@pytest.mark.parametrize("bf", [1, 4])
@pytest.mark.parametrize("n_m", [(2, 4), (1, 4), (4, 8)])
def test_windows_keep_n(bf: int, n_m: tuple[int, int]) -> None:
    n, m = n_m
    weight, _, hessians = problem(6, 11, (1, 3))
    trace = trace_layer(weight, hessians, Scheme("n:m", (bf, 1), n, m))
    mask = trace.mask(1 - n / m)
    for row in range(6):
        for start in range(0, 11, m):
            window = mask[row, start : start + m]
            assert (window.sum(axis=0) == min(n, len(window))).all()
    assert np.isfinite(trace.loss(1 - n / m))


@pytest.mark.parametrize("block", [(1, 1), (4, 2)])
@pytest.mark.parametrize("sparsity", [5 / 9, 0.8])
def test_patterns_by_surgeon(block: tuple[int, int], sparsity: float) -> None:
    weight, _, hessians = problem(6, 5, (3, 3))
    trace = trace_layer(weight, hessians, Scheme("pattern", block))
    mask = trace.mask(sparsity)
    kernels = mask.reshape(-1, 9)
    kept = kernels[kernels.any(axis=1)]
    assert {tuple(row) for row in kept} <= {tuple(row) for row in PATTERNS}
    assert len(np.unique(kept, axis=0)) <= 8
    assert abs((~mask).mean() - sparsity) <= 2 * block[0] * block[1] / mask.size + 1e-9
    loss = loss_of(weight, refit(weight, hessians, mask, 0.003), hessians)
    assert loss > 0
    if block == (1, 1):
        exact = output_loss(weight, refit(weight, hessians, mask), hessians)
        assert trace.loss(sparsity) == pytest.approx(exact, rel=0.05)


def test_dead_inputs_go_first() -> None:
    weight, inputs, _ = problem(4, 10)
    inputs[:, :, [2, 7]] = 0
    hessians = 2 * inputs.transpose(0, 2, 1) @ inputs / inputs.shape[1]
    trace = trace_layer(weight, hessians, Scheme("block-punched", (1, 1)))
    mask = trace.mask(0.2)[:, :, 0]
    assert not mask[:, [2, 7]].any()
    assert mask.sum() == 32
    assert trace.loss(0.2) < 0.01


def test_a_layer_that_sees_only_zeros() -> None:
    weight, _, hessians = problem(4, 6)
    trace = trace_layer(weight, hessians * 0, Scheme("block-punched", (2, 1)))
    assert (~trace.mask(0.5)).sum() == 12
    assert trace.loss(0.5) == 0
    assert np.isfinite(refit(weight, hessians * 0, trace.mask(0.5))).all()


def test_many_columns_flush_and_compact() -> None:
    """More steps than the recent factors hold, in a batch of bands: still the exact losses."""
    weight, _, hessians = problem(3, 150)
    trace = trace_layer(weight, hessians, Scheme("block-punched", (1, 1)), damping=DAMPING)
    for sparsity in (0.3, 0.6, 0.9):
        new = refit(weight, hessians, trace.mask(sparsity), DAMPING)
        predicted = trace.loss(sparsity) * trace.energy
        np.testing.assert_allclose(loss_of(weight, new, hessians), predicted, rtol=1e-3)


def test_elimination_removes_every_unit_once() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((120, 300))
    inverse = np.linalg.inv(matrix @ matrix.T / 300 + np.eye(120) * 0.01).astype(np.float32)
    state = Elimination(rng.standard_normal((4, 2, 3, 40)).astype(np.float32), inverse)
    order = np.array([state.step()[0] for _ in range(40)])
    np.testing.assert_array_equal(np.sort(order, axis=0), np.arange(40)[:, None].repeat(4, 1))
