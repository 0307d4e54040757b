"""Which rows of its inputs an operator needs for some rows of its output.

"Rows" are indices of one axis of a feature map: the first spatial one. The axis of a tensor
depends on its layout, so rules also say along which axis of each input the rows run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from effc.passes.graph import attribute, const, shape_of
from effc.passes.integer.operators import DOMAIN

__all__ = ["Read", "Reads", "Rows", "reads"]

Rows = tuple[int, int]
"""Begin and end."""

_ELEMENTWISE = frozenset(
    {
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Elu",
        "Exp",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Max",
        "Min",
        "Mul",
        "PRelu",
        "Relu",
        "Sigmoid",
        "Sub",
        "Tanh",
    }
)
_INTEGER_ELEMENTWISE = frozenset({"AddRescaled", "FlipSign", "MulInteger", "Requantize"})
_WINDOWS = frozenset({"Conv", "MaxPool", "AveragePool"})
_INTEGER_WINDOWS = frozenset({"ConvInteger", "MaxPool8", "SumPool"})


@dataclass(frozen=True)
class Read:
    """What a node reads of one operand: rows along an axis, or everything (``axis`` None)."""

    axis: int | None = None
    rows: Rows = (0, 0)


@dataclass
class Reads:
    """What a node reads for some rows of its output.

    Attributes:
        operands: By position of the operand.
        attrs: Attributes that the node must have instead.
    """

    operands: list[Read]
    attrs: dict[str, Any] = field(default_factory=dict)


def reads(node: ir.Node, axis: int, rows: Rows) -> Reads | str:
    """What ``node`` needs for ``rows`` of its output along ``axis``, or why that is not known."""
    if len(node.outputs) != 1:
        return f"{node.op_type} has several results"
    rule = _RULES.get((node.domain, node.op_type))
    if rule is None:
        return f"{node.op_type} has no rule"
    return rule(node, axis, rows)


def _elementwise(node: ir.Node, axis: int, rows: Rows) -> Reads | str:
    shape = shape_of(node.outputs[0])
    found = []
    for value in node.inputs:
        own = () if value is None else shape_of(value)
        at = axis - (len(shape) - len(own))
        if value is None or at < 0 or (own[at] == 1 and shape[axis] != 1):
            if value is not None and const(value) is None:
                return f"{node.op_type} broadcasts a tensor along the rows"
            found.append(Read())
        else:
            found.append(Read(at, rows))
    return Reads(found)


def _lookup(node: ir.Node, axis: int, rows: Rows) -> Reads | str:
    return Reads([Read(axis, rows), Read()])


def _window(node: ir.Node, axis: int, rows: Rows) -> Reads | str:
    if axis != 2:
        return f"the rows of {node.op_type} are not its first spatial axis"
    if attribute(node, "ceil_mode", 0) or _text(attribute(node, "auto_pad", "NOTSET")) != "NOTSET":
        return f"{node.op_type} has no explicit padding"
    x = node.inputs[0]
    assert x is not None
    weights = node.inputs[1] if len(node.inputs) > 1 else None
    kernel = attribute(node, "kernel_shape", None) or (weights and shape_of(weights)[2:])
    if not kernel:
        return f"the window of {node.op_type} is not known"
    rank = len(kernel)
    stride = (attribute(node, "strides", None) or (1,) * rank)[0]
    dilation = (attribute(node, "dilations", None) or (1,) * rank)[0]
    pads = list(attribute(node, "pads", None) or (0,) * (2 * rank))
    begin = rows[0] * stride - pads[0]
    end = (rows[1] - 1) * stride - pads[0] + (kernel[0] - 1) * dilation + 1
    source = axis - 1 if _text(attribute(node, "layout", "quads")) == "last" else axis
    size = shape_of(x)[source]
    inside = (min(max(begin, 0), size), max(min(end, size), 0))
    if inside[0] >= inside[1]:
        return f"rows of {node.op_type} lie in the padding"
    pads[0], pads[rank] = inside[0] - begin, end - inside[1]
    others = [Read() for _ in node.inputs[1:]]
    return Reads([Read(source, inside), *others], {"pads": tuple(pads)})


def _to_quads(node: ir.Node, axis: int, rows: Rows) -> Reads | str:
    return Reads([Read(axis - 1 if attribute(node, "last", 0) else axis, rows)])


def _from_quads(node: ir.Node, axis: int, rows: Rows) -> Reads | str:
    return Reads([Read(axis, rows)])


def _transpose(node: ir.Node, axis: int, rows: Rows) -> Reads | str:
    rank = len(shape_of(node.outputs[0]))
    order = attribute(node, "perm", tuple(reversed(range(rank))))
    return Reads([Read(int(order[axis]), rows)])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


_RULES: dict[tuple[str, str], Callable[[ir.Node, int, Rows], Reads | str]] = {
    **{("", op): _elementwise for op in _ELEMENTWISE},
    **{(DOMAIN, op): _elementwise for op in _INTEGER_ELEMENTWISE},
    **{("", op): _window for op in _WINDOWS},
    **{(DOMAIN, op): _window for op in _INTEGER_WINDOWS},
    (DOMAIN, "Lookup"): _lookup,
    (DOMAIN, "ToQuads"): _to_quads,
    (DOMAIN, "FromQuads"): _from_quads,
    ("", "Transpose"): _transpose,
}
