"""Remove channels from a graph: a smaller dense network that computes the same as the masked one.

The masked network is the original with the channels' slices of every *reading* weight set to zero
(``mask_channels``). Nothing then depends on the channels' values, so that all that makes them can
go: filters, bias entries, normalization parameters, depthwise filters, parts of concatenations.
``remove_channels`` does that; what remains computes the same sums without their zero terms, up to
the order of summation.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.errors import InternalError, UsageError
from effc.passes.graph import add_constant, const, shape_of
from effc.passes.infer import infer
from effc.passes.pruning.channel_axes import Labels
from effc.passes.pruning.channel_groups import Channels
from effc.passes.pruning.channel_rules import RULES

__all__ = ["mask_channels", "remove_channels"]

Array = np.ndarray[Any, Any]


def mask_channels(graph: ir.Graph, channels: Channels, removed: Collection[int]) -> None:
    """Set the channels' slices of all weights that read them to zero.

    Args:
        graph: The graph; constants are replaced in place.
        channels: What ``find_channels`` said about it.
        removed: Channels to mask.
    """
    gone = np.array(sorted(removed), np.int64)
    for use in channels.axes.uses:
        here = np.isin(channels.on(use), gone)
        if use.role == "out" or not here.any():
            continue
        weight = use.node.inputs[use.index]
        array = np.array(const(weight))
        np.moveaxis(array, use.axis, 0)[here] = 0
        assert weight is not None
        use.node.replace_input_with(use.index, add_constant(graph, array, weight.name or "weight"))
        if not weight.uses() and not weight.is_graph_output():
            del graph.initializers[weight.name or ""]


def remove_channels(graph: ir.Graph, channels: Channels, removed: Collection[int]) -> None:
    """Cut channels out of all constants, attributes and shapes.

    Args:
        graph: The graph; changed in place. ``channels`` does not describe it afterwards.
        channels: What ``find_channels`` said about it.
        removed: Channels to remove, at most all but one of each group.

    Raises:
        UsageError: Not channels of this graph, or a whole group.
    """
    _check(channels, removed)
    if removed:
        _Removal(graph, channels, removed).run()


def _check(channels: Channels, removed: Collection[int]) -> None:
    known = {channel for group in channels.groups for channel in group.channels}
    unknown = sorted(set(removed) - known)
    if unknown:
        raise UsageError("there are no such channels", got=unknown[:10])
    for group in channels.groups:
        if set(group.channels) <= set(removed):
            raise UsageError(
                "at least one channel must stay",
                where=group.name,
                got=f"all {len(group.channels)} to be removed",
            )


class _Removal:
    """One removal; the ``Cut`` that rules see."""

    def __init__(self, graph: ir.Graph, channels: Channels, removed: Collection[int]) -> None:
        self._graph = graph
        self._channels = channels
        self._gone = channels.removed(removed)
        self._made: dict[tuple[int, bytes], ir.Value] = {}

    def run(self) -> None:
        for node in self._graph:
            if node.graph is not self._graph:
                continue
            labelled = [self._channels.axes.labelled(node, i) for i in range(len(node.inputs))]
            if not self._touches(node, labelled):
                continue
            rule = None if node.domain else RULES.get(node.op_type)
            if rule is not None and rule.rewrite is not None:
                rule.rewrite(self, node)
            for index, axes in enumerate(labelled):
                if axes is not None:
                    self._cut_constant(node, index, axes)
            infer(node)
            self._check_shapes(node)
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]

    def kept(self, labels: Labels) -> Array:
        return ~self._gone[labels]

    def operand(self, node: ir.Node, index: int) -> tuple[Labels, ...]:
        return self._channels.axes.of(node, index)

    def result(self, value: ir.Value) -> tuple[Labels, ...]:
        return self._channels.axes.result(value)

    def shape(self, value: ir.Value) -> list[int]:
        return [int(self.kept(labels).sum()) for labels in self.result(value)]

    def set_operand(self, node: ir.Node, index: int, array: Array) -> None:
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        old = const(node.inputs[index])
        if old is None or not np.array_equal(old, array):
            new = add_constant(self._graph, array, f"{node.name or node.op_type}/sizes")
            node.replace_input_with(index, new)

    def _touches(self, node: ir.Node, labelled: list[tuple[Labels, ...] | None]) -> bool:
        results = [self.result(value) for value in node.outputs if value.name]
        places = [labels for axes in (*labelled, *results) for labels in axes or ()]
        return any(self._gone[labels].any() for labels in places)

    def _cut_constant(self, node: ir.Node, index: int, axes: tuple[Labels, ...]) -> None:
        """Replace a labelled constant by what is kept of it; readers of one go on sharing."""
        value = node.inputs[index]
        array = const(value)
        masks = [self.kept(labels) for labels in axes]
        if value is None or array is None or all(mask.all() for mask in masks):
            return
        key = (id(value), b"|".join(mask.tobytes() for mask in masks))
        if key not in self._made:
            part = np.ascontiguousarray(array[np.ix_(*masks)])
            self._made[key] = add_constant(self._graph, part, value.name or "weight")
        node.replace_input_with(index, self._made[key])

    def _check_shapes(self, node: ir.Node) -> None:
        for value in node.outputs:
            if value.name and list(shape_of(value)) != self.shape(value):
                raise InternalError(
                    "channel removal is wrong for this operator",
                    where=f"{node.op_type} {node.name}: {value.name}",
                    expected=self.shape(value),
                    got=shape_of(value),
                )
