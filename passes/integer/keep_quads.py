"""Floating point between integers in quads.

Where a convolution's float result passes element-wise operators and is quantized again
(``x * sigmoid(x)``; a residual sum that is kept in float), the way through plain order is not
worth it: ``ToQuads(f(FromQuads(a), b)) = f(a, ToQuads(b))``. The operators then are
an epilogue of the convolution. Exact; missing channels hold anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import Writer, const, redirect, shape_of
from effc.passes.integer.operators import DOMAIN
from effc.passes.integer.reference import to_quads
from effc.passes.transpose_rules import ELEMENTWISE

__all__ = ["keep_quads"]

_SCALAR_REST = frozenset({"DequantizeLinear", "QuantizeLinear"})


def keep_quads(graph: ir.Graph) -> list[str]:
    """Rewrite every ToQuads that ends such a chain; names of those."""
    moved = []
    known: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if (node.domain, node.op_type) != (DOMAIN, "ToQuads"):
            continue
        x = node.inputs[0]
        if x is not None and x.producer() is not None and _ends_in_quads(x, shape_of(x)):
            redirect(node.outputs[0], _in_quads(x, Writer(graph, node), known))
            moved.append(node.name or node.op_type)
    return moved


def _ends_in_quads(value: ir.Value, shape: tuple[int, ...]) -> bool:
    """Whether a value of that shape is computed element by element from tensors in quads."""
    stack, seen = [value], {value}
    while stack:
        current = stack.pop()
        node = current.producer()
        if node is None or shape_of(current)[1:2] != shape[1:2]:
            return False
        if (node.domain, node.op_type) == (DOMAIN, "FromQuads"):
            continue
        if node.domain or node.op_type not in ELEMENTWISE | _SCALAR_REST:
            return False
        if len(node.outputs) != 1:
            return False
        operands = [v for v in node.inputs if v is not None and not _constant(v, shape)]
        if any(const(v) is not None or len(shape_of(v)) != len(shape) for v in operands):
            return False
        stack += [v for v in operands if v not in seen]
        seen.update(operands)
    return True


def _constant(value: ir.Value, shape: tuple[int, ...]) -> bool:
    """A scalar, or a constant per channel."""
    own = shape_of(value)
    if all(d == 1 for d in own):
        return const(value) is not None
    padded = (1,) * (len(shape) - len(own)) + own
    others = [d for axis, d in enumerate(padded) if axis != 1]
    return const(value) is not None and padded[1] == shape[1] and all(d == 1 for d in others)


def _in_quads(value: ir.Value, writer: Writer, known: dict[ir.Value, ir.Value]) -> ir.Value:
    if value not in known:
        node = value.producer()
        assert node is not None
        if node.op_type == "FromQuads":
            source = node.inputs[0]
            assert source is not None
            known[value] = source
        else:
            rank = len(shape_of(value))
            operands = [
                None if v is None else _operand(v, rank, writer, known) for v in node.inputs
            ]
            attrs: dict[str, Any] = dict(node.attributes)
            known[value] = writer.op(node.op_type, *operands, **attrs)
    return known[value]


def _operand(
    value: ir.Value, rank: int, writer: Writer, known: dict[ir.Value, ir.Value]
) -> ir.Value:
    array = const(value)
    if array is None:
        return _in_quads(value, writer, known)
    if array.size == 1:
        return value if array.ndim == 0 else writer.const(array.reshape(()))
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    return writer.const(np.ascontiguousarray(to_quads(full)[0]))
