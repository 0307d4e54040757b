"""The NumPy executor against ONNX Runtime's operators of the same meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from effc.passes.integer.reference import execute, from_quads, to_quads

Array = np.ndarray[Any, Any]


def onnx_result(op: str, inputs: dict[str, Array], output: int, **attrs: Any) -> Array:
    """One standard operator in ONNX Runtime."""
    kind = helper.np_dtype_to_tensor_dtype
    infos = [helper.make_tensor_value_info(k, kind(v.dtype), v.shape) for k, v in inputs.items()]
    out = helper.make_tensor_value_info("y", output, None)
    graph = helper.make_graph(
        [helper.make_node(op, list(inputs), ["y"], **attrs)], "g", infos, [out]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    result: Array = session.run(None, inputs)[0]
    return result


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_convolution(data: st.DataObject) -> None:
    draw = data.draw
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    depth, filters = draw(st.integers(1, 6)), draw(st.integers(1, 5)) * group
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    attrs = {
        "pads": draw(st.tuples(*[st.integers(0, 2)] * 4)),
        "strides": draw(st.tuples(*[st.integers(1, 2)] * 2)),
        "dilations": draw(st.tuples(*[st.integers(1, 2)] * 2)),
        "group": group,
    }
    sizes = tuple(draw(st.integers(2 * (k - 1) + 1, 7)) for k in kernel)
    x = generator.integers(0, 256, (2, depth * group, *sizes), np.uint8)
    w = generator.integers(-128, 128, (filters, depth, *kernel), np.int8)
    zero = draw(st.sampled_from([0, 128, 255]))
    bias = generator.integers(-9999, 9999, filters, np.int32)
    got = execute("ConvInteger", [to_quads(x, 77), w, bias], {**attrs, "x_zero": zero})
    want = onnx_result("ConvInteger", {"x": x, "w": w, "z": np.array(zero, np.uint8)}, 6, **attrs)
    np.testing.assert_array_equal(from_quads(got, filters), want + bias.reshape(-1, 1, 1))


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_pools(data: st.DataObject) -> None:
    draw = data.draw
    attrs = {
        "kernel_shape": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "strides": draw(st.tuples(*[st.integers(1, 3)] * 2)),
        "pads": (0, 0, 0, 0),
        "ceil_mode": draw(st.integers(0, 1)),
    }
    attrs["pads"] = tuple(draw(st.integers(0, k - 1)) for k in 2 * attrs["kernel_shape"])
    shape = (1, draw(st.integers(1, 6)), draw(st.integers(3, 8)), draw(st.integers(3, 8)))
    x = np.random.default_rng(draw(st.integers(0, 99))).integers(-128, 128, shape, np.int8)
    got = execute("MaxPool8", [to_quads(x)], attrs)
    want = onnx_result("MaxPool", {"x": x}, onnx.TensorProto.INT8, **attrs)
    np.testing.assert_array_equal(from_quads(got, shape[1]), want)
    if attrs["ceil_mode"]:
        return  # ONNX Runtime's AveragePool then divides by counts of its own
    got = execute("SumPool", [to_quads(x)], {**attrs, "x_zero": -3})
    area = int(np.prod(attrs["kernel_shape"]))
    mean = {"x": x.astype(np.float32) + 3}
    want = onnx_result("AveragePool", mean, onnx.TensorProto.FLOAT, count_include_pad=1, **attrs)
    np.testing.assert_array_equal(from_quads(got, shape[1]), np.rint(want * area))


def test_lookup_starts_at_the_smallest_value() -> None:
    table = np.arange(256, dtype=np.uint8)[::-1].copy()
    x = np.array([-128, 0, 127], np.int8)
    np.testing.assert_array_equal(execute("Lookup", [x, table], {}), [255, 127, 0])


def test_matmul() -> None:
    a = np.array([[1, 2], [255, 0]], np.uint8)
    b = np.array([[-128, 3], [4, 5]], np.int8)
    got = execute("MatMulInteger", [a, b, np.array([1, -1], np.int32)], {"a_zero": 2, "b_zero": 1})
    want = (a.astype(int) - 2) @ (b.astype(int) - 1) + [1, -1]
    np.testing.assert_array_equal(got, want)
