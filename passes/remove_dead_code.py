"""Remove nodes and constants that no output depends on.

Exact: what remains computes the same bits.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.graph import prune

__all__ = ["RemoveDeadCode"]


class RemoveDeadCode(Pass):
    """Dead code elimination."""

    name: ClassVar[str] = "remove_dead_code"

    def call(self, model: ir.Model, log: Log) -> None:
        graph = model.graph
        for node in reversed(graph):
            if node.graph is graph and not any(
                v.uses() or v.is_graph_output() for v in node.outputs
            ):
                log.applied.append(node.name or node.op_type)
                prune(graph, node)
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                log.applied.append(name)
                del graph.initializers[name]
