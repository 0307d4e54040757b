"""Which channels to remove, by Optimal Brain Surgeon in blocks from calibration data.

A channel's unit, in each layer that reads it, is all columns of the layer's unfolded input that it
fills (one per kernel position; of a flattened row a whole map). For the layer's weights W and the
inverse V of its inputs' damped covariance, removing the unit's columns B costs at best

    loss = trace(W_B V_BB^-1 W_B^T)

when the other weights and the bias make up for it (``effc.passes.pruning.elimination``). A channel
costs the sum over all layers that read it, each relative to the variance of that layer's
output. The cheapest goes, all weights and inverses are updated, and so on. Columns of other groups
cannot go here, they only make up: of V the part of the group's own columns is enough.

Source: Frantar and Alistarh, "Optimal Brain Compression" (NeurIPS 2022); summed over coupled layers
as in Fang et al., "DepGraph" (CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from scipy import linalg

from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.calibration import MEMORY, hessian_bytes
from effc.passes.pruning.channel_axes import Labels, Use
from effc.passes.pruning.channel_groups import ChannelGroup, Channels
from effc.passes.pruning.channel_moments import Moments
from effc.passes.pruning.elimination import Elimination, unit_losses
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.prune_channels import Choice, Demand, magnitude_choice
from effc.passes.pruning.surgeon import DAMPING, damped

__all__ = ["ChannelSurgeon"]

Array = np.ndarray[Any, Any]
Tick = Callable[[int, int, str], None]

LARGEST = MEMORY // 2
"""Bytes of a layer's covariance; larger ones (classifiers on flattened maps) have no say."""


class Kept(Protocol):
    """A place for arrays that outlives an interruption."""

    def load(self) -> Mapping[str, Array] | None:
        """What is there, or None."""

    def save(self, arrays: Mapping[str, Array]) -> None:
        """Replace it."""


class ChannelSurgeon:
    """A chooser for ``PruneChannels``.

    Args:
        runner: The model before pruning, and calibration samples.
        tick: Called with (groups done, all groups, name of the group).
        keep: Gives the place where choices are kept, from a text that says what is demanded.
    """

    def __init__(
        self,
        runner: SampleRunner,
        tick: Tick | None = None,
        keep: Callable[[str], Kept] | None = None,
    ) -> None:
        self.runner = runner
        self.tick = tick
        self.keep = keep

    def __call__(
        self, model: ir.Model, channels: Channels, demands: Sequence[Demand]
    ) -> list[Choice]:
        layers = {
            layer.node: layer
            for layer in find_layers(model)[0]
            if layer.groups == 1 and hessian_bytes(layer) <= LARGEST
        }
        asked = [(d.group.name, d.group.channels, d.count) for d in demands]
        kept = None if self.keep is None else self.keep(f"channels {DAMPING}\n{asked}")
        choices = _read_choices(None if kept is None else kept.load())
        removed = {channel for choice in choices for channel in choice.channels}
        number = 0
        for part in _parts(demands, layers):
            number += len(part)
            if number <= len(choices):
                continue
            readers = {layer for demand in part for _, layer in _readers(demand.group, layers)}
            moments = self._moments(sorted(readers, key=lambda layer: layer.name))
            for demand in part[len(choices) - number + len(part) :]:
                if self.tick is not None:
                    self.tick(len(choices), len(demands), demand.group.name)
                choice = _choose(channels, demand, removed, layers, moments)
                removed.update(choice.channels)
                choices.append(choice)
                if kept is not None:
                    kept.save(_written_choices(choices))
        return choices

    def _moments(self, layers: Sequence[Layer]) -> dict[Layer, Moments]:
        found = {layer: Moments(layer, len(self.runner.samples)) for layer in layers}
        names = [layer.reads for layer in layers]
        if layers:
            for batch in self.runner.values(names):
                for moments, name in zip(found.values(), names, strict=True):
                    moments.add(batch[name])
        return found


def _written_choices(choices: Sequence[Choice]) -> dict[str, Array]:
    return {
        "channels": np.array([c for choice in choices for c in choice.channels], np.int64),
        "ends": np.cumsum([len(choice.channels) for choice in choices]),
        "losses": np.array([choice.loss for choice in choices]),
        "notes": np.array([choice.note for choice in choices], np.str_),
    }


def _read_choices(arrays: Mapping[str, Array] | None) -> list[Choice]:
    if arrays is None:
        return []
    each = np.split(arrays["channels"], arrays["ends"][:-1])
    found = zip(each, arrays["losses"], arrays["notes"], strict=True)
    return [Choice(tuple(map(int, c)), float(loss), str(note)) for c, loss, note in found]


