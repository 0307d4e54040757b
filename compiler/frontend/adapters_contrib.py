"""ONNX Runtime's own operators (domain ``com.microsoft``) in standard ones.

They appear in models that its optimizer or quantizer has written. Quantized
operators become ``QuantizeLinear(op(DequantizeLinear(x)))``, which is how they
are defined; fused ones become what was fused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.errors import UnsupportedError
from effc.frontend.adapter_tools import Adapter, Operands, attributes, operand, optional
from effc.passes.graph import Writer, attribute, dtype_of, shape_of

__all__ = ["CONTRIB"]


def _dequantized(writer: Writer, node: ir.Node, inputs: Operands, first: int) -> ir.Value:
    """The operand at ``first`` with its scale and zero point behind it, as float."""
    x, scale = operand(inputs, first, node), operand(inputs, first + 1, node)
    return writer.op("DequantizeLinear", x, scale, optional(inputs, first + 2))


def _quantized(
    writer: Writer, node: ir.Node, inputs: Operands, y: ir.Value, first: int
) -> list[ir.Value]:
    scale, zero = operand(inputs, first, node), optional(inputs, first + 1)
    return [writer.op("QuantizeLinear", y, scale, zero)]


def _binary(op_type: str) -> Adapter:
    """QLinearAdd, QLinearMul: (A, scale, zero, B, scale, zero, scale, zero)."""

    def convert(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
        a, b = (_dequantized(writer, node, inputs, first) for first in (0, 3))
        return _quantized(writer, node, inputs, writer.op(op_type, a, b), 6)

    return convert


def _unary(op_type: str, *kept: str) -> Adapter:
    """QLinear operators of one tensor: (X, scale, zero, scale, zero)."""

    def convert(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
        x = _dequantized(writer, node, inputs, 0)
        last = bool(attribute(node, "channels_last", 0))
        rank = len(shape_of(x))
        if last:
            x = writer.op("Transpose", x, perm=(0, rank - 1, *range(1, rank - 1)))
        attrs: dict[str, Any] = {k: node.attributes[k] for k in kept if k in node.attributes}
        y = writer.op(op_type, x, **attrs)
        if last:
            y = writer.op("Transpose", y, perm=(0, *range(2, rank), 1))
        return _quantized(writer, node, inputs, y, 3)

    return convert


def _concat(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """QLinearConcat: (scale, zero, then X, scale, zero of each operand)."""
    parts = [_dequantized(writer, node, inputs, first) for first in range(2, len(inputs), 3)]
    y = writer.op("Concat", *parts, axis=attribute(node, "axis"))
    return _quantized(writer, node, inputs, y, 0)


def _qgemm(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """QGemm: (A, scale, zero, B, scale, zero, C, scale, zero); float without the last two."""
    a = _dequantized(writer, node, inputs, 0)
    columns = 0 if attribute(node, "transB", 0) else 1
    b = writer.op("DequantizeLinear", *(optional(inputs, i) for i in (3, 4, 5)), axis=columns)
    operands = [a, b]
    bias = optional(inputs, 6)
    alpha = attribute(node, "alpha", 1.0)
    if bias is not None:
        scale = writer.op("Mul", operand(inputs, 1, node), operand(inputs, 4, node))
        if alpha != 1.0:
            scale = writer.op("Mul", scale, np.array(alpha, dtype_of(scale).numpy()))
        operands.append(writer.op("DequantizeLinear", bias, scale, axis=0))
    turned = {name: attribute(node, name, 0) for name in ("transA", "transB")}
    y = writer.op("Gemm", *operands, alpha=alpha, **turned)
    return [y] if optional(inputs, 7) is None else _quantized(writer, node, inputs, y, 7)


def _product_to_float(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """MatMulIntegerToFloat: (A, B, scale of A, scale of B, zero of A, zero of B, bias)."""
    a, b = operand(inputs, 0, node), operand(inputs, 1, node)
    total = writer.op("MatMulInteger", a, b, optional(inputs, 4), optional(inputs, 5))
    scale = writer.op("Mul", operand(inputs, 2, node), operand(inputs, 3, node))
    y = writer.op("Mul", writer.op("Cast", total, to=int(dtype_of(scale))), scale)
    bias = optional(inputs, 6)
    return [y if bias is None else writer.op("Add", y, bias)]


def _activated(writer: Writer, node: ir.Node, y: ir.Value) -> ir.Value:
    """The activation that FusedConv and FusedGemm name in an attribute."""
    name = attribute(node, "activation", "")
    params = [float(p) for p in attribute(node, "activation_params", ())]
    if not name:
        return y
    if name in ("Relu", "Tanh", "Sigmoid"):
        return writer.op(name, y)
    if name == "LeakyRelu":
        alpha = params[0] if params else attribute(node, "activation_alpha", 0.01)
        return writer.op(name, y, alpha=alpha)
    if name == "Clip" and len(params) == 2:
        return writer.op(name, y, *(np.array(p, dtype_of(y).numpy()) for p in params))
    if name == "HardSigmoid" and len(params) == 2:
        return writer.op(name, y, alpha=params[0], beta=params[1])
    raise UnsupportedError(f"{node.op_type} with activation {name}", where=node.name)


_FUSED = (
    "activation",
    "activation_params",
    "activation_alpha",
    "activation_beta",
    "activation_gamma",
)


def _fused_conv(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    y = writer.op("Conv", *inputs[:3], **attributes(node, *_FUSED))
    addend = optional(inputs, 3)
    return [_activated(writer, node, y if addend is None else writer.op("Add", y, addend))]


def _fused_gemm(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    return [_activated(writer, node, writer.op("Gemm", *inputs, **attributes(node, *_FUSED)))]


def _fused_matmul(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        raise UnsupportedError("FusedMatMul with transposed batch", where=node.name)
    sides = []
    for index, flag in enumerate(("transA", "transB")):
        value = operand(inputs, index, node)
        rank = len(shape_of(value))
        if attribute(node, flag, 0):
            value = writer.op("Transpose", value, perm=(*range(rank - 2), rank - 1, rank - 2))
        sides.append(value)
    y = writer.op("MatMul", *sides)
    alpha = attribute(node, "alpha", 1.0)
    return [y if alpha == 1.0 else writer.op("Mul", y, np.array(alpha, dtype_of(y).numpy()))]


def _gelu(approximate: str) -> Adapter:
    """Gelu, BiasGelu, FastGelu: an optional bias is added first."""

    def convert(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
        x, bias = operand(inputs, 0, node), optional(inputs, 1)
        return [
            writer.op(
                "Gelu", x if bias is None else writer.op("Add", x, bias), approximate=approximate
            )
        ]

    return convert


def _quick_gelu(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    x = operand(inputs, 0, node)
    scale = np.array(attribute(node, "alpha", 1.702), dtype_of(x).numpy())
    return [writer.op("Mul", x, writer.op("Sigmoid", writer.op("Mul", x, scale)))]


def _skip_layer_norm(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """LayerNormalization of the sum of the input, a residual and an optional bias."""
    if any(v.name for v in node.outputs[1:3]):
        raise UnsupportedError("SkipLayerNormalization with statistics", where=node.name)
    total = writer.op("Add", operand(inputs, 0, node), operand(inputs, 1, node))
    bias = optional(inputs, 4)
    if bias is not None:
        total = writer.op("Add", total, bias)
    y = writer.op(
        "LayerNormalization",
        total,
        operand(inputs, 2, node),
        optional(inputs, 3),
        axis=-1,
        epsilon=attribute(node, "epsilon", 1e-12),
    )
    return [y, None, None, total][: len(node.outputs)]


def _standard(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Operators that have since entered the standard unchanged."""
    return writer.ops(node.op_type, *inputs, outputs=len(node.outputs), **attributes(node))


_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")

CONTRIB: dict[str, Callable[[Writer, ir.Node, Operands], Sequence[ir.Value | None]]] = {
    "BiasGelu": _gelu("none"),
    "DequantizeLinear": _standard,
    "FastGelu": _gelu("tanh"),
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu("none"),
    "MatMulIntegerToFloat": _product_to_float,
    "QGemm": _qgemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _unary("AveragePool", *_POOL),
    "QLinearConcat": _concat,
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearLeakyRelu": _unary("LeakyRelu", "alpha"),
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearSoftmax": _unary("Softmax", "axis"),
    "QuantizeLinear": _standard,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
}
"""Operator of ``com.microsoft`` -> how to write it."""
