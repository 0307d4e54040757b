"""Pooling of 8-bit tensors: sums that are scaled, and maxima.

An average is the window's sum times ``x_scale / (y_scale * count)``; where windows reach
over the border the count differs from position to position, and with it the multiplier.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import attribute, const, shape_of
from effc.passes.integer.grid import BYTES, source
from effc.passes.integer.operators import DOMAIN
from effc.passes.integer.rules import State, destination, has_planes, requantized

__all__ = ["average", "maximum"]

Array = np.ndarray[Any, Any]

_MOST = 2**23  # elements of a window whose sum of 9-bit integers stays in int32


def average(state: State) -> bool | str:
    """AveragePool, GlobalAveragePool and ReduceMean over all positions."""
    node = state.node
    if node.op_type not in ("AveragePool", "GlobalAveragePool", "ReduceMean"):
        return False
    data, result = source(node.inputs[0]), destination(node.outputs[0], state.tensors.dtype)
    if data is None or result is None or not has_planes(data[0]):
        return False
    x, grid = data
    grid = grid.moved(state.tensors.dtype)
    sizes = shape_of(x)[2:]
    if node.op_type == "ReduceMean" and not _over_positions(node, len(sizes)):
        return "a mean over other axes than positions"
    window = _window(node, sizes)
    if np.prod(window["kernel_shape"]) > _MOST:
        return "the window's sum may leave int32"
    writer = state.writer
    total = writer.op(
        "SumPool", state.tensors.quads(x, writer), domain=DOMAIN, x_zero=grid.zero, **window
    )
    counts = _counts(node, window, sizes, shape_of(total)[2:-1])
    made = requantized(writer, total, grid.scale / result.grid.scale / counts, result)
    if isinstance(made, str):
        return made
    if len(shape_of(result.tensor)) == len(shape_of(x)):
        state.tensors.define(result.tensor, quads=made)
        return True
    return _without_positions(state, made, result.tensor)


def _over_positions(node: ir.Node, rank: int) -> bool:
    axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
    wanted = list(range(2, rank + 2))
    return axes is not None and sorted(int(a) % (rank + 2) for a in axes.reshape(-1)) == wanted


def _window(node: ir.Node, sizes: tuple[int, ...]) -> dict[str, Any]:
    if node.op_type != "AveragePool":
        return {"kernel_shape": list(sizes)}
    kept = ("kernel_shape", "strides", "pads", "dilations", "ceil_mode")
    return {name: attribute(node, name) for name in kept if name in node.attributes}


def _counts(
    node: ir.Node, window: dict[str, Any], sizes: tuple[int, ...], out: tuple[int, ...]
) -> Array:
    """By how many elements the sum at each position is divided, ``[*out, 1]`` or a scalar."""
    rank = len(sizes)
    pads = window.get("pads") or [0] * (2 * rank)
    include = bool(attribute(node, "count_include_pad", 0))
    total = np.ones((1,) * rank)
    for i, size in enumerate(sizes):
        stride = (window.get("strides") or [1] * rank)[i]
        step = (window.get("dilations") or [1] * rank)[i]
        taps = np.arange(window["kernel_shape"][i]) * step
        at = np.arange(out[i])[:, None] * stride - pads[i] + taps
        inside = at < size + pads[rank + i] if include else (at >= 0) & (at < size)
        counts = np.maximum(inside.sum(1), 1)
        total = total * counts.reshape([-1 if a == i else 1 for a in range(rank)])
    return np.array(total.flat[0]) if (total == total.flat[0]).all() else total[..., None]


def _without_positions(state: State, made: ir.Value, tensor: ir.Value) -> bool:
    """ReduceMean that drops the axes: ``[N, C]``."""
    batch, channels = shape_of(tensor)
    writer = state.writer
    flat = writer.op("Reshape", made, np.array([batch, shape_of(made)[1] * 4], np.int64))
    if channels % 4:
        ends = [np.array([v], np.int64) for v in (0, channels, 1)]
        flat = writer.op("Slice", flat, *ends)
    state.tensors.define(tensor, plain=flat)
    return True


def maximum(state: State) -> bool | str:
    """MaxPool of integers."""
    node = state.node
    if node.op_type != "MaxPool":
        return False
    x = node.inputs[0]
    if x is None or x.dtype not in BYTES or not has_planes(x):
        return False
    kept = ("kernel_shape", "strides", "pads", "dilations", "ceil_mode")
    attrs: dict[str, Any] = {k: a for k, a in node.attributes.items() if k in kept}
    writer = state.writer
    made = writer.op("MaxPool8", state.tensors.quads(x, writer), domain=DOMAIN, **attrs)
    state.tensors.define(node.outputs[0], quads=made)
    return True