def _readers(group: ChannelGroup, layers: Mapping[ir.Node, Layer]) -> Iterator[tuple[Use, Layer]]:
    """Layers with weights that read a group's channels."""
    for use in group.consumers:
        layer = layers.get(use.node)
        if layer is not None and use.index == 1:
            yield use, layer


def _parts(demands: Sequence[Demand], layers: Mapping[ir.Node, Layer]) -> Iterator[list[Demand]]:
    """Consecutive demands whose layers' covariances have room in memory together."""
    part: list[Demand] = []
    held: set[Layer] = set()
    for demand in demands:
        more = {layer for _, layer in _readers(demand.group, layers)}
        if part and sum(map(hessian_bytes, held | more)) > MEMORY:
            yield part
            part, held = [], set()
        part.append(demand)
        held |= more
    if part:
        yield part


def _choose(
    channels: Channels,
    demand: Demand,
    removed: set[int],
    layers: Mapping[ir.Node, Layer],
    moments: Mapping[Layer, Moments],
) -> Choice:
    states = []
    for use, layer in _readers(demand.group, layers):
        owner = np.repeat(
            channels.on(use), layer.weight().size // (layer.shape[0] * layer.shape[1])
        )
        state = _state(layer, moments[layer], owner, demand.group.channels, removed)
        if state is not None:
            states.append(state)
    if not states:
        return magnitude_choice(
            channels, demand, "by magnitude: no layer of fitting size reads them"
        )
    chosen: list[int] = []
    lost = 0.0
    for _ in range(demand.count):
        # What is removed has rounding left on its diagonal, of which anything may come.
        with np.errstate(over="ignore", invalid="ignore"):
            losses = [unit_losses(state.weight, state.blocks)[0] for state in states]
        total = np.zeros(len(demand.group.channels))
        for state, loss in zip(states, losses, strict=True):
            total[state.ids[0]] += np.where(state.live[0], loss, 0)
        total[chosen] = np.inf
        cheapest = int(total.argmin())
        lost += float(total[cheapest])
        chosen.append(cheapest)
        only = np.zeros((1, len(total)), bool)
        only[0, cheapest] = True
        with np.errstate(over="ignore", invalid="ignore"):
            for state in states:
                state.step(only)
    return Choice(tuple(demand.group.channels[i] for i in chosen), lost / len(states))


def _state(
    layer: Layer, moments: Moments, owner: Labels, group: Sequence[int], removed: set[int]
) -> Elimination | None:
    """Weights and inverse covariance of one layer; None if its output does not vary.

    Args:
        layer: The layer.
        moments: Of its input.
        owner: Channel of each column of its input.
        group: Channels that may go: the units.
        removed: Channels that are gone already.
    """
    covariance = moments.covariance[0]
    weight = layer.weight().reshape(layer.shape[0], -1).astype(np.float64)
    energy = float(np.vdot(weight @ covariance, weight))
    if energy <= 0:
        return None
    exact = damped(covariance, DAMPING)
    stays = np.flatnonzero(~np.isin(owner, np.array(sorted(removed), np.int64)))
    factor = linalg.cho_factor(exact[np.ix_(stays, stays)])
    current = linalg.cho_solve(factor, exact[stays] @ weight.T).T / np.sqrt(energy)
    columns = _unit_columns(owner[stays], group)
    order = columns.reshape(-1)
    real = order >= 0
    needed = order[real]
    unit_vectors = np.zeros((len(stays), len(needed)))
    unit_vectors[needed, np.arange(len(needed))] = 1
    inverse = np.eye(len(order))
    inverse[np.ix_(real, real)] = linalg.cho_solve(factor, unit_vectors)[needed]
    rows = np.zeros((layer.shape[0], len(order)))
    rows[:, real] = current[:, needed]
    # Scaled so that float32 has room: V times s, W times sqrt(s), losses unchanged.
    scale = len(order) / float(np.trace(inverse))
    return Elimination(
        (rows * np.sqrt(scale)).astype(np.float32).reshape(1, layer.shape[0], *columns.shape),
        (inverse * scale).astype(np.float32),
    )


def _unit_columns(owner: Labels, group: Sequence[int]) -> Array:
    """Columns of each channel, ``[width, channels]``; -1 fills channels with fewer than others."""
    units = [np.flatnonzero(owner == channel) for channel in group]
    columns = np.full((max(map(len, units)), len(units)), -1)
    for index, unit in enumerate(units):
        columns[: len(unit), index] = unit
    return columns
