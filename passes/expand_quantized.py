"""Quantized operators in float arithmetic, exact where integers are.

    DequantizeLinear:  (float(x) - zero) * scale           (constants become float constants)
    QuantizeLinear:    saturate(round_even(x / scale) + zero)
    ConvInteger, MatMulInteger:  the float operator on ``float(x) - zero``; sums of
        products of 9-bit numbers are exact in float32 up to 258 terms, longer sums
        are split and added as int32
    QLinearConv, QLinearMatMul:  the same without splitting, times
        ``scale_x * scale_w / scale_y``, rounded and saturated: a sum beyond 2^24 is
        rounded to 24 bits first, so a result may differ by one step, rarely.

``effc.passes.integer`` has turned what has an integer form into integer operators before; this
is for the rest: most of 16 bits, scales that are not constant, floats that are quantized.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.errors import ModelError
from effc.passes.base import RewritePass
from effc.passes.expand_operators import Expansion, apply_expansion
from effc.passes.graph import Writer, attribute, const, dtype_of, shape_of

__all__ = ["QUANTIZED", "ExpandQuantized"]

Array = np.ndarray[Any, Any]
Result = list[ir.Value] | str

_EXACT_TERMS = 258  # 255 * 255 * 258 < 2**24
_INTEGERS = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ModelError(f"{node.op_type} lacks operand {index}", where=node.name)
    return value


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _float(writer: Writer, value: ir.Value) -> ir.Value:
    if dtype_of(value) == ir.DataType.FLOAT:
        return value
    return writer.op("Cast", value, to=int(ir.DataType.FLOAT))


def _centered(writer: Writer, x: ir.Value, zero: ir.Value | None) -> ir.Value:
    """``float(x) - zero``."""
    x = _float(writer, x)
    value = const(zero)
    if zero is None or (value is not None and not value.any()):
        return x
    return writer.op("Sub", x, _float(writer, zero))


def _along(writer: Writer, value: ir.Value | None, rank: int, axis: int) -> ir.Value | None:
    """Per-axis parameters shaped so that they broadcast; scalars of shape () or (1,) too."""
    if value is None:
        return None
    shape = shape_of(value)
    if len(shape) == 0:
        return value
    if len(shape) == 1 and shape[0] == 1:
        return writer.op("Reshape", value, np.array([], np.int64))
    dims = [1] * rank
    dims[axis] = shape[0]
    return writer.op("Reshape", value, np.array(dims, np.int64))


def _parameters(writer: Writer, node: ir.Node) -> tuple[ir.Value, ir.Value | None] | str:
    """Scale and zero point of (De)QuantizeLinear, broadcast to the tensor."""
    x, scale, zero = _operand(node, 0), _operand(node, 1), _optional(node, 2)
    rank = len(shape_of(x))
    if len(shape_of(scale)) > 1 or attribute(node, "block_size", 0):
        return "blocked quantization is not supported"
    axis = attribute(node, "axis", 1)
    if len(shape_of(scale)) == 1 and not -rank <= axis < rank:
        axis = 0
    spread = _along(writer, scale, rank, axis)
    assert spread is not None
    return spread, _along(writer, zero, rank, axis)


def dequantize_linear(writer: Writer, node: ir.Node) -> Result:
    """DequantizeLinear of 8-, 16- and 32-bit integers; of constants of any type."""
    x = _operand(node, 0)
    if const(x) is not None and dtype_of(x) not in _INTEGERS | {ir.DataType.INT32}:
        return _dequantized_constant(writer, node)
    if dtype_of(x) not in _INTEGERS | {ir.DataType.INT32}:
        return f"{dtype_of(x).name} is not supported"
    parameters = _parameters(writer, node)
    if isinstance(parameters, str):
        return parameters
    scale, zero = parameters
    known = const(zero)
    if dtype_of(x) == ir.DataType.INT32 and zero is not None and (known is None or known.any()):
        x = writer.op("Sub", x, zero)  # exact; float32 would round large values first
        zero = None
    y = writer.op("Mul", _centered(writer, x, zero), _float(writer, scale))
    target = dtype_of(scale)
    return [y if target == ir.DataType.FLOAT else writer.op("Cast", y, to=int(target))]


def _dequantized_constant(writer: Writer, node: ir.Node) -> Result:
    """4-bit integers and 8-bit floats have no kernels, but weights are known."""
    parameters = _parameters(writer, node)
    if isinstance(parameters, str):
        return parameters
    values = [const(v) for v in (_operand(node, 0), *parameters)]
    x, scale, zero = (None if v is None else v.astype(np.float32) for v in values)
    if x is None or scale is None or (zero is None and parameters[1] is not None):
        return f"{dtype_of(_operand(node, 0)).name} is supported for constants only"
    y = (x if zero is None else x - zero) * scale
    return [writer.const(y.astype(dtype_of(_operand(node, 1)).numpy()))]


def quantize_linear(writer: Writer, node: ir.Node) -> Result:
    """QuantizeLinear to 8- and 16-bit integers."""
    zero = _optional(node, 2)
    target = ir.DataType.UINT8 if zero is None else dtype_of(zero)
    if target not in _INTEGERS:
        return f"{target.name} is not supported"
    if dtype_of(_operand(node, 0)) == ir.DataType.INT32:
        return "quantizing integers is not supported"
    parameters = _parameters(writer, node)
    if isinstance(parameters, str):
        return parameters
    scale, zero = parameters
    x = writer.op("Div", _float(writer, _operand(node, 0)), _float(writer, scale))
    return [_saturated(writer, x, zero, target)]


def _saturated(writer: Writer, x: ir.Value, zero: ir.Value | None, target: ir.DataType) -> ir.Value:
    """``saturate(round_even(x) + zero)`` as ``target``."""
    y = writer.op("Round", x)
    if zero is not None:
        y = writer.op("Add", y, _float(writer, zero))
    limits = np.iinfo(target.numpy())
    y = writer.op("Clip", y, np.array(limits.min, np.float32), np.array(limits.max, np.float32))
    return writer.op("Cast", y, to=int(target))


def matmul_integer(writer: Writer, node: ir.Node) -> Result:
    """MatMulInteger: int32 products of 8-bit matrices."""
    a, b = _operand(node, 0), _operand(node, 1)
    a = _centered(writer, a, _rows(writer, _optional(node, 2)))
    b = _centered(writer, b, _optional(node, 3))
    terms = shape_of(a)[-1]
    parts = []
    for begin in range(0, max(terms, 1), _EXACT_TERMS):
        end = min(begin + _EXACT_TERMS, terms)
        left, right = a, b
        if terms > _EXACT_TERMS:
            left = _slice(writer, a, len(shape_of(a)) - 1, begin, end)
            right = _slice(writer, b, max(len(shape_of(b)) - 2, 0), begin, end)
        product = writer.op("MatMul", left, right)
        parts.append(writer.op("Cast", product, to=int(ir.DataType.INT32)))
    return [_total(writer, parts)]


def _rows(writer: Writer, zero: ir.Value | None) -> ir.Value | None:
    """A zero point per row of the left matrix, as a column."""
    if zero is None or len(shape_of(zero)) != 1 or shape_of(zero)[0] == 1:
        return zero
    return writer.op("Unsqueeze", zero, np.array([1], np.int64))


def conv_integer(writer: Writer, node: ir.Node) -> Result:
    """ConvInteger: int32 convolution of 8-bit tensors.

    The padding value is the zero point, which is 0 after centering.
    """
    w = _operand(node, 1)
    x = _centered(writer, _operand(node, 0), _optional(node, 2))
    w = _centered(writer, w, _along(writer, _optional(node, 3), len(shape_of(w)), 0))
    _, depth, *kernel = shape_of(w)
    taps = int(np.prod(kernel, dtype=np.int64))
    if taps > _EXACT_TERMS:
        return f"a kernel of {taps} taps may exceed what float32 can sum exactly"
    step = max(_EXACT_TERMS // taps, 1)
    if depth > step and attribute(node, "group", 1) != 1:
        return "a deep grouped convolution may exceed what float32 can sum exactly"
    attrs: dict[str, Any] = dict(node.attributes)
    parts = []
    for begin in range(0, depth, step):
        end = min(begin + step, depth)
        part_x = x if depth <= step else _slice(writer, x, 1, begin, end)
        part_w = w if depth <= step else _slice(writer, w, 1, begin, end)
        product = writer.op("Conv", part_x, part_w, **attrs)
        parts.append(writer.op("Cast", product, to=int(ir.DataType.INT32)))
    return [_total(writer, parts)]


def _slice(writer: Writer, x: ir.Value, axis: int, begin: int, end: int) -> ir.Value:
    ints = [np.array([v], np.int64) for v in (begin, end, axis)]
    return writer.op("Slice", x, *ints)


def _total(writer: Writer, parts: list[ir.Value]) -> ir.Value:
    total = parts[0]
    for part in parts[1:]:
        total = writer.op("Add", total, part)
    return total


def _requantized(
    writer: Writer,
    product: ir.Value,
    factors: list[ir.Value],
    y_scale: ir.Value,
    y_zero: ir.Value | None,
    target: ir.DataType,
) -> ir.Value:
    """``saturate(round(product * factors / y_scale) + y_zero)``."""
    scale = factors[0]
    for factor in factors[1:]:
        scale = writer.op("Mul", scale, factor)
    scale = writer.op("Div", scale, y_scale)
    return _saturated(writer, writer.op("Mul", product, scale), y_zero, target)


def qlinear_matmul(writer: Writer, node: ir.Node) -> Result:
    """QLinearMatMul of 8-bit matrices."""
    a, b = _operand(node, 0), _operand(node, 3)
    y_zero = _operand(node, 7)
    if not {dtype_of(a), dtype_of(b), dtype_of(y_zero)} <= _INTEGERS:
        return "only 8- and 16-bit integers are supported"
    product = writer.op(
        "MatMul",
        _centered(writer, a, _rows(writer, _operand(node, 2))),
        _centered(writer, b, _operand(node, 5)),
    )
    a_scale = _rows(writer, _float(writer, _operand(node, 1)))
    assert a_scale is not None
    factors = [a_scale, _float(writer, _operand(node, 4))]
    y_scale = _rows(writer, _float(writer, _operand(node, 6)))
    assert y_scale is not None
    zero = _rows(writer, y_zero)
    return [_requantized(writer, product, factors, y_scale, zero, dtype_of(y_zero))]


def qlinear_conv(writer: Writer, node: ir.Node) -> Result:
    """QLinearConv of 8-bit tensors with an optional int32 bias."""
    x, w, bias, y_zero = _operand(node, 0), _operand(node, 3), _optional(node, 8), _operand(node, 7)
    rank = len(shape_of(w))
    filters = _along(writer, _operand(node, 5), rank, 0)
    operands = [
        _centered(writer, x, _along(writer, _operand(node, 2), rank, 1)),
        _centered(writer, w, filters),
    ]
    if bias is not None:
        operands.append(_float(writer, bias))
    attrs: dict[str, Any] = dict(node.attributes)
    product = writer.op("Conv", *operands, **attrs)
    scalars = [_along(writer, _float(writer, _operand(node, i)), rank, 1) for i in (1, 4, 6)]
    x_scale, w_scale, y_scale = (value for value in scalars if value is not None)
    zero = _along(writer, y_zero, rank, 1)
    return [_requantized(writer, product, [x_scale, w_scale], y_scale, zero, dtype_of(y_zero))]


QUANTIZED: dict[str, Expansion] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "QuantizeLinear": quantize_linear,
}
"""Operator -> what writes it with float operators."""


class ExpandQuantized(RewritePass):
    """Quantized operators into float arithmetic."""

    name: ClassVar[str] = "expand_quantized"
    ops: ClassVar[frozenset[str]] = frozenset(QUANTIZED)

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        return apply_expansion(QUANTIZED[node.op_type], graph, node)
