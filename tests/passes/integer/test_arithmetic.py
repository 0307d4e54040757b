"""Fixed-point constants and their arithmetic against exact rational numbers."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from effc.passes.integer.arithmetic import add_factors, add_rescaled, factors, requantize

REAL = st.floats(2.0**-40, 2.0**12)


@given(st.lists(REAL, min_size=1, max_size=5))
@example([1.0])
@example([0.25, 2.0**-33])
@example([1 - 2.0**-40])
def test_factors_are_close_and_fit(values: list[float]) -> None:
    found = factors(np.array(values))
    assert found.right >= 1
    assert found.multiplier.min() >= 0
    assert (found.left == 0) == (max(values) < 0.25 * (1 - 2.0**-32))
    scale = Fraction(2) ** (found.left - 32 - found.right)
    for value, multiplier in zip(values, found.multiplier, strict=True):
        assert abs(int(multiplier) * scale - Fraction(value)) <= scale / 2


@given(st.integers(-(2**31) + 256, 2**31 - 257), REAL, st.integers(-128, 255))
@example(5, 0.5, 0)
@example(-5, 0.5, 0)
@example(2**31 - 257, 4000.0, -128)
def test_requantize_rounds_the_exact_product_half_up(x: int, real: float, x_zero: int) -> None:
    found = factors(real)
    got = requantize(
        np.array([x]),
        found.multiplier,
        x_zero=x_zero,
        left=found.left,
        right=found.right,
        zero=3,
        low=-128,
        high=127,
    )
    factor = int(found.multiplier) * Fraction(2) ** (found.left - 32 - found.right)
    exact = floor((x - x_zero) * factor + Fraction(1, 2)) + 3
    assert int(got[0]) == min(max(exact, -128), 127)


def test_a_factor_of_one_changes_nothing() -> None:
    x = np.arange(-128, 128)
    one = factors(1.0)
    got = requantize(x, one.multiplier, left=one.left, right=one.right, zero=0, low=-128, high=127)
    np.testing.assert_array_equal(got, x)


SIGNED = st.floats(-8, 8).filter(lambda v: abs(v) > 2.0**-12)


@given(SIGNED, SIGNED, st.integers(-128, 255), st.integers(-128, 255))
@example(1.0, -1.0, 0, 0)
@example(1 - 2.0**-30, 0.1, 255, -128)
def test_add_rescaled_is_within_a_step_and_int32(a: float, b: float, az: int, bz: int) -> None:
    found = add_factors(a, b, az, bz)
    assert max(abs(found.a_multiplier), abs(found.b_multiplier)) < 2**21
    x = np.arange(-128, 256, 7)
    y = x[::-1].copy()
    got = add_rescaled(x, y, **vars(found), zero=1, low=-(2**31), high=2**31 - 1)
    exact = (x - az) * a + (y - bz) * b + 1
    assert np.abs(got - exact).max() <= 0.5 + 2 * 383 * 2.0 ** -(found.right + 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 2.0**20])
def test_what_has_no_fixed_point_form(value: float) -> None:
    with pytest.raises(ValueError, match="no fixed-point form"):
        factors(value)
