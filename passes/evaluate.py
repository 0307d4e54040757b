"""Evaluation of one operator on constants.

The handful of operators that shape arithmetic and weight preparation consist
of are done with NumPy (microseconds each); every other one runs as a
single-node model in ONNX Runtime, the reference the whole compiler is verified
against, so that folding cannot change what a model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from effc.passes.infer import OPSET

__all__ = ["evaluate"]

Array = np.ndarray[Any, Any]
Attrs = dict[str, Any]


def _integer_div(a: Array, b: Array) -> Array:
    """Division as ONNX defines it: C truncation for integers."""
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not b.all():
        raise ZeroDivisionError("integer division by zero")
    if a.dtype.kind == "u":
        return np.asarray(a // b)
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def _slice(
    x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    index = [slice(None)] * x.ndim
    which = range(len(starts)) if axes is None else axes.tolist()
    for i, axis in enumerate(which):
        step = 1 if steps is None else int(steps[i])
        start, end = int(starts[i]), int(ends[i])
        size = x.shape[axis]
        stop: int | None = end
        if step < 0 and end < -size:
            stop = None
        index[axis] = slice(start, stop, step)
    return x[tuple(index)]


def _reshape(x: Array, shape: Array, attrs: Attrs) -> Array:
    dims = shape.tolist()
    if not attrs.get("allowzero"):
        dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    return np.asarray(np.reshape(x, dims))


def _unsqueeze(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(axes.tolist()))


def _squeeze(x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else tuple(axes.tolist()))


def _range(start: Array, limit: Array, delta: Array) -> Array:
    count = max(int(np.ceil((float(limit) - float(start)) / float(delta))), 0)
    return np.asarray(start + np.arange(count, dtype=start.dtype) * delta, start.dtype)


def _expand(x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _constant_of_shape(shape: Array, attrs: Attrs) -> Array:
    value = attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else value.numpy().reshape(-1)
    return np.full(tuple(shape.tolist()), fill[0], fill.dtype)


def _cast(x: Array, attrs: Attrs) -> Array | None:
    target = ir.DataType(attrs["to"])
    if x.dtype.kind == "f" and target.numpy().kind in "iu":
        return None  # out-of-range values: whatever ONNX Runtime does
    if x.dtype.kind not in "fiub" or target.numpy().kind not in "fiub":
        return None
    with np.errstate(over="ignore"):
        return x.astype(target.numpy())


def _gather(x: Array, indices: Array, attrs: Attrs) -> Array:
    axis = attrs.get("axis", 0)
    if indices.size and not (-x.shape[axis] <= indices.min() <= indices.max() < x.shape[axis]):
        raise IndexError("Gather index out of range")
    return np.take(x, indices, axis=axis)


_NUMPY: dict[str, Callable[[Sequence[Any], Attrs], Array | None]] = {
    "Identity": lambda i, a: i[0],
    "Cast": lambda i, a: _cast(i[0], a),
    "Gather": lambda i, a: _gather(i[0], i[1], a),
    "Concat": lambda i, a: np.concatenate(i, axis=a["axis"]),
    "Unsqueeze": lambda i, a: _unsqueeze(*i),
    "Squeeze": lambda i, a: _squeeze(*i),
    "Slice": lambda i, a: _slice(*i),
    "Add": lambda i, a: i[0] + i[1],
    "Sub": lambda i, a: i[0] - i[1],
    "Mul": lambda i, a: i[0] * i[1],
    "Div": lambda i, a: _integer_div(i[0], i[1]),
    "Neg": lambda i, a: -i[0],
    "Sqrt": lambda i, a: np.sqrt(i[0]),
    "Reshape": lambda i, a: _reshape(i[0], i[1], a),
    "Transpose": lambda i, a: np.transpose(i[0], a.get("perm")),
    "Range": lambda i, a: _range(*i),
    "Expand": lambda i, a: _expand(*i),
    "ConstantOfShape": lambda i, a: _constant_of_shape(i[0], a),
    "Equal": lambda i, a: np.equal(i[0], i[1]),
    "Where": lambda i, a: np.where(i[0], i[1], i[2]),
    "Not": lambda i, a: np.logical_not(i[0]),
    "Shape": lambda i, a: np.array(i[0].shape[a.get("start", 0) : a.get("end")], np.int64),
}


def evaluate(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array] | None:
    """Compute a node's outputs from constant inputs.

    Args:
        node: Any operator of the default domain without subgraphs.
        inputs: One array per input, None where the input is absent.

    Returns:
        One array per output; None if the operator cannot be evaluated here
        (it then simply stays in the graph).
    """
    attrs = {name: attr.value for name, attr in node.attributes.items()}
    quick = _NUMPY.get(node.op_type)
    if quick is not None and not node.domain:
        trimmed = list(inputs)
        while trimmed and trimmed[-1] is None:
            trimmed.pop()
        try:
            with np.errstate(all="ignore"):
                result = quick(trimmed, attrs)
        except (ArithmeticError, IndexError, TypeError, ValueError):
            result = None
        if result is not None:
            return [np.ascontiguousarray(result).reshape(np.shape(result))]
    return _run(node, inputs)


def _run(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array] | None:
    """Run the node as a model of its own in ONNX Runtime."""
    from effc.passes.session import open_session

    feeds = {f"i{n}": a for n, a in enumerate(inputs) if a is not None}
    if any(a.dtype.kind not in "fiub" for a in feeds.values()):
        return None
    proto = helper.make_node(
        node.op_type,
        [f"i{n}" if a is not None else "" for n, a in enumerate(inputs)],
        [f"o{n}" for n in range(len(node.outputs))],
        domain=node.domain,
    )
    proto.attribute.extend(ir.serde.serialize_attribute(a) for a in node.attributes.values())
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in feeds.items()
    ]
    outs = [
        helper.make_tensor_value_info(f"o{n}", int(v.dtype), None)
        if v.dtype is not None
        else onnx.ValueInfoProto(name=f"o{n}")
        for n, v in enumerate(node.outputs)
    ]
    graph = helper.make_graph([proto], "fold", infos, outs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    try:
        results: list[Array] = open_session(model, threads=1, optimize=False).run(None, feeds)
    except Exception:  # ONNX Runtime raises many kinds; the node then stays in the graph
        return None
    return results
