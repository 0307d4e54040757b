"""Expressions in C: the same values as TIR's, nothing undefined, nothing that compilers warn of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from programs_of_stages import call, stage
from tvm import tirx

from effc.c_source.module import print_stages
from effc.c_source.types import constant
from effc.errors import UnsupportedError
from effc.kernels import intrinsics
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, loop, vload, vstore
from effc.kernels.lanes import concat

LIMITS = np.iinfo(np.int32)


def mapped(expression: Any, x: np.ndarray, dtype: str) -> tuple[np.ndarray, str]:
    """``expression`` of every element, and the C that computes it."""
    y = np.zeros(x.size, dtype)

    def body(source: Any, out: Any, begin: Any, end: Any) -> None:
        with loop(x.size) as i:
            vstore(out, i, expression(bind(source[i])), 1)

    params = [("x", str(x.dtype), x.size), ("y", dtype, x.size)]
    return y, call(stage(params, body), [x, y])


def test_negative_numbers_are_shifted_left_as_unsigned_ones() -> None:
    x = np.array([-1, -128, 127, LIMITS.min // 2], np.int32)
    y, text = mapped(lambda v: tirx.shift_left(v, tirx.const(1, "int32")), x, "int32")
    np.testing.assert_array_equal(y, x * 2)
    assert "(uint32_t)" in text


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_small_types_wrap(dtype: str) -> None:
    x = np.array([0, 1, 127, 128, 200, 255, 65535], np.int64).astype(dtype)
    y, _ = mapped(lambda v: v * v + v - tirx.const(3, dtype), x, dtype)
    np.testing.assert_array_equal(y, (x.astype(np.int64) * x + x - 3).astype(dtype))


def test_bits_of_floats() -> None:
    x = np.array([0.0, -0.0, 1.5, -np.inf, np.nan], np.float32)
    y, _ = mapped(lambda v: T.reinterpret("int32", v), x, "int32")
    np.testing.assert_array_equal(y, x.view(np.int32))
    back, _ = mapped(lambda v: T.reinterpret("float32", v), y, "float32")
    assert back.tobytes() == x.tobytes()


def test_bytes_of_words_and_back() -> None:
    x = np.array([0x01020384, -2], np.int32)
    y = np.zeros(8, np.int8)
    z = np.zeros(2, np.int32)

    def body(source: Any, out: Any, again: Any, begin: Any, end: Any) -> None:
        with loop(2) as i:
            quad = bind(T.reinterpret("int8x4", bind(source[i])))
            vstore(out, i * 4, quad, 4)
            vstore(again, i, T.reinterpret("int32", quad), 1)

    call(stage([("x", "int32", 2), ("y", "int8", 8), ("z", "int32", 2)], body), [x, y, z])
    np.testing.assert_array_equal(y, x.view(np.int8))
    np.testing.assert_array_equal(z, x)


def test_rescaling_rounds_half_up() -> None:
    x = np.array([0, 1, -1, 7, LIMITS.max, LIMITS.min, 12345], np.int32)
    multiplier, right, zero = 1 << 30, 3, -7

    def rescaled(v: Any) -> Any:
        return intrinsics.rescale(v, bind(tirx.const(multiplier, "int32") + v * 0), right, zero)

    y, _ = mapped(rescaled, x, "int32")
    wide = x.astype(object) * multiplier
    want = [((v + (1 << (31 + right))) >> (32 + right)) + zero for v in wide]
    # The high word is taken first: at most one unit in the last place of it is lost.
    assert np.abs(y - np.array(want, np.int64)).max() <= 1
    high = [((v >> 32) + (1 << (right - 1)) >> right) + zero for v in wide]
    np.testing.assert_array_equal(y, np.array(high, np.int64))


@pytest.mark.parametrize("name", ["floor", "ceil", "trunc", "round_even", "absolute"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_needs_no_library(name: str, dtype: str) -> None:
    special = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, 2.0**23 + 1, -(2.0**52) - 1]
    more = np.random.default_rng(0).uniform(-1e3, 1e3, 200)
    x = np.array([*special, 1e30, np.inf, -np.inf, np.nan, *more], dtype)
    y, text = mapped(getattr(vm, name), x, dtype)
    want = {"round_even": np.rint, "absolute": np.abs}.get(name) or getattr(np, name)
    np.testing.assert_array_equal(y, want(x))
    np.testing.assert_array_equal(np.signbit(y), np.signbit(want(x)))
    assert "math.h" not in text


def test_nan_survives_clipping() -> None:
    x = np.array([np.nan, -2, 0.5, 3], np.float32)

    def clipped(v: Any) -> Any:
        low = vm.maximum(v, tirx.const(-1.0, "float32"))
        return vm.minimum(low, tirx.const(1.0, "float32"))

    y, _ = mapped(clipped, x, "float32")
    np.testing.assert_array_equal(y, np.clip(x, -1, 1))


def test_float16_weights_are_widened_exactly() -> None:
    bits = np.arange(0x7C00, dtype=np.uint16)
    x = np.concatenate([bits, bits | 0x8000]).view(np.float16)
    y, _ = mapped(lambda v: intrinsics.widen(v), x, "float32")
    assert y.tobytes() == x.astype(np.float32).tobytes()


def test_functions_of_float16_are_refused_with_the_function() -> None:
    def body(source: Any, out: Any, begin: Any, end: Any) -> None:
        vstore(out, 0, T.call_pure_extern("float16", "exp", source[0]), 1)

    one = stage([("x", "float16", 1), ("y", "float16", 1)], body)
    with pytest.raises(UnsupportedError, match=r"net_f3.*has no such function of float16"):
        print_stages({"net_f3": one})


def test_trees_of_maxima_stay_small() -> None:
    x = np.array([3, 1, np.nan, 2], np.float32)

    def largest(v: Any) -> Any:
        values = [v * tirx.const(float(k), "float32") for k in range(1, 17)]
        while len(values) > 1:
            values = [vm.maximum(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
        return values[0]

    y, text = mapped(largest, x, "float32")
    np.testing.assert_array_equal(y, 16 * x)
    assert text.count("max_f32(") == 15


HALVES = np.arange(0, 1 << 16, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize(
    ("expression", "meaning"),
    [
        (lambda v: v + tirx.const(0.1, "float16"), lambda x: x + np.float16(0.1)),
        (lambda v: v * v, lambda x: x * x),
        (lambda v: tirx.Div(tirx.const(1, "float16"), v), lambda x: np.float16(1) / x),
        (lambda v: vm.sqrt(v), np.sqrt),
        (lambda v: vm.maximum(v, tirx.const(-2, "float16")), lambda x: np.maximum(x, -2)),
        (
            lambda v: tirx.Select(v < tirx.const(0, "float16"), tirx.const(1, "float16"), v),
            lambda x: np.where(x < 0, np.float16(1), x),
        ),
    ],
)
def test_float16_is_rounded_after_every_operation(expression: Any, meaning: Any) -> None:
    y, _ = mapped(expression, HALVES, "float16")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, meaning(HALVES).astype(np.float16))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_conversions_of_float16(dtype: str) -> None:
    y, _ = mapped(lambda v: tirx.Cast("float64", tirx.Cast("float32", v)), HALVES, "float64")
    np.testing.assert_array_equal(y, HALVES.astype(np.float64))
    finite = HALVES[np.isfinite(HALVES)].astype(np.float64)
    middles = (finite[1:] + finite[:-1]) / 2
    x = np.concatenate([middles, middles * (1 + 2.0**-23), middles * (1 - 2.0**-40), [1e9]])
    x = x.astype(dtype)
    y, _ = mapped(lambda v: tirx.Cast("float16", v), x, "float16")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, x.astype(np.float16))
        np.testing.assert_array_equal(np.signbit(y), np.signbit(x.astype(np.float16)))


def test_float16_is_moved_and_filled_in() -> None:
    x = np.array([1.5, -0.0, 65504, np.nan, 6e-8], np.float16)

    def chosen(v: Any) -> Any:
        return tirx.Select(tirx.reinterpret("uint16", v) < 0x7C00, v, tirx.const(-2.5, "float16"))

    y, _ = mapped(chosen, x, "float16")
    np.testing.assert_array_equal(y, np.where(x.view(np.uint16) < 0x7C00, x, np.float16(-2.5)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_unsigned_numbers_lose_their_upper_bits(dtype: str) -> None:
    x = np.array([255, 128, 1], dtype)
    bits = np.iinfo(dtype).bits - 1
    y, _ = mapped(lambda v: tirx.shift_left(v, tirx.const(bits, dtype)), x, dtype)
    np.testing.assert_array_equal(y, np.left_shift(x, np.array(bits, dtype)))


def test_constants_above_the_signed_ones() -> None:
    largest = tirx.max_value("uint64")
    y, text = mapped(lambda v: largest - v, np.array([0, 5], np.uint64), "uint64")
    np.testing.assert_array_equal(y, np.iinfo(np.uint64).max - np.array([0, 5], np.uint64))
    assert "UINT64_C(18446744073709551615)" in text


def test_parameters_are_called_like_nothing_else() -> None:
    names = ["i", "short", "t1", "0é", "min_f32", "x.y", "x_y"]

    def body(*arguments: Any) -> None:
        *sources, out = arguments[:-2]
        with loop(2) as i:
            total = bind(sources[0][i])
            for source in sources[1:]:
                total = bind(vm.minimum(total, source[i]) + tirx.Min(total, source[i]))
            vstore(out, i, total, 1)

    arrays = [np.array([k, -k], np.float32) for k in range(len(names))]
    result = np.zeros(2, np.float32)
    params = [*((name, "float32", 2) for name in names), ("y", "float32", 2)]
    call(stage(params, body), [*arrays, result])
    want = arrays[0]
    for array in arrays[1:]:
        want = np.minimum(want, array) * 2
    np.testing.assert_array_equal(result, want)


def test_compound_conditions_have_their_parentheses() -> None:
    x = np.arange(-4, 4, dtype=np.int32)

    def chosen(v: Any) -> Any:
        inside = tirx.Or(tirx.And(v > -3, v < 0), tirx.And(v > 1, tirx.Not(v >= 3)))
        return tirx.Select(inside, tirx.bitwise_and(v + 1, 3) * 2, -v)

    y, _ = mapped(chosen, x, "int32")
    inside = ((x > -3) & (x < 0)) | ((x > 1) & ~(x >= 3))
    np.testing.assert_array_equal(y, np.where(inside, ((x + 1) & 3) * 2, -x))


def test_lanes_of_shuffles() -> None:
    x = np.arange(8, dtype=np.int32)
    y = np.zeros(8, np.int32)
    order = [7, 0, 6, 1, 5, 2, 4, 3]

    def body(source: Any, out: Any, begin: Any, end: Any) -> None:
        pair = [bind(vload(source, 0, 4)), bind(vload(source, 4, 4))]
        vstore(out, 0, concat(pair, order), 8)

    call(stage([("x", "int32", 8), ("y", "int32", 8)], body), [x, y])
    np.testing.assert_array_equal(y, x[order])


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (-5, "int32", "-5"),
        (LIMITS.min, "int32", "INT32_MIN"),
        (2**31, "uint32", "2147483648u"),
        (-(2**40), "int64", "-INT64_C(1099511627776)"),
        (0.1, "float32", "0.1f"),
        (3.0, "float64", "3.0"),
        (1e30, "float32", "1e+30f"),
        (float("-inf"), "float32", "-INFINITY"),
        (float("nan"), "float32", "NAN"),
    ],
)
def test_constants(value: float, dtype: str, text: str) -> None:
    assert constant(value, dtype) == text
    if dtype.startswith("float") and np.isfinite(value):
        assert np.dtype(dtype).type(text.rstrip("f")) == np.dtype(dtype).type(value)
