"""Softmax and LogSoftmax against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import Node, assert_close, check, host, make_region

from effc.kernels.softmax import SoftmaxTemplate

_TEMPLATE = SoftmaxTemplate()


def _x(*shape: int, dtype: str = "float32") -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 5).astype(dtype)


@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    st.sampled_from(["Softmax", "LogSoftmax"]),
    st.lists(st.sampled_from([1, 2, 5, 7, 8, 9, 17, 33, 70]), min_size=1, max_size=3),
    st.data(),
)
def test_any_axis(op: str, shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    node = Node(op, ["x"], attrs={"axis": axis})
    # exp's relative error grows with the magnitude of its argument's rounding, below 2 eps.
    bound = 4.0 if op == "Softmax" else 64.0
    assert_close(check(_TEMPLATE, [node], {"x": _x(*shape)}, inplace=True), bound)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types(dtype: str) -> None:
    node = Node("Softmax", ["x"], attrs={"axis": -1})
    assert_close(check(_TEMPLATE, [node], {"x": _x(3, 37, dtype=dtype)}), 1.0)


@pytest.mark.printed
def test_long_row_and_infinite_mask() -> None:
    x = _x(2, 5000)
    x[:, 100:200] = -np.inf
    assert_close(check(_TEMPLATE, [Node("Softmax", ["x"], attrs={"axis": -1})], {"x": x}), 1.0)


def test_epilogue_that_reads_the_input_is_not_done_in_place() -> None:
    nodes = [Node("Softmax", ["x"], ["s"], {"axis": -1}), Node("Mul", ["s", "x"])]
    inputs = {"x": _x(4, 37)}
    region, _ = make_region(nodes, inputs, {}, ["y"], anchored=True)
    assert _TEMPLATE.build(region, host(), {}).inplace == ()
    assert_close(check(_TEMPLATE, nodes, inputs), 20.0)


@pytest.mark.printed
def test_epilogue_across_columns() -> None:
    nodes = [Node("Softmax", ["x"], ["s"], {"axis": 1}), Node("Mul", ["s", "b"])]
    assert_close(check(_TEMPLATE, nodes, {"x": _x(2, 5, 37), "b": _x(5, 1)}), 20.0)


def test_refuses_what_it_does_not_know() -> None:
    region, _ = make_region([Node("Relu", ["x"])], {"x": _x(3)}, {}, ["y"], anchored=True)
    assert _TEMPLATE.refuse(region, host()) == "not a softmax"
