"""Fold a constant per-channel Mul, Div, Add or Sub into the linear operator before it.

    (W x + b) * s + t  =  (s W) x + (s b + t)

for Conv, ConvTranspose and Gemm with constant weights whose result is read only
here. Differs by rounding: one product per weight instead of one per result.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import const, redirect, shape_of, single_user
from effc.passes.scale_weights import output_channels, scale_producer

__all__ = ["FoldScale"]


def _per_channel(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """The constant as one float64 per channel (axis 1), or None if it varies elsewhere."""
    if array.ndim > len(shape):
        return None
    full = (1,) * (len(shape) - array.ndim) + array.shape
    if any(d != 1 for axis, d in enumerate(full) if axis != 1):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (shape[1],))


class FoldScale(RewritePass):
    """Scale and shift into weights and bias."""

    name: ClassVar[str] = "fold_scale"
    ops: ClassVar[frozenset[str]] = frozenset({"Mul", "Div", "Add", "Sub"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        left, right = node.inputs
        if left is None or right is None:
            return False
        if const(left) is not None and node.op_type != "Div":
            left, right = right, left
        mirrored = left is not node.inputs[0]
        array, producer = const(right), left.producer()
        if array is None or producer is None or array.dtype.kind != "f":
            return False
        shape = shape_of(left)
        if output_channels(producer) is None or shape != shape_of(node.outputs[0]):
            return False
        values = _per_channel(array, shape)
        if values is None:
            return "the constant varies within a channel"
        if single_user(left) is not node:
            return f"{producer.name} is read elsewhere too"
        zeros = np.zeros(shape[1])
        factor: np.ndarray[Any, Any] | None = None
        offset = zeros
        if node.op_type == "Mul":
            factor = values
        elif node.op_type == "Div":
            factor = 1.0 / values
        elif node.op_type == "Add":
            offset = values
        else:
            factor = -np.ones(shape[1]) if mirrored else None
            offset = values if mirrored else -values
        if factor is not None and not np.isfinite(factor).all():
            return "the factor is not finite"
        if not scale_producer(graph, left, factor, offset):
            return "the weights are not constant"
        redirect(node.outputs[0], left)
        return True
