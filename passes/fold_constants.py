"""Fold operators whose operands are all constant.

Import folds already; this pass folds what other passes made constant. Results
are ONNX Runtime's own (or NumPy's for data movement and basic arithmetic).
Random operators and DequantizeLinear are left alone; a result much larger than
its operands is left to be computed.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import fold, redirect

__all__ = ["FoldConstants"]


class FoldConstants(RewritePass):
    """Constant folding."""

    name: ClassVar[str] = "fold_constants"

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        carries_output = node.op_type == "Identity" and node.outputs[0].is_graph_output()
        if carries_output:
            return False
        values = fold(graph, node)
        if values is None:
            return False
        for old, new in zip(node.outputs, values, strict=True):
            redirect(old, new)
        return True
