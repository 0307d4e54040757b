"""Operators that move or choose elements of 8-bit tensors, in quads where that is possible.

Along batch and positions quads move like single elements; along channels only whole quads
do. Everything else happens in plain order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import attribute, const, shape_of
from effc.passes.integer.grid import INTEGERS
from effc.passes.integer.normal_form import CHOICES, MOVES
from effc.passes.integer.rules import State, has_planes

__all__ = ["depth_to_space", "movement"]

Array = np.ndarray[Any, Any]
Operands = list["ir.Value | Array | None"]


def movement(state: State) -> bool | str:
    """Operators of ``MOVES`` and ``CHOICES`` on quantized tensors."""
    node = state.node
    if node.domain or node.op_type not in MOVES | CHOICES:
        return False
    sources = _sources(node)
    if any(v is None or v.dtype not in INTEGERS for v in sources):
        return False
    tensors = [v for v in sources if v is not None]
    if all(const(v) is not None for v in tensors) or not any(
        v in state.tensors or state.tensors.in_quads(v) for v in tensors
    ):
        return False
    attrs: dict[str, Any] = dict(node.attributes)
    writer = state.writer
    rest = _in_quads(state, tensors)
    layout = "plain" if rest is None else "quads"
    place = state.tensors.plain if rest is None else state.tensors.quads
    operands: Operands = [place(v, writer) for v in tensors]
    operands += _typed(state, node) if rest is None else rest
    if node.op_type == "Concat":
        attrs["axis"] = attribute(node, "axis") % len(shape_of(node.outputs[0]))
    if node.op_type == "Split":
        attrs.pop("num_outputs", None)
        sizes = [shape_of(v)[attribute(node, "axis", 0)] for v in node.outputs]
        scale = 4 if layout == "quads" and attribute(node, "axis", 0) == 1 else 1
        operands = [operands[0], np.array(sizes, np.int64) // scale]
    made = writer.ops(node.op_type, *operands, outputs=len(node.outputs), **attrs)
    for old, new in zip(node.outputs, made, strict=True):
        state.tensors.define(old, **{layout: new})
    return True


def _sources(node: ir.Node) -> Sequence[ir.Value | None]:
    return node.inputs if node.op_type in CHOICES else node.inputs[:1]


def _typed(state: State, node: ir.Node) -> Operands:
    """The other operands in plain order."""
    rest: Operands = [] if node.op_type in CHOICES else list(node.inputs[1:])
    if node.op_type == "Pad" and len(rest) > 1 and isinstance(rest[1], ir.Value):
        rest[1] = state.tensors.plain(rest[1], state.writer)
    return rest


def _in_quads(state: State, tensors: Sequence[ir.Value]) -> Operands | None:
    """The other operands if the operator works in quads and its tensors lie so, else None."""
    node, out = state.node, state.node.outputs[0]
    if not all(state.tensors.in_quads(v) for v in tensors) or not has_planes(out):
        return None
    rank = len(shape_of(out))
    if node.op_type in ("Max", "Min"):
        whole = all(len(s) == rank and s[1] == shape_of(out)[1] for s in map(shape_of, tensors))
        return [] if whole else None
    if node.op_type in ("Concat", "Split"):
        axis = attribute(node, "axis", 0) % rank
        parts = tensors if node.op_type == "Concat" else list(node.outputs)
        whole = all(shape_of(v)[1] % 4 == 0 for v in parts[:-1])
        return [] if axis != 1 or whole else None
    if node.op_type == "Slice":
        return _slice(node, rank)
    if node.op_type == "Pad":
        return _pad(state, node, rank)
    if node.op_type == "Resize":
        return _resize(node, rank)
    return None


def depth_to_space(state: State) -> bool | str:
    """DepthToSpace in quads, if phases are whole quads: a transpose of seven axes."""
    node, x = state.node, state.node.inputs[0]
    if node.op_type != "DepthToSpace" or x is None or not state.tensors.in_quads(x):
        return False
    batch, channels, height, width = shape_of(node.outputs[0])
    block = attribute(node, "blocksize")
    if attribute(node, "mode", "DCR") != "DCR" or channels % 4:
        return False
    writer = state.writer
    split = [batch, block, block, channels // 4, height // block, width // block, 4]
    y = writer.op("Reshape", state.tensors.quads(x, writer), np.array(split, np.int64))
    y = writer.op("Transpose", y, perm=[0, 3, 4, 1, 5, 2, 6])
    whole = np.array([batch, channels // 4, height, width, 4], np.int64)
    state.tensors.define(node.outputs[0], quads=writer.op("Reshape", y, whole))
    return True


def _slice(node: ir.Node, rank: int) -> Operands | None:
    starts, ends, axes, steps = (
        const(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2, 3, 4)
    )
    if starts is None or ends is None:
        return None
    along = list(range(len(starts))) if axes is None else [int(a) % rank for a in axes]
    rest: Operands = [*node.inputs[1:]]
    rest = [*rest, None, None][:4]
    rest[2] = np.array(along, np.int64)
    if 1 in along:
        channels = _channels(node)
        place = along.index(1)
        first, last, _ = slice(int(starts[place]), int(ends[place])).indices(channels)
        if (
            first % 4
            or (last % 4 and last != channels)
            or (steps is not None and steps[place] != 1)
        ):
            return None
        for index, values, at in ((0, starts, first // 4), (1, ends, -(-last // 4))):
            rest[index] = np.where(np.arange(len(values)) == place, at, values)
    return rest


def _channels(node: ir.Node) -> int:
    x = node.inputs[0]
    assert x is not None
    return shape_of(x)[1]


def _pad(state: State, node: ir.Node, rank: int) -> Operands | None:
    pads, axes = (const(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 3))
    if pads is None or axes is not None:
        return None
    around = [int(pads[1]), int(pads[rank + 1])]
    if any(around) and any(v % 4 for v in (*around, _channels(node))):
        return None
    wide = np.concatenate([pads[:rank], [0], pads[rank:], [0]])
    wide[1], wide[rank + 2] = (v // 4 for v in around)
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if fill is None:
        return None if attribute(node, "mode", "constant") == "constant" else [wide]
    return [wide, state.tensors.plain(fill, state.writer)]


def _resize(node: ir.Node, rank: int) -> Operands | None:
    """Nearest positions of each axis; the last axis stays."""
    if "axes" in node.attributes or attribute(node, "keep_aspect_ratio_policy") is not None:
        return None
    rest: Operands = [None, None, None]
    for index in (2, 3):
        known = const(node.inputs[index]) if len(node.inputs) > index else None
        if known is None or not known.size:
            continue
        if (known[1] != 1) if index == 2 else (known[1] != shape_of(node.outputs[0])[1]):
            return None
        wide = np.append(known, 1 if index == 2 else 4).astype(known.dtype)
        if index == 3:
            wide[1] = -(-_channels(node) // 4)
        rest[index - 1] = wide
    return rest
