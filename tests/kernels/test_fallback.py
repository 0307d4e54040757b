"""The fallback template: operators through TVM, and those of our own, against ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from single_op import Node, check, host, make_region, region_of, run_kernel

from effc.kernels.fallback import FallbackTemplate

RNG = np.random.default_rng(7)
TEMPLATE = FallbackTemplate()


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def compare(
    op: str,
    inputs: list[np.ndarray | None],
    *,
    constants: list[int] = (),  # type: ignore[assignment]
    outputs: tuple[str, ...] = ("y",),
    terms: int = 1,
    **attrs: Any,
) -> None:
    """Check one operator; operands whose position is in ``constants`` are known when compiling.

    The tolerance is for sums of ``terms`` products of the operands' size.
    """
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(inputs)]
    known = {names[i]: inputs[i] for i in constants if inputs[i] is not None}
    fed = {n: v for n, v in zip(names, inputs, strict=True) if v is not None and n not in known}
    node = Node(op, names, outputs, attrs)
    for mine, theirs in check(TEMPLATE, [node], fed, known, [o for o in outputs if o]):
        for name, expected in theirs.items():
            if expected.dtype.kind in "biu":
                np.testing.assert_array_equal(mine[name], expected)
                continue
            largest = max(float(np.abs(v).max()) for v in inputs if v is not None and v.size)
            bound = 4 * np.finfo(expected.dtype).eps * (terms + 4) * max(largest, 1.0) ** 2
            np.testing.assert_allclose(mine[name], expected, rtol=1e-6, atol=bound)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("flags", [{}, {"exclusive": 1}, {"reverse": 1, "exclusive": 1}])
def test_cumsum(axis: int, flags: dict[str, int]) -> None:
    compare("CumSum", [floats(3, 5, 4), np.array(axis, np.int64)], constants=[1], terms=5, **flags)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_topk_breaks_ties_by_index(axis: int, largest: int) -> None:
    x = RNG.integers(0, 4, (7, 9)).astype(np.float32)
    compare("TopK", [x, ints(5)], constants=[1], outputs=("y", "i"), axis=axis, largest=largest)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_elements(reduction: str) -> None:
    indices = np.stack([RNG.permutation(6)[:3] for _ in range(4)]) - 3
    compare(
        "ScatterElements",
        [floats(4, 6), indices.astype(np.int64), floats(4, 3)],
        axis=1,
        reduction=reduction,
    )


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_nd(reduction: str) -> None:
    indices = np.array([[[0, 1], [3, -1]], [[2, 0], [1, 1]]], np.int64)
    compare("ScatterND", [floats(4, 3, 5), indices, floats(2, 2, 5)], reduction=reduction)


@pytest.mark.printed
def test_scatter_drops_updates_outside_the_tensor() -> None:
    """A wrong index must not write outside; ONNX leaves the result undefined."""
    data, indices, updates = floats(4, 3), np.array([[9], [1]], np.int64), floats(2, 3)
    values = {"d": data, "i": indices, "u": updates, "y": data}
    node = Node("ScatterND", ["d", "i", "u"])
    region = region_of([node], values, ["d", "i", "u"], {}, ["y"], anchored=True)
    kernel = TEMPLATE.build(region, host(), {})
    result = run_kernel(kernel, region, {"d": data, "i": indices, "u": updates}, host())["y"]
    expected = data.copy()
    expected[1] = updates[1]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis: int) -> None:
    indices = RNG.integers(-6, 6, (3, 4)).astype(np.int64)
    compare("OneHot", [indices, ints(6), np.array([2, 5], np.float32)], constants=[1], axis=axis)


@pytest.mark.parametrize("time", [0, 1])
def test_reverse_sequence(time: int) -> None:
    compare(
        "ReverseSequence", [floats(4, 4, 3), ints(1, 4, 2, 3)], time_axis=time, batch_axis=1 - time
    )


@pytest.mark.printed
def test_max_unpool() -> None:
    values, indices = floats(1, 1, 2, 2), np.array([[[[5, 7], [8, 15]]]], np.int64)
    compare("MaxUnpool", [values, indices], kernel_shape=[2, 2], strides=[2, 2])


@pytest.mark.parametrize("order", [0, 1])
def test_max_pool_with_indices(order: int) -> None:
    compare(
        "MaxPool",
        [floats(2, 3, 7, 8)],
        outputs=("y", "i"),
        kernel_shape=[3, 2],
        strides=[2, 3],
        pads=[1, 0, 1, 1],
        storage_order=order,
    )


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_tensor_scatter_drops_or_wraps(mode: str) -> None:
    cache, update = floats(2, 3, 5, 4), floats(2, 3, 2, 4)
    values = {"c": cache, "u": update, "s": ints(1, 4), "y": cache}
    node = Node("TensorScatter", ["c", "u", "s"], attrs={"mode": mode})
    region = region_of([node], values, ["c", "u", "s"], {}, ["y"], anchored=True)
    kernel = TEMPLATE.build(region, host(), {})
    got = run_kernel(kernel, region, {k: values[k] for k in "cus"}, host())["y"]
    expected = cache.copy()
    expected[0, :, 1:3] = update[0]
    expected[1, :, 4] = update[1, :, 0]
    if mode == "circular":
        expected[1, :, 0] = update[1, :, 1]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.uint8])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_extremes_of_infinities(op: str, dtype: Any) -> None:
    """TVM's importer starts from the lowest finite number, ONNX from an infinity."""
    x = RNG.integers(0, 100, (3, 4, 5)).astype(dtype)
    if np.issubdtype(dtype, np.floating):
        x[1] = -np.inf if op == "ReduceMax" else np.inf
    region, expected = make_region(
        [Node(op, ["x", "a"], attrs={"keepdims": 0})],
        {"x": x},
        {"a": ints(-2)},
        ["y"],
        anchored=True,
    )
    got = run_kernel(TEMPLATE.build(region, host(), {}), region, {"x": x}, host())
    np.testing.assert_array_equal(got["y"], expected["y"])


