"""Pooling and reductions over the whole plane become global pooling.

``ReduceMean``/``ReduceMax`` over all spatial axes and AveragePool/MaxPool whose
single window covers the whole input become GlobalAveragePool/GlobalMaxPool
(behind it a Reshape where the axes were dropped). The order of summation is the
kernel's, as before.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, redirect, shape_of

__all__ = ["UseGlobalPooling"]

_GLOBAL = {
    "ReduceMean": "GlobalAveragePool",
    "AveragePool": "GlobalAveragePool",
    "ReduceMax": "GlobalMaxPool",
    "MaxPool": "GlobalMaxPool",
}


class UseGlobalPooling(RewritePass):
    """Whole-plane reductions to global pooling."""

    name: ClassVar[str] = "use_global_pooling"
    ops: ClassVar[frozenset[str]] = frozenset(_GLOBAL)

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        x, out = node.inputs[0], node.outputs[0]
        if x is None or x.dtype is None or not x.dtype.is_floating_point():
            return False
        shape = shape_of(x)
        if len(shape) not in (3, 4, 5) or 0 in shape:
            return False
        whole = _reduces_plane if node.op_type.startswith("Reduce") else _covers_plane
        if not whole(node, shape):
            return False
        writer = Writer(graph, node)
        pooled = writer.op(_GLOBAL[node.op_type], x)
        if shape_of(pooled) != shape_of(out):
            pooled = writer.op("Reshape", pooled, np.array(shape_of(out), np.int64))
        redirect(out, pooled)
        return True


def _reduces_plane(node: ir.Node, shape: tuple[int, ...]) -> bool:
    axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        return False
    rank = len(shape)
    return sorted(int(a) % rank for a in axes) == list(range(2, rank))


def _covers_plane(node: ir.Node, shape: tuple[int, ...]) -> bool:
    return (
        len(node.outputs) == 1
        and list(attribute(node, "kernel_shape", ())) == list(shape[2:])
        and not any(attribute(node, "pads", ()))
        and all(d == 1 for d in attribute(node, "dilations", ()))
        and all(d == 1 for d in shape_of(node.outputs[0])[2:])
        and attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )
