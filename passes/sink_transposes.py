"""Move transposes towards the outputs until they meet their inverse.

``f(T(x)) = T(f(x))`` for element-wise f, and with axes renamed for reductions,
Concat, Split, Slice, Pad, Softmax, Resize. So models exported from
channels-last frameworks (``Transpose -> Conv -> Transpose -> Relu -> Transpose -> Conv``)
keep transposes only at inputs and outputs. Two transposes in a row become one,
and none if they are inverse. Constant operands are transposed at compile
time. Sums in reductions may be taken in another order; all else is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, redirect, shape_of
from effc.passes.merge_pad import pad_amounts

__all__ = ["SinkTransposes"]

Perm = tuple[int, ...]

_ELEMENTWISE = frozenset(
    (
        "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr "
        "BitwiseXor Cast Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater "
        "GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean "
        "Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh "
        "Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor"
    ).split()
)
_REDUCTIONS = frozenset(
    (
        "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare "
        "ReduceLogSum ReduceLogSumExp"
    ).split()
)


def _transposed(value: ir.Value | None) -> tuple[ir.Value, Perm] | None:
    """(x, perm) if ``value`` is Transpose(x, perm)."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Transpose" or node.domain or node.inputs[0] is None:
        return None
    rank = len(shape_of(node.inputs[0]))
    return node.inputs[0], tuple(attribute(node, "perm", tuple(reversed(range(rank)))))


def _inverse(perm: Perm) -> Perm:
    return tuple(int(i) for i in np.argsort(perm))


class SinkTransposes(RewritePass):
    """Transposes downwards, pairs cancelled."""

    name: ClassVar[str] = "sink_transposes"

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        if node.op_type == "Transpose":
            return _merge_pair(graph, node)
        rule = _RULES.get(node.op_type)
        source = next((t for v in node.inputs if (t := _transposed(v)) is not None), None)
        if rule is None or source is None:
            return False
        perm = source[1]
        if not _profitable(node):
            return "there would be more transposes behind it than before"
        return rule(Writer(graph, node), node, perm)


def _merge_pair(graph: ir.Graph, node: ir.Node) -> bool:
    outer, inner = _transposed(node.outputs[0]), _transposed(node.inputs[0])
    if outer is None or inner is None:
        return False
    perm = tuple(inner[1][axis] for axis in outer[1])
    x = inner[0]
    if perm == tuple(range(len(perm))):
        fixed = x.is_graph_input() or x.is_initializer() or x.is_graph_output()
        if fixed and node.outputs[0].is_graph_output():
            redirect(node.outputs[0], Writer(graph, node).op("Identity", x))
        else:
            redirect(node.outputs[0], x)
    else:
        redirect(node.outputs[0], Writer(graph, node).op("Transpose", x, perm=perm))
    return True


def _profitable(node: ir.Node) -> bool:
    """Whether at least as many transposes disappear before the node as appear behind it."""
    spent = {
        id(v) for v in node.inputs
        if v is not None and _transposed(v) is not None and not v.is_graph_output()
        and all(use.node is node for use in v.uses())
    }
    return len(spent) >= len(node.outputs)


def _operands(writer: Writer, node: ir.Node, perm: Perm, rank: int) -> list[ir.Value | None] | None:
    """Operands of an element-wise operator before the transpose, or None if one does not fit."""
    result: list[ir.Value | None] = []
    for value in node.inputs:
        if value is None:
            result.append(None)
            continue
        found = _transposed(value)
        if found is not None and found[1] == perm:
            result.append(found[0])
            continue
        array = const(value)
        shape = shape_of(value)
        if all(d == 1 for d in shape) and len(shape) <= rank:
            result.append(value)
        elif array is not None and len(shape) <= rank:
            full = array.reshape((1,) * (rank - len(shape)) + shape)
            moved = np.ascontiguousarray(np.transpose(full, _inverse(perm)))
            result.append(writer.const(moved, value.name))
        else:
            return None
    return result


def _finish(node: ir.Node, writer: Writer, values: Sequence[ir.Value], perm: Perm) -> bool:
    """Transpose the new results as the operands were."""
    for old, new in zip(node.outputs, values, strict=True):
        redirect(old, writer.op("Transpose", new, perm=perm))
    return True


