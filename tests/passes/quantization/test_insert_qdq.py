"""Quantized graphs: integers from end to end, shared scales, close to the float network."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from onnx import helper, numpy_helper
from quantized_graphs import Graph, networks
from reference import run, snr_db
from small_net import images, small_net

import effc

Array = np.ndarray[Any, Any]


def quantize(model: onnx.ModelProto, x: Array, **options: Any) -> onnx.ModelProto:
    return effc.compress(model, quantize="int8", calibration={"x": x}, **options)


def run_fused(model: onnx.ModelProto, x: Array) -> list[Array]:
    """With ONNX Runtime's integer kernels."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


@pytest.fixture(scope="module")
def small() -> Graph:
    return Graph(quantize(small_net("batch"), images(64)))


def test_every_layer_reads_and_makes_integers(small: Graph) -> None:
    for node in [*small.of("Conv"), *small.of("Gemm"), *small.of("Add")]:
        small.grid(node.input[0])
        made = small.readers(node.output[0])
        while made and made[0].op_type == "Relu":
            made = small.readers(made[0].output[0])
        assert [reader.op_type for reader in made] == ["QuantizeLinear"]
    for node in [*small.of("Conv"), *small.of("Gemm")]:
        integers, scales = small.weight(node.input[1])
        assert integers.dtype == np.int8
        assert np.abs(integers.astype(int)).max() == 127
        axis = small.maker[node.input[1]].attribute[0].i
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        assert axis == (0 if node.op_type == "Conv" or turned else 1)
        assert len(scales) == integers.shape[axis]


def test_biases_have_the_scale_of_sums(small: Graph) -> None:
    checked = 0
    for node in [*small.of("Conv"), *small.of("Gemm")]:
        if len(node.input) < 3:
            continue
        integers, units = small.weight(node.input[2])
        _, scales = small.weight(node.input[1])
        step = np.float32(small.grid(node.input[0])[0])
        assert integers.dtype == np.int32
        np.testing.assert_array_equal(units, step * scales)
        checked += 1
    assert checked >= 2


def test_ports_stay(small: Graph) -> None:
    graph = small.model.graph
    ports = [(v.name, v.type.tensor_type.elem_type) for v in (*graph.input, *graph.output)]
    assert ports == [("x", 1), ("y", 1)]
    assert small.model.opset_import[0].version == 20
    assert [n.op_type for n in small.readers("x")] == ["QuantizeLinear"]
    assert small.maker["y"].op_type == "DequantizeLinear"
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_close_to_float(small: Graph) -> None:
    x = images(64, seed=5)
    expected = run(small_net("batch"), {"x": x})[0]
    assert snr_db(expected, run(small.model, {"x": x})[0]) > 28
    assert snr_db(expected, run_fused(small.model, x)[0]) > 28


