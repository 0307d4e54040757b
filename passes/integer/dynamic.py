"""``ConvInteger`` and ``MatMulInteger`` of ONNX: zero points that may be known at run time only.

``sum w * (x - z) = sum w * x - z * sum w``: an unknown zero point is taken off afterwards, in
int32, with the sums of the constant weights. Exact, sums wrap as in ONNX.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import Writer, attribute, const, dtype_of, redirect, shape_of
from effc.passes.integer.grid import BYTES
from effc.passes.integer.operators import DOMAIN
from effc.passes.integer.products import Refused, parts_of, regrouped
from effc.passes.integer.rules import State

__all__ = ["integer_product"]

Array = np.ndarray[Any, Any]


def integer_product(state: State) -> bool | str:
    """``ConvInteger`` and ``MatMulInteger`` by constant weights."""
    node = state.node
    if node.op_type not in ("ConvInteger", "MatMulInteger"):
        return False
    x, w = node.inputs[0], const(node.inputs[1])
    zeros = [node.inputs[i] if len(node.inputs) > i else None for i in (2, 3)]
    if x is None or x.dtype not in BYTES or w is None:
        return "two computed operands"
    weight_zero = const(zeros[1])
    if zeros[1] is not None and weight_zero is None:
        return "the zero point of the weights is not constant"
    values = w.astype(np.int64)
    if weight_zero is not None:
        values = values - _aligned(weight_zero.astype(np.int64), node, values.ndim)
    try:
        if node.op_type == "ConvInteger":
            return _convolution(state, x, values, zeros[0])
        return _product(state, x, values, zeros[0])
    except Refused as error:
        return str(error)


def _aligned(zero: Array, node: ir.Node, rank: int) -> Array:
    """Zero points per filter or column."""
    if zero.size == 1:
        return zero.reshape(())
    return zero.reshape(-1, *[1] * (rank - 1)) if node.op_type == "ConvInteger" else zero


def _split(state: State, x: ir.Value, zero: ir.Value | None) -> tuple[int, ir.Value | None]:
    """The zero point as a constant of our type, and what is left to take off at run time."""
    shift = 0
    if dtype_of(x) != state.tensors.type:
        shift = 128 if state.tensors.dtype == np.uint8 else -128
    known = const(zero)
    if zero is None:
        return shift, None
    if known is not None:
        if known.size != 1:
            raise Refused("the input has a zero point per row")
        return int(known.reshape(())) + shift, None
    if shape_of(zero) not in ((), (1,)):
        raise Refused("the input has a zero point per row")
    return shift, zero


def _convolution(state: State, x: ir.Value, values: Array, zero: ir.Value | None) -> bool | str:
    node = state.node
    constant, dynamic = _split(state, x, zero)
    if dynamic is not None and any(attribute(node, "pads") or ()):
        return "padding with a zero point known at run time only"
    filters = values.shape[0]
    parts, group = regrouped(
        parts_of(values, np.zeros(filters, np.int64)), int(attribute(node, "group", 1))
    )
    kept = ("pads", "strides", "dilations")
    attrs: dict[str, Any] = {k: a for k, a in node.attributes.items() if k in kept}
    attrs |= {"group": group, "x_zero": constant, "domain": DOMAIN}
    writer = state.writer
    quads = state.tensors.quads(x, writer)
    total = _sum(writer, [writer.op("ConvInteger", quads, part, **attrs) for part in parts])
    plain = writer.op("FromQuads", total, channels=filters, domain=DOMAIN)
    sums = values.reshape(filters, -1).sum(1).reshape(-1, *[1] * (values.ndim - 2))
    redirect(node.outputs[0], _less(writer, plain, dynamic, sums))
    return True


def _product(state: State, a: ir.Value, values: Array, zero: ir.Value | None) -> bool | str:
    if values.ndim < 2 or len(shape_of(a)) < 2:
        return "a matrix times a vector"
    constant, dynamic = _split(state, a, zero)
    by_column = np.moveaxis(values, -1, 0)
    parts = parts_of(by_column, np.zeros(values.shape[-1], np.int64))
    writer = state.writer
    left = state.tensors.plain(a, writer)
    attrs: dict[str, Any] = {"a_zero": constant, "b_zero": 0, "domain": DOMAIN}
    whole = [np.ascontiguousarray(np.moveaxis(part, 0, -1)) for part in parts]
    total = _sum(writer, [writer.op("MatMulInteger", left, part, **attrs) for part in whole])
    sums = values.sum(-2, keepdims=True)
    redirect(state.node.outputs[0], _less(writer, total, dynamic, sums))
    return True


def _sum(writer: Writer, totals: list[ir.Value]) -> ir.Value:
    found = totals[0]
    for total in totals[1:]:
        found = writer.op("Add", found, total)
    return found


def _less(writer: Writer, total: ir.Value, zero: ir.Value | None, sums: Array) -> ir.Value:
    """``total - zero * sums``."""
    if zero is None:
        return total
    wide = writer.op("Cast", zero, to=int(ir.DataType.INT32))
    return writer.op("Sub", total, writer.op("Mul", wide, sums.astype(np.int32)))
