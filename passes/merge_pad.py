"""Move a Pad into the convolution or pooling behind it.

``Conv(Pad(x, p), pads=q) = Conv(x, pads=p+q)`` if Pad writes zeros on spatial
axes only. For AveragePool the padding must be counted
(``count_include_pad``); for MaxPool zeros must not win, which holds for
non-negative inputs (behind Relu, Clip from 0, Sigmoid) and for a padding value
of minus infinity. Exact.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, shape_of
from effc.passes.replace import replace_node

__all__ = ["MergePad", "pad_amounts"]


def pad_amounts(node: ir.Node) -> tuple[list[int], list[int]] | None:
    """Elements a Pad adds at the start and end of every axis; None if not constant."""
    x = node.inputs[0]
    pads = const(node.inputs[1])
    if x is None or pads is None:
        return None
    rank = len(shape_of(x))
    axes = range(rank)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        given = const(node.inputs[3])
        if given is None:
            return None
        axes = [int(a) % rank for a in given]  # type: ignore[assignment]
    start, end = [0] * rank, [0] * rank
    half = len(pads) // 2
    for position, axis in enumerate(axes):
        start[axis], end[axis] = int(pads[position]), int(pads[half + position])
    return start, end


def _fill(node: ir.Node) -> float | None:
    """The constant that a Pad writes."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return 0.0
    array = const(value)
    return None if array is None else float(array.reshape(-1)[0])


def _non_negative(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    if node is None:
        return False
    if node.op_type in ("Relu", "Sigmoid", "HardSigmoid", "Softplus", "Abs", "Exp", "Softmax"):
        return True
    if node.op_type == "Clip" and len(node.inputs) > 1:
        low = const(node.inputs[1])
        return low is not None and float(low) >= 0
    return False


class MergePad(RewritePass):
    """Pad into Conv and pooling."""

    name: ClassVar[str] = "merge_pad"
    ops: ClassVar[frozenset[str]] = frozenset({"Conv", "AveragePool", "MaxPool"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        x = node.inputs[0]
        pad = None if x is None else x.producer()
        if pad is None or pad.op_type != "Pad" or pad.domain:
            return False
        source = pad.inputs[0]
        amounts = pad_amounts(pad)
        if source is None or amounts is None:
            return "the padding is not constant"
        start, end = amounts
        if attribute(pad, "mode", "constant") != "constant":
            return f"the padding mode is {attribute(pad, 'mode')}"
        if any(start[:2] + end[:2]) or min(start + end) < 0:
            return "it pads batch or channels, or crops"
        if attribute(node, "auto_pad", "NOTSET") != "NOTSET":
            return "automatic padding is resolved first"
        own = list(attribute(node, "pads", [0] * (2 * len(start[2:]))))
        attrs, refusal = self._value_fits(node, pad, source, any(own))
        if refusal:
            return refusal
        pads = [a + b for a, b in zip(own, start[2:] + end[2:], strict=True)]
        if node.op_type != "Conv":
            kernel = attribute(node, "kernel_shape")
            if any(p >= k for p, k in zip(pads, [*kernel, *kernel], strict=True)):
                return "the padding is as large as the window"
        operands = [source, *node.inputs[1:]]
        return replace_node(Writer(graph, node), node, operands, pads=pads, **attrs)

    @staticmethod
    def _value_fits(
        node: ir.Node, pad: ir.Node, source: ir.Value, padded: bool
    ) -> tuple[dict[str, Any], str]:
        """Attributes to set, and why the padding's value forbids the merge (or "")."""
        fill = _fill(pad)
        if node.op_type == "MaxPool":
            if fill is not None and np.isneginf(fill):
                return {}, ""
            if fill != 0 or not _non_negative(source):
                return {}, "the padding could be the maximum"
            return {}, ""
        if fill != 0:
            return {}, "it pads with something else than zero"
        if node.op_type == "Conv":
            return {}, ""
        if attribute(node, "ceil_mode", 0):
            return {}, "windows may reach beyond the padding (ceil_mode)"
        if padded and not attribute(node, "count_include_pad", 0):
            return {}, "the pooling does not count its own padding"
        return {"count_include_pad": 1}, ""
