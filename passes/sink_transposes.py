"""Move transposes past other operators until they cancel.

``f(T(x)) = T(f(x))`` for element-wise f, and with axes renamed for reductions,
Concat, Split, Slice, Pad, Softmax and Resize (``transpose_rules``). So models exported
from channels-last frameworks (``Transpose -> Conv -> Transpose -> Relu -> Transpose ->
Conv``) keep transposes only at inputs and outputs. Which operators are passed is decided for
the whole graph at once (``transpose_placement``): the bytes that
transposes move never grow. Two transposes in a row become one, and none if they are inverse.
Sums in reductions may be taken in another order; all else is exact.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.graph import Writer, prune, redirect
from effc.passes.transpose_placement import choose
from effc.passes.transpose_rules import Perm, apply, inverse, passes, transposed

__all__ = ["SinkTransposes"]


class SinkTransposes(Pass):
    """Transposes to where they cost least, pairs cancelled."""

    name: ClassVar[str] = "sink_transposes"

    def call(self, model: ir.Model, log: Log) -> None:
        graph = model.graph
        _merge_pairs(graph, log)
        perms = {
            found[1]: None
            for node in graph
            if node.op_type == "Transpose" and (found := transposed(node.outputs[0])) is not None
        }
        for perm in perms:
            chosen = choose(graph, perm)
            for node in [n for n in graph if n in chosen]:
                log.applied.append(node.name or node.op_type)
                _move(graph, node, perm)
            log.refused += _left_behind(graph, perm)
            if chosen:
                _merge_pairs(graph, log)


def _left_behind(graph: ir.Graph, perm: Perm) -> list[tuple[str, str]]:
    """Operators that still read a transpose by ``perm``, and why."""
    refused = []
    for node in graph:
        sources = [transposed(v) for v in node.inputs]
        if node.op_type == "Transpose" or not any(f is not None and f[1] == perm for f in sources):
            continue
        why = "a transpose behind it would move as many bytes"
        refused.append((node.name or "", why if passes(node, perm) else "no rule to pass it"))
    return refused


def _move(graph: ir.Graph, node: ir.Node, perm: Perm) -> None:
    writer = Writer(graph, node)

    def pull(value: ir.Value) -> ir.Value:
        found = transposed(value)
        if found is not None and found[1] == perm:
            return found[0]
        return writer.op("Transpose", value, perm=inverse(perm))

    apply(writer, node, perm, pull)
    prune(graph, node)


def _merge_pairs(graph: ir.Graph, log: Log) -> None:
    for node in graph:
        if node.graph is graph and node.op_type == "Transpose" and _merge_pair(graph, node):
            log.applied.append(node.name or node.op_type)
            prune(graph, node)


def _merge_pair(graph: ir.Graph, node: ir.Node) -> bool:
    outer, inner = transposed(node.outputs[0]), transposed(node.inputs[0])
    if outer is None or inner is None:
        return False
    perm = tuple(inner[1][axis] for axis in outer[1])
    x = inner[0]
    if perm != tuple(range(len(perm))):
        redirect(node.outputs[0], Writer(graph, node).op("Transpose", x, perm=perm))
        return True
    fixed = x.is_graph_input() or x.is_initializer() or x.is_graph_output()
    if fixed and node.outputs[0].is_graph_output():
        x = Writer(graph, node).op("Identity", x)
    redirect(node.outputs[0], x)
    return True
