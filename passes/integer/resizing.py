"""Linear interpolation of 8-bit tensors: weights of 11 bits along each axis.

``ResizeLinear`` sums ``w * (x - x_zero)`` over the two neighbours per axis, exactly, in units of
``2^-11`` per axis; Requantize takes them off. Rounding the weights moves a result by an eighth
of a step at most; by none where the factor is a power of two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import attribute, const, shape_of
from effc.passes.integer.grid import source
from effc.passes.integer.operators import DOMAIN, WEIGHT_BITS
from effc.passes.integer.rules import State, destination, has_planes, requantized

__all__ = ["interpolation"]

Array = np.ndarray[Any, Any]


def interpolation(state: State) -> bool | str:
    """``Resize`` with mode linear, along one or two axes of positions."""
    node = state.node
    if node.op_type != "Resize" or attribute(node, "mode", "nearest") != "linear":
        return False
    data, result = source(node.inputs[0]), destination(node.outputs[0], state.tensors.dtype)
    if data is None or result is None or not has_planes(data[0]):
        return False
    x, grid = data
    scales = _scales(node)
    rank = len(shape_of(x)) - 2
    if isinstance(scales, str):
        return scales
    if rank > 2 or (scales[:2] != 1).any():
        return "more than two axes of positions, or channels, are interpolated"
    grid = grid.moved(state.tensors.dtype)
    tables: list[Array] = []
    for i in range(rank):
        size, out = shape_of(x)[2 + i], shape_of(node.outputs[0])[2 + i]
        at = _positions(node, size, out, float(scales[2 + i]))
        if at is None:
            return "its coordinates have no integer form"
        tables += _taps(at, size)
    writer = state.writer
    quads = state.tensors.quads(x, writer)
    total = writer.op("ResizeLinear", quads, *tables, domain=DOMAIN, x_zero=grid.zero)
    real = grid.scale / result.grid.scale / 2.0 ** (WEIGHT_BITS * rank)
    made = requantized(writer, total, real, result)
    if isinstance(made, str):
        return made
    state.tensors.define(result.tensor, quads=made)
    return True


def _scales(node: ir.Node) -> Array | str:
    """Factor per axis of the tensor."""
    x = node.inputs[0]
    assert x is not None
    if attribute(node, "antialias", 0) or attribute(node, "axes") is not None:
        return "antialias or axes"
    given = const(node.inputs[2]) if len(node.inputs) > 2 else None
    if given is not None and given.size:
        return np.asarray(given, np.float64)
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "the aspect ratio is kept"
    shapes = [np.array(shape_of(v), np.float64) for v in (node.outputs[0], x)]
    return np.asarray(shapes[0] / shapes[1])


def _positions(node: ir.Node, size: int, out: int, scale: float) -> Array | None:
    """Where each result lies in the source, as ONNX's coordinate transformations say."""
    at = np.arange(out, dtype=np.float64)
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and out > 1):
        return np.asarray((at + 0.5) / scale - 0.5)
    if mode == "pytorch_half_pixel":
        return np.zeros(out)
    if mode == "asymmetric":
        return np.asarray(at / scale)
    if mode == "align_corners":
        return np.asarray(at * (size - 1) / max(out - 1, 1))
    return None


def _taps(at: Array, size: int) -> list[Array]:
    """First neighbour and weight of the second, int32 per result."""
    inside = np.clip(at, 0, size - 1)
    first = np.minimum(np.floor(inside), size - 1)
    weight = np.rint((inside - first) * 2**WEIGHT_BITS)
    return [first.astype(np.int32), weight.astype(np.int32)]
