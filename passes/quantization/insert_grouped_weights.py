"""Integer weights alone: float layers that read them through DequantizeLinear.

Per filter: int8 in the operator's own layout, a scale per output channel (opset 20). In groups: a
matrix ``[Cout, K]`` (of Gemm and MatMul in their own layout), whose rows are cut into blocks of
consecutive weights with a scale each (``block_size``, opset 21; int4 as well, two to a byte); a
Reshape makes filters of it. For matrices and 1x1 convolutions blocks lie along the input channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.graph import Writer, add_constant
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.quantization.fit_weights import Fitted, Form
from effc.passes.quantization.insert_activations import insert
from effc.passes.quantization.insert_weights import drop_unused
from effc.passes.quantization.points import weight_axis

__all__ = ["InsertGroupedWeights"]


class InsertGroupedWeights(Pass):
    """Weights that lie on grids as integers; all else stays float.

    Args:
        fitted: By layer.
        form: Of their weights.
    """

    name: ClassVar[str] = "insert_grouped_weights"

    def __init__(self, fitted: Mapping[str, Fitted], form: Form) -> None:
        self.fitted = fitted
        self.form = form

    def call(self, model: ir.Model, log: Log) -> None:
        if self.form != Form(rounding=self.form.rounding):
            model.graph.opset_imports[""] = max(model.graph.opset_imports[""], 21)
            model.ir_version = max(model.ir_version, 10)
        for layer in find_layers(model)[0]:
            if layer.name in self.fitted:
                self._insert(model.graph, layer, self.fitted[layer.name])
                log.applied.append(layer.name)

    def _insert(self, graph: ir.Graph, layer: Layer, fitted: Fitted) -> None:
        rows = fitted.weight.reshape(layer.shape[0], -1)
        scales = fitted.scales.reshape(len(rows), -1)
        wide = self.form.spread(scales, rows.shape[1]).astype(np.float64)
        integers = np.rint(rows / wide).astype(np.int8)
        node, old = layer.node, layer.node.inputs[1]
        assert old is not None
        axis = weight_axis(node)
        kind = np.int8 if self.form.bits == 8 else ml_dtypes.int4
        attrs = {"axis": axis}
        if self.form.group is None:
            stored, scales = layer.stored_like(integers.reshape(layer.shape)), scales[:, 0]
        else:
            turned = axis == 1
            stored, scales = (a.T if turned else a for a in (integers, scales))
            attrs = {"axis": 1 - axis, "block_size": self.form.group}
        q = add_constant(graph, np.ascontiguousarray(stored).astype(kind), f"{old.name}/q")
        scale = add_constant(graph, np.ascontiguousarray(scales), f"{old.name}/scale")
        back = insert(graph, None, "DequantizeLinear", [q, scale], f"{old.name}/dq", **attrs)
        if layer.kernel and self.form.group is not None:
            shape = np.array(layer.shape, np.int64)
            back = Writer(graph, node, f"{old.name}/filters").op("Reshape", back, shape)
        node.replace_input_with(1, back)
        drop_unused(graph, old)
