"""Write automatic padding as numbers.

``auto_pad`` (SAME_UPPER, SAME_LOWER, VALID) of Conv, ConvTranspose and pooling,
``output_shape`` of ConvTranspose, and ``ceil_mode`` of MaxPool (whose padding
never wins) become explicit ``pads``. Exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, shape_of
from effc.passes.replace import replace_node

__all__ = ["MakePadsExplicit", "window"]


def window(node: ir.Node) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides and dilations per spatial axis, with defaults filled in."""
    x = node.inputs[0]
    assert x is not None
    rank = len(shape_of(x)) - 2
    kernel = attribute(node, "kernel_shape")
    if kernel is None and node.op_type in ("Conv", "ConvTranspose"):
        weight = node.inputs[1]
        assert weight is not None
        kernel = shape_of(weight)[2:]
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    return list(kernel), list(strides), list(dilations)


def _split(total: Sequence[int], upper: bool) -> list[int]:
    """Padding per axis to ``pads``; the odd one goes to the end if ``upper``."""
    total = [max(t, 0) for t in total]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return [*small, *large] if upper else [*large, *small]


class MakePadsExplicit(RewritePass):
    """auto_pad, output_shape and ceil_mode to pads."""

    name: ClassVar[str] = "make_pads_explicit"
    ops: ClassVar[frozenset[str]] = frozenset(
        {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}
    )

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        x, out = node.inputs[0], node.outputs[0]
        if x is None:
            return False
        mode = attribute(node, "auto_pad", "NOTSET")
        sizes, made = shape_of(x)[2:], shape_of(out)[2:]
        kernel, strides, dilations = window(node)
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        pads = list(attribute(node, "pads", [0] * 2 * len(sizes)))
        drop = ["auto_pad"]
        new: dict[str, Any] = {}
        if node.op_type == "ConvTranspose":
            asked = attribute(node, "output_shape")
            if asked is None and not mode.startswith("SAME"):
                if mode == "NOTSET":
                    return False
                pads = [0] * 2 * len(sizes)
            else:
                extra = attribute(node, "output_padding", [0] * len(sizes))
                total = [
                    s * (i - 1) + p + e - o
                    for i, o, s, e, p in zip(sizes, made, strides, extent, extra, strict=True)
                ]
                if min(total) < 0:
                    return "output_shape asks for more than the window yields"
                pads = _split(total, mode == "SAME_UPPER")
            drop.append("output_shape")
        elif mode.startswith("SAME"):
            total = [
                (o - 1) * s + e - i for i, o, s, e in zip(sizes, made, strides, extent, strict=True)
            ]
            pads = _split(total, mode == "SAME_UPPER")
        elif mode == "VALID":
            pads = [0] * 2 * len(sizes)
        elif node.op_type == "MaxPool" and attribute(node, "ceil_mode", 0):
            for axis, (i, o, s, e) in enumerate(zip(sizes, made, strides, extent, strict=True)):
                pads[len(sizes) + axis] = max((o - 1) * s + e - i - pads[axis], 0)
        else:
            return False
        if node.op_type == "MaxPool" and attribute(node, "ceil_mode", 0):
            drop.append("ceil_mode")
            if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
                return "the padding would be as large as the window"
        new["pads"] = pads
        before = [shape_of(v) for v in node.outputs]
        return replace_node(Writer(graph, node), node, drop=drop, expect=before, **new)
