"""Adapters from opsets before ``OPSET``: attributes that became operands, and the like."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from effc.errors import ModelError, UnsupportedError
from effc.frontend.adapter_tools import Adapter, Operands, attributes, ints, operand, optional
from effc.passes.graph import Writer, attribute, const, dtype_of, shape_of

__all__ = [
    "attribute_to_input",
    "batch_normalization",
    "clip",
    "compress",
    "dft",
    "dropout",
    "flattened",
    "grid_sample",
    "pad",
    "resize_10",
    "resize_11",
    "scatter",
    "slice_by_attributes",
    "split",
    "topk",
    "upsample",
]


def attribute_to_input(name: str, position: int) -> Adapter:
    """``name`` became an int64 operand at ``position`` (axes, pads, repeats ...)."""

    def convert(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
        values = attribute(node, name)
        operands: list[ir.Value | None] = list(inputs[:position])
        if values is not None:
            operands += [None] * (position - len(operands))
            operands.append(writer.const(ints(np.atleast_1d(values).tolist())))
        return writer.ops(
            node.op_type, *operands, outputs=len(node.outputs), **attributes(node, name)
        )

    return convert


def flattened(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Softmax before 13: over all axes from ``axis`` (default 1) on, together."""
    x = operand(inputs, 0, node)
    shape = shape_of(x)
    axis = attribute(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    if prod(shape[axis:]) == shape[-1] and axis < len(shape):
        # Only one axis counts more than one element (or it is the last): no reshaping needed.
        return [writer.op(node.op_type, x, axis=len(shape) - 1)]
    if axis < len(shape) and prod(shape[axis:]) == shape[axis]:
        return [writer.op(node.op_type, x, axis=axis)]
    flat = writer.op("Reshape", x, ints([prod(shape[:axis]), prod(shape[axis:])]))
    return [writer.op("Reshape", writer.op(node.op_type, flat, axis=1), ints(shape))]


def clip(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    x = operand(inputs, 0, node)
    dtype = dtype_of(x).numpy()
    low, high = (attribute(node, name) for name in ("min", "max"))
    bounds = [None if v is None else np.array(v, dtype) for v in (low, high)]
    return [writer.op("Clip", x, *bounds)]


def pad(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    x = operand(inputs, 0, node)
    value = np.array(attribute(node, "value", 0.0), dtype_of(x).numpy())
    mode = attribute(node, "mode", "constant")
    return [writer.op("Pad", x, ints(attribute(node, "pads")), value, mode=mode)]


def slice_by_attributes(
    writer: Writer, node: ir.Node, inputs: Operands
) -> Sequence[ir.Value | None]:
    x = operand(inputs, 0, node)
    starts, ends = attribute(node, "starts"), attribute(node, "ends")
    axes = attribute(node, "axes", tuple(range(len(starts))))
    return [writer.op("Slice", x, ints(starts), ints(ends), ints(axes))]


def topk(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    operands = [operand(inputs, 0, node), writer.const(ints([attribute(node, "k")]))]
    return writer.ops("TopK", *operands, outputs=2, axis=attribute(node, "axis", -1))


def split(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Split before 18: sizes from an attribute, an operand, or equal parts."""
    x = operand(inputs, 0, node)
    axis, count = attribute(node, "axis", 0), len(node.outputs)
    sizes = attribute(node, "split")
    given = optional(inputs, 1)
    if given is not None:
        return writer.ops("Split", x, given, outputs=count, axis=axis)
    if sizes is None:
        length = shape_of(x)[axis]
        if length % count:
            raise ModelError("Split into unequal parts", where=node.name, got=(length, count))
        sizes = [length // count] * count
    return writer.ops("Split", x, ints(sizes), outputs=count, axis=axis)


def batch_normalization(
    writer: Writer, node: ir.Node, inputs: Operands
) -> Sequence[ir.Value | None]:
    """Before 14: further outputs meant training; ``spatial`` must be 1."""
    if attribute(node, "spatial", 1) != 1:
        raise UnsupportedError("BatchNormalization with spatial=0", where=node.name)
    if any(v.name and (v.uses() or v.is_graph_output()) for v in node.outputs[1:]):
        raise UnsupportedError("BatchNormalization in training mode", where=node.name)
    epsilon = attribute(node, "epsilon", 1e-5)
    return [writer.op("BatchNormalization", *inputs, epsilon=epsilon)]


def dropout(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Inference: the identity, and a mask of True (before 10: of the data's type)."""
    x = operand(inputs, 0, node)
    training = const(optional(inputs, 2))
    if optional(inputs, 2) is not None and (training is None or bool(training)):
        raise UnsupportedError("Dropout in training mode", where=node.name)
    if len(node.outputs) == 1:
        return [x]
    return [x, writer.op("Expand", np.array(True), ints(shape_of(x)))]


def upsample(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Upsample is Resize on an asymmetric grid, rounding down."""
    x = operand(inputs, 0, node)
    fixed = attribute(node, "scales")
    scales = (
        operand(inputs, 1, node) if fixed is None else writer.const(np.array(fixed, np.float32))
    )
    mode = attribute(node, "mode", "nearest")
    return [_asymmetric_resize(writer, x, scales, "linear" if mode == "bilinear" else mode)]


def resize_10(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    x, scales = operand(inputs, 0, node), operand(inputs, 1, node)
    mode = attribute(node, "mode", "nearest")
    return [_asymmetric_resize(writer, x, scales, mode)]


def _asymmetric_resize(writer: Writer, x: ir.Value, scales: ir.Value, mode: str) -> ir.Value:
    return writer.op(
        "Resize",
        x,
        None,
        scales,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def resize_11(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """11 to 17: empty operands stood for absent ones; one grid mode was dropped."""
    if attribute(node, "coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise UnsupportedError(
            "Resize with coordinate_transformation_mode=tf_half_pixel_for_nn", where=node.name
        )
    operands = [None if v is None or 0 in shape_of(v) else v for v in inputs]
    return [writer.op("Resize", *operands, **attributes(node))]


def grid_sample(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """20 renamed the interpolation modes."""
    mode = attribute(node, "mode", "bilinear")
    new = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return [writer.op("GridSample", *inputs, mode=new, **attributes(node, "mode"))]


def scatter(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    return [writer.op("ScatterElements", *inputs, **attributes(node))]


def compress(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    """Gather of the places that a constant condition selects."""
    x, condition = operand(inputs, 0, node), const(operand(inputs, 1, node))
    if condition is None:
        raise UnsupportedError(
            "the shape of the result depends on the condition, which is not constant",
            where=node.name,
        )
    axis = attribute(node, "axis")
    if axis is None:
        x = writer.op("Reshape", x, ints([-1]))
    return [writer.op("Gather", x, np.flatnonzero(condition), axis=axis or 0)]


def dft(writer: Writer, node: ir.Node, inputs: Operands) -> Sequence[ir.Value | None]:
    x, length = operand(inputs, 0, node), optional(inputs, 1)
    axis = np.array(attribute(node, "axis", 1), np.int64)
    return [writer.op("DFT", x, length, axis, **attributes(node, "axis"))]
