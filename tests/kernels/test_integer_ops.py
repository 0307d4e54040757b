"""Element-wise integer operators: the bits of the NumPy reference, at the edges too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from integer_cases import Node, check, targets

from effc.devices.target import Target
from effc.kernels.elementwise import ElementwiseTemplate
from effc.passes.integer.arithmetic import add_factors, factors

TO = {"int8": 3, "uint8": 2}
LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}


def requantize(
    real: float | np.ndarray, dtype: str, **more: Any
) -> tuple[dict[str, Any], np.ndarray]:
    """Attributes and multiplier of a Requantize by ``real``."""
    found = factors(real)
    low, high = LIMITS[dtype]
    attrs = {"left": found.left, "right": found.right, "zero": 3, "low": low, "high": high}
    return {**attrs, "to": TO[dtype], **more}, found.multiplier


@pytest.mark.parametrize("target", targets(), ids=lambda t: f"{t.vector_bits}{t.cpu}")
@pytest.mark.parametrize("real", [0.7, 0.25, 2.0**-12, 2.0**-34, 300.0])
def test_requantize_of_accumulators(target: Target, real: float) -> None:
    edge = [2**31 - 1, -(2**31), 0, 1, -1, 2**30, *range(-600, 600, 7)]
    x = np.array(edge, np.int32).reshape(2, -1)
    attrs, multiplier = requantize(real, "int8")
    node = Node("Requantize", ["x", "m"], attrs=attrs)
    check(ElementwiseTemplate(), [node], {"x": x}, {"m": multiplier}, anchored=False, target=target)


@given(
    st.sampled_from(["int8", "uint8"]),
    st.sampled_from(["int8", "uint8"]),
    st.floats(2.0**-9, 2.0**9),
    st.integers(1, 70),
)
@example("uint8", "int8", 1.0, 64)
@settings(max_examples=12, deadline=None)
def test_requantize_of_bytes(source: str, to: str, real: float, count: int) -> None:
    low, high = LIMITS[source]
    x = np.random.default_rng(count).integers(low, high + 1, (3, count)).astype(source)
    attrs, multiplier = requantize(real, to, x_zero=low + 100)
    node = Node("Requantize", ["x", "m"], attrs=attrs)
    check(ElementwiseTemplate(), [node], {"x": x}, {"m": multiplier}, anchored=False)


@pytest.mark.printed
def test_requantize_per_channel_in_quads() -> None:
    x = np.random.default_rng(0).integers(-(10**6), 10**6, (1, 3, 5, 4), np.int32)
    attrs, multiplier = requantize(np.linspace(1e-5, 1e-3, 12), "uint8")
    node = Node("Requantize", ["x", "m"], attrs=attrs)
    check(
        ElementwiseTemplate(), [node], {"x": x}, {"m": multiplier.reshape(3, 1, 4)}, anchored=False
    )


@given(
    st.sampled_from(["int8", "uint8"]),
    st.floats(0.01, 4),
    st.floats(-4, 4).filter(lambda v: abs(v) > 0.01),
    st.integers(1, 70),
)
@settings(max_examples=12, deadline=None)
def test_add_rescaled(dtype: str, a: float, b: float, count: int) -> None:
    low, high = LIMITS[dtype]
    generator = np.random.default_rng(count)
    x, y = (generator.integers(low, high + 1, (2, count)).astype(dtype) for _ in range(2))
    x[0, 0], y[0, 0] = low, high
    attrs = {**vars(add_factors(a, b, low + 5, high)), "zero": low + 9, "low": low, "high": high}
    node = Node("AddRescaled", ["a", "b"], attrs={**attrs, "to": TO[dtype]})
    check(ElementwiseTemplate(), [node], {"a": x, "b": y}, anchored=False)


@pytest.mark.parametrize("target", targets(), ids=lambda t: f"{t.vector_bits}{t.cpu}")
def test_a_chain_of_products_and_flips(target: Target) -> None:
    generator = np.random.default_rng(1)
    a = generator.integers(0, 256, (2, 3, 7, 4), np.uint8)
    b = generator.integers(0, 256, (2, 3, 1, 4), np.uint8)
    attrs, multiplier = requantize(0.003, "int8", zero=-7)
    nodes = [
        Node("MulInteger", ["a", "b"], "p", {"a_zero": 3, "b_zero": 255}),
        Node("Requantize", ["p", "m"], "r", attrs),
        Node("FlipSign", ["r"]),
    ]
    inputs = {"a": a, "b": b}
    check(ElementwiseTemplate(), nodes, inputs, {"m": multiplier}, anchored=False, target=target)
