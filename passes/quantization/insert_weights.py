"""Integer weights and biases with their DequantizeLinear.

    W ~ scale_w[c] * Q,  Q int8 in [-127, 127];      b ~ scale_x * scale_w[c] * B,  B int32

so that an operator's sum of integers, with B added, is its result in units of its two scales.
Scales are made larger where B would exceed 2^30: then weights lose precision that the bias hides
anyway. Up to 33,000 terms a sum thus stays below 2^31 whatever is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.graph import add_constant, attribute, const
from effc.passes.quantization.grid import round_to, scales_of
from effc.passes.quantization.insert_activations import insert
from effc.passes.quantization.points import Unit, weight_axis

__all__ = ["InsertWeights", "drop_unused", "input_scale", "rows_of", "smallest_scales"]

Array = np.ndarray[Any, Any]

_LARGEST_BIAS = 2.0**30


class InsertWeights(Pass):
    """Weights and biases of the weighted units to integers.

    Args:
        units: As in the graph, whose activations are quantized already.
        scales: By node name, of weights that lie on a grid; others are rounded to a grid that
            clips nothing.
    """

    name: ClassVar[str] = "insert_weights"

    def __init__(self, units: Sequence[Unit], scales: Mapping[str, Array] | None = None) -> None:
        self.units = units
        self.scales = scales or {}

    def call(self, model: ir.Model, log: Log) -> None:
        graph = model.graph
        nodes = {node.name: node for node in graph}
        for unit in self.units:
            if not unit.weighted:
                continue
            node = nodes[unit.node.name]
            add = None if unit.bias is None else nodes[unit.bias.name]
            self._quantize(graph, node, add)
            log.applied.append(node.name or node.op_type)

    def _quantize(self, graph: ir.Graph, node: ir.Node, add: ir.Node | None) -> None:
        weight, axis = node.inputs[1], weight_axis(node)
        array = const(weight)
        assert array is not None
        assert weight is not None
        place = _bias_place(node, add)
        bias = None if place is None else place[0].inputs[place[1]]
        rows = rows_of(array, axis)
        step = input_scale(node)
        assert step is not None
        given = self.scales.get(node.name or "")
        scales = scales_of(rows) if given is None else given
        offset = const(bias)
        if offset is not None:
            repeat = 1 if node.op_type != "ConvTranspose" else attribute(node, "group", 1)
            flat = np.abs(offset.reshape(-1).astype(np.float64)).reshape(repeat, -1).max(axis=0)
            scales = np.maximum(scales, smallest_scales(flat, step))
        scale = add_constant(graph, scales, f"{weight.name}/scale")
        integers = round_to(rows, scales)
        stored = np.moveaxis(
            integers.reshape(array.shape[axis], *np.delete(array.shape, axis)), 0, axis
        )
        q = add_constant(graph, np.ascontiguousarray(stored), f"{weight.name}/q")
        zero = add_constant(graph, np.zeros(len(scales), np.int8), f"{weight.name}/zero")
        back = insert(
            graph, None, "DequantizeLinear", [q, scale, zero], f"{weight.name}/dq", axis=axis
        )
        node.replace_input_with(1, back)
        drop_unused(graph, weight)
        if place is not None and bias is not None and offset is not None:
            self._quantize_bias(graph, place, bias, step, scales)

    def _quantize_bias(
        self,
        graph: ir.Graph,
        place: tuple[ir.Node, int],
        bias: ir.Value,
        step: float,
        scales: Array,
    ) -> None:
        array = const(bias)
        assert array is not None
        units = (np.float32(step) * scales).astype(np.float32)
        units = np.tile(units, array.size // len(units))
        integers = np.rint(array.reshape(-1).astype(np.float64) / units).astype(np.int32)
        q = add_constant(graph, integers, f"{bias.name}/q")
        scale = add_constant(graph, units, f"{bias.name}/scale")
        back = insert(graph, None, "DequantizeLinear", [q, scale], f"{bias.name}/dq", axis=0)
        place[0].replace_input_with(place[1], back)
        drop_unused(graph, bias)


def rows_of(array: Array, axis: int) -> Array:
    """A weight operand as ``[channels, any]``."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def smallest_scales(bias: Array, step: float) -> Array:
    """Scales of weights below which biases do not fit, float32.

    Args:
        bias: Their magnitudes, ``[channels]``.
        step: Scale of what the operator reads.
    """
    return (bias / (step * _LARGEST_BIAS)).astype(np.float32)


def input_scale(node: ir.Node) -> float | None:
    """Scale of the value that a node reads, if it is quantized."""
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = const(producer.inputs[1])
    return None if scale is None else float(scale)


def _bias_place(node: ir.Node, add: ir.Node | None) -> tuple[ir.Node, int] | None:
    """The node whose operand is the bias, and which operand."""
    if add is not None:
        return add, 1 if add.inputs[0] is node.outputs[0] else 0
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return node, 2
    return None


def drop_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant that nobody reads any more."""
    if value.is_initializer() and not value.uses() and not value.is_graph_output():
        graph.initializers.pop(value.name or "", None)
