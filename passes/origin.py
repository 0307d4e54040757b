"""Which tensor of the user's model a value of the graph stands for.

A value that comes from the model stands for itself, one that a pass makes for none, until it
takes the place of another (``effc.passes.graph.redirect``). Folding a scale into weights
changes what the folded operator's result is: its value then stands for none, and for the
scaled tensor as soon as that is replaced by it. What ``effc compress`` writes has the names
of the user's model again where it can (``restore_names``).
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

__all__ = ["forget_origin", "origin", "origin_of", "restore_names", "stand_for"]

_KEY = "effc.origin"
_MADE = "effc.made"


def origin(value: ir.Value) -> str | None:
    """Name of the tensor in the model that ``value`` is equal to, if known."""
    known = value.metadata_props.get(_KEY)
    if known is not None:
        return known
    return None if value.meta.get(_MADE) else value.name


def origin_of(info: onnx.ValueInfoProto) -> str:
    """The same of a tensor of a written model."""
    for entry in info.metadata_props:
        if entry.key == _KEY:
            return str(entry.value)
    return str(info.name)


def forget_origin(value: ir.Value) -> None:
    """Say that ``value`` is none of the model's tensors."""
    value.metadata_props.pop(_KEY, None)
    value.meta[_MADE] = True


def stand_for(new: ir.Value, old: ir.Value) -> None:
    """Say that ``new`` holds what ``old`` does."""
    known = origin(old)
    if known is None:
        return
    forget_origin(new)
    if known == new.name:
        del new.meta[_MADE]
    else:
        new.metadata_props[_KEY] = known


def restore_names(graph: ir.Graph) -> None:
    """Give every result of a node the name of the tensor that it stands for.

    Model outputs keep their names, and so do values whose name would be taken.
    """
    values = [v for node in graph for v in node.outputs if v.name]
    taken = {v.name for v in (*values, *graph.inputs)} | graph.initializers.keys()
    for value in values:
        known = origin(value)
        if known is not None and known not in taken and not value.is_graph_output():
            taken.add(known)
            value.name = known
        stand_for(value, value)
