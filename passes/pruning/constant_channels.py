"""Which channels of computed values have one value everywhere, whatever the model reads.

Filters without weights give their bias at every position; what follows element by element, pools,
joins or cuts keeps that, and a convolution of constant channels gives constants where it pads
nothing (or where the constant is zero). Values are those of the original up to the rounding of
sums over constant channels.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.evaluate import evaluate
from effc.passes.graph import attribute, const, shape_of
from effc.passes.transpose_rules import ELEMENTWISE

__all__ = ["Known", "constant_channels", "is_padded"]

Array = np.ndarray[Any, Any]
Known = dict[ir.Value, Array]
"""Per value one number per index of axis 1, float64; NaN where it is not constant."""


def constant_channels(graph: ir.Graph) -> Known:
    """Constant channels of all computed values that have any."""
    known: Known = {}
    for node in graph:
        rule = None if node.domain else _RULES.get(node.op_type)
        if rule is None or node.graph is not graph or len(shape_of(node.outputs[0])) < 2:
            continue
        found = rule(known, node)
        if found is not None and not np.isnan(found).all():
            known[node.outputs[0]] = found
    return known


def is_padded(node: ir.Node) -> bool:
    """Whether a convolution or pooling reads zeros around its input."""
    return any(attribute(node, "pads", ())) or attribute(node, "auto_pad", "NOTSET") != "NOTSET"


def _of(known: Known, value: ir.Value | None) -> Array:
    """What is known of an operand of at least two axes."""
    assert value is not None
    found = known.get(value)
    return np.full(shape_of(value)[1], np.nan) if found is None else found


def _linear(known: Known, node: ir.Node) -> Array | None:
    """Conv and Gemm: bias plus weights times constants, if no other weight is there."""
    weight = const(node.inputs[1])
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = const(bias_value)
    out = shape_of(node.outputs[0])[1]
    if weight is None or weight.dtype.kind != "f" or (bias is None and bias_value is not None):
        return None
    if node.op_type == "Gemm":
        plain = all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if not plain or attribute(node, "transA", 0) or (bias is not None and bias.size != out):
            return None
        weight = weight if attribute(node, "transB", 0) else weight.T
    weight = weight.reshape(out, weight.shape[1], -1)
    x = _of(known, node.inputs[0])
    usable = x == 0 if is_padded(node) else ~np.isnan(x)
    group = attribute(node, "group", 1)
    shape = (group, 1, weight.shape[1])
    usable, x = (
        np.broadcast_to(a.reshape(shape), (group, out // group, shape[2])).reshape(out, -1)
        for a in (usable, np.nan_to_num(x))
    )
    varies = (weight.any(axis=2) & ~usable).any(axis=1)
    total = (weight.sum(axis=2, dtype=np.float64) * x).sum(axis=1)
    total = total if bias is None else total + bias.reshape(-1)
    return np.where(varies, np.nan, total)


def _elementwise(known: Known, node: ir.Node) -> Array | None:
    """Constant where all operands are."""
    shape = shape_of(node.outputs[0])
    dtype = node.outputs[0].dtype
    if not any(v in known for v in node.inputs) or dtype is None or dtype.numpy().kind != "f":
        return None
    operands: list[Array | None] = []
    constant = np.ones(shape[1], np.bool_)
    for value in node.inputs:
        array = const(value)
        if value is None:
            operands.append(None)
        elif array is not None:
            full = (1,) * (len(shape) - array.ndim) + array.shape
            if any(size != 1 for axis, size in enumerate(full) if axis != 1):
                return None
            operands.append(array)
        elif len(shape_of(value)) != len(shape):
            return None
        else:
            own = _of(known, value)
            constant &= ~np.isnan(own)
            column = np.nan_to_num(own).reshape(1, -1, *[1] * (len(shape) - 2))
            assert value.dtype is not None
            operands.append(column.astype(value.dtype.numpy()))
    result = evaluate(node, operands)
    if result is None:
        return None
    return np.where(constant, np.broadcast_to(result[0].reshape(-1), shape[1:2]), np.nan)


def _pool(known: Known, node: ir.Node) -> Array:
    """Means and maxima of a constant; padding counts only in some averages."""
    x = _of(known, node.inputs[0])
    counted = node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0)
    return np.where(x == 0, 0, np.nan) if counted and is_padded(node) else x


def _concat(known: Known, node: ir.Node) -> Array | None:
    if attribute(node, "axis") % len(shape_of(node.outputs[0])) != 1:
        return None
    return np.concatenate([_of(known, value) for value in node.inputs])


def _flatten(known: Known, node: ir.Node) -> Array | None:
    """Flatten and Reshape of each sample to a row."""
    assert node.inputs[0] is not None
    old, new = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if len(old) < 2 or new != (old[0], prod(old[1:])):
        return None
    return np.repeat(_of(known, node.inputs[0]), prod(old[2:]))


_RULES: dict[str, Callable[[Known, ir.Node], Array | None]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "Identity": _elementwise,
    "Conv": _linear,
    "Gemm": _linear,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "MaxPool": _pool,
    "Concat": _concat,
    "Flatten": _flatten,
    "Reshape": _flatten,
}
