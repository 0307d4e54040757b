"""Rounding by what outputs lose: against explicit elimination, brute force and nearest rounding."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.passes.pruning.surgeon import damped
from effc.passes.quantization import round_weights
from effc.passes.quantization.grid import scales_of
from effc.passes.quantization.round_weights import (
    DAMPING,
    nearest,
    rounding_loss,
    search_scales,
    surgical,
)

Array = np.ndarray[Any, Any]


def problem(rows: int, width: int, seed: int) -> tuple[Array, Array, Array]:
    """Weights, correlated inputs ``[columns, K]``, and more of the same."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((width, width)) * rng.uniform(0.1, 2, width)
    x = rng.standard_normal((2, 50 * width, width)) @ mix
    return rng.standard_normal((rows, width)), x[0], x[1]


def moments(x: Array) -> Array:
    return x.T @ x / len(x)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (4, 9), (8, 64), (5, 200)])
def test_better_than_nearest(rows: int, width: int, bits: int) -> None:
    """On inputs that it has not seen."""
    weight, seen, unseen = problem(rows, width, seed=width)
    scales = scales_of(weight, bits)
    plain = nearest(weight, scales, bits)
    found = surgical(weight, moments(seen), scales, bits)
    assert np.abs(found).max() <= 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(found, np.rint(found))
    lost = [
        rounding_loss(weight, q * scales[:, None].astype(np.float64), moments(unseen))
        for q in (found, plain)
    ]
    assert lost[0] <= lost[1] * (1 + 1e-9) if width == 1 else lost[0] < 0.8 * lost[1]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_near_brute_force(seed: int, width: int) -> None:
    """Of all roundings up or down of a tiny layer none is much better, and mostly none at all."""
    weight, x, _ = problem(6, width, seed)
    scales = scales_of(weight, 4)
    exact = damped(moments(x), DAMPING)
    found = surgical(weight, moments(x), scales, 4) * scales[:, None].astype(np.float64)
    equal = 0
    for row in range(len(weight)):
        step = float(scales[row])
        low = np.floor(weight[row] / step)
        options = np.array([low + up for up in product((-1, 0, 1, 2), repeat=width)]).clip(-7, 7)
        losses = [rounding_loss(weight[row : row + 1], o[None] * step, exact) for o in options]
        own = rounding_loss(weight[row : row + 1], found[row : row + 1], exact)
        assert own <= 3 * min(losses) + 1e-12
        equal += own <= min(losses) * (1 + 1e-9) + 1e-12
    assert equal >= 3


def test_elimination_is_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factor's rows do what solving for the remaining columns anew would do."""
    monkeypatch.setattr(round_weights, "_SWEEPS", 0)
    monkeypatch.setattr(round_weights, "_BLOCK", 4)
    weight, x, _ = problem(3, 11, seed=0)
    scales = scales_of(weight, 4)
    exact = damped(moments(x), DAMPING)
    expected = np.zeros(weight.shape)
    order = np.argsort(-np.diag(exact), kind="stable")
    for row in range(len(weight)):
        left = weight[row].copy()
        for step, column in enumerate(order):
            q = np.clip(np.rint(left[column] / scales[row]), -7, 7)
            expected[row, column] = q
            rest = order[step + 1 :]
            lost = float(q * scales[row]) - left[column]
            left[column] += lost
            if len(rest):  # minimize (d + lost e) H (d + lost e)^T over the remaining columns' d
                change = np.linalg.solve(exact[np.ix_(rest, rest)], exact[rest, column] * lost)
                left[rest] -= change
    np.testing.assert_array_equal(surgical(weight, moments(x), scales, 4), expected)


@pytest.mark.parametrize("shared", [True, False])
def test_zeros_stay(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands with one mask are rounded as if they read only what they keep."""
    weight, x, _ = problem(8, 24, seed=3)
    rng = np.random.default_rng(0)
    mask = rng.random((2, 24)).repeat(4, axis=0) < 0.5 if shared else rng.random((8, 24)) < 0.5
    weight = weight * mask
    scales = scales_of(weight, 4)
    found = surgical(weight, moments(x), scales, 4, kept=mask)
    assert not found[~mask].any()
    for begin in (0, 4) if shared else ():
        keeps = np.flatnonzero(mask[begin])
        own = slice(begin, begin + 4)
        exact = damped(moments(x), DAMPING)[np.ix_(keeps, keeps)]
        monkeypatch.setattr(round_weights, "damped", lambda h, _: h)
        alone = surgical(weight[own][:, keeps], exact, scales[own], 4)
        monkeypatch.undo()
        np.testing.assert_array_equal(found[own][:, keeps], alone)
    monkeypatch.setattr(round_weights, "_BANDS", 0)  # all rows share one factor
    together = surgical(weight, moments(x), scales, 4, kept=mask)
    assert not together[~mask].any()
    plain = nearest(weight, scales, 4)
    step = scales[:, None].astype(np.float64)
    losses = [rounding_loss(weight, q * step, moments(x)) for q in (found, together, plain)]
    assert max(losses[:2]) < 0.8 * losses[2]


def test_scales() -> None:
    """Clipping an outlier pays with few bits, and more so where its input is small."""
    row = np.concatenate([np.linspace(-1, 1, 64), [3.0]])[None]
    even = search_scales(row, np.ones(65), 4)
    quiet = search_scales(row, np.concatenate([np.ones(64), [1e-6]]), 4)
    assert even <= scales_of(row, 4)
    assert quiet < 0.7 * scales_of(row, 4)
    assert search_scales(row, np.ones(65), 4, smallest=1.0) == 1.0
    assert search_scales(np.zeros((1, 3)), np.ones(3)) == 1.0
