"""SumPool, MaxPool8 and Lookup against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import Node, check, targets

from effc.devices.target import Target
from effc.kernels.lookup import LookupTemplate
from effc.kernels.pool_quads import QuadPool
from effc.passes.integer.arithmetic import factors


@given(st.data())
@settings(max_examples=10, deadline=None)
def test_windows(data: st.DataObject) -> None:
    draw = data.draw
    rank = draw(st.integers(1, 3))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * rank))
    attrs = {
        "kernel_shape": kernel,
        "strides": draw(st.tuples(*[st.integers(1, 3)] * rank)),
        "dilations": draw(st.tuples(*[st.integers(1, 2)] * rank)),
        "pads": tuple(draw(st.integers(0, k - 1)) for k in 2 * kernel),
        "ceil_mode": draw(st.integers(0, 1)),
    }
    dtype = draw(st.sampled_from(["int8", "uint8"]))
    sizes = tuple(draw(st.integers(2 * k, 9)) for k in kernel)
    low = np.iinfo(dtype).min
    generator = np.random.default_rng(3)
    x = generator.integers(low, low + 256, (2, draw(st.integers(1, 3)), *sizes, 4)).astype(dtype)
    check(QuadPool(), [Node("MaxPool8", ["x"], attrs=attrs)], {"x": x})
    check(QuadPool(), [Node("SumPool", ["x"], attrs={**attrs, "x_zero": 5})], {"x": x})


@pytest.mark.parametrize("sizes", [(7, 7), (1, 1), (5, 3)])
@pytest.mark.printed
def test_average_of_a_plane(sizes: tuple[int, int]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (1, 5, *sizes, 4), np.uint8)
    mean = factors(1 / (3 * sizes[0] * sizes[1]))
    bounds = {"left": mean.left, "right": mean.right, "zero": 3, "low": 0, "high": 255, "to": 2}
    nodes = [
        Node("SumPool", ["x"], "s", {"kernel_shape": sizes, "x_zero": 7}),
        Node("Requantize", ["s", "m"], attrs=bounds),
    ]
    check(QuadPool(), nodes, {"x": x}, {"m": mean.multiplier})


@pytest.mark.parametrize("target", targets(), ids=lambda t: f"{t.vector_bits}{t.cpu}")
@pytest.mark.parametrize(("source", "to"), [("int8", "uint8"), ("uint8", "int8"), ("int8", "int8")])
def test_lookup(source: str, to: str, target: Target) -> None:
    generator = np.random.default_rng(0)
    low = np.iinfo(source).min
    table = generator.permutation(256).astype(np.uint8).view(to)
    for size in (1, 17, 300, 9000):
        x = generator.integers(low, low + 256, size).astype(source)
        check(LookupTemplate(), [Node("Lookup", ["x", "t"])], {"x": x}, {"t": table}, target=target)
