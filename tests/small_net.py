"""A small random network with every kind of layer, and samples for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


def small_net(batch: int | str = 1, seed: int = 0) -> onnx.ModelProto:
    """3x3, strided, grouped, depthwise, 1x1 with BatchNormalization, residual, Gemm, MatMul."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {}

    def weight(name: str, *shape: int) -> str:
        fan = max(int(np.prod(shape[1:])), 1)
        weights[name] = (rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)
        return name

    def conv(name: str, x: str, *shape: int, **attrs: Any) -> onnx.NodeProto:
        return helper.make_node("Conv", [x, weight(f"{name}_w", *shape)], [name], name, **attrs)

    for name in ("s", "b", "m"):
        weights[name] = rng.standard_normal(16).astype(np.float32) * 0.1 + (name == "s")
    weights["v"] = np.abs(rng.standard_normal(16)).astype(np.float32) + 0.5
    weights["fc_b"] = rng.standard_normal(12).astype(np.float32)
    weights["shape"] = np.array([batch if isinstance(batch, int) else -1, 24], np.int64)
    nodes = [
        conv("first", "x", 16, 3, 3, 3, pads=[1] * 4),
        helper.make_node("Relu", ["first"], ["r0"]),
        conv("deep", "r0", 16, 1, 3, 3, pads=[1] * 4, group=16),
        conv("point", "deep", 16, 16, 1, 1),
        helper.make_node("BatchNormalization", ["point", "s", "b", "m", "v"], ["bn"], "bn"),
        helper.make_node("Add", ["bn", "r0"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["r1"]),
        conv("down", "r1", 24, 16, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["down"], ["r2"]),
        conv("grouped", "r2", 24, 12, 3, 3, pads=[2, 0, 2, 0], group=2, dilations=[2, 1]),
        helper.make_node("Relu", ["grouped"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["pool"]),
        helper.make_node("Reshape", ["pool", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", weight("mm_w", 24, 20)], ["mm"], "mm"),
        helper.make_node("Relu", ["mm"], ["r4"]),
        helper.make_node("Gemm", ["r4", weight("fc_w", 12, 20), "fc_b"], ["fc"], "fc", transB=1),
        helper.make_node("Relu", ["fc"], ["r5"]),
        helper.make_node("Gemm", ["r5", weight("out_w", 12, 5)], ["y"], "out"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def images(count: int, seed: int = 1) -> Array:
    """Stacked samples ``[count, 3, 8, 8]``, smooth enough to be correlated."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4)).repeat(2, axis=2).repeat(2, axis=3)
    return (coarse + 0.3 * rng.standard_normal((count, 3, 8, 8))).astype(np.float32)
