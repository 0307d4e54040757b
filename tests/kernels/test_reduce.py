"""Reductions against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import Node, assert_close, check, host, make_region

from effc.kernels.reduce import ReduceTemplate

_TEMPLATE = ReduceTemplate()
_SUMS = ["Sum", "Mean", "L1", "L2", "LogSum", "LogSumExp", "SumSquare", "Prod"]


def _x(*shape: int, dtype: str = "float32") -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 3).astype(dtype)


def _reduce(op: str, x: np.ndarray, axes: list[int] | None, **attrs: Any) -> tuple[Any, Any]:
    constants = {} if axes is None else {"axes": np.array(axes, np.int64)}
    return Node(f"Reduce{op}", ["x", *constants], attrs=attrs), constants


def _magnitude(x: np.ndarray, axes: list[int] | None, square: bool) -> float:
    """Largest sum of absolute terms, times a few units for the order of the additions."""
    terms = np.abs(x.astype(np.float64)) ** (2 if square else 1)
    total = terms.sum(axis=None if axes is None else tuple(axes))
    return float(np.max(total)) + 1.0


@settings(deadline=None, max_examples=16, derandomize=True)
@given(
    st.sampled_from(["Sum", "Mean", "Max", "Min", "SumSquare", "L1"]),
    st.lists(st.sampled_from([1, 2, 3, 8, 9, 17, 40]), min_size=1, max_size=4),
    st.data(),
)
def test_any_axes(op: str, shape: list[int], data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    x = _x(*shape)
    node, constants = _reduce(op, x, axes, keepdims=data.draw(st.integers(0, 1)))
    bound = 0.0 if op in ("Max", "Min") else _magnitude(x, axes, op == "SumSquare")
    assert_close(check(_TEMPLATE, [node], {"x": x}, constants), bound)


@pytest.mark.parametrize("op", _SUMS)
@pytest.mark.parametrize("axes", [[1], [2], [0, 2], None])
def test_all_kinds(op: str, axes: list[int] | None) -> None:
    x = np.abs(_x(2, 5, 19)) + 0.1 if op in ("LogSum", "Prod") else _x(2, 5, 19)
    x = x if op != "Prod" else x.clip(0.98, 1.02)
    node, constants = _reduce(op, x, axes)
    bound = 50.0 if op == "Prod" else _magnitude(x, axes, op == "SumSquare")
    assert_close(check(_TEMPLATE, [node], {"x": x}, constants), bound)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_positions_with_ties(op: str, last: int, axis: int) -> None:
    x = np.round(_x(7, 5, 33))
    node = Node(op, ["x"], attrs={"axis": axis, "select_last_index": last, "keepdims": last})
    assert_close(check(_TEMPLATE, [node], {"x": x}), 0.0)


@pytest.mark.parametrize(("op", "dtype"), [("Sum", "int32"), ("Max", "int8"), ("Min", "uint8"),
                                           ("Sum", "float64"), ("Mean", "float16"),
                                           ("Prod", "int64")])  # fmt: skip
def test_types(op: str, dtype: str) -> None:
    x = np.abs(_x(3, 50, dtype=dtype)) if dtype == "uint8" else _x(3, 50, dtype=dtype)
    x = x.clip(-1, 2) if op == "Prod" else x
    node, constants = _reduce(op, x, [1])
    assert_close(check(_TEMPLATE, [node], {"x": x}, constants), 150.0)


def test_long_sums_are_accurate() -> None:
    x = (np.random.default_rng(0).random((2, 200_000)) + 0.5).astype(np.float32)
    node, constants = _reduce("Sum", x, [1])
    ((got, _),) = check(_TEMPLATE, [node], {"x": x}, constants)
    exact = x.astype(np.float64).sum(axis=1, keepdims=True)
    assert (np.abs(got["y"] - exact) / exact).max() < 20 * 2.0**-24


@pytest.mark.printed
def test_epilogue_splits_merged_axes() -> None:
    nodes = [Node("ReduceMean", ["x", "axes"], ["m"]), Node("Sqrt", ["m"], ["r"]),
             Node("Add", ["r", "b"])]  # fmt: skip
    inputs = {"x": np.abs(_x(2, 6, 50)), "b": _x(6, 1)}
    constants = {"axes": np.array([2], np.int64)}
    assert_close(check(_TEMPLATE, nodes, inputs, constants), 10.0)


def test_refusals() -> None:
    x = {"x": _x(3, 4), "axes": np.array([1], np.int64)}
    region, _ = make_region([Node("Relu", ["x"])], {"x": x["x"]}, {}, ["y"], anchored=True)
    assert _TEMPLATE.refuse(region, host()) == "not a reduction"
