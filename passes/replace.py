"""A node replaced by itself with other attributes or operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from effc.passes.graph import Writer, prune, redirect, shape_of

__all__ = ["replace_node"]


def replace_node(
    writer: Writer,
    node: ir.Node,
    inputs: Sequence[ir.Value | None] | None = None,
    *,
    drop: Sequence[str] = (),
    expect: Sequence[tuple[int, ...]] | None = None,
    **attrs: Any,
) -> bool | str:
    """Replace a node by one of the same operator.

    Args:
        writer: Positioned at the node.
        node: The node; its readers move to the new one.
        inputs: New operands; None keeps the old ones.
        drop: Attributes to leave out.
        expect: Shapes the new outputs must have; None means those of the old outputs.
        **attrs: Attributes to set.

    Returns:
        True, or why it was not done (the graph is then unchanged).
    """
    kept: dict[str, Any] = {
        k: a for k, a in node.attributes.items() if k not in drop and k not in attrs
    }
    operands = node.inputs if inputs is None else inputs
    outs = writer.ops(node.op_type, *operands, outputs=len(node.outputs), **kept, **attrs)
    wanted = [shape_of(v) for v in node.outputs] if expect is None else list(expect)
    if [shape_of(v) for v in outs] != wanted:
        producer = outs[0].producer()
        if producer is not None:
            prune(writer.graph, producer)
        return "the rewritten node would have another shape"
    for old, new in zip(node.outputs, outs, strict=True):
        redirect(old, new)
    return True
