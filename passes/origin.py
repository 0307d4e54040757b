"""Which tensor of the user's model a value of the graph stands for.

A value that comes from the model stands for itself, one that a pass makes for none, until it
takes the place of another (``effc.passes.graph.redirect``). Folding a scale into weights
changes what the folded operator's result is: its value then stands for none, and for the
scaled tensor as soon as that is replaced by it. The record is part of written ONNX files
(metadata of a value), so it survives ``effc compress``.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

__all__ = ["forget_origin", "origin", "origin_of", "stand_for"]

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
