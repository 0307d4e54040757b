"""Plain integer convolutions and matrix products against the NumPy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from integer_cases import Node, check

from effc.kernels.integer_products import PlainConvInteger, PlainMatMulInteger
from effc.passes.integer.arithmetic import factors
from effc.passes.integer.reference import to_quads


def _conv(draw: Any) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """Attributes, input shape (plain) and weight shape."""
    rank = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["dense", "depthwise", "groups"]))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * rank))
    attrs: dict[str, Any] = {
        "pads": draw(st.tuples(*[st.integers(0, 2)] * (2 * rank))),
        "strides": draw(st.tuples(*[st.integers(1, 3)] * rank)),
        "dilations": draw(st.tuples(*[st.integers(1, 2)] * rank)),
        "x_zero": draw(st.sampled_from([0, 3, 128])),
    }
    group, depth, filters = 1, draw(st.integers(1, 10)), draw(st.integers(1, 10))
    if kind == "depthwise":
        group, depth, filters = depth + 1, 1, depth + 1
    elif kind == "groups":
        group, depth, filters = 2, draw(st.sampled_from([4, 8])), draw(st.sampled_from([8, 16]))
    attrs["group"] = group
    sizes = tuple(draw(st.integers(2 * k, 7)) for k in kernel)
    return attrs, (draw(st.integers(1, 2)), depth * group, *sizes), (filters, depth, *kernel)


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_convolution(data: st.DataObject) -> None:
    attrs, x_shape, w_shape = _conv(data.draw)
    dtype = data.draw(st.sampled_from(["int8", "uint8"]))
    generator = np.random.default_rng(7)
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    x = to_quads(generator.integers(low, high + 1, x_shape).astype(dtype), 99)
    constants = {
        "w": generator.integers(-128, 128, w_shape, np.int8),
        "b": generator.integers(-5000, 5000, w_shape[0], np.int32),
    }
    filters = w_shape[0]
    conv = Node("ConvInteger", ["x", "w", "b"], "c", attrs)
    scale = factors(np.linspace(0.001, 0.02, -(-filters // 4) * 4))
    constants["m"] = scale.multiplier.reshape(-1, *[1] * (len(w_shape) - 2), 4)
    bounds = {"left": scale.left, "right": scale.right, "zero": 3, "low": low, "high": high}
    to = {"int8": 3, "uint8": 2}[dtype]
    nodes = [conv, Node("Requantize", ["c", "m"], attrs={**bounds, "to": to})]
    whole = filters % 4 or 4
    missing = (slice(None), -1, ..., slice(whole, 4))
    check(PlainConvInteger(), nodes, {"x": x}, constants, ignore=missing)


@given(
    st.sampled_from([((), ()), ((2,), ()), ((2, 3), (2, 3)), ((), (3,)), ((2, 1), (3,))]),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 40),
    st.booleans(),
)
@example(((), ()), 1, 600, 17, True)
@settings(max_examples=12, deadline=None)
def test_matrix_product(
    batches: tuple[tuple[int, ...], tuple[int, ...]], m: int, k: int, n: int, constant: bool
) -> None:
    generator = np.random.default_rng(k)
    a = generator.integers(0, 256, (*batches[0], m, k), np.uint8)
    b = generator.integers(-128, 128, (*batches[1], k, n), np.int8)
    bias = generator.integers(-99, 99, n, np.int32)
    nodes = [Node("MatMulInteger", ["a", "b", "c"], attrs={"a_zero": 128, "b_zero": -3})]
    constants = {"c": bias, **({"b": b} if constant else {})}
    inputs = {"a": a, **({} if constant else {"b": b})}
    check(PlainMatMulInteger(), nodes, inputs, constants)
