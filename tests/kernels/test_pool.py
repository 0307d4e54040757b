"""Pooling against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import Node, check, host, make_region

from effc.kernels.pool import PoolTemplate
from effc.kernels.pool_global import GlobalPoolTemplate
from effc.kernels.template import Template


def pool(
    template: Template,
    op: str,
    shape: tuple[int, ...],
    *,
    dtype: str = "float32",
    best: int = 1,
    bits: int = 256,
    tail: tuple[Node, ...] = (),
    **attrs: Any,
) -> None:
    """Maxima must be equal, sums agree to the rounding of their length."""
    x = (np.random.default_rng(0).standard_normal(shape) * 50 - 20).astype(dtype)
    nodes = [Node(op, ["x"], ("c",) if tail else ("y",), attrs), *tail]
    region, _ = make_region(nodes, {"x": x}, {}, ("y",), anchored=True)
    target = host(bits)
    configs = [c for c, _ in template.candidates(region, target)][:best]
    for found, expected in check(template, nodes, {"x": x}, target=target, configs=configs):
        if op.endswith("MaxPool"):
            np.testing.assert_array_equal(found["y"], expected["y"])
        else:
            count = np.prod(attrs.get("kernel_shape", shape[2:]))
            bound = 2 * np.finfo(x.dtype).eps * (count + 2)
            np.testing.assert_allclose(
                found["y"], expected["y"], rtol=bound, atol=bound * np.abs(x).max()
            )


@pytest.mark.parametrize(
    ("op", "shape", "attrs"),
    [
        ("MaxPool", (1, 3, 15, 17), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
        ("MaxPool", (2, 2, 13, 13), {"kernel_shape": [13, 13], "pads": [6] * 4}),
        ("MaxPool", (1, 2, 15, 41), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", (1, 2, 9, 30), {"kernel_shape": [2, 3], "dilations": [3, 2]}),
        ("MaxPool", (1, 2, 9, 30), {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER"}),
        ("MaxPool", (1, 3, 40), {"kernel_shape": [3], "strides": [3]}),
        (
            "MaxPool",
            (1, 2, 7, 8, 9),
            {"kernel_shape": [3, 2, 2], "strides": [2, 1, 1], "pads": [1, 0, 1, 1, 1, 0]},
        ),
        ("AveragePool", (1, 2, 15, 17), {"kernel_shape": [3, 3], "pads": [1] * 4}),
        (
            "AveragePool",
            (1, 2, 15, 18),
            {"kernel_shape": [3, 4], "strides": [2, 3], "pads": [1, 2, 0, 2], "ceil_mode": 1},
        ),
        (
            "AveragePool",
            (1, 2, 15, 18),
            {
                "kernel_shape": [3, 4],
                "strides": [2, 3],
                "pads": [1, 2, 0, 2],
                "ceil_mode": 1,
                "count_include_pad": 1,
            },
        ),
        ("AveragePool", (1, 2, 6, 5, 7), {"kernel_shape": [3, 2, 2], "pads": [1] * 6}),
        ("LpPool", (1, 2, 15, 18), {"kernel_shape": [3, 3], "strides": [2, 2], "p": 2}),
        ("LpPool", (1, 2, 15, 18), {"kernel_shape": [3, 3], "p": 1}),
    ],
)
def test_windows(op: str, shape: tuple[int, ...], attrs: dict[str, Any]) -> None:
    pool(PoolTemplate(), op, shape, **attrs)


@pytest.mark.parametrize("dtype", ["float64", "int8", "uint8"])
def test_dtypes(dtype: str) -> None:
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    pool(PoolTemplate(), "MaxPool", (1, 2, 19, 70), dtype=dtype, **attrs)


@pytest.mark.parametrize("bits", [0, 128])
def test_other_vector_widths(bits: int) -> None:
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    pool(PoolTemplate(), "MaxPool", (1, 2, 9, 21), bits=bits, **attrs)


def test_every_configuration() -> None:
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    pool(PoolTemplate(), "AveragePool", (1, 2, 28, 28), best=99, **attrs)


@pytest.mark.printed
def test_epilogue() -> None:
    tail = (Node("Relu", ["c"], ("y",)),)
    pool(PoolTemplate(), "AveragePool", (1, 2, 9, 9), tail=tail, kernel_shape=[2, 2])
    pool(GlobalPoolTemplate(), "GlobalAveragePool", (1, 2, 9, 9), tail=tail)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.sampled_from(["MaxPool", "AveragePool"]),
    st.integers(5, 40),
    st.integers(5, 40),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_any_shape(op: str, h: int, w: int, kernel: int, stride: int) -> None:
    pads = [kernel // 2, 0, (kernel - 1) // 2, kernel // 2]
    attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
    pool(PoolTemplate(), op, (1, 2, h, w), **attrs)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 2, 1, 1), (1, 2, 33, 31), (1, 2, 3, 4, 5)])
def test_global(op: str, shape: tuple[int, ...]) -> None:
    pool(GlobalPoolTemplate(), op, shape, best=2)


def test_window_of_the_whole_plane_is_global() -> None:
    pool(GlobalPoolTemplate(), "AveragePool", (1, 3, 7, 7), kernel_shape=[7, 7])


def test_refuses() -> None:
    x = {"x": np.ones((1, 2, 8, 8), np.float32)}
    attrs = {"kernel_shape": [2, 2]}
    indices, _ = make_region(
        [Node("MaxPool", ["x"], ("y", "i"), attrs)], x, {}, ("y", "i"), anchored=True
    )
    assert "indices" in (PoolTemplate().refuse(indices, host()) or "")
    windowed, _ = make_region([Node("MaxPool", ["x"], attrs=attrs)], x, {}, ("y",), anchored=True)
    assert "cover" in (GlobalPoolTemplate().refuse(windowed, host()) or "")
    norm, _ = make_region(
        [Node("LpPool", ["x"], attrs={**attrs, "p": 3})], x, {}, ("y",), anchored=True
    )
    assert "p=3" in (PoolTemplate().refuse(norm, host()) or "")
