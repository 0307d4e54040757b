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

    Its scale was per group in 18 and is per channel since 21; neither reading is
    known to all tools, the primitive form is.
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
        if shape_of(factor)[0] != channels:
            spread = writer.op("Unsqueeze", factor, _ints([1]))
            spread = writer.op("Expand", spread, _ints([groups, channels // groups]))
            factor = writer.op("Reshape", spread, _ints([channels]))
        factor = writer.op("Reshape", factor, _ints([channels] + [1] * (len(shape) - 2)))
        y = writer.op(op, y, factor)
    return [y]


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
    "Compress": ((9, 99, _compress),),
    "DFT": ((17, 19, _dft),),
    "Dropout": ((7, 99, _dropout),),
    "GridSample": ((16, 19, _grid_sample),),
    "GroupNormalization": ((18, 99, _group_normalization),),
    "Hardmax": ((7, 12, _flattened),),
    "LogSoftmax": ((7, 12, _flattened),),
    "Pad": ((7, 10, _pad),),
    "ReduceSum": ((7, 12, _AXES),),
    "Resize": ((10, 10, _resize_10), (11, 17, _resize_11)),
    "Scatter": ((9, 10, _scatter),),
    "Slice": ((7, 9, _slice),),
    "Softmax": ((7, 12, _flattened),),
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