@settings(max_examples=40, deadline=None, derandomize=True)
@given(networks())
def test_random_networks(model: onnx.ModelProto) -> None:
    """Whatever is connected to what: it runs, and the error is that of a few roundings."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 3, 6, 6)).astype(np.float32)
    made = quantize(model, x, ranges="minmax")
    onnx.checker.check_model(made, full_check=True)
    graph = Graph(made)
    for node in made.graph.node:
        if node.op_type == "Concat" and graph.of("QuantizeLinear"):
            assert len({graph.grid(name) for name in node.input}) == 1
    expected = run(model, {"x": x})
    for a, b, c in zip(expected, run(made, {"x": x}), run_fused(made, x), strict=True):
        # Nothing is clipped, so errors are roundings, which at most nine operators pass on.
        reach = max(np.abs(a).max(), 1.0)
        assert np.abs(a - b).max() < 0.25 * reach
        assert np.abs(b - c).max() < 0.1 * reach


def network(nodes: list[onnx.NodeProto], size: list[int], **constants: Array) -> onnx.ModelProto:
    """One input ``x``, one output ``y``."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, size)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_matrix_product_with_bias() -> None:
    """One unit: no quantization between product and bias, the bias is int32."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "mm"),
        helper.make_node("Add", ["m", "b"], ["s"], "bias"),
        helper.make_node("Relu", ["s"], ["y"], "relu"),
    ]
    model = network(nodes, [1, 5, 8], w=normal(8, 6), b=normal(6, seed=1))
    x = normal(32, 5, 8, seed=2)
    graph = Graph(quantize(model, x))
    (product,) = graph.of("MatMul")
    assert [n.op_type for n in graph.readers(product.output[0])] == ["Add"]
    (add,) = graph.of("Add")
    assert graph.weight(add.input[1])[0].dtype == np.int32
    assert snr_db(run(model, {"x": x[:1]})[0], run(graph.model, {"x": x[:1]})[0]) > 30


def test_transposed_convolution_in_groups() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], "up", group=2, strides=[2, 2])
    model = network([node], [1, 4, 5, 5], w=normal(4, 3, 2, 2), b=normal(6, seed=1))
    x = normal(16, 4, 5, 5, seed=2)
    graph = Graph(quantize(model, x))
    (up,) = graph.of("ConvTranspose")
    assert graph.weight(up.input[1])[1].shape == (3,)
    assert graph.weight(up.input[2])[1].shape == (6,)
    assert snr_db(run(model, {"x": x[:1]})[0], run(graph.model, {"x": x[:1]})[0]) > 30


def test_padding_is_on_the_grid() -> None:
    """A constant border beyond the values that were seen widens the range."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Pad", ["c", "pads", "five"], ["p"], "pad"),
        helper.make_node("Conv", ["p", "w2"], ["y"], "conv2"),
    ]
    model = network(
        nodes,
        [1, 2, 4, 4],
        w=normal(3, 2, 1, 1) * np.float32(0.1),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        five=np.float32(50),
        w2=normal(2, 3, 1, 1, seed=1),
    )
    x = normal(16, 2, 4, 4, seed=2)
    made = quantize(model, x)
    corner = [run(m, {"x": x[:1]})[0][0, :, 0, 0] for m in (model, made)]
    np.testing.assert_allclose(corner[1], corner[0], rtol=0.02, atol=0.5)


def test_large_bias_beside_small_weights() -> None:
    """Scales grow until the bias fits into int32."""
    w = normal(2, 3, 1, 1) * np.float32(1e-9)
    w[1] *= np.float32(1e9)
    model = network(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], "c")],
        [1, 3, 4, 4],
        w=w,
        b=np.array([100, 1], np.float32),
    )
    x = normal(16, 3, 4, 4, seed=2)
    made = quantize(model, x)
    assert snr_db(run(model, {"x": x[:1]})[0], run(made, {"x": x[:1]})[0]) > 30


def test_softmax() -> None:
    """Inside it has the grid of 1/256, at the end it stays in float."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], "inner", axis=1),
        helper.make_node("Conv", ["s", "w"], ["c"], "conv"),
        helper.make_node("Softmax", ["c"], ["y"], "outer", axis=1),
    ]
    model = network(nodes, [1, 3, 4, 4], w=normal(3, 3, 1, 1))
    graph = Graph(quantize(model, normal(16, 3, 4, 4)))
    (conv,) = graph.of("Conv")
    assert graph.grid(conv.input[0]) == (1 / 256, 0)
    assert graph.maker["y"].op_type == "Softmax"


def test_what_is_not_known_stays_in_float() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Sin", ["c"], ["s"], "sin"),
        helper.make_node("Reshape", ["s", "shape"], ["r"], "move"),
        helper.make_node("Cos", ["r"], ["y"], "cos"),
    ]
    model = network(nodes, [1, 2, 4, 4], w=normal(3, 2, 1, 1), shape=np.array([1, 48]))
    graph = Graph(quantize(model, normal(16, 2, 4, 4)))
    (sin,) = graph.of("Sin")
    graph.grid(sin.input[0])
    assert [n.op_type for n in graph.readers(sin.output[0])] == ["Reshape"]
    assert len(graph.of("QuantizeLinear")) == 2
