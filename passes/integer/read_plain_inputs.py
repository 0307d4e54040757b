"""Convolutions of few channels read their input as the model has it, not in quads.

``ConvInteger(ToQuads(x)) = ConvInteger(x, layout)``; a FlipSign between the two becomes another
zero point. For processors whose kernels bring the inputs of one output position after the other
together (``effc.kernels.columns``): up to four channels take them no more work than quads do,
so the copy in quads, a third larger than three channels, is saved. Exact.
"""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.graph import Writer, attribute, dtype_of, prune, redirect, shape_of
from effc.passes.integer.operators import DOMAIN

__all__ = ["ReadPlainInputs"]

_CHANNELS = 4
"""Most channels for which single elements are no more work than quads."""


class ReadPlainInputs(Pass):
    """ToQuads in front of convolutions disappear."""

    name: ClassVar[str] = "read_plain_inputs"

    def call(self, model: ir.Model, log: Log) -> None:
        graph = model.graph
        for node in list(graph):
            x = node.inputs[0] if (node.domain, node.op_type) == (DOMAIN, "ToQuads") else None
            if x is None or dtype_of(x) not in (ir.DataType.INT8, ir.DataType.UINT8):
                continue
            last = bool(attribute(node, "last", 0))
            readers = _convolutions(node.outputs[0])
            name = node.name or node.op_type
            if shape_of(x)[-1 if last else 1] > _CHANNELS:
                log.refused.append((name, f"more than {_CHANNELS} channels"))
            elif readers is None:
                log.refused.append((name, "not only dense convolutions read it"))
            else:
                for conv, moved in readers.items():
                    _read(graph, conv, x, "last" if last else "first", moved)
                log.applied.append(name)


def _convolutions(quads: ir.Value) -> dict[ir.Node, int] | None:
    """What reads quads, and how far its zero point lies from that of the quads.

    ``None`` if anything but dense convolutions does.
    """
    found: dict[ir.Node, int] = {}
    if quads.is_graph_output():
        return None
    for node, index in quads.uses():
        if node.domain == DOMAIN and node.op_type == "FlipSign":
            behind = _convolutions(node.outputs[0])
            if behind is None:
                return None
            step = 128 if dtype_of(quads) == ir.DataType.UINT8 else -128
            found |= {conv: moved + step for conv, moved in behind.items()}
        elif node.domain == DOMAIN and node.op_type == "ConvInteger" and index == 0:
            if attribute(node, "group", 1) != 1:
                return None
            found[node] = 0
        else:
            return None
    return found


def _read(graph: ir.Graph, conv: ir.Node, x: ir.Value, layout: str, moved: int) -> None:
    """Let a convolution read a plain tensor."""
    attrs: dict[str, Any] = dict(conv.attributes)
    attrs["x_zero"] = int(attribute(conv, "x_zero", 0)) + moved
    writer = Writer(graph, conv, conv.name or conv.op_type)
    made = writer.op("ConvInteger", x, *conv.inputs[1:], domain=DOMAIN, layout=layout, **attrs)
    redirect(conv.outputs[0], made)
    prune(graph, conv)
