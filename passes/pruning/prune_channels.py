"""Remove whole channels: fewer filters and input channels, a smaller dense network.

Each group of channels that are alternatives (``effc.passes.pruning.channel_groups``) loses the
same share. How many of a group:

* The share is the smallest that the layers which make the group's channels are asked for; a layer
  that is to stay dense, as the first ones by default, keeps all its channels. So a residual
  stage that begins in the first layer stays whole: all its blocks add to that layer's result.
* What is left of 64 channels or more is a multiple of 8, of 16 or more a multiple of 4 (kernels
  compute 4 to 16 channels at once; a ragged rest costs as much as a full vector), the nearest one.
  At least one channel stays.
* Layers that only read channels (the classifier) lose the inputs that are gone; the model's
  inputs and outputs never change.

Which ones is up to a *chooser*: by magnitude, or by Optimal Brain Surgeon from calibration data.
The result is not equivalent to the original; how much accuracy it costs is to be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.graph import const
from effc.passes.pruning.channel_groups import ChannelGroup, Channels, find_channels
from effc.passes.pruning.layers import find_layers
from effc.passes.pruning.prune_weights import Setting
from effc.passes.pruning.remove_channels import remove_channels
from effc.passes.pruning.scheme import check_sparsity

__all__ = [
    "Choice",
    "Chooser",
    "Demand",
    "PruneChannels",
    "by_magnitude",
    "kept_count",
    "magnitude_choice",
    "magnitudes",
]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Demand:
    """How many channels of a group are to go."""

    group: ChannelGroup
    count: int


@dataclass(frozen=True)
class Choice:
    """Which channels of a group go.

    Attributes:
        channels: The channels.
        loss: What that costs, by the measure of the method: share of the weights' energy
            (magnitude), or of the readers' output variance (surgeon).
        note: Why another method than the one asked for was used, or "".
    """

    channels: tuple[int, ...]
    loss: float
    note: str = ""


Chooser = Callable[[ir.Model, Channels, Sequence[Demand]], list[Choice]]
"""Chooses for each demand; the model is not changed."""


def kept_count(total: int, sparsity: float) -> int:
    """Channels that stay of a group of ``total``."""
    if not sparsity:
        return total
    multiple = 8 if total >= 64 else 4 if total >= 16 else 1
    kept = int(total * (1 - sparsity) / multiple + 0.5) * multiple
    return min(total, max(kept, multiple))


def magnitudes(channels: Channels, group: ChannelGroup) -> Array:
    """Squared L2 norm of all slices of weights that make or read each channel.

    Each weight's norms are divided by their mean over the group, so that all weights count alike.
    """
    total = np.zeros(len(group.channels))
    for use in (*group.producers, *group.consumers):
        weight = const(use.node.inputs[use.index])
        assert weight is not None
        rows = np.moveaxis(weight, use.axis, 0).reshape(weight.shape[use.axis], -1)
        owner = channels.on(use)
        energy = np.square(rows, dtype=np.float64).sum(axis=1)
        own = np.array([energy[owner == channel].sum() for channel in group.channels])
        total += own / (own.mean() or 1.0)
    return total


def magnitude_choice(channels: Channels, demand: Demand, note: str = "") -> Choice:
    """The channels of least magnitude."""
    score = magnitudes(channels, demand.group)
    order = np.argsort(score, kind="stable")[: demand.count]
    gone = tuple(demand.group.channels[i] for i in order)
    return Choice(gone, float(score[order].sum() / (score.sum() or 1.0)), note)


def by_magnitude(model: ir.Model, channels: Channels, demands: Sequence[Demand]) -> list[Choice]:
    """The channels of least magnitude; needs no data."""
    return [magnitude_choice(channels, demand) for demand in demands]


class PruneChannels(Pass):
    """Channels removed.

    Args:
        settings: What each layer, by node name, is asked for: the share of its output channels.
        chooser: Which channels go.

    Attributes:
        losses: Of each layer, by node name, the largest loss of the groups that it makes.
        kept: Of each layer, by node name, which output channels stayed.
    """

    name: ClassVar[str] = "prune_channels"

    def __init__(self, settings: Mapping[str, Setting], chooser: Chooser = by_magnitude) -> None:
        self.settings = settings
        self.chooser = chooser
        self.losses: dict[str, float] = {}
        self.kept: dict[str, Array] = {}

    def call(self, model: ir.Model, log: Log) -> None:
        layers, unfit = find_layers(model)
        names = {layer.node: layer.name for layer in layers}
        log.refused += [(name, why) for name, why in unfit if name in self.settings]
        channels = find_channels(model.graph)
        demands = []
        for group in channels.groups:
            made_by = [names[use.node] for use in group.producers if use.node in names]
            found = self._demand(group, made_by)
            if isinstance(found, Demand):
                demands.append(found)
            else:
                log.refused += [(name, found) for name in made_by]
        choices = self.chooser(model, channels, demands)
        removed = [channel for choice in choices for channel in choice.channels]
        gone = channels.removed(removed)
        for layer in layers:
            axis = 1 if layer.node.op_type == "Conv" else -1
            self.kept[layer.name] = ~gone[channels.axes.result(layer.node.outputs[0])[axis]]
        remove_channels(model.graph, channels, removed)
        for demand, choice in zip(demands, choices, strict=True):
            for use in demand.group.producers:
                if use.node in names:
                    self._note(names[use.node], choice, log)

    def _note(self, name: str, choice: Choice, log: Log) -> None:
        self.losses[name] = max(choice.loss, self.losses.get(name, 0.0))
        if name not in log.applied:
            log.applied.append(name)
        if choice.note:
            log.refused.append((name, choice.note))

    def _demand(self, group: ChannelGroup, made_by: Sequence[str]) -> Demand | str:
        """How many channels are to go, or why none."""
        asked = []
        for name in made_by:
            setting = self.settings.get(name)
            level = 0.0 if setting is None else check_sparsity(setting.scheme, setting.sparsity)
            asked.append((level, name))
        if not asked:
            return "no layer makes these channels"
        sparsity, name = min(asked)
        total = len(group.channels)
        count = total - kept_count(total, sparsity)
        if count:
            return Demand(group, count)
        if sparsity:
            return f"{total} channels are too few for a sparsity of {sparsity:g}"
        return f"{name}, with the same channels, keeps all" if len(made_by) > 1 else "it keeps all"
