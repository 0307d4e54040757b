"""Data movement against ONNX Runtime: copies, pads and gathers are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import Node, check, host, make_region, region_of, run_kernel

from effc.kernels.gather import GatherTemplate
from effc.kernels.layout import CopyTemplate
from effc.kernels.pad import PadTemplate
from effc.kernels.template import Template

_COPY = CopyTemplate()


def _x(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * 50).astype(dtype)


def _exact(
    template: Template, nodes: list[Node], inputs: Any, constants: Any = None, **more: Any
) -> None:
    for got, expected in check(template, nodes, inputs, constants, **more):
        for name, want in expected.items():
            np.testing.assert_array_equal(got[name], want)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "float64", "float16"])
@pytest.mark.parametrize(
    ("shape", "order"),
    [((2, 3, 33, 17), (0, 2, 3, 1)), ((2, 33, 17, 3), (0, 3, 1, 2)), ((50, 33), (1, 0)),
     ((1, 40, 7, 9), (0, 2, 3, 1)), ((2, 8, 16, 24), (0, 2, 1, 3)), ((4, 5, 6, 7), (3, 1, 0, 2))],
)  # fmt: skip
def test_transpose(shape: tuple[int, ...], order: tuple[int, ...], dtype: str) -> None:
    _exact(_COPY, [Node("Transpose", ["x"], attrs={"perm": order})], {"x": _x(*shape, dtype=dtype)})


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.lists(st.sampled_from([1, 2, 3, 5, 8, 9, 17]), min_size=1, max_size=5), st.data())
def test_transpose_any(shape: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    _exact(_COPY, [Node("Transpose", ["x"], attrs={"perm": list(order)})], {"x": _x(*shape)})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_with_a_constant(axis: int) -> None:
    node = Node("Concat", ["a", "b", "a"], attrs={"axis": axis})
    _exact(_COPY, [node], {"a": _x(2, 3, 7)}, {"b": _x(2, 3, 7, seed=1)})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split(axis: int) -> None:
    node = Node("Split", ["x", "n"], ["p", "q"], {"axis": axis})
    sizes = np.array([1, 3], np.int64)
    _exact(_COPY, [node], {"x": _x(4, 4, 4)}, {"n": sizes}, outputs=("p", "q"))


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [([1, 2], [3, -1], [0, 2], [1, 2]), ([-1], [-100], [2], [-1]),
     ([5, 0], [0, 9], [1, 0], [-2, 1]), ([100], [-100], [0], [-1]), ([-3], [1000], [-1], [1])],
)  # fmt: skip
def test_slice(starts: Any, ends: Any, axes: Any, steps: Any) -> None:
    names = ["starts", "ends", "axes", "steps"]
    values = (np.array(v, np.int64) for v in (starts, ends, axes, steps))
    constants = dict(zip(names, values, strict=True))
    _exact(_COPY, [Node("Slice", ["x", *names])], {"x": _x(4, 6, 40)}, constants)


@pytest.mark.parametrize(
    ("shape", "to"), [((3, 1, 7), (2, 3, 5, 7)), ((3, 1), (3, 50)), ((), (9,))]
)
def test_expand(shape: tuple[int, ...], to: tuple[int, ...]) -> None:
    _exact(_COPY, [Node("Expand", ["x", "s"])], {"x": _x(*shape)}, {"s": np.array(to, np.int64)})


def test_tile() -> None:
    repeats = {"s": np.array([2, 1, 3], np.int64)}
    _exact(_COPY, [Node("Tile", ["x", "s"])], {"x": _x(3, 4, 7)}, repeats)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize(("block", "depth", "width"), [(2, 3, 21), (3, 1, 40), (4, 2, 5)])
def test_depth_to_space(mode: str, block: int, depth: int, width: int) -> None:
    x = _x(2, depth * block * block, 5, width)
    _exact(_COPY, [Node("DepthToSpace", ["x"], attrs={"mode": mode, "blocksize": block})], {"x": x})


@pytest.mark.printed
def test_space_to_depth() -> None:
    _exact(_COPY, [Node("SpaceToDepth", ["x"], attrs={"blocksize": 2})], {"x": _x(2, 3, 6, 42)})


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize(
    ("pads", "shape"),
    [((0, 0, 1, 2, 0, 0, 3, 4), (2, 3, 7, 21)), ((0, 1, 0, 1), (3, 20)), ((2, 0, 0, 1), (5, 5)),
     ((0, 2, 2, 0, 0, 1, 1, 0), (1, 5, 6, 9)), ((0, 0), (4,))],
)  # fmt: skip
def test_pad(mode: str, pads: tuple[int, ...], shape: tuple[int, ...]) -> None:
    constants = {"p": np.array(pads, np.int64)}
    _exact(
        PadTemplate(), [Node("Pad", ["x", "p"], attrs={"mode": mode})], {"x": _x(*shape)}, constants
    )


@pytest.mark.printed
def test_pad_crops_and_takes_a_runtime_value() -> None:
    inputs = {"x": _x(5, 9), "v": np.array(3.5, np.float32)}
    constants = {"p": np.array([-1, 2, 0, -3], np.int64)}
    _exact(PadTemplate(), [Node("Pad", ["x", "p", "v"])], inputs, constants)


def test_pad_on_chosen_axes() -> None:
    constants = {"p": np.array([1, 2], np.int64), "v": np.array(3.5, np.float32),
                 "a": np.array([-2], np.int64)}  # fmt: skip
    _exact(PadTemplate(), [Node("Pad", ["x", "p", "v", "a"])], {"x": _x(5, 9, 4)}, constants)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_gather(axis: int, dtype: str) -> None:
    index = np.array([[0, 3], [-1, 5]], dtype)
    _exact(GatherTemplate(), [Node("Gather", ["x", "i"], attrs={"axis": axis})],
           {"x": _x(10, 33), "i": index})  # fmt: skip


@pytest.mark.printed
def test_gather_never_reads_outside() -> None:
    x, index = _x(4, 9), np.array([100, -100], np.int64)
    node = Node("Gather", ["x", "i"])
    values = {"x": x, "i": index, "y": x[:2]}
    region = region_of([node], values, ["x", "i"], {}, ["y"], anchored=True)
    kernel = GatherTemplate().build(region, host(), {})
    got = run_kernel(kernel, region, {"x": x, "i": index}, host())["y"]
    np.testing.assert_array_equal(got, x[[3, 0]])


def test_refusals() -> None:
    region, _ = make_region([Node("Relu", ["x"])], {"x": _x(3)}, {}, ["y"], anchored=True)
    assert _COPY.refuse(region, host()) == "Relu is not a copy"
    x, amounts = {"x": _x(3, 3)}, {"p": np.array([0, 1, 0, 1], np.int64)}
    region, _ = make_region([Node("Pad", ["x", "p"])], x, amounts, ["y"], anchored=True)
    region.ops[0].inputs[1].const = None  # type: ignore[union-attr]
    assert PadTemplate().refuse(region, host()) == "the amounts are not constant"
