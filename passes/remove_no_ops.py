"""Remove operators that change nothing, and write views in one way.

* Identity, Cast to the same type, Expand/Tile/Slice/Pad/Concat/Split that
  leave the tensor as it is, pooling with a 1x1 window, ``x+0``, ``x*1`` ...
* Flatten, Squeeze, Unsqueeze, reductions over axes of length 1 and transposes that move only
  axes of length 1 become Reshape (bytes stay as they are); chains of Reshape become one.
* Sum of two operands becomes Add, of more a chain of Add (in the same order).

Exact, except that ``-0.0 + 0`` stays ``-0.0``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, dtype_of, redirect, shape_of

__all__ = ["VIEWS", "RemoveNoOps"]

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators that keep the bytes and change the shape."""

_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"})


def _same_shape(node: ir.Node) -> bool:
    x = node.inputs[0]
    return x is not None and shape_of(x) == shape_of(node.outputs[0])


def _neutral(index: int, neutral: float) -> Callable[[ir.Node], bool]:
    """Whether operand ``index`` is all ``neutral`` and does not widen the other one."""

    def check(node: ir.Node) -> bool:
        other = node.inputs[1 - index]
        array = const(node.inputs[index])
        if array is None or other is None or array.dtype.kind not in "fiu":
            return False
        return shape_of(other) == shape_of(node.outputs[0]) and bool((array == neutral).all())

    return check


def _unit_window(node: ir.Node) -> bool:
    strides = attribute(node, "strides", (1,))
    return (
        all(k == 1 for k in attribute(node, "kernel_shape", (0,)))
        and all(s == 1 for s in strides)
        and len(node.outputs) == 1
        and _same_shape(node)
    )


def _identity_transpose(node: ir.Node) -> bool:
    perm = attribute(node, "perm")
    return perm is not None and list(perm) == sorted(perm)


def _plain_resize(node: ir.Node) -> bool:
    return _same_shape(node) and attribute(
        node, "coordinate_transformation_mode", "half_pixel"
    ) in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


def _single(node: ir.Node) -> bool:
    return len(node.inputs) == 1


def _same_type(node: ir.Node) -> bool:
    x = node.inputs[0]
    return x is not None and x.dtype == node.outputs[0].dtype


_NO_OPS: dict[str, tuple[tuple[int, Callable[[ir.Node], bool]], ...]] = {
    "Identity": ((0, lambda n: True),),
    "Cast": ((0, _same_type),),
    "CastLike": ((0, _same_type),),
    "Reshape": ((0, _same_shape),),
    "Flatten": ((0, _same_shape),),
    "Squeeze": ((0, _same_shape),),
    "Unsqueeze": ((0, _same_shape),),
    "Expand": ((0, _same_shape),),
    "Tile": ((0, _same_shape),),
    "Pad": (
        (
            0,
            lambda n: (
                _same_shape(n) and not np.any(const(n.inputs[1]))
                if const(n.inputs[1]) is not None
                else False
            ),
        ),
    ),
    "Slice": ((0, lambda n: _same_shape(n) and _forward(n)),),
    "Concat": ((0, _single),),
    "Sum": ((0, _single),),
    "Max": ((0, _single),),
    "Min": ((0, _single),),
    "Mean": ((0, _single),),
    "Split": ((0, lambda n: len(n.outputs) == 1),),
    "Transpose": ((0, _identity_transpose),),
    "AveragePool": ((0, _unit_window),),
    "MaxPool": ((0, _unit_window),),
    "Resize": ((0, _plain_resize),),
    "Add": ((0, _neutral(1, 0)), (1, _neutral(0, 0))),
    "Mul": ((0, _neutral(1, 1)), (1, _neutral(0, 1))),
    "Sub": ((0, _neutral(1, 0)),),
    "Div": ((0, _neutral(1, 1)),),
    "Pow": ((0, _neutral(1, 1)),),
}
"""Operator -> (operand that passes through, condition) ..."""


