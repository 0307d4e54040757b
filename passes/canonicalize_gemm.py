"""Write dense layers in one way.

* ``MatMul(x [M,K], W constant [K,N])`` becomes ``Gemm(x, W)``; a constant Add behind it
  becomes Gemm's ``C`` through ``fold_scale``.
* A Transpose of a 2-D operand becomes ``transA``/``transB``.
* Constant ``alpha`` and ``beta`` move into ``B`` and ``C``; a constant ``C``
  that is the same for every row becomes ``[N]``.

Differs by rounding only where ``alpha`` or ``beta`` is not 1.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, redirect, shape_of
from effc.passes.replace import replace_node

__all__ = ["CanonicalizeGemm"]


class CanonicalizeGemm(RewritePass):
    """MatMul and Gemm in one form."""

    name: ClassVar[str] = "canonicalize_gemm"
    ops: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        if node.op_type == "MatMul":
            return _matmul_to_gemm(graph, node)
        return _absorb_transpose(graph, node) or _absorb_factors(graph, node)


def _matmul_to_gemm(graph: ir.Graph, node: ir.Node) -> bool:
    a, b = node.inputs
    if a is None or b is None or const(b) is None or b.const_value is None:
        return False
    if len(shape_of(a)) != 2 or len(shape_of(b)) != 2:
        return False
    if not b.const_value.dtype.is_floating_point():
        return False
    redirect(node.outputs[0], Writer(graph, node).op("Gemm", a, b))
    return True


def _absorb_transpose(graph: ir.Graph, node: ir.Node) -> bool | str:
    for index, flag in ((0, "transA"), (1, "transB")):
        value = node.inputs[index]
        source = None if value is None else value.producer()
        if source is None or source.op_type != "Transpose":
            continue
        operands = list(node.inputs)
        operands[index] = source.inputs[0]
        turned = 1 - attribute(node, flag, 0)
        return replace_node(Writer(graph, node), node, operands, **{flag: turned})
    return False


def _absorb_factors(graph: ir.Graph, node: ir.Node) -> bool | str:
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    operands = list(node.inputs)
    writer = Writer(graph, node)
    weight = const(operands[1])
    bias = const(operands[2]) if len(operands) > 2 else None
    changed: dict[str, float] = {}
    if alpha != 1.0 and weight is not None:
        operands[1] = writer.const((weight * alpha).astype(weight.dtype), f"{node.name}/weight")
        changed["alpha"] = 1.0
    if bias is not None:
        columns = shape_of(node.outputs[0])[1]
        row = bias.size == 1 or (bias.ndim == 2 and bias.shape == (1, columns))
        if beta != 1.0 or (row and bias.shape != (columns,)):
            new = (bias * beta).astype(bias.dtype)
            if row:
                new = np.ascontiguousarray(np.broadcast_to(new.reshape(-1), (columns,)))
            operands[2] = writer.const(new, f"{node.name}/bias")
            changed["beta"] = 1.0
    if not changed:
        return False
    return replace_node(
        writer,
        node,
        operands,
        drop=("alpha", "beta"),
        **{k: v for k, v in (("alpha", alpha), ("beta", beta)) if k not in changed and v != 1.0},
    )