@pytest.mark.printed
def test_gather_nd() -> None:
    compare("GatherND", [floats(2, 3, 4), RNG.integers(0, 3, (2, 5, 1))], batch_dims=1)


def recurrent(kind: str, gates: int, directions: int, **more: Any) -> list[np.ndarray | None]:
    steps, batch, width, hidden = 5, 3, 6, 11
    operands: list[np.ndarray | None] = [
        floats(steps, batch, width),
        floats(directions, gates * hidden, width) / 4,
        floats(directions, gates * hidden, hidden) / 4,
        floats(directions, 2 * gates * hidden),
        np.array([5, 2, 4], np.int32),
        floats(directions, batch, hidden),
    ]
    if kind == "LSTM":
        operands += [floats(directions, batch, hidden), floats(directions, 3 * hidden)]
    return operands


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(direction: str, constant: bool) -> None:
    operands = recurrent("LSTM", 4, 2 if direction == "bidirectional" else 1)
    compare(
        "LSTM",
        operands,
        constants=[1, 2, 3] if constant else [],
        outputs=("y", "h", "c"),
        terms=90,
        hidden_size=11,
        direction=direction,
    )


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_gru(direction: str, before: int) -> None:
    operands = recurrent("GRU", 3, 2 if direction == "bidirectional" else 1)
    compare(
        "GRU",
        operands,
        constants=[1, 2, 3],
        outputs=("y", "h"),
        terms=90,
        hidden_size=11,
        direction=direction,
        linear_before_reset=before,
    )


@pytest.mark.parametrize("activation", ["Tanh", "Relu", "HardSigmoid", "Softsign"])
def test_rnn(activation: str) -> None:
    compare(
        "RNN",
        recurrent("RNN", 1, 1),
        constants=[1, 2],
        outputs=("y", "h"),
        terms=90,
        hidden_size=11,
        activations=[activation],
        clip=3.0,
    )


def test_importer_operators() -> None:
    compare("Einsum", [floats(3, 4), floats(4, 5)], equation="ij,jk->ik", terms=4)
    compare(
        "GridSample",
        [floats(1, 2, 5, 6), RNG.uniform(-1.1, 1.1, (1, 3, 4, 2)).astype("f")],
        terms=4,
    )
    compare("Trilu", [floats(4, 5), np.array(1, np.int64)], constants=[1], upper=0)
    compare("LRN", [floats(1, 6, 3, 3)], size=3, terms=3)


def test_constants_of_the_region_are_weights() -> None:
    """Equal signatures share functions, so weights must not be written into code."""
    node = Node("GatherElements", ["x", "i"])
    x = floats(5, 40)
    kernels = []
    for seed in (1, 2):
        indices = np.random.default_rng(seed).integers(0, 5, (5, 40))
        region, _ = make_region([node], {"x": x}, {"i": indices}, ["y"], anchored=True)
        kernels.append(TEMPLATE.build(region, host(), {}))
    assert all(s.func.same_as(t.func) for s, t in zip(*(k.stages for k in kernels), strict=True))
    assert not np.array_equal(kernels[0].weights["i1"], kernels[1].weights["i1"])


def test_refusals_are_sentences() -> None:
    boxes, scores = floats(1, 6, 4), floats(1, 1, 6)
    values = {"b": boxes, "s": scores, "y": np.zeros((1, 3), np.int64)}
    node = Node("NonMaxSuppression", ["b", "s"])
    region = region_of([node], values, ["b", "s"], {}, ["y"], anchored=True)
    why = TEMPLATE.refuse(region, host())
    assert why is not None
    assert why.startswith("NonMaxSuppression: ")
