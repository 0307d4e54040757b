"""How operators pass a transpose: ``f(T(x)) = T(f'(x))``.

For a permutation ``perm`` and a node ``f`` on transposed operands, a rule writes ``f'`` on
the operands before their transposes. Element-wise operators stay as they
are, others get their axes renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import Writer, attribute, const, redirect, shape_of
from effc.passes.merge_pad import pad_amounts

__all__ = ["ELEMENTWISE", "Perm", "apply", "inverse", "passes", "result_perm", "transposed"]

Perm = tuple[int, ...]
Pull = Callable[[ir.Value], ir.Value]
"""Gives a value as it was before the transpose."""

ELEMENTWISE = frozenset(
    {
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "And",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Sum",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Where",
        "Xor",
    }
)
_REDUCTIONS = frozenset(
    {
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSum",
        "ReduceLogSumExp",
    }
)
_ONE_AXIS = frozenset({"Concat", "Softmax", "LogSoftmax", "Split"})
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def transposed(value: ir.Value | None) -> tuple[ir.Value, Perm] | None:
    """(x, perm) if ``value`` is Transpose(x, perm)."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Transpose" or node.domain or node.inputs[0] is None:
        return None
    rank = len(shape_of(node.inputs[0]))
    return node.inputs[0], tuple(attribute(node, "perm", tuple(reversed(range(rank)))))


def inverse(perm: Perm) -> Perm:
    """The permutation that undoes ``perm``."""
    return tuple(int(i) for i in np.argsort(perm))


def data_operands(node: ir.Node) -> Sequence[ir.Value]:
    """Operands that are transposed with the result (not axes, pads, scales ...)."""
    values = (
        node.inputs
        if node.op_type in ELEMENTWISE or node.op_type == "Concat"
        else (node.inputs[:1])
    )
    return [v for v in values if v is not None]


def passes(node: ir.Node, perm: Perm) -> bool:
    """Whether there is a rule for this node under a transpose of its operands."""
    if node.domain or not node.inputs or node.inputs[0] is None:
        return False
    rank = len(perm)
    operands = data_operands(node)
    if node.op_type in ELEMENTWISE:
        return len(shape_of(node.outputs[0])) == rank and all(
            len(shape_of(v)) == rank or v.const_value is not None or _single(v) for v in operands
        )
    if any(len(shape_of(v)) != rank for v in operands):
        return False
    if node.op_type in _ONE_AXIS:
        return True
    if node.op_type in _QUANTIZING:
        return all(_single(v) for v in node.inputs[1:] if v is not None)
    if node.op_type in _REDUCTIONS:
        axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
        return axes is not None and axes.size > 0
    if node.op_type == "Slice":
        return len(node.inputs) > 3 and const(node.inputs[3]) is not None
    if node.op_type == "Pad":
        return pad_amounts(node) is not None
    if node.op_type == "Resize":
        region = node.inputs[1] if len(node.inputs) > 1 else None
        sizes = [v for v in node.inputs[2:4] if v is not None]
        return (
            region is None
            and "axes" not in node.attributes
            and all(v.const_value is not None for v in sizes)
        )
    return False


def _single(value: ir.Value) -> bool:
    return all(d == 1 for d in shape_of(value))


def result_perm(node: ir.Node, perm: Perm) -> Perm:
    """The permutation of the node's results: ``perm``, or what a reduction leaves of it."""
    if node.op_type not in _REDUCTIONS or attribute(node, "keepdims", 1):
        return perm
    reduced = _reduced_axes(node, perm)
    left = [axis for axis in perm if axis not in reduced]
    order = {axis: i for i, axis in enumerate(sorted(left))}
    return tuple(order[axis] for axis in left)


def _reduced_axes(node: ir.Node, perm: Perm) -> list[int]:
    axes = const(node.inputs[1])
    assert axes is not None
    return sorted(perm[int(a) % len(perm)] for a in axes)


def apply(writer: Writer, node: ir.Node, perm: Perm, pull: Pull) -> None:
    """Rewrite a node for which ``passes`` holds; its results become transposes of the new ones.

    Args:
        writer: Positioned at the node.
        node: The node.
        perm: Its operands are, or would be, ``Transpose(x, perm)``.
        pull: Gives ``x`` for an operand of full rank that is not constant.
    """

    def before(value: ir.Value) -> ir.Value:
        if value.const_value is not None and not _single(value):
            array = const(value)
            assert array is not None
            full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
            moved = np.ascontiguousarray(np.transpose(full, inverse(perm)))
            return writer.const(moved, value.name)
        return value if _single(value) and len(shape_of(value)) <= len(perm) else pull(value)

    new = _rewritten(writer, node, perm, before)
    outer = result_perm(node, perm)
    for old, value in zip(node.outputs, new, strict=True):
        plain = outer == tuple(range(len(outer)))
        redirect(old, value if plain else writer.op("Transpose", value, perm=outer))


def _rewritten(writer: Writer, node: ir.Node, perm: Perm, before: Pull) -> Sequence[ir.Value]:
    attrs: dict[str, Any] = dict(node.attributes)
    op, count = node.op_type, len(node.outputs)
    if op in ELEMENTWISE:
        operands = [None if v is None else before(v) for v in node.inputs]
        return writer.ops(op, *operands, outputs=count, **attrs)
    x = before(data_operands(node)[0])
    if op in _ONE_AXIS:
        default = 0 if op == "Split" else -1
        attrs["axis"] = perm[attribute(node, "axis", default) % len(perm)]
        if op == "Concat":
            return writer.ops(op, *map(before, data_operands(node)), outputs=1, **attrs)
        return writer.ops(op, x, *node.inputs[1:], outputs=count, **attrs)
    if op in _QUANTIZING:
        return [writer.op(op, x, *node.inputs[1:], **attrs)]
    if op in _REDUCTIONS:
        return [writer.op(op, x, np.array(_reduced_axes(node, perm), np.int64), **attrs)]
    if op == "Slice":
        axes = const(node.inputs[3])
        assert axes is not None
        moved = np.array([perm[int(a) % len(perm)] for a in axes], np.int64)
        return [writer.op(op, x, node.inputs[1], node.inputs[2], moved, *node.inputs[4:])]
    back = list(inverse(perm))
    if op == "Pad":
        amounts = pad_amounts(node)
        assert amounts is not None
        pads = np.array([side[axis] for side in amounts for axis in back], np.int64)
        value = node.inputs[2] if len(node.inputs) > 2 else None
        return [writer.op(op, x, pads, value, mode=attribute(node, "mode", "constant"))]
    factors = [const(v) for v in node.inputs[2:4]]
    return [writer.op(op, x, None, *(None if f is None else f[back] for f in factors), **attrs)]
