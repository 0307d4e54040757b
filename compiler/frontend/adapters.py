"""Conversion of single operators from any supported opset to ``OPSET``.

An adapter gets the operator's operands with static shapes and, where constant,
values; so it can write the newer (or older) form exactly. Operators without an
adapter mean the same at every opset from 7 on, apart from element types;
``tests/frontend/test_adapters.py`` checks this table against ONNX's history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from effc.errors import ModelError, UnsupportedError
from effc.passes.graph import OPSET, Writer, attribute, const, dtype_of, shape_of

__all__ = ["ADAPTERS", "adapt"]

Operands = Sequence[ir.Value | None]
Adapter = Callable[[Writer, ir.Node, Operands], Sequence[ir.Value | None]]


def adapt(
    writer: Writer, node: ir.Node, inputs: Operands, version: int
) -> Sequence[ir.Value | None] | None:
    """Convert one node, or return None if its form at ``OPSET`` is the same.

    Args:
        writer: Receives the new nodes.
        node: A node of the default domain.
        inputs: Its operands in the new graph.
        version: The opset it is written in.

    Raises:
        UnsupportedError: It cannot be said at ``OPSET``.
    """
    if node.domain:
        return None
    for first, last, adapter in ADAPTERS.get(node.op_type, ()):
        if first <= version <= last:
            return adapter(writer, node, inputs)
    return _without_new_attributes(writer, node, inputs) if version > OPSET else None


def _operand(inputs: Operands, index: int, node: ir.Node) -> ir.Value:
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise ModelError(f"{node.op_type} lacks operand {index}", where=node.name)
    return value


def _optional(inputs: Operands, index: int) -> ir.Value | None:
    return inputs[index] if index < len(inputs) else None


def _attrs(node: ir.Node, *dropped: str) -> dict[str, Any]:
    return {name: a for name, a in node.attributes.items() if name not in dropped}


def _ints(values: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def _attribute_to_input(name: str, position: int) -> Adapter:
    """``name`` became an int64 operand at ``position`` (axes, pads, repeats ...)."""

    def convert(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
        values = attribute(node, name)
        operands: list[ir.Value | None] = list(inputs[:position])
        if values is not None:
            operands += [None] * (position - len(operands))
            operands.append(writer.const(_ints(np.atleast_1d(values).tolist())))
        return writer.ops(
            node.op_type, *operands, outputs=len(node.outputs), **_attrs(node, name)
        )

    return convert


def _flattened(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Softmax before 13: over all axes from ``axis`` (default 1) on, together."""
    x = _operand(inputs, 0, node)
    shape = shape_of(x)
    axis = attribute(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    if prod(shape[axis:]) == shape[-1] and axis < len(shape):
        # Only one axis counts more than one element (or it is the last): no reshaping needed.
        return [writer.op(node.op_type, x, axis=len(shape) - 1)]
    if axis < len(shape) and prod(shape[axis:]) == shape[axis]:
        return [writer.op(node.op_type, x, axis=axis)]
    flat = writer.op("Reshape", x, _ints([prod(shape[:axis]), prod(shape[axis:])]))
    return [writer.op("Reshape", writer.op(node.op_type, flat, axis=1), _ints(shape))]


def _clip(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    x = _operand(inputs, 0, node)
    dtype = dtype_of(x).numpy()
    low, high = (attribute(node, name) for name in ("min", "max"))
    bounds = [None if v is None else np.array(v, dtype) for v in (low, high)]
    return [writer.op("Clip", x, *bounds)]


def _pad(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    x = _operand(inputs, 0, node)
    value = np.array(attribute(node, "value", 0.0), dtype_of(x).numpy())
    mode = attribute(node, "mode", "constant")
    return [writer.op("Pad", x, _ints(attribute(node, "pads")), value, mode=mode)]


def _slice(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    x = _operand(inputs, 0, node)
    starts, ends = attribute(node, "starts"), attribute(node, "ends")
    axes = attribute(node, "axes", tuple(range(len(starts))))
    return [writer.op("Slice", x, _ints(starts), _ints(ends), _ints(axes))]


def _topk(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    operands = [_operand(inputs, 0, node), writer.const(_ints([attribute(node, "k")]))]
    return writer.ops("TopK", *operands, outputs=2, axis=attribute(node, "axis", -1))


def _split(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Split before 18: sizes from an attribute, an operand, or equal parts."""
    x = _operand(inputs, 0, node)
    axis, count = attribute(node, "axis", 0), len(node.outputs)
    sizes = attribute(node, "split")
    operand = _optional(inputs, 1)
    if operand is not None:
        return writer.ops("Split", x, operand, outputs=count, axis=axis)
    if sizes is None:
        length = shape_of(x)[axis]
        if length % count:
            raise ModelError("Split into unequal parts", where=node.name, got=(length, count))
        sizes = [length // count] * count
    return writer.ops("Split", x, _ints(sizes), outputs=count, axis=axis)


def _batch_normalization(
    writer: Writer, node: ir.Node, inputs: Operands
) -> Sequence[ir.Value | None]:
    """Before 14: further outputs meant training; ``spatial`` must be 1."""
    if attribute(node, "spatial", 1) != 1:
        raise UnsupportedError("BatchNormalization with spatial=0", where=node.name)
    if any(v.name and (v.uses() or v.is_graph_output()) for v in node.outputs[1:]):
        raise UnsupportedError("BatchNormalization in training mode", where=node.name)
    epsilon = attribute(node, "epsilon", 1e-5)
    return [writer.op("BatchNormalization", *inputs, epsilon=epsilon)]


def _dropout(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Inference: the identity, and a mask of True (before 10: of the data's type)."""
    x = _operand(inputs, 0, node)
    training = const(_optional(inputs, 2))
    if _optional(inputs, 2) is not None and (training is None or bool(training)):
        raise UnsupportedError("Dropout in training mode", where=node.name)
    if len(node.outputs) == 1:
        return [x]
    return [x, writer.op("Expand", np.array(True), _ints(shape_of(x)))]


def _upsample(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Upsample is Resize on an asymmetric grid, rounding down."""
    x = _operand(inputs, 0, node)
    scales = attribute(node, "scales")
    operand = (
        _operand(inputs, 1, node) if scales is None else
        writer.const(np.array(scales, np.float32))
    )
    mode = {"bilinear": "linear"}.get(attribute(node, "mode", "nearest"),
                                      attribute(node, "mode", "nearest"))
    return [_asymmetric_resize(writer, x, operand, mode)]


def _resize_10(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    x, scales = _operand(inputs, 0, node), _operand(inputs, 1, node)
    mode = attribute(node, "mode", "nearest")
    return [_asymmetric_resize(writer, x, scales, mode)]


def _asymmetric_resize(writer: Writer, x: ir.Value, scales: ir.Value, mode: str) -> ir.Value:
    return writer.op(
        "Resize", x, None, scales, mode=mode,
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )


def _resize_11(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """11 to 17: empty operands stood for absent ones; one grid mode was dropped."""
    operands = [None if v is None or 0 in shape_of(v) else v for v in inputs]
    attrs = _attrs(node)
    if attribute(node, "coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        if attribute(node, "mode", "nearest") != "nearest":
            raise UnsupportedError("Resize with tf_half_pixel_for_nn", where=node.name)
        raise UnsupportedError(
            "Resize with coordinate_transformation_mode=tf_half_pixel_for_nn", where=node.name
        )
    return [writer.op("Resize", *operands, **attrs)]


def _grid_sample(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """20 renamed the interpolation modes."""
    mode = attribute(node, "mode", "bilinear")
    new = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return [writer.op("GridSample", *inputs, mode=new, **_attrs(node, "mode"))]


def _scatter(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    return [writer.op("ScatterElements", *inputs, **_attrs(node))]


def _compress(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Gather of the places that a constant condition selects."""
    x, condition = _operand(inputs, 0, node), const(_operand(inputs, 1, node))
    if condition is None:
        raise UnsupportedError(
            "the shape of the result depends on the condition, which is not constant",
            where=node.name,
        )
    axis = attribute(node, "axis")
    if axis is None:
        x = writer.op("Reshape", x, _ints([-1]))
    return [writer.op("Gather", x, np.flatnonzero(condition), axis=axis or 0)]


def _dft(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    x, length = _operand(inputs, 0, node), _optional(inputs, 1)
    axis = np.array(attribute(node, "axis", 1), np.int64)
    return [writer.op("DFT", x, length, axis, **_attrs(node, "axis"))]


def _group_normalization(
    writer: Writer, node: ir.Node, inputs: Operands
) -> Sequence[ir.Value | None]:
    """Reshape, InstanceNormalization over groups, scale and shift per channel.

    ``OPSET`` has it with one scale per group, since 21 there is one per channel.
    """
    x, scale, bias = (_operand(inputs, i, node) for i in range(3))
    groups = attribute(node, "num_groups")
    shape, dtype = shape_of(x), dtype_of(x).numpy()
    batch, channels = shape[:2]
    if not groups or channels % groups:
        raise ModelError("channels do not divide into groups", where=node.name, got=groups)
    flat = writer.op("Reshape", x, _ints([batch, groups, -1]))
    ones, zeros = np.ones(groups, dtype), np.zeros(groups, dtype)
    normal = writer.op(
        "InstanceNormalization", flat, ones, zeros, epsilon=attribute(node, "epsilon", 1e-5)
    )
    y = writer.op("Reshape", normal, _ints(shape))
    for op, factor in (("Mul", scale), ("Add", bias)):
        factor = writer.op("Reshape", factor, _ints([channels] + [1] * (len(shape) - 2)))
        y = writer.op(op, y, factor)
    return [y]


def _recurrent(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """``layout=1`` (batch first) is ``layout=0`` between transposes."""
    attrs = _attrs(node, "layout")
    if not attribute(node, "layout", 0):
        return writer.ops(node.op_type, *inputs, outputs=len(node.outputs), **attrs)
    swapped = list(inputs)
    for index in (0, 5, 6):  # X, initial_h, initial_c
        value = _optional(inputs, index)
        if value is not None:
            swapped[index] = writer.op("Transpose", value, perm=(1, 0, 2))
    outs = list(writer.ops(node.op_type, *swapped, outputs=len(node.outputs), **attrs))
    for index, perm in enumerate(((2, 0, 1, 3), (1, 0, 2), (1, 0, 2))[: len(outs)]):
        if node.outputs[index].name:
            outs[index] = writer.op("Transpose", outs[index], perm=perm)
    return outs


def _range(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """One-element tensors, which ONNX's own definitions pass, become scalars."""
    scalars = [
        v if v is None or not shape_of(v) else writer.op("Reshape", v, _ints([])) for v in inputs
    ]
    return [writer.op("Range", *scalars)]


def _cumulative_product(
    writer: Writer, node: ir.Node, inputs: Operands
) -> Sequence[ir.Value | None]:
    """CumProd by doubling: after step k every element holds the product of 2^k elements."""
    x, axis_value = _operand(inputs, 0, node), const(_operand(inputs, 1, node))
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
        cut = writer.op("Slice", value, _ints([span[0]]), _ints([span[1]]), _ints([axis]))
        return writer.op("Pad", cut, _ints(pads), np.array(1, dtype))

    product = shifted(x, 1) if attribute(node, "exclusive", 0) and length > 0 else x
    distance = 1
    while distance < length:
        product = writer.op("Mul", product, shifted(product, distance))
        distance *= 2
    return [product]


def _space_to_depth(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """28 added the order CRD (channel first) to SpaceToDepth."""
    x, block = _operand(inputs, 0, node), attribute(node, "blocksize")
    if attribute(node, "mode", "DCR") != "CRD":
        return [writer.op("SpaceToDepth", x, blocksize=block)]
    n, c, h, w = shape_of(x)
    split = writer.op("Reshape", x, _ints([n, c, h // block, block, w // block, block]))
    moved = writer.op("Transpose", split, perm=(0, 1, 3, 5, 2, 4))
    return [writer.op("Reshape", moved, _ints([n, c * block * block, h // block, w // block]))]


def _blocked(
    writer: Writer, node: ir.Node, inputs: Operands
) -> tuple[ir.Value, list[ir.Value | None]] | None:
    """(x, scale and zero point repeated to x's shape) of blocked quantization."""
    size = attribute(node, "block_size", 0)
    if not size:
        return None
    x = _operand(inputs, 0, node)
    shape = shape_of(x)
    axis = attribute(node, "axis", 1) % len(shape)
    spread: list[ir.Value | None] = []
    for value in (_operand(inputs, 1, node), _optional(inputs, 2)):
        if value is None:
            spread.append(None)
            continue
        index = np.arange(shape[axis], dtype=np.int64) // size
        spread.append(writer.op("Gather", value, index, axis=axis))
    return x, spread


def _dequantize(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Blocks have a scale per element of a block: plain arithmetic."""
    blocked = _blocked(writer, node, inputs)
    if blocked is None:
        return _plain(writer, node, inputs)
    x, (scale, zero) = blocked
    assert scale is not None
    kind = int(dtype_of(scale))
    y = writer.op("Cast", x, to=kind)
    if zero is not None:
        y = writer.op("Sub", y, writer.op("Cast", zero, to=kind))
    return [writer.op("Mul", y, scale)]


def _quantize(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """round(x / scale) + zero point, saturated."""
    blocked = _blocked(writer, node, inputs)
    if blocked is None:
        return _plain(writer, node, inputs)
    x, (scale, zero) = blocked
    assert scale is not None
    kind = dtype_of(zero) if zero is not None else ir.DataType(
        attribute(node, "output_dtype", 0) or int(ir.DataType.UINT8))
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
    changed = _without_new_attributes(writer, node, inputs)
    if changed is not None:
        return changed
    return writer.ops(node.op_type, *inputs, outputs=len(node.outputs), **_attrs(node))


def _without_new_attributes(
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
    return writer.ops(
        node.op_type, *inputs, outputs=len(node.outputs), **_attrs(node, *extra)
    )


_AXES = _attribute_to_input("axes", 1)

ADAPTERS: dict[str, tuple[tuple[int, int, Adapter], ...]] = {
    "BatchNormalization": ((7, 13, _batch_normalization),),
    "Clip": ((7, 10, _clip),),
    "CumProd": ((26, 99, _cumulative_product),),
    "Compress": ((9, 99, _compress),),
    "DFT": ((17, 19, _dft),),
    "DequantizeLinear": ((21, 99, _dequantize),),
    "Dropout": ((7, 99, _dropout),),
    "GRU": ((14, 99, _recurrent),),
    "GridSample": ((16, 19, _grid_sample),),
    "GroupNormalization": ((21, 99, _group_normalization),),
    "Hardmax": ((7, 12, _flattened),),
    "LSTM": ((14, 99, _recurrent),),
    "LogSoftmax": ((7, 12, _flattened),),
    "Pad": ((7, 10, _pad),),
    "QuantizeLinear": ((21, 99, _quantize),),
    "RNN": ((14, 99, _recurrent),),
    "Range": ((7, 99, _range),),
    "ReduceSum": ((7, 12, _AXES),),
    "Resize": ((10, 10, _resize_10), (11, 17, _resize_11)),
    "Scatter": ((9, 10, _scatter),),
    "Slice": ((7, 9, _slice),),
    "Softmax": ((7, 12, _flattened),),
    "SpaceToDepth": ((28, 99, _space_to_depth),),
    "Split": ((7, 17, _split),),
    "Squeeze": ((7, 12, _AXES),),
    "TopK": ((7, 9, _topk),),
    "Unsqueeze": ((7, 12, _AXES),),
    "Upsample": ((7, 9, _upsample),),
    **{
        name: ((7, 17, _AXES),)
        for name in (
            "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
            "ReduceProd ReduceSumSquare"
        ).split()
    },
}
"""Operator -> (first opset, last opset, adapter)."""
