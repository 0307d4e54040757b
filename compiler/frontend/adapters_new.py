"""Adapters from opsets after ``OPSET``: what is new is written in older operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from effc.errors import ModelError, UnsupportedError
from effc.frontend.adapter_tools import Operands, attributes, ints, operand, optional
from effc.passes.graph import OPSET, Writer, attribute, const, dtype_of, shape_of

__all__ = [
    "cumulative_product",
    "dequantize",
    "group_normalization",
    "quantize",
    "range_of_scalars",
    "recurrent",
    "space_to_depth",
    "without_new_attributes",
]


def group_normalization(
    writer: Writer, node: ir.Node, inputs: Operands
) -> Sequence[ir.Value | None]:
    """Reshape, InstanceNormalization over groups, scale and shift per channel.

    ``OPSET`` has it with one scale per group, since 21 there is one per channel.
    """
    x, scale, bias = (operand(inputs, i, node) for i in range(3))
    groups = attribute(node, "num_groups")
    shape, dtype = shape_of(x), dtype_of(x).numpy()
    batch, channels = shape[:2]
    if not groups or channels % groups:
        raise ModelError("channels do not divide into groups", where=node.name, got=groups)
    flat = writer.op("Reshape", x, ints([batch, groups, -1]))
    ones, zeros = np.ones(groups, dtype), np.zeros(groups, dtype)
    normal = writer.op(
        "InstanceNormalization", flat, ones, zeros, epsilon=attribute(node, "epsilon", 1e-5)
    )
    y = writer.op("Reshape", normal, ints(shape))
    for op, factor in (("Mul", scale), ("Add", bias)):
        factor = writer.op("Reshape", factor, ints([channels] + [1] * (len(shape) - 2)))
        y = writer.op(op, y, factor)
    return [y]


def recurrent(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """``layout=1`` (batch first) is ``layout=0`` between transposes."""
    attrs = attributes(node, "layout")
    if not attribute(node, "layout", 0):
        return writer.ops(node.op_type, *inputs, outputs=len(node.outputs), **attrs)
    swapped = list(inputs)
    for index in (0, 5, 6):  # X, initial_h, initial_c
        value = optional(inputs, index)
        if value is not None:
            swapped[index] = writer.op("Transpose", value, perm=(1, 0, 2))
    outs = list(writer.ops(node.op_type, *swapped, outputs=len(node.outputs), **attrs))
    for index, perm in enumerate(((2, 0, 1, 3), (1, 0, 2), (1, 0, 2))[: len(outs)]):
        if node.outputs[index].name:
            outs[index] = writer.op("Transpose", outs[index], perm=perm)
    return outs


def range_of_scalars(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """One-element tensors, which ONNX's own definitions pass, become scalars."""
    scalars = [
        v if v is None or not shape_of(v) else writer.op("Reshape", v, ints([])) for v in inputs
    ]
    return [writer.op("Range", *scalars)]


def cumulative_product(
    writer: Writer, node: ir.Node, inputs: Operands
) -> Sequence[ir.Value | None]:
    """CumProd by doubling: after step k every element holds the product of 2^k elements."""
    x, axis_value = operand(inputs, 0, node), const(operand(inputs, 1, node))
    if axis_value is None:
        raise UnsupportedError("CumProd along an axis computed at run time", where=node.name)
    shape, dtype = shape_of(x), dtype_of(x).numpy()
    axis = int(axis_value.reshape(-1)[0]) % len(shape)
    length = shape[axis]
    back = bool(attribute(node, "reverse", 0))

    def shifted(value: ir.Value, distance: int) -> ir.Value:
        pads = [0] * (2 * len(shape))
        pads[axis + (len(shape) if back else 0)] = distance
        span = (distance, length) if back else (0, length - distance)
        cut = writer.op("Slice", value, ints([span[0]]), ints([span[1]]), ints([axis]))
        return writer.op("Pad", cut, ints(pads), np.array(1, dtype))

    product = shifted(x, 1) if attribute(node, "exclusive", 0) and length > 0 else x
    distance = 1
    while distance < length:
        product = writer.op("Mul", product, shifted(product, distance))
        distance *= 2
    return [product]


