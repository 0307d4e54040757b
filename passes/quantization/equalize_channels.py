"""Even out the channels between two layers, without changing what the network computes.

A layer, an activation f and a second layer compute ``W2 f(W1 x + b1)``. Where ``f(s y) = s f(y)``
for ``s > 0`` (Relu, LeakyRelu, PRelu, pooling, nothing), channel c may be divided by s in the rows
of the first layer and multiplied by s in the columns of the second:

    W1[c] / s, b1[c] / s, W2[:, c] * s,     s = sqrt(a / w)

with a the largest value of the channel on the samples and w its largest weight in the second layer.
All values between have one grid and all weights of an output channel share a scale; afterwards no
channel is small beside the others. s is rounded to a power of two, so the float function stays the
same to the last bit (but for numbers too small for float32). Clip between two layers has bounds in
units of its values, hence such pairs are left as they are.

Sources: Nagel et al. 2019, section 4.1 (with weights of the first layer in place of values, which
scales per output channel make irrelevant); Xiao et al., SmoothQuant (ICML 2023), for values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.graph import shape_of, single_user
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.layers import Layer, find_layers

__all__ = ["EqualizeChannels", "Pair", "channel_ranges", "find_pairs"]

Array = np.ndarray[Any, Any]

_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool"})
_SWEEPS = 10

_LARGEST = 2.0**8
"""Of one factor; channels that were never used have any."""


@dataclass(frozen=True)
class Pair:
    """Two layers, the second of which alone reads the first.

    Attributes:
        first, second: The layers.
        between: Name of the value that the second reads.
    """

    first: Layer
    second: Layer
    between: str


def find_pairs(model: ir.Model) -> list[Pair]:
    """All pairs of a model."""
    layers = find_layers(model)[0]
    readers = {layer.node: layer for layer in layers}
    pairs = []
    for first in layers:
        if first.bias() is None:
            continue
        value = first.node.outputs[0]
        if first.node.op_type == "MatMul":
            continue  # its bias is another node's
        user = single_user(value)
        while user is not None and not user.domain and user.op_type in _HOMOGENEOUS:
            value = user.outputs[0]
            user = single_user(value)
        second = None if user is None else readers.get(user)
        if second is None or second.reads != (value.name or ""):
            continue
        if second.kernel and len(shape_of(value)) != 2 + len(second.kernel):
            continue
        if bool(first.kernel) == bool(second.kernel) and _columns(second) is not None:
            pairs.append(Pair(first, second, value.name or ""))
    return pairs


def _columns(layer: Layer) -> int | None:
    """Where the input channels are in a layer's weights: 1, or 0 if it is depthwise."""
    if layer.groups == 1:
        return 1
    if layer.shape[1] == 1 and layer.shape[0] == layer.groups:
        return 0
    return None


def channel_ranges(runner: SampleRunner, pairs: list[Pair]) -> dict[str, Array]:
    """Largest magnitude of every channel of the values between, by name."""
    names = [pair.between for pair in pairs]
    found: dict[str, Array] = {}
    for batch in runner.values(names) if names else ():
        for pair in pairs:
            array = batch[pair.between]
            axis = 1 if pair.second.kernel else array.ndim - 1
            others = tuple(a for a in range(array.ndim) if a != axis)
            largest = np.abs(array).max(axis=others).astype(np.float64)
            old = found.get(pair.between, largest)
            found[pair.between] = np.maximum(old, largest)
    return found


class EqualizeChannels(Pass):
    """Channels of all pairs evened out.

    Args:
        ranges: Of the values between, as :func:`channel_ranges` gives them.
    """

    name: ClassVar[str] = "equalize_channels"

    def __init__(self, ranges: Mapping[str, Array]) -> None:
        self.ranges = {name: array.copy() for name, array in ranges.items()}

    def call(self, model: ir.Model, log: Log) -> None:
        pairs = [pair for pair in find_pairs(model) if pair.between in self.ranges]
        changed: set[str] = set()
        for _ in range(_SWEEPS):
            moved = [pair for pair in pairs if self._balance(pair)]
            changed |= {pair.first.name for pair in moved}
            if not moved:
                break
        log.applied += [pair.first.name for pair in pairs if pair.first.name in changed]
        log.refused += list(_clipped(model))

    def _balance(self, pair: Pair) -> bool:
        """Whether any channel changed."""
        values = self.ranges[pair.between]
        weight = pair.second.weight()
        axis = _columns(pair.second)
        largest = np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis))
        factors = np.ones(len(values))
        used = (values > 0) & (largest > 0)
        ratio = np.sqrt(values[used] / largest[used].astype(np.float64))
        ratio /= np.exp(np.mean(np.log(ratio))) if len(ratio) else 1.0
        factors[used] = np.exp2(np.rint(np.log2(ratio))).clip(1 / _LARGEST, _LARGEST)
        if (factors == 1).all():
            return False
        first = pair.first
        bias = first.bias()
        assert bias is not None
        rows = factors.reshape(-1, *[1] * (len(first.shape) - 1))
        columns = factors.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
        first.set_weight(first.weight() / rows)
        if bias.any():
            first.set_bias(bias / factors)
        pair.second.set_weight(weight * columns)
        self.ranges[pair.between] = values / factors
        return True


def _clipped(model: ir.Model) -> Iterator[tuple[str, str]]:
    """Layers that a Clip keeps apart."""
    layers = find_layers(model)[0]
    readers = {layer.node for layer in layers}
    for layer in layers:
        user = single_user(layer.node.outputs[0])
        if user is not None and user.op_type == "Clip":
            follower = single_user(user.outputs[0])
            if follower in readers:
                yield layer.name, "a Clip stands between it and the next layer"
