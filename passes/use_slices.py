"""Gather with constant, evenly spaced indices becomes Slice.

A scalar index or a run of consecutive indices selects a block, which memory
planning may leave where it is; Gather would copy element by element. Exact.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, redirect, shape_of

__all__ = ["UseSlices"]


class UseSlices(RewritePass):
    """Gather to Slice."""

    name: ClassVar[str] = "use_slices"
    ops: ClassVar[frozenset[str]] = frozenset({"Gather"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        x, out = node.inputs[0], node.outputs[0]
        indices = const(node.inputs[1])
        if x is None or indices is None or not indices.size:
            return False
        shape = shape_of(x)
        axis = attribute(node, "axis", 0) % len(shape)
        flat = indices.reshape(-1).astype(np.int64)
        if flat.min() < -shape[axis] or flat.max() >= shape[axis]:
            return "an index is out of range"
        flat = np.where(flat < 0, flat + shape[axis], flat)
        steps = np.diff(flat)
        if steps.size and (steps[0] <= 0 or (steps != steps[0]).any()):
            return "the indices are not evenly spaced"
        step = int(steps[0]) if steps.size else 1
        bounds = [np.array([v], np.int64) for v in (flat[0], flat[-1] + 1, axis, step)]
        writer = Writer(graph, node)
        block = writer.op("Slice", x, *(bounds if step != 1 else bounds[:3]))
        if shape_of(block) != shape_of(out):
            block = writer.op("Reshape", block, np.array(shape_of(out), np.int64))
        redirect(out, block)
        return True