def space_to_depth(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """28 added the order CRD (channel first) to SpaceToDepth."""
    x, block = operand(inputs, 0, node), attribute(node, "blocksize")
    if attribute(node, "mode", "DCR") != "CRD":
        return [writer.op("SpaceToDepth", x, blocksize=block)]
    n, c, h, w = shape_of(x)
    split = writer.op("Reshape", x, ints([n, c, h // block, block, w // block, block]))
    moved = writer.op("Transpose", split, perm=(0, 1, 3, 5, 2, 4))
    return [writer.op("Reshape", moved, ints([n, c * block * block, h // block, w // block]))]


def _blocked(
    writer: Writer, node: ir.Node, inputs: Operands
) -> tuple[ir.Value, list[ir.Value | None]] | None:
    """(x, scale and zero point repeated to x's shape) of blocked quantization."""
    size = attribute(node, "block_size", 0)
    if not size:
        return None
    x = operand(inputs, 0, node)
    shape = shape_of(x)
    axis = attribute(node, "axis", 1) % len(shape)
    spread: list[ir.Value | None] = []
    for value in (operand(inputs, 1, node), optional(inputs, 2)):
        if value is None:
            spread.append(None)
            continue
        index = np.arange(shape[axis], dtype=np.int64) // size
        spread.append(writer.op("Gather", value, index, axis=axis))
    return x, spread


def dequantize(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Blocks have a scale per element of a block: plain arithmetic."""
    found = _blocked(writer, node, inputs)
    if found is None:
        return _plain(writer, node, inputs)
    x, (scale, zero) = found
    assert scale is not None
    kind = int(dtype_of(scale))
    known = const(x)
    if known is not None:  # integers of 4 bits have no Cast in ``OPSET``
        y = writer.const(known.astype(dtype_of(scale).numpy()))
    else:
        y = writer.op("Cast", x, to=kind)
    if zero is not None:
        y = writer.op("Sub", y, writer.op("Cast", zero, to=kind))
    return [writer.op("Mul", y, scale)]


def quantize(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """round(x / scale) + zero point, saturated."""
    found = _blocked(writer, node, inputs)
    if found is None:
        return _plain(writer, node, inputs)
    x, (scale, zero) = found
    assert scale is not None
    kind = (
        dtype_of(zero)
        if zero is not None
        else ir.DataType(attribute(node, "output_dtype", 0) or int(ir.DataType.UINT8))
    )
    if kind.numpy().kind not in "iu":
        raise UnsupportedError("blocked quantization to this type", where=node.name, got=kind.name)
    y = writer.op("Round", writer.op("Div", x, scale))
    if zero is not None:
        y = writer.op("Add", y, writer.op("Cast", zero, to=int(dtype_of(x))))
    signed = kind.is_signed()
    low = -(1 << (kind.bitwidth - 1)) if signed else 0
    bounds = [np.array(b, dtype_of(x).numpy()) for b in (low, low + (1 << kind.bitwidth) - 1)]
    return [writer.op("Cast", writer.op("Clip", y, *bounds), to=int(kind))]


def _plain(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """The same node, without attributes newer than ``OPSET``."""
    changed = without_new_attributes(writer, node, inputs)
    if changed is not None:
        return changed
    return writer.ops(node.op_type, *inputs, outputs=len(node.outputs), **attributes(node))


def without_new_attributes(
    writer: Writer, node: ir.Node, inputs: Operands
) -> Sequence[ir.Value | None] | None:
    """Drop attributes that ``OPSET`` does not know, if they hold their defaults."""
    if not onnx.defs.has(node.op_type, OPSET, ""):
        return None
    schema = onnx.defs.get_schema(node.op_type, OPSET, "")
    extra = [name for name in node.attributes if name not in schema.attributes]
    if not extra:
        return None
    newest = onnx.defs.get_schema(node.op_type, onnx.defs.onnx_opset_version(), "")
    for name in extra:
        default = onnx.helper.get_attribute_value(newest.attributes[name].default_value)
        value = attribute(node, name)
        if value not in (default, default.decode() if isinstance(default, bytes) else default):
            raise UnsupportedError(
                f"{node.op_type} with {name}={value}", where=node.name, hint="needs a newer opset"
            )
    return writer.ops(node.op_type, *inputs, outputs=len(node.outputs), **attributes(node, *extra))