def _elementwise(writer: Writer, node: ir.Node, perm: Perm) -> bool | str:
    rank = len(shape_of(node.outputs[0]))
    if len(perm) != rank:
        return "operands have different ranks"
    operands = _operands(writer, node, perm, rank)
    if operands is None:
        return "an operand is not transposed likewise"
    new = writer.ops(node.op_type, *operands, outputs=1, **dict(node.attributes))
    return _finish(node, writer, new, perm)


def _along_axis(writer: Writer, node: ir.Node, perm: Perm) -> bool | str:
    """Operators with one ``axis`` whose operands have the shape of the result elsewhere."""
    default = {"Split": 0}.get(node.op_type, -1)
    axis = perm[attribute(node, "axis", default) % len(perm)]
    count = len(node.inputs) if node.op_type == "Concat" else 1
    sources = [_transposed(v) for v in node.inputs[:count]]
    operands: list[ir.Value] = []
    for value, found in zip(node.inputs, sources, strict=False):
        array = const(value)
        if found is not None and found[1] == perm:
            operands.append(found[0])
        elif array is not None:
            operands.append(writer.const(np.transpose(array, _inverse(perm))))
        else:
            return "an operand is not transposed likewise"
    attrs: dict[str, Any] = {k: a for k, a in node.attributes.items() if k != "axis"}
    new = writer.ops(
        node.op_type, *operands, *node.inputs[count:], outputs=len(node.outputs), axis=axis, **attrs
    )
    return _finish(node, writer, new, perm)


def _reduction(writer: Writer, node: ir.Node, perm: Perm) -> bool | str:
    found = _transposed(node.inputs[0])
    axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
    if found is None or axes is None or not axes.size:
        return "its axes are not constant"
    reduced = sorted(perm[int(a) % len(perm)] for a in axes)
    keep = attribute(node, "keepdims", 1)
    new = writer.op(node.op_type, found[0], np.array(reduced, np.int64), keepdims=keep)
    if not keep:
        left = [axis for axis in perm if axis not in reduced]
        order = {axis: i for i, axis in enumerate(sorted(left))}
        perm = tuple(order[axis] for axis in left)
    if len(perm) < 2:
        redirect(node.outputs[0], new)
        return True
    return _finish(node, writer, [new], perm)


def _slice(writer: Writer, node: ir.Node, perm: Perm) -> bool | str:
    found = _transposed(node.inputs[0])
    axes = const(node.inputs[3]) if len(node.inputs) > 3 else None
    if found is None or axes is None:
        return "its axes are not constant"
    moved = np.array([perm[int(a) % len(perm)] for a in axes], np.int64)
    new = writer.op("Slice", found[0], node.inputs[1], node.inputs[2], moved, *node.inputs[4:])
    return _finish(node, writer, [new], perm)


def _pad(writer: Writer, node: ir.Node, perm: Perm) -> bool | str:
    found, amounts = _transposed(node.inputs[0]), pad_amounts(node)
    if found is None or amounts is None:
        return "the padding is not constant"
    back = _inverse(perm)
    pads = np.array([side[axis] for side in amounts for axis in back], np.int64)
    value = node.inputs[2] if len(node.inputs) > 2 else None
    new = writer.op("Pad", found[0], pads, value, mode=attribute(node, "mode", "constant"))
    return _finish(node, writer, [new], perm)


def _resize(writer: Writer, node: ir.Node, perm: Perm) -> bool | str:
    found = _transposed(node.inputs[0])
    if found is None or "axes" in node.attributes or (
        len(node.inputs) > 1 and node.inputs[1] is not None
    ):
        return "it has a region of interest or axes"
    operands: list[ir.Value | None] = [found[0], None]
    for value in node.inputs[2:4]:
        array = const(value)
        if value is not None and array is None:
            return "its scales are not constant"
        back = list(_inverse(perm))
        operands.append(None if array is None else writer.const(array[back]))
    while operands[-1] is None:
        operands.pop()
    new = writer.op("Resize", *operands, **dict(node.attributes))
    return _finish(node, writer, [new], perm)


_RULES: dict[str, Callable[[Writer, ir.Node, Perm], bool | str]] = {
    **dict.fromkeys(sorted(_ELEMENTWISE), _elementwise),
    **dict.fromkeys(sorted(_REDUCTIONS), _reduction),
    **dict.fromkeys(("Concat", "Softmax", "LogSoftmax", "Split"), _along_axis),
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
}
