"""QuantizeLinear and DequantizeLinear behind every quantized value.

A value x that a quantized operator makes or reads becomes ``x/q`` (integers) and ``x/dq``.
Quantized operators read ``x/dq``; so do all others if a quantized operator makes x, since then x is
nowhere but on its grid. Constants become integers at once. Model inputs and outputs keep names and
types: an output is the DequantizeLinear. What it loses: rounding to the grid and clipping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.graph import add_constant, const, dtype_of, fresh_name
from effc.passes.quantization.grid import Grid
from effc.passes.quantization.points import Points

__all__ = ["InsertActivations", "insert"]


class InsertActivations(Pass):
    """Grids of values into the graph; weights stay float.

    Args:
        points: What is quantized.
        grids: Of every value of ``points``, by name.

    Attributes:
        made: For each quantized value, by its old name, the name of what is read in its place.
    """

    name: ClassVar[str] = "insert_activations"

    def __init__(self, points: Points, grids: Mapping[str, Grid]) -> None:
        self.points = points
        self.grids = grids
        self.made: dict[str, str] = {}

    def call(self, model: ir.Model, log: Log) -> None:
        graph = model.graph
        values = {v.name or "": v for v in (*graph.inputs, *graph.initializers.values())}
        values |= {v.name or "": v for node in graph for v in node.outputs}
        nodes = {node.name: node for node in graph}
        made = {name for unit in self.points.units for name in unit.results}
        readers: dict[str, set[ir.Node]] = {name: set() for name in values}
        for unit in self.points.units:
            for name in unit.reads:
                readers[name].add(nodes[unit.node.name])
        for name in self.points.values:
            value = values[name]
            uses = [(n, i) for n, i in value.uses() if name in made or n in readers[name]]
            back = self._insert(graph, value)
            for node, index in uses:
                node.replace_input_with(index, back)
            if name in made and value.is_graph_output():
                _move_output(graph, value, back)
            if value.is_initializer() and not value.uses() and not value.is_graph_output():
                graph.initializers.pop(name, None)
            self.made[name] = back.name or ""
            log.applied.append(name)

    def _insert(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """``x/dq`` of a value."""
        name = value.name or ""
        grid = self.grids[name]
        scale = add_constant(graph, np.array(grid.scale, np.float32), f"{name}/scale")
        zero = add_constant(graph, np.array(grid.zero, grid.dtype), f"{name}/zero")
        array = const(value)
        if array is not None:
            integers = add_constant(graph, grid.quantize(array), f"{name}/q")
            return insert(graph, None, "DequantizeLinear", [integers, scale, zero], f"{name}/dq")
        place = value.producer()
        integers = insert(graph, place, "QuantizeLinear", [value, scale, zero], f"{name}/q")
        place = integers.producer()
        return insert(graph, place, "DequantizeLinear", [integers, scale, zero], f"{name}/dq")


def insert(
    graph: ir.Graph,
    after: ir.Node | None,
    op: str,
    inputs: list[ir.Value],
    name: str,
    **attributes: int,
) -> ir.Value:
    """The result of a new node, behind another one or at the beginning."""
    node = ir.Node(
        "",
        op,
        inputs,
        attributes=[ir.AttrInt64(key, value) for key, value in attributes.items()],
        name=fresh_name(graph, name),
    )
    result = node.outputs[0]
    result.name, result.shape = node.name, inputs[0].shape
    result.dtype = ir.DataType.FLOAT if op == "DequantizeLinear" else dtype_of(inputs[2])
    if after is not None:
        graph.insert_after(after, node)
    else:
        graph.insert_before(graph[0], node)
    return result


def _move_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` be the model output that ``old`` is."""
    name = old.name or ""
    old.name = fresh_name(graph, f"{name}/float")
    new.name = name
    for index, value in enumerate(list(graph.outputs)):
        if value is old:
            graph.outputs[index] = new
