"""Give the outputs of each layer the mean and spread that they had in the dense model.

Zeros in weights shrink what a layer computes, and the error grows from layer to layer. On the same
samples, let y be a layer's output channel in the dense model and y' in the pruned one, whose
earlier layers are corrected already. Then

    y'' = a y' + c,   a = std(y) / std(y'),   c = mean(y) - a mean(y')

has y's mean and standard deviation. The factor goes into the filter (zeros stay zeros), the offset
into the bias; a BatchNormalization behind it sees what it was made for. Channels that hardly
vary keep ``a = 1``. Layers are walked in order, from the first one with another weight.
Source: Frantar and Alistarh 2022 (section 6, "statistics correction"); Finkelstein et al. 2019 and
Nagel et al. 2019 for the bias alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.layers import Layer, from_first_change
from effc.passes.pruning.walk import Walk, live_bytes

__all__ = ["CorrectStatistics", "channel_moments", "enough_samples", "match_moments"]

Array = np.ndarray[Any, Any]
Moments = tuple[Array, Array]
"""Mean and standard deviation per channel."""

MEMORY = 1 << 30
"""Bytes of activations, of both models together."""

_LARGEST_FACTOR = 3.0
_SMALLEST_STD = 1e-3
"""Of the layer's largest; below, a channel counts as constant."""


def enough_samples(model: ir.Model, available: int, memory: int = MEMORY) -> int:
    """How many samples fit into memory at once, of those available; 16 at least."""
    return min(available, max(16, memory // (2 * max(live_bytes(model), default=1))))


class CorrectStatistics(Pass):
    """Mean and standard deviation of layer outputs as in the dense model.

    Args:
        dense: The model before pruning, with the same nodes.
        samples: Inputs of each run, in the model's shapes.
        kept: By layer, which output channels of the dense model are left; absent for all.
        skip: Layers to leave as they are, because they were fitted already.
        bias_only: Match means only.
        tick: Called with (layers done, all layers, name).
    """

    name: ClassVar[str] = "correct_statistics"

    def __init__(
        self,
        dense: ir.Model,
        samples: Sequence[Mapping[str, Array]],
        *,
        kept: Mapping[str, Array] | None = None,
        skip: Collection[str] = (),
        bias_only: bool = False,
        tick: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self.dense = dense
        self.samples = samples[: enough_samples(dense, len(samples))]
        self.kept = kept or {}
        self.skip = skip
        self.bias_only = bias_only
        self.tick = tick

    def call(self, model: ir.Model, log: Log) -> None:
        layers = from_first_change(self.dense, model)
        while layers and layers[-1].name in self.skip:
            layers.pop()
        stops = [layer.makes for layer in layers]
        before = Walk(SampleRunner(self.dense, self.samples), stops)
        after = Walk(SampleRunner(model, self.samples), stops)
        for index, layer in enumerate(layers):
            stop = before.advance()
            after.advance()
            bias = layer.bias()
            if layer.name in self.skip:
                continue
            if bias is None:
                log.refused.append((layer.name, "its bias is no constant per output channel"))
            else:
                left = self.kept.get(layer.name, ...)
                mean, std = channel_moments(layer, before.values[stop])
                factor, offset = match_moments(
                    layer,
                    (mean[left], std[left]),
                    after.values[stop],
                    bias_only=self.bias_only,
                )
                column = factor.reshape(-1, *[1] * (len(layer.shape) - 1))
                layer.set_weight(layer.weight() * column)
                inside = layer.node.op_type != "MatMul"  # whether its result has the bias
                layer.set_bias((bias * factor if inside else bias) + offset)
                log.applied.append(layer.name)
            if self.tick is not None:
                self.tick(index + 1, len(layers), layer.name)


def match_moments(
    layer: Layer, target: Moments, batches: Sequence[Array], *, bias_only: bool = False
) -> tuple[Array, Array]:
    """Change outputs of a layer, in place, so that each channel has given moments.

    Returns:
        Factor and offset per channel that did it.
    """
    (mean, std), (new_mean, new_std) = target, channel_moments(layer, batches)
    factor = np.ones(len(mean))
    if not bias_only:
        varies = np.minimum(std, new_std) > _SMALLEST_STD * std.max(initial=0.0)
        np.divide(std, new_std, out=factor, where=varies)
        factor = factor.clip(1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    offset = mean - factor * new_mean
    for array in batches:
        columns = _columns(layer, array)
        columns *= factor.astype(array.dtype)[:, None]
        columns += offset.astype(array.dtype)[:, None]
    return factor, offset


def _columns(layer: Layer, array: Array) -> Array:
    """A view ``[any, channels, positions]`` of a contiguous output."""
    if layer.node.op_type == "Conv":
        return array.reshape(*array.shape[:2], -1)
    return array.reshape(-1, array.shape[-1], 1)


def channel_moments(layer: Layer, batches: Sequence[Array]) -> Moments:
    """Mean and standard deviation of each channel, float64."""
    count, total, square = 0, np.zeros(()), np.zeros(())
    for batch in batches:
        columns = _columns(layer, batch).astype(np.float64)
        count += columns.size // columns.shape[1]
        total = total + columns.sum(axis=(0, 2))
        square = square + np.einsum("acp,acp->c", columns, columns)
    mean = total / count
    return mean, np.sqrt(np.maximum(square / count - np.square(mean), 0))
