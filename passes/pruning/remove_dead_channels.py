"""Remove channels that do not matter: of models pruned anywhere, recognised by their zeros alone.

A channel is *dead* if every weight that reads it is zero, or if what is read is the same number at
every position (its filters are zero) and can go into the readers' biases: always where that number
is zero, else where the reader pads nothing. Exact up to the rounding of those biases and the
order of sums.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.errors import InternalError
from effc.passes.base import Log, Pass
from effc.passes.graph import attribute, const, shape_of
from effc.passes.pruning.channel_axes import Use
from effc.passes.pruning.channel_groups import ChannelGroup, Channels, find_channels
from effc.passes.pruning.constant_channels import Known, constant_channels, is_padded
from effc.passes.pruning.remove_channels import remove_channels
from effc.passes.scale_weights import scale_producer

__all__ = ["RemoveDeadChannels"]

Array = np.ndarray[Any, Any]


class RemoveDeadChannels(Pass):
    """Channels without effect; at least one of each group stays."""

    name: ClassVar[str] = "remove_dead_channels"

    def call(self, model: ir.Model, log: Log) -> None:
        graph = model.graph
        if not any(_has_zero_slices(node) for node in graph):
            return
        channels = find_channels(graph)
        known = constant_channels(graph)
        removed: list[int] = []
        for group in channels.groups:
            dead = _dead(channels, group, known)
            if len(dead) == len(group.channels):
                dead.pop()
            if dead:
                log.applied.append(group.name)
            removed += dead
        readers = {(use.node, use.index): use for g in channels.groups for use in g.consumers}
        added = {use.node: _contribution(channels, use, known, removed) for use in readers.values()}
        remove_channels(graph, channels, removed)
        for node, offset in added.items():
            if offset is not None and not scale_producer(graph, node.outputs[0], None, offset):
                raise InternalError("a constant cannot go into the bias", where=node.name)


def _has_zero_slices(node: ir.Node) -> bool:
    """Whether a filter or an input channel of a weight is zero, as that of any dead channel."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    weights = [a for a in map(const, node.inputs[:2]) if a is not None and a.ndim >= 2 and a.size]
    axes = (0, 1) if node.op_type.startswith("Conv") else (-2, -1)
    return any(_has_zero_slice(weight, axis) for weight in weights for axis in axes)


def _has_zero_slice(weight: Array, axis: int) -> bool:
    """Looks at whole slices only where their first element is zero."""
    first = np.moveaxis(weight, axis, -1)[(0,) * (weight.ndim - 1)]
    slices = np.moveaxis(weight, axis, 0)
    return any(not slices[index].any() for index in np.flatnonzero(first == 0))


def _dead(channels: Channels, group: ChannelGroup, known: Known) -> list[int]:
    alive: set[int] = set()
    for use in group.consumers:
        weight = const(use.node.inputs[use.index])
        assert weight is not None
        read = weight.any(axis=tuple(i for i in range(weight.ndim) if i != use.axis))
        value = _values(use, known)
        if value is not None:
            read &= ~((value == 0) | (~np.isnan(value) & _can_fold(use.node)))
        alive.update(channels.on(use)[read].tolist())
    return [channel for channel in group.channels if channel not in alive]


def _values(use: Use, known: Known) -> Array | None:
    """What a weight's input axis reads, where that is constant; None if nothing is."""
    x = use.node.inputs[0]
    turned = attribute(use.node, "transA", 0)
    if use.index != 1 or x is None or use.node.op_type not in ("Conv", "Gemm") or turned:
        return None
    return known.get(x)


def _can_fold(node: ir.Node) -> bool:
    """Whether a constant that a weight reads may become part of the node's bias."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = const(value)
    if value is not None and bias is None:
        return False
    if node.op_type == "Conv":
        return not is_padded(node)
    columns = shape_of(node.outputs[0])[1]
    return bias is None or bias.size == 1 or bias.size == columns == bias.shape[-1]


def _contribution(channels: Channels, use: Use, known: Known, removed: list[int]) -> Array | None:
    """What removed channels that are constant but not zero add to each output that stays."""
    value = _values(use, known)
    weight = const(use.node.inputs[use.index])
    if value is None or weight is None:
        return None
    here = np.isin(channels.on(use), np.array(removed, np.int64))
    here &= np.nan_to_num(value) != 0
    filters = np.moveaxis(weight, use.axis, 1)
    sums = filters.reshape(*filters.shape[:2], -1).sum(axis=2, dtype=np.float64)
    added = attribute(use.node, "alpha", 1.0) * (sums[:, here] @ value[here])
    gone = channels.removed(removed)[channels.axes.result(use.node.outputs[0])[1]]
    return np.asarray(added[~gone]) if added.any() else None
