"""Small quantized models, and their integer form run in NumPy beside ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper, numpy_helper

from effc.frontend import import_model
from effc.passes.integer.integerize import integerize
from effc.passes.integer.reference import run

__all__ = ["Model", "operators", "steps"]

Array = np.ndarray[Any, Any]


class Model:
    """Builds a QDQ model node by node; tensors are known by name."""

    opset = 20  # 16-bit integers need 21

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.inputs: dict[str, Array] = {}

    def input(self, name: str, value: Array) -> str:
        self.inputs[name] = value
        return name

    def const(self, value: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def op(
        self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs: Any
    ) -> str:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, domain=domain, **attrs))
        return names[0]

    def dq(self, x: str, scale: Any, zero: Array, **attrs: Any) -> str:
        parameters = [self.const(np.asarray(scale, np.float32)), self.const(zero)]
        return self.op("DequantizeLinear", x, *parameters, **attrs)

    def q(self, x: str, scale: float, zero: Array) -> str:
        parameters = [self.const(np.array(scale, np.float32)), self.const(zero)]
        return self.op("QuantizeLinear", x, *parameters)

    def proto(self, *outputs: str, like: Sequence[Array] | None = None) -> onnx.ModelProto:
        """The model; with the types of its outputs if arrays ``like`` them are given."""
        kind = helper.np_dtype_to_tensor_dtype

        def info(name: str, value: Array) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind(value.dtype), value.shape)

        made = [helper.make_empty_tensor_value_info(name) for name in outputs]
        if like is not None:
            made = [info(name, value) for name, value in zip(outputs, like, strict=True)]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [info(name, value) for name, value in self.inputs.items()],
            made,
            [numpy_helper.from_array(v, k) for k, v in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def reference(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """ONNX Runtime without optimizations: float between DequantizeLinear and QuantizeLinear."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results: list[Array] = session.run(None, feeds)
    return results


def operators(model: Model, *outputs: str) -> Counter[str]:
    """Operators of the integer form."""
    wanted = reference(model.proto(*outputs), model.inputs)
    graph, _ = integerize(import_model(model.proto(*outputs, like=wanted)), "uint8")
    return _count(graph)


def _count(model: ir.Model) -> Counter[str]:
    """Operators, and which of them give feature maps in quads."""
    found: Counter[str] = Counter()
    for node in model.graph:
        found[node.op_type] += 1
        shape = node.outputs[0].shape
        if shape is not None and len(shape) == 5 and shape[4] == 4:
            found[f"{node.op_type} in quads"] += 1
    return found


def steps(model: Model, *outputs: str, atol: float = 0.0, exact: bool = False) -> Counter[str]:
    """Check both signednesses against ONNX Runtime; returns the operators of the integer form.

    Integers may differ by one step unless they must be ``exact``, floats by ``atol``.
    """
    wanted = reference(model.proto(*outputs), model.inputs)
    proto = model.proto(*outputs, like=wanted)
    made: list[list[Array]] = []
    for dtype in ("uint8", "int8"):
        graph, _ = integerize(import_model(proto), dtype)
        found = run(graph, model.inputs)
        results = [found[v.name or ""] for v in graph.graph.outputs]
        for got, want in zip(results, wanted, strict=True):
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            limit = 0 if exact else 1 if want.dtype.kind in "iu" else atol
            assert np.abs(got.astype(np.float64) - want).max(initial=0) <= limit
        made.append(results)
    for a, b in zip(*made, strict=True):
        np.testing.assert_array_equal(a, b)  # results do not depend on the signedness
    return _count(graph)
