"""Convolutions and matrix products of integers.

``sum w * (x - x_zero)`` in int32, then one of

- Requantize by ``x_scale * w_scale / y_scale``, if nothing but clamps lies in front of a
  QuantizeLinear;
- a float, ``sum * x_scale * w_scale``, for whatever else follows.

Weights that do not fit 8 bits without their zero point are sums of parts that do.
Biases are rounded to the scale of the sums.

Activations of 16 bits are two bytes (``operands``):
``x - zero = 256 (h - h_zero) + (l - l_zero)``, so

    sum w * (x - zero) = 256 * sum w * (h - h_zero) + sum w * (l - l_zero)

and every kernel for 8 bits computes them, too. ``JoinBytes`` adds both sums, over ``2^shift``,
rounded, where the whole may leave int32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import Writer, attribute, const, redirect, shape_of, single_user
from effc.passes.integer.grid import Grid, Weights, source, weights_of
from effc.passes.integer.operands import Operand, operand_of, shift_of
from effc.passes.integer.operators import DOMAIN
from effc.passes.integer.reference import to_quads
from effc.passes.integer.rules import State, destination, requantized

__all__ = ["Refused", "convolution", "parts_of", "product", "regrouped"]

Array = np.ndarray[Any, Any]

_LIMIT = 2**31
_WIDE = 255  # largest distance of an 8-bit activation to its zero point


class Refused(Exception):
    """Why an operator stays in floating point."""


def convolution(state: State) -> bool | str:
    """``Conv(DQ(x), DQ(w), bias)``."""
    node = state.node
    if node.op_type != "Conv":
        return False
    data = operand_of(node.inputs[0], state.tensors.dtype)
    weights = weights_of(node.inputs[1])
    if data is None or weights is None:
        return False
    rank = weights.values.ndim
    filters = weights.values.shape[0]
    if weights.scale.size > 1 and weights.scale.shape[0] != filters:
        return "weights are scaled along another axis than filters"
    scale = np.broadcast_to(weights.scale.reshape(-1), (filters,)) * data.scale
    group = int(attribute(node, "group", 1))
    try:
        bias, scale = _bias(node.inputs[2] if len(node.inputs) > 2 else None, scale, weights)
        parts = parts_of(weights.values, bias)
        shift = _shift(data, weights.values, bias)
        parts, group = regrouped(parts, group)
    except Refused as error:
        return str(error)
    writer = state.writer
    kept = ("pads", "strides", "dilations")
    attrs: dict[str, Any] = {k: a for k, a in node.attributes.items() if k in kept}
    attrs |= {"group": group, "domain": DOMAIN}
    octets = state.tensors.parts(data.tensor, writer, quads=True)

    def of_byte(number: int, part: Array, *added: Array) -> ir.Value:
        zero = data.zeros[number]
        return writer.op("ConvInteger", octets[number], part, *added, x_zero=zero, **attrs)

    total = _total(writer, of_byte, len(octets), parts, bias, shift)
    scale = scale * 2.0**shift
    result = destination(node.outputs[0], state.tensors.dtype, wide=True)
    if result is not None:
        real = to_quads(scale.reshape(1, -1, *[1] * (rank - 2)) / result.grid.scale)[0]
        made = requantized(writer, total, real, result)
        if isinstance(made, str):
            return made
        state.tensors.define(result.tensor, quads=made)
        return True
    plain = writer.op("FromQuads", total, channels=filters, domain=DOMAIN)
    factor = scale.astype(np.float32).reshape(-1, *[1] * (rank - 2))
    redirect(node.outputs[0], _real(writer, plain, factor))
    return True


def product(state: State) -> bool | str:
    """``MatMul`` and ``Gemm`` of dequantized operands, with a bias added to a MatMul."""
    node = state.node
    if node.op_type not in ("MatMul", "Gemm"):
        return False
    data = operand_of(node.inputs[0], state.tensors.dtype)
    if data is None or not _plain_gemm(node) or len(shape_of(data.tensor)) < 2:
        return False
    weights = weights_of(node.inputs[1])
    if weights is not None:
        try:
            return _by_constant(state, data, weights)
        except Refused as error:
            return str(error)
    left, right = source(node.inputs[0]), source(node.inputs[1])
    if left is None or right is None:
        return False
    grid = left[1].moved(state.tensors.dtype)
    return _by_tensor(state, left[0], grid, right)


def _plain_gemm(node: ir.Node) -> bool:
    return (
        not attribute(node, "transA", 0)
        and attribute(node, "alpha", 1.0) == 1.0
        and attribute(node, "beta", 1.0) == 1.0
    )


def _by_constant(state: State, data: Operand, weights: Weights) -> bool | str:
    node = state.node
    if attribute(node, "transB", 0):
        turned = weights.scale.T if weights.scale.ndim else weights.scale
        weights = Weights(weights.values.T, turned)
    if weights.values.ndim < 2:
        return "a matrix times a vector"
    columns = weights.values.shape[-1]
    if weights.scale.size > 1 and weights.scale.shape[-1] != columns:
        return "weights are scaled along another axis than columns"
    scale = np.broadcast_to(weights.scale.reshape(-1), (columns,)) * data.scale
    end, added = _with_bias(node, columns)
    by_column = replace(weights, values=np.moveaxis(weights.values, -1, 0))
    bias, scale = _bias(added, scale, by_column)
    parts = [np.ascontiguousarray(np.moveaxis(p, 0, -1)) for p in parts_of(by_column.values, bias)]
    shift = _shift(data, by_column.values, bias)
    writer = state.writer
    octets = state.tensors.parts(data.tensor, writer, quads=False)

    def of_byte(number: int, part: Array, *added: Array) -> ir.Value:
        zeros = {"a_zero": data.zeros[number], "b_zero": 0}
        return writer.op("MatMulInteger", octets[number], part, *added, domain=DOMAIN, **zeros)

    total = _total(writer, of_byte, len(octets), parts, bias, shift)
    return _finish(state, writer, end, total, scale * 2.0**shift)


def _shift(data: Operand, values: Array, bias: Array) -> int:
    """Shift of the JoinBytes that a product needs, 0 if it needs none."""
    if len(data.zeros) == 1:
        return 0
    sums = np.abs(values).reshape(len(bias), -1).sum(1)
    try:
        return shift_of(int(sums.max()), int(np.abs(bias.astype(np.int64)).max()))
    except ValueError as error:
        raise Refused(str(error)) from None


def _total(
    writer: Writer,
    of_byte: Callable[..., ir.Value],
    octets: int,
    parts: list[Array],
    bias: Array,
    shift: int,
) -> ir.Value:
    """Sums over all parts of the weights and bytes of the activations, over ``2^shift``.

    Args:
        writer: Where to.
        of_byte: Called with the number of a byte, a part and perhaps the bias: the product.
        octets: How many bytes there are.
        parts, bias: Weights and bias.
        shift: Of the JoinBytes.
    """
    sums = []
    for number in range(octets):
        total = of_byte(number, parts[0], *([] if number else [bias]))
        for part in parts[1:]:
            total = writer.op("Add", total, of_byte(number, part))
        sums.append(total)
    if octets == 1:
        return sums[0]
    low, high = sums
    return writer.op("JoinBytes", high, low, shift=shift, domain=DOMAIN)


def _by_tensor(state: State, a: ir.Value, grid: Grid, other: tuple[ir.Value, Grid]) -> bool | str:
    node = state.node
    b, b_grid = other
    if node.op_type == "Gemm" or len(shape_of(b)) < 2:
        return "a Gemm of two computed matrices"
    depth = shape_of(a)[-1]
    if depth * _WIDE * _WIDE >= _LIMIT:
        return f"sums of {depth} products may leave int32"
    b_grid = b_grid.moved(state.tensors.dtype)
    writer = state.writer
    total = writer.op(
        "MatMulInteger",
        state.tensors.plain(a, writer),
        state.tensors.plain(b, writer),
        a_zero=grid.zero,
        b_zero=b_grid.zero,
        domain=DOMAIN,
    )
    scale = np.array(grid.scale * b_grid.scale)
    return _finish(state, writer, node.outputs[0], total, scale)


def _finish(
    state: State, writer: Writer, end: ir.Value, total: ir.Value, scale: Array
) -> bool | str:
    """The sums as 8 or 16 bits or as floats."""
    result = destination(end, state.tensors.dtype, wide=True)
    if result is None:
        redirect(end, _real(writer, total, scale.astype(np.float32)))
        return True
    made = requantized(writer, total, scale / result.grid.scale, result)
    if isinstance(made, str):
        return made
    state.tensors.define(result.tensor, plain=made)
    return True


def _real(writer: Writer, total: ir.Value, scale: Array) -> ir.Value:
    return writer.op("Mul", writer.op("Cast", total, to=int(ir.DataType.FLOAT)), scale)


def _with_bias(node: ir.Node, columns: int) -> tuple[ir.Value, ir.Value | None]:
    """The end of a product with its bias, and the bias."""
    end = node.outputs[0]
    if node.op_type == "Gemm":
        return end, node.inputs[2] if len(node.inputs) > 2 else None
    user = single_user(end)
    if user is None or user.domain or user.op_type != "Add":
        return end, None
    added = next((v for v in user.inputs if v is not end), None)
    if added is None or (const(added) is None and weights_of(added) is None):
        return end, None
    if shape_of(user.outputs[0]) != shape_of(end) or shape_of(added)[-1:] != (columns,):
        return end, None
    if np.prod(shape_of(added)) != columns:
        return end, None
    return user.outputs[0], added


def _bias(value: ir.Value | None, scale: Array, weights: Weights) -> tuple[Array, Array]:
    """A bias in units of ``scale``, and the scales; dead channels may get another one."""
    if value is None:
        return np.zeros(scale.shape, np.int32), scale
    known, quantized = const(value), weights_of(value)
    if known is None and quantized is None:
        raise Refused("the bias is not constant")
    real = quantized.real if quantized is not None else np.asarray(known, np.float64)
    try:
        real = np.broadcast_to(real.reshape(-1) if real.ndim else real, scale.shape)
    except ValueError:
        raise Refused("the bias is not one number per channel") from None
    dead = ~weights.values.reshape(len(scale), -1).any(1)
    units = np.where(dead & (real != 0), np.abs(real) / 2**20, scale)
    if (units <= 0).any() or not np.isfinite(real).all():
        raise Refused("a scale is zero")
    found = np.rint(real / units)
    if np.abs(found).max(initial=0) >= _LIMIT:
        raise Refused("the bias does not fit int32")
    return found.astype(np.int32), units


def parts_of(values: Array, bias: Array) -> list[Array]:
    """int8 tensors that add up to ``values``, whose sums with the bias fit int32.

    Args:
        values: Integers, filters first.
        bias: Per filter.
    """
    reach = np.abs(values).reshape(len(bias), -1).sum(1) * _WIDE + np.abs(bias.astype(np.int64))
    if reach.max(initial=0) >= _LIMIT:
        raise Refused("the sums may leave int32")
    parts: list[Array] = []
    rest = values
    while not parts or rest.any():
        parts.append(np.clip(rest, -128, 127).astype(np.int8))
        rest = rest - parts[-1]
    return parts


def regrouped(parts: list[Array], group: int) -> tuple[list[Array], int]:
    """Weights of a grouped convolution that kernels take, and its groups.

    Groups that are no whole quads become one, with zeros between them.
    """
    filters, depth = parts[0].shape[:2]
    each = filters // group
    if group == 1 or (depth == 1 and each == 1) or (depth % 4 == 0 and each % 4 == 0):
        return parts, group
    wide = []
    for part in parts:
        full = np.zeros((filters, depth * group, *part.shape[2:]), np.int8)
        for g in range(group):
            rows, columns = slice(g * each, (g + 1) * each), slice(g * depth, (g + 1) * depth)
            full[rows, columns] = part[rows]
        wide.append(full)
    return wide, 1
