"""Grids: zero is on them, errors are bounded by half a step, weights keep zeros and signs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.passes.quantization.grid import grid_of, round_to, scales_of

RANGES = st.tuples(st.floats(-1e4, 1e4, width=32), st.floats(-1e4, 1e4, width=32))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(RANGES, st.sampled_from([8, 16]))
def test_grid(ends: tuple[float, float], bits: int) -> None:
    low, high = sorted(ends)
    grid = grid_of(low, high, bits)
    assert grid.dequantize(grid.quantize(np.zeros(1)))[0] == 0
    inside = np.linspace(max(grid.low, min(low, 0)), min(grid.high, max(high, 0)), 99)
    inside = inside.astype(np.float32)
    error = np.abs(grid.dequantize(grid.quantize(inside)) - inside)
    # float32 rounds x / scale (up to 2^16 steps of 2^-24) and the product.
    assert error.max() <= grid.scale * (0.5 + 2.0**-6)
    # The zero point is rounded, so both ends move by half a step at most.
    assert grid.low <= min(low, 0) + grid.scale * 0.51
    assert grid.high >= max(high, 0) - grid.scale * 0.51


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]))
def test_weights(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((5, 7)) * 10.0 ** rng.integers(-20, 20, (5, 1))).astype(np.float32)
    rows[rng.random(rows.shape) < 0.4] = 0
    rows[1] = 0
    scales = scales_of(rows, bits)
    found = round_to(rows, scales, bits)
    most = 2 ** (bits - 1) - 1
    assert np.abs(found).max(initial=0) <= most
    assert not found[rows == 0].any()
    np.testing.assert_array_equal(round_to(-rows, scales, bits), -found)
    error = np.abs(found * scales[:, None].astype(np.float64) - rows)
    assert (error <= scales[:, None] * (0.5 + 1e-5)).all()


def test_nothing_but_zeros() -> None:
    grid = grid_of(0.0, 0.0)
    assert (grid.scale, grid.zero) == (1.0, 0)
    np.testing.assert_array_equal(scales_of(np.zeros((2, 3), np.float32)), [1, 1])
