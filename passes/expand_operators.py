"""Write operators that have no kernel with operators that have one.

One table per pass: operator type -> function that writes its meaning. What each
expansion preserves is said where it is written; quantized operators are
in ``expand_quantized`` and have a pass of their own, transforms in ``expand_spectral``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.expand_spectral import dft, stft
from effc.passes.graph import Writer, attribute, dtype_of, fresh_name, redirect, shape_of

__all__ = ["EXPANSIONS", "ExpandOperators", "Expansion", "apply_expansion"]

Result = list[ir.Value] | str | None
"""Values of the outputs; or why it cannot be expanded; or None: it need not be."""

Expansion = Callable[[Writer, ir.Node], Result]


class ExpandOperators(RewritePass):
    """Operators without a kernel into operators with one."""

    name: ClassVar[str] = "expand_operators"

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        if node.op_type in _ALL_OUTPUTS:
            return _name_outputs(graph, node)
        expand = EXPANSIONS.get(node.op_type)
        return False if expand is None else apply_expansion(expand, graph, node)


def apply_expansion(expand: Expansion, graph: ir.Graph, node: ir.Node) -> bool | str:
    """Replace a node by what an expansion writes."""
    results = expand(Writer(graph, node), node)
    if results is None or isinstance(results, str):
        return results or False
    for old, new in zip(node.outputs, results, strict=False):
        redirect(old, new)
    return True


_ALL_OUTPUTS = frozenset({"LSTM", "GRU", "RNN"})
"""Operators whose kernel writes every output, so that each needs a name."""


def _name_outputs(graph: ir.Graph, node: ir.Node) -> bool | str:
    """Give left-out outputs a name; only ``Y`` may stay the single one."""
    count = 3 if node.op_type == "LSTM" else 2
    if len(node.outputs) == count and all(v.name for v in node.outputs):
        return False
    if len(node.outputs) == 1:
        return False
    for index, value in enumerate(node.outputs):
        if not value.name:
            value.name = fresh_name(graph, f"{node.name}/output{index}")
    if len(node.outputs) == count:
        return True
    writer = Writer(graph, node)
    attrs: dict[str, Any] = dict(node.attributes)
    results = writer.ops(node.op_type, *node.inputs, outputs=count, **attrs)
    for old, new in zip(node.outputs, results, strict=False):
        redirect(old, new)
    return True


def _input(node: ir.Node, index: int = 0) -> ir.Value:
    value = node.inputs[index]
    assert value is not None  # the frontend has checked required operands
    return value


def lp_normalization(writer: Writer, node: ir.Node) -> Result:
    """``x / norm(x)``, and 0 where the norm is 0."""
    x = _input(node)
    axes = np.array([attribute(node, "axis", -1)], np.int64)
    kind = {1: "ReduceL1", 2: "ReduceL2"}[attribute(node, "p", 2)]
    norm = writer.op(kind, x, axes, keepdims=1)
    zero = writer.op("Equal", norm, np.array(0, dtype_of(x).numpy()))
    safe = writer.op("Add", norm, writer.op("Cast", zero, to=int(dtype_of(x))))
    return [writer.op("Div", x, safe)]


def cast_like(writer: Writer, node: ir.Node) -> Result:
    """Cast to the type of the second operand, whose value nobody reads."""
    target = int(dtype_of(_input(node, 1)))
    return [writer.op("Cast", _input(node), to=target, saturate=attribute(node, "saturate"))]


def batch_normalization(writer: Writer, node: ir.Node) -> Result:
    """Training mode: normalize by the batch's own statistics, update the running ones."""
    if not attribute(node, "training_mode", 0):
        return None
    x, scale, bias, mean, var = (_input(node, i) for i in range(5))
    shape, dtype = shape_of(x), dtype_of(x).numpy()
    axes = np.array([d for d in range(len(shape)) if d != 1], np.int64)
    column = np.array([shape[1], *[1] * (len(shape) - 2)], np.int64)
    momentum = attribute(node, "momentum", 0.9)
    batch_mean = writer.op("ReduceMean", x, axes, keepdims=1)
    centered = writer.op("Sub", x, batch_mean)
    batch_var = writer.op("ReduceMean", writer.op("Mul", centered, centered), axes, keepdims=1)
    shifted = writer.op("Add", batch_var, np.array(attribute(node, "epsilon", 1e-5), dtype))
    y = writer.op("Div", centered, writer.op("Sqrt", shifted))
    y = writer.op("Mul", y, writer.op("Reshape", scale, column))
    y = writer.op("Add", y, writer.op("Reshape", bias, column))
    results = [y]
    for running, batch in ((mean, batch_mean), (var, batch_var)):
        flat = writer.op("Reshape", batch, np.array([shape[1]], np.int64))
        old = writer.op("Mul", running, np.array(momentum, dtype))
        new = writer.op("Mul", flat, np.array(1 - momentum, dtype))
        results.append(writer.op("Add", old, new))
    return results


