"""Write operators that have no kernel with operators that have one.

One table: operator type -> function that writes its meaning. What each
expansion preserves is said where it is written; the quantized ones are
in ``expand_quantized``, transforms in ``expand_spectral``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes import expand_quantized as quantized
from effc.passes.base import RewritePass
from effc.passes.expand_spectral import dft, stft
from effc.passes.graph import Writer, attribute, dtype_of, fresh_name, redirect, shape_of

__all__ = ["EXPANSIONS", "ExpandOperators"]

Expansion = Callable[[Writer, ir.Node], "list[ir.Value] | str"]


class ExpandOperators(RewritePass):
    """Operators without a kernel into operators with one."""

    name: ClassVar[str] = "expand_operators"

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        if node.op_type in _ALL_OUTPUTS:
            return _name_outputs(graph, node)
        expand = EXPANSIONS.get(node.op_type)
        if expand is None:
            return False
        results = expand(Writer(graph, node), node)
        if isinstance(results, str):
            return results
        for old, new in zip(node.outputs, results, strict=True):
            redirect(old, new)
        return True


_ALL_OUTPUTS = frozenset({"LSTM", "GRU", "RNN"})
"""Operators whose kernel writes every output, so that each needs a name."""


def _name_outputs(graph: ir.Graph, node: ir.Node) -> bool | str:
    """Give left-out outputs a name; only ``Y`` may stay the single one."""
    count = 3 if node.op_type == "LSTM" else 2
    if len(node.outputs) == count and all(v.name for v in node.outputs):
        return False
    if len(node.outputs) == 1:
        return False
    for index, value in enumerate(node.outputs):
        if not value.name:
            value.name = fresh_name(graph, f"{node.name}/output{index}")
    if len(node.outputs) == count:
        return True
    writer = Writer(graph, node)
    results = writer.ops(
        node.op_type, *node.inputs, outputs=count, **dict(node.attributes)
    )
    for old, new in zip(node.outputs, results, strict=False):
        redirect(old, new)
    return True


def _input(node: ir.Node, index: int = 0) -> ir.Value:
    value = node.inputs[index]
    assert value is not None  # the frontend has checked required operands
    return value


def lp_normalization(writer: Writer, node: ir.Node) -> list[ir.Value] | str:
    """``x / norm(x)``, and 0 where the norm is 0."""
    x = _input(node)
    axes = np.array([attribute(node, "axis", -1)], np.int64)
    kind = {1: "ReduceL1", 2: "ReduceL2"}[attribute(node, "p", 2)]
    norm = writer.op(kind, x, axes, keepdims=1)
    zero = writer.op("Equal", norm, np.array(0, dtype_of(x).numpy()))
    safe = writer.op("Add", norm, writer.op("Cast", zero, to=int(dtype_of(x))))
    return [writer.op("Div", x, safe)]


def cast_like(writer: Writer, node: ir.Node) -> list[ir.Value] | str:
    """Cast to the type of the second operand, whose value nobody reads."""
    target = int(dtype_of(_input(node, 1)))
    return [writer.op("Cast", _input(node), to=target, saturate=attribute(node, "saturate"))]


def det(writer: Writer, node: ir.Node) -> list[ir.Value] | str:
    """Determinant by cofactors, for matrices up to 3 x 3."""
    x = _input(node)
    size = shape_of(x)[-1]
    if size > 3:
        return f"determinants of {size} x {size} matrices are not supported"

    def entry(i: int, j: int) -> ir.Value:
        row = writer.op("Gather", x, np.array(i, np.int64), axis=-2)
        return writer.op("Gather", row, np.array(j, np.int64), axis=-1)

    def minor(rows: Sequence[int], columns: Sequence[int]) -> ir.Value:
        if len(rows) == 1:
            return entry(rows[0], columns[0])
        total: ir.Value | None = None
        for k, column in enumerate(columns):
            rest = [c for c in columns if c != column]
            term = writer.op("Mul", entry(rows[0], column), minor(rows[1:], rest))
            if total is None:
                total = term
            else:
                total = writer.op("Sub" if k % 2 else "Add", total, term)
        assert total is not None
        return total

    return [minor(range(size), range(size))]


EXPANSIONS: dict[str, Expansion] = {
    "CastLike": cast_like,
    "ConvInteger": quantized.conv_integer,
    "DFT": dft,
    "DequantizeLinear": quantized.dequantize_linear,
    "Det": det,
    "LpNormalization": lp_normalization,
    "MatMulInteger": quantized.matmul_integer,
    "QLinearConv": quantized.qlinear_conv,
    "QLinearMatMul": quantized.qlinear_matmul,
    "QuantizeLinear": quantized.quantize_linear,
    "STFT": stft,
}
"""Operator -> what writes it with others."""
