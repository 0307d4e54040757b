"""Random networks, and what a quantized one must look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]

KINDS = ("conv", "conv", "deep", "add", "mul", "concat", "relu", "clip", "act", "pool", "softmax")


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Convolutions, additions, concatenations, pools and activations over feature maps."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {}
    channels = {"x": 3}

    def weight(*shape: int) -> str:
        name = f"w{len(weights)}"
        fan = max(int(np.prod(shape[1:])), 1)
        weights[name] = (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        return name

    def add(op: str, inputs: list[str], count: int, **attrs: Any) -> None:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], f"{op}_{len(nodes)}", **attrs))
        channels[name] = count

    for _ in range(draw(st.integers(2, 9))):
        source = draw(st.sampled_from(sorted(channels)))
        other = draw(st.sampled_from(sorted(channels)))
        count = channels[source]
        kind = draw(st.sampled_from(KINDS))
        if kind == "conv":
            new = draw(st.integers(1, 6))
            size = draw(st.sampled_from([1, 3]))
            names = [source, weight(new, count, size, size)]
            names += [weight(new)] if draw(st.booleans()) else []
            add("Conv", names, new, pads=[size // 2] * 4)
        elif kind == "deep":
            add("Conv", [source, weight(count, 1, 3, 3)], count, pads=[1] * 4, group=count)
        elif kind in ("add", "mul"):
            same = draw(st.sampled_from(sorted(n for n in channels if channels[n] == count)))
            operand = draw(st.sampled_from([same, weight(count, 1, 1)]))
            add("Add" if kind == "add" else "Mul", [source, operand], count)
        elif kind == "concat":
            add("Concat", [source, other], count + channels[other], axis=1)
        elif kind == "relu":
            add("Relu", [source], count)
        elif kind == "clip":
            weights["lo"], weights["hi"] = np.float32(0), np.float32(draw(st.floats(0.5, 6)))
            add("Clip", [source, "lo", "hi"], count)
        elif kind == "act":
            op = draw(st.sampled_from(["Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu"]))
            add(op, [source], count)
        elif kind == "pool":
            op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
            add(op, [source], count, kernel_shape=[3, 3], pads=[1] * 4)
        else:
            add("Softmax", [source], count, axis=1)
    read = {name for node in nodes for name in node.input}
    last = [name for name in channels if name not in read and name != "x"]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info(n, 1, ["N", channels[n], 6, 6]) for n in last],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


class Graph:
    """Lookup by name in a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.nodes = {node.name: node for node in model.graph.node}

    def of(self, op: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == op]

    def grid(self, name: str) -> tuple[float, int]:
        """Scale and zero point of a value that a DequantizeLinear makes."""
        node = self.maker[name]
        assert node.op_type == "DequantizeLinear"
        return float(self.constants[node.input[1]]), int(self.constants[node.input[2]])

    def weight(self, name: str) -> tuple[Array, Array]:
        """Integers and scales of a weight or bias."""
        node = self.maker[name]
        assert node.op_type == "DequantizeLinear"
        return self.constants[node.input[0]], self.constants[node.input[1]]

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if name in node.input]
