"""Integer softmax and layer normalization against floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdq import Model, steps

from effc.passes.integer.normalization import (
    LONGEST_SOFTMAX,
    layer_norm,
    layer_norm_constants,
    softmax,
    softmax_constants,
)

LENGTHS = st.one_of(st.integers(1, 64), st.sampled_from([197, 512, 1000, LONGEST_SOFTMAX]))


def rows(length: int, seed: int, spread: int) -> np.ndarray[Any, Any]:
    """Rows from nearly constant to the whole range, some with one large element."""
    rng = np.random.default_rng(seed)
    low = int(rng.integers(0, 256 - spread))
    x = rng.integers(low, low + spread + 1, (8, length))
    x[::3, 0] = 255
    return np.clip(x, 0, 255).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(0, 99), st.integers(0, 255), st.floats(1e-4, 1.0))
def test_softmax_within_an_eighth_of_a_step(
    length: int, seed: int, spread: int, scale: float
) -> None:
    x = rows(length, seed, spread)
    made = softmax_constants(length, scale, 1 / 256)
    got = softmax(x, zero=0, low=0, high=255, **vars(made))
    exact = np.exp(scale * (x.astype(np.float64) - x.max(-1, keepdims=True)))
    exact = np.minimum(256 * exact / exact.sum(-1, keepdims=True), 255)
    assert np.abs(got - exact).max() <= 0.5 + 1 / 8 + 1e-3


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(0, 99), st.integers(1, 255), st.floats(1e-3, 1.0))
def test_layer_norm_rounds_the_exact_value(
    length: int, seed: int, spread: int, scale: float
) -> None:
    x = rows(length, seed, spread)
    rng = np.random.default_rng(seed)
    gamma, beta = rng.standard_normal(length), rng.standard_normal(length)
    made = layer_norm_constants(gamma, beta, 1e-5, scale, 0.04)
    got = layer_norm(x, zero=128, low=0, high=255, **vars(made))
    wide = x.astype(np.float64) * scale
    centred = wide - wide.mean(-1, keepdims=True)
    # The constant that stands for epsilon is an integer.
    epsilon = made.epsilon * scale**2 / length**2
    exact = gamma * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) + beta
    exact = np.clip(exact / 0.04 + 128, 0, 255)
    assert np.abs(got - exact).max() <= 0.5 + 0.01


@pytest.mark.parametrize("length", [0, LONGEST_SOFTMAX + 1])
def test_long_softmax_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="elements"):
        softmax_constants(length, 0.1, 1 / 256)


def test_tiny_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="fixed-point"):
        softmax_constants(9, 0.1, 1e-9)
    with pytest.raises(ValueError, match="fixed-point"):
        layer_norm_constants(np.ones(3), np.ones(3), 1e-5, 0.1, 1e-12)


@pytest.mark.parametrize("out", [np.uint8, np.int8])
def test_softmax_of_a_model(out: Any) -> None:
    model = Model()
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 40)).astype(np.uint8)
    float_x = model.dq(model.input("x", x), 0.06, np.array(120, np.uint8))
    zero = np.array(np.iinfo(out).min, out)
    y = model.q(model.op("Softmax", float_x, axis=-1), 1 / 256, zero)
    assert steps(model, y)["SoftmaxInteger"] == 1


def test_layer_norm_of_a_model() -> None:
    model = Model()
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (2, 3, 40)).astype(np.int8)
    float_x = model.dq(model.input("x", x), 0.02, np.array(3, np.int8))
    gamma, beta = (model.const(rng.standard_normal(40).astype(np.float32)) for _ in range(2))
    y = model.op("LayerNormalization", float_x, gamma, beta, axis=-1, epsilon=1e-6)
    assert steps(model, model.q(y, 0.03, np.array(1, np.int8)))["LayerNormInteger"] == 1