def _forward(node: ir.Node) -> bool:
    steps = const(node.inputs[4]) if len(node.inputs) > 4 else None
    absent = len(node.inputs) <= 4 or node.inputs[4] is None
    return absent or (steps is not None and bool((steps > 0).all()))


class RemoveNoOps(RewritePass):
    """No-op removal and canonical views."""

    name: ClassVar[str] = "remove_no_ops"

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        for index, check in _NO_OPS.get(node.op_type, ()):
            value = node.inputs[index]
            if value is not None and check(node):
                return _bypass(node, value)
        if node.op_type in ("Sum", "Mean") and len(node.inputs) > 1:
            return _add_chain(graph, node)
        if node.op_type == "Concat":
            return _flatten_concat(graph, node)
        return _canonical_view(graph, node)


def _bypass(node: ir.Node, value: ir.Value) -> bool:
    """Let readers of the node's result read ``value``; an output that cannot move stays."""
    out = node.outputs[0]
    fixed = value.is_graph_input() or value.is_initializer() or value.is_graph_output()
    if node.op_type == "Identity" and out.is_graph_output() and fixed:
        return False
    redirect(out, value)
    return True


def _add_chain(graph: ir.Graph, node: ir.Node) -> bool:
    first, *rest = node.inputs
    if first is None:
        return False
    writer = Writer(graph, node)
    total = first
    for value in rest:
        total = writer.op("Add", total, value)
    if node.op_type == "Mean":
        count = np.array(1 / len(node.inputs), dtype_of(total).numpy())
        total = writer.op("Mul", total, count)
    redirect(node.outputs[0], total)
    return True


def _flatten_concat(graph: ir.Graph, node: ir.Node) -> bool:
    """Operands that are concatenations along the same axis, read only here, are inlined."""
    axis = attribute(node, "axis") % len(shape_of(node.outputs[0]))
    operands: list[ir.Value | None] = []
    for value in node.inputs:
        inner = None if value is None else value.producer()
        if (
            value is not None
            and inner is not None
            and inner.op_type == "Concat"
            and attribute(inner, "axis") % len(shape_of(value)) == axis
            and not value.is_graph_output()
            and len(value.uses()) == 1
        ):
            operands += inner.inputs
        else:
            operands.append(value)
    kept = [v for v in operands if v is not None and shape_of(v)[axis]]
    if len(kept) == len(node.inputs) or not kept:
        return False
    redirect(node.outputs[0], Writer(graph, node).op("Concat", *kept, axis=axis))
    return True


def _canonical_view(graph: ir.Graph, node: ir.Node) -> bool:
    """One Reshape instead of other views, and instead of chains of them."""
    x, out = node.inputs[0] if node.inputs else None, node.outputs[0]
    if x is None or not _is_view(node, x):
        return False
    source, producer = x, x.producer()
    while producer is not None and producer.op_type in VIEWS and producer.inputs[0] is not None:
        source = producer.inputs[0]
        producer = source.producer()
    target = np.array(shape_of(out), np.int64)
    if node.op_type == "Reshape" and source is x:
        given = const(node.inputs[1])
        explicit = given is not None and np.array_equal(given, target)
        if explicit and not attribute(node, "allowzero", 0):
            return False
    if shape_of(source) == shape_of(out):
        return _bypass(node, source)
    if 0 in target:
        return False
    redirect(out, Writer(graph, node).op("Reshape", source, target))
    return True


def _is_view(node: ir.Node, x: ir.Value) -> bool:
    if node.op_type in VIEWS:
        return True
    shape = shape_of(x)
    if node.op_type == "Transpose":
        perm = attribute(node, "perm", tuple(reversed(range(len(shape)))))
        moved = [axis for axis in perm if shape[axis] != 1]
        return moved == sorted(moved)
    if node.op_type in _REDUCTIONS:
        axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None:
            return False
        return axes.size > 0 and all(shape[axis] == 1 for axis in axes.tolist())
    return False
