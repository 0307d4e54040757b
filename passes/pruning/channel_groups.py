"""Which channels of a graph can be removed, and with what each is coupled.

In: an imported graph. Out: *channels* (coupled sets of indices, found by tying what operators
make depend on each other, ``effc.passes.pruning.channel_rules``) gathered in *groups* of channels
that are alternatives to each other: all channels of a group have parts on the same axes of the
same tensors. A residual stage is one group; a concatenation has one per operand.

Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023), here with one node
per index instead of per layer, so that padded shortcuts, concatenations of coupled parts, slices
and flattened rows are exact.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import shape_of
from effc.passes.pruning.channel_axes import FIXED, Axes, Labels, Use, fixed
from effc.passes.pruning.channel_rules import tie_node

__all__ = ["ChannelGroup", "Channels", "find_channels"]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of which any may go instead of another.

    Attributes:
        name: The node whose weights make them first, or read them first if none does.
        channels: Identifiers, in the order of their first index.
        producers: Weights that make them.
        consumers: Weights that sum over them.
    """

    name: str
    channels: tuple[int, ...]
    producers: tuple[Use, ...]
    consumers: tuple[Use, ...]


@dataclass(frozen=True)
class Channels:
    """The channels of a graph.

    Attributes:
        axes: Labels of all tensors.
        owner: Channel of each label; ``FIXED`` for labels that stay.
        groups: All channels that may be removed, every channel in one group. At least one
            channel of each group must stay.
    """

    axes: Axes
    owner: Labels
    groups: tuple[ChannelGroup, ...]

    def on(self, use: Use) -> Labels:
        """Channel of each index of a weight's axis."""
        return self.owner[use.labels]

    def removed(self, channels: Collection[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each label goes with these channels."""
        return np.isin(self.owner, np.array(sorted(channels), np.int64))


def find_channels(graph: ir.Graph) -> Channels:
    """Find all removable channels of an imported graph; the graph is not changed."""
    axes = Axes()
    for value in graph.inputs:
        axes.set_result(value, [fixed(size) for size in shape_of(value)])
    for node in graph:
        if node.graph is graph:
            tie_node(axes, node)
    for node in graph:
        for index, operand in enumerate(node.inputs):
            if operand is not None and operand.is_graph_output():
                axes.fix(axes.labelled(node, index) or ())
    owner = axes.roots()
    for labels in axes.places():
        # An axis that is one channel throughout would become empty.
        whole = np.unique(owner[labels])
        if len(whole) == 1:
            owner[owner == whole[0]] = FIXED
    return Channels(axes, owner, _groups(axes, owner))


def _groups(axes: Axes, owner: Labels) -> tuple[ChannelGroup, ...]:
    where: dict[int, list[int]] = {}
    for place, labels in enumerate(axes.places()):
        for channel in np.unique(owner[labels]).tolist():
            where.setdefault(channel, []).append(place)
    where.pop(FIXED, None)
    alike: dict[tuple[int, ...], list[int]] = {}
    for channel, places in sorted(where.items()):
        alike.setdefault(tuple(places), []).append(channel)
    made = [(use, frozenset(owner[use.labels].tolist())) for use in axes.uses]
    groups = []
    for channels in alike.values():
        own = [use for use, there in made if channels[0] in there]
        producers = tuple(use for use in own if use.role == "out")
        consumers = tuple(use for use in own if use.role == "in")
        if own:
            first = (*producers, *consumers)[0].node
            groups.append(
                ChannelGroup(first.name or first.op_type, tuple(channels), producers, consumers)
            )
    return tuple(groups)