def layer_normalization(writer: Writer, node: ir.Node) -> Result:
    """The form that also returns mean and inverse deviation, in float32 as ``stash_type`` says."""
    if not any(v.name for v in node.outputs[1:]):
        return None
    if attribute(node, "stash_type", 1) != 1:
        return "statistics in another type than float32 are not supported"
    x = _input(node)
    target, rank = dtype_of(x), len(shape_of(x))
    single = int(ir.DataType.FLOAT)
    wide = x if target == ir.DataType.FLOAT else writer.op("Cast", x, to=single)
    axes = np.arange(attribute(node, "axis", -1) % rank, rank, dtype=np.int64)
    mean = writer.op("ReduceMean", wide, axes, keepdims=1)
    centered = writer.op("Sub", wide, mean)
    var = writer.op("ReduceMean", writer.op("Mul", centered, centered), axes, keepdims=1)
    shifted = writer.op("Add", var, np.array(attribute(node, "epsilon", 1e-5), np.float32))
    inverse = writer.op("Reciprocal", writer.op("Sqrt", shifted))
    y = writer.op("Mul", centered, inverse)
    if target != ir.DataType.FLOAT:
        y = writer.op("Cast", y, to=int(target))
    y = writer.op("Mul", y, _input(node, 1))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        y = writer.op("Add", y, node.inputs[2])
    return [y, mean, inverse]


def concat(writer: Writer, node: ir.Node) -> Result:
    """Operands without elements do nothing."""
    parts = [v for v in node.inputs if v is not None and 0 not in shape_of(v)]
    if len(parts) == len(node.inputs) or not parts:
        return None
    if len(parts) == 1:
        return parts
    return [writer.op("Concat", *parts, axis=attribute(node, "axis"))]


def split(writer: Writer, node: ir.Node) -> Result:
    """Parts without elements are constants."""
    shapes = [shape_of(v) for v in node.outputs]
    if all(0 not in shape for shape in shapes):
        return None
    axis = attribute(node, "axis", 0)
    sizes = np.array([shape[axis] for shape in shapes if 0 not in shape], np.int64)
    parts: list[ir.Value] = []
    if len(sizes) == 1:
        parts = [_input(node)]
    elif len(sizes):
        parts = list(writer.ops("Split", _input(node), sizes, outputs=len(sizes), axis=axis))
    empty = dtype_of(_input(node)).numpy()
    return [
        writer.const(np.zeros(shape, empty)) if 0 in shape else parts.pop(0) for shape in shapes
    ]


def eye_like(writer: Writer, node: ir.Node) -> Result:
    """A constant: only the operand's shape matters."""
    x = _input(node)
    target = ir.DataType(attribute(node, "dtype", int(dtype_of(x))))
    rows, columns = shape_of(x)
    return [writer.const(np.eye(rows, columns, attribute(node, "k", 0), target.numpy()))]


def det(writer: Writer, node: ir.Node) -> Result:
    """Determinant by cofactors, for matrices up to 3 x 3."""
    x = _input(node)
    size = shape_of(x)[-1]
    if size > 3:
        return f"determinants of {size} x {size} matrices are not supported"

    def entry(i: int, j: int) -> ir.Value:
        row = writer.op("Gather", x, np.array(i, np.int64), axis=-2)
        return writer.op("Gather", row, np.array(j, np.int64), axis=-1)

    def minor(rows: Sequence[int], columns: Sequence[int]) -> ir.Value:
        if len(rows) == 1:
            return entry(rows[0], columns[0])
        total: ir.Value | None = None
        for k, column in enumerate(columns):
            rest = [c for c in columns if c != column]
            term = writer.op("Mul", entry(rows[0], column), minor(rows[1:], rest))
            sign = "Sub" if k % 2 else "Add"
            total = term if total is None else writer.op(sign, total, term)
        assert total is not None
        return total

    return [minor(range(size), range(size))]


EXPANSIONS: dict[str, Expansion] = {
    "BatchNormalization": batch_normalization,
    "CastLike": cast_like,
    "Concat": concat,
    "DFT": dft,
    "Det": det,
    "EyeLike": eye_like,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "Split": split,
    "STFT": stft,
}
"""Operator -> what writes it with others."""
