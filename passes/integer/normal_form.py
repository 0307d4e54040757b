"""One form for quantized models: float operators between DequantizeLinear and QuantizeLinear.

- QLinearConv and QLinearMatMul are written so (those of ``com.microsoft`` are at import).
- Operators that only move or choose elements (Reshape, Transpose, Slice, Concat, MaxPool, Max ...)
  work on the integers: DequantizeLinear moves behind them, QuantizeLinear in front of them.
- Padding by the zero point in front of a convolution becomes the convolution's own.
- QuantizeLinear of what was dequantized from the same grid is the tensor itself.

All of it is exact for whole-tensor scales, which is what activations have. QLinear operators
accumulate in integers; written with floats they mean the same up to rounding.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, redirect, shape_of, single_user
from effc.passes.integer.grid import BYTES, INTEGERS, grid_of, is_quantized, source
from effc.passes.merge_pad import pad_amounts
from effc.passes.replace import replace_node

__all__ = ["CHOICES", "MOVES", "NORMAL_FORM"]

MOVES = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose results are elements of their first operand."""

CHOICES = frozenset({"Concat", "Max", "Min"})
"""Operators whose results are elements of any operand: quantized, each is on the result's grid."""


class WriteQlinear(RewritePass):
    """QLinearConv and QLinearMatMul between DequantizeLinear and QuantizeLinear."""

    name: ClassVar[str] = "write_qlinear"
    ops: ClassVar[frozenset[str]] = frozenset({"QLinearConv", "QLinearMatMul"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        writer = Writer(graph, node)
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
        if any(v is None or v.dtype not in BYTES for v in (x, w)):
            return "not 8 bits"
        if any(v is None or const(v) is None for v in (x_scale, w_scale, y_scale)):
            return "a scale is not constant"
        assert x is not None
        assert w is not None
        convolution = node.op_type == "QLinearConv"
        axis = 0 if convolution else len(shape_of(w)) - 1
        if any(const(v) is not None and const(v).size > 1 for v in (x_scale, y_scale)):  # type: ignore[union-attr]
            return "an activation has several scales"
        operands = [
            writer.op("DequantizeLinear", x, *_scalars(writer, x_scale, x_zero)),
            writer.op("DequantizeLinear", w, *_scalars(writer, w_scale, w_zero), axis=axis),
        ]
        attrs: dict[str, Any] = dict(node.attributes)
        bias = node.inputs[8] if len(node.inputs) > 8 else None
        if bias is not None:
            product = const(x_scale).reshape(()) * const(w_scale).reshape(-1)  # type: ignore[union-attr]
            scale = product.reshape(()) if product.size == 1 else product
            operands.append(writer.op("DequantizeLinear", bias, np.asarray(scale), axis=0))
        y = writer.op("Conv" if convolution else "MatMul", *operands, **attrs)
        redirect(
            node.outputs[0], writer.op("QuantizeLinear", y, *_scalars(writer, y_scale, y_zero))
        )
        return True


def _scalars(writer: Writer, *values: ir.Value | None) -> list[ir.Value | None]:
    """Parameters of one element as scalars; others as they are."""
    found: list[ir.Value | None] = []
    for value in values:
        known = const(value)
        if known is not None and known.size == 1 and known.ndim:
            found.append(writer.const(known.reshape(())))
        else:
            found.append(value)
    return found


class WriteGlobalMax(RewritePass):
    """GlobalMaxPool of a quantized tensor as MaxPool, which ONNX has for integers too."""

    name: ClassVar[str] = "write_global_max"
    ops: ClassVar[frozenset[str]] = frozenset({"GlobalMaxPool"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        x = node.inputs[0]
        if x is None or source(x) is None:
            return False
        window = Writer(graph, node).op("MaxPool", x, kernel_shape=shape_of(x)[2:])
        redirect(node.outputs[0], window)
        return True


class MoveDequantize(RewritePass):
    """DequantizeLinear behind operators that only move elements."""

    name: ClassVar[str] = "move_dequantize"
    ops: ClassVar[frozenset[str]] = MOVES | CHOICES

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        if node.op_type in CHOICES:
            return _move_common(graph, node)
        x = node.inputs[0]
        scaling = None if x is None else x.producer()
        if scaling is None or not is_quantized(scaling, "DequantizeLinear"):
            return False
        if not moves_elements(node):
            return f"{node.op_type} computes new values"
        writer = Writer(graph, node)
        integers = scaling.inputs[0]
        grid = grid_of(scaling, INTEGERS)
        if grid is None:
            return _move_weights(graph, node, scaling)
        if node.op_type == "MaxPool" and grid.dtype.itemsize > 1:
            return "there is no MaxPool of 16-bit integers"
        inputs = [integers, *node.inputs[1:]]
        if node.op_type == "Pad" and len(inputs) > 2 and inputs[2] is not None:
            fill = const(inputs[2])
            if fill is None or not np.array_equal(grid.dequantized(grid.quantized(fill)), fill):
                return "the padding is not on the tensor's grid"
            inputs[2] = writer.const(grid.quantized(fill))
        elif node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant":
            inputs = [*inputs[:2], writer.const(np.array(grid.zero, grid.dtype)), *inputs[3:]]
        attrs: dict[str, Any] = dict(node.attributes)
        moved = writer.ops(node.op_type, *inputs, outputs=len(node.outputs), **attrs)
        parameters: dict[str, Any] = dict(scaling.attributes)
        for old, new in zip(node.outputs, moved, strict=True):
            redirect(old, writer.op("DequantizeLinear", new, *scaling.inputs[1:], **parameters))
        return True


def _move_common(graph: ir.Graph, node: ir.Node) -> bool | str:
    """Several operands on one grid."""
    found = [source(v, INTEGERS) for v in node.inputs]
    operands = [pair[0] for pair in found if pair is not None]
    if len(operands) != len(found):
        return False
    if len({pair[1] for pair in found if pair is not None}) > 1:
        return "its operands are on different grids"
    scaling = node.inputs[0].producer()  # type: ignore[union-attr]
    assert scaling is not None
    writer = Writer(graph, node)
    attrs: dict[str, Any] = dict(node.attributes)
    chosen = writer.op(node.op_type, *operands, **attrs)
    redirect(node.outputs[0], writer.op("DequantizeLinear", chosen, *scaling.inputs[1:]))
    return True


def moves_elements(node: ir.Node) -> bool:
    """Whether an operator of ``MOVES`` really does nothing else, with one known result."""
    if node.op_type == "Resize":
        return (
            attribute(node, "mode", "nearest") == "nearest"
            and all(v is None or const(v) is not None for v in node.inputs[1:])
            and attribute(node, "coordinate_transformation_mode", "") != "tf_crop_and_resize"
        )
    if node.op_type == "MaxPool":
        return len([v for v in node.outputs if v.name]) == 1
    return True


def _move_weights(graph: ir.Graph, node: ir.Node, scaling: ir.Node) -> bool | str:
    """A transposed constant with scales along an axis."""
    integers, scale = scaling.inputs[0], const(scaling.inputs[1])
    if const(integers) is None or scale is None or integers is None:
        return "its scale is not one constant"
    attrs: dict[str, Any] = dict(node.attributes)
    if scale.size > 1:
        if node.op_type != "Transpose" or scale.ndim != 1:
            return "the scale differs along an axis"
        rank = len(shape_of(integers))
        perm = list(attribute(node, "perm", range(rank)[::-1]))
        attrs_out: dict[str, Any] = {"axis": perm.index(attribute(scaling, "axis", 1) % rank)}
    elif node.op_type == "Pad":
        return "a padded constant"
    else:
        attrs_out = {}
    writer = Writer(graph, node)
    moved = writer.ops(node.op_type, integers, *node.inputs[1:], outputs=len(node.outputs), **attrs)
    for old, new in zip(node.outputs, moved, strict=True):
        redirect(old, writer.op("DequantizeLinear", new, *scaling.inputs[1:], **attrs_out))
    return True


class MoveQuantize(RewritePass):
    """QuantizeLinear in front of operators that only move elements; pairs of both removed."""

    name: ClassVar[str] = "move_quantize"
    ops: ClassVar[frozenset[str]] = frozenset({"QuantizeLinear"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        grid, x = grid_of(node, INTEGERS), node.inputs[0]
        producer = None if x is None else x.producer()
        if grid is None or producer is None or producer.domain or x is None:
            return False
        if is_quantized(producer, "DequantizeLinear") and grid_of(producer, INTEGERS) == grid:
            integers = producer.inputs[0]
            assert integers is not None
            redirect(node.outputs[0], integers)
            return True
        if producer.op_type not in MOVES | CHOICES or single_user(x) is None:
            return False
        if producer.op_type == "Split" or not moves_elements(producer):
            return False
        if producer.op_type == "Pad" or (producer.op_type == "MaxPool" and grid.dtype.itemsize > 1):
            return False
        writer = Writer(graph, node)
        count = len(producer.inputs) if producer.op_type in CHOICES else 1
        inputs = [
            writer.op("QuantizeLinear", v, *node.inputs[1:]) if v is not None else None
            for v in producer.inputs[:count]
        ]
        attrs: dict[str, Any] = dict(producer.attributes)
        redirect(
            node.outputs[0],
            writer.op(producer.op_type, *inputs, *producer.inputs[count:], **attrs),
        )
        return True


class MergeQuantizedPad(RewritePass):
    """Conv of a tensor that is padded with its zero point, which means zeros."""

    name: ClassVar[str] = "merge_quantized_pad"
    ops: ClassVar[frozenset[str]] = frozenset({"Conv"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        found = source(node.inputs[0])
        pad = None if found is None else found[0].producer()
        if found is None or pad is None or pad.domain or pad.op_type != "Pad":
            return False
        amounts, fill = pad_amounts(pad), const(pad.inputs[2] if len(pad.inputs) > 2 else None)
        if amounts is None or fill is None or attribute(pad, "mode", "constant") != "constant":
            return "the padding is not constant"
        start, end = amounts
        if any(start[:2] + end[:2]) or min(start + end) < 0:
            return "it pads batch or channels, or crops"
        if fill.reshape(-1)[0] != found[1].zero:
            return "it pads with something else than the zero point"
        writer, scaling = Writer(graph, node), node.inputs[0].producer()  # type: ignore[union-attr]
        assert scaling is not None
        x = writer.op("DequantizeLinear", pad.inputs[0], *scaling.inputs[1:])
        own = list(attribute(node, "pads", [0] * (2 * len(start[2:]))))
        pads = [a + b for a, b in zip(own, start[2:] + end[2:], strict=True)]
        return replace_node(writer, node, [x, *node.inputs[1:]], pads=pads)


NORMAL_FORM = (
    WriteQlinear(),
    WriteGlobalMax(),
    MoveDequantize(),
    MoveQuantize(),
    MergeQuantizedPad(),
)
"""Passes to be repeated until nothing changes."""
