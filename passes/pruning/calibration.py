"""Second moments of layer inputs over calibration samples.

    H = 2 X X^T / columns

X holds, column by column, what one output position of the layer reads: for a convolution the
unfolded input (pads, strides, dilations, groups), rows in the order (cin, ky, kx) as the weight
lies in memory; for Gemm and MatMul the rows of the input. Products are float32, sums float64.

Neighbouring positions see almost the same, so of large feature maps a random part is enough: at
least 16 columns per row of H and at least 65,536 columns, drawn with a fixed seed. The model is run
once for as many layers as have room in memory together, so memory is bounded whatever the model.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from effc.errors import ModelError
from effc.passes.graph import attribute, shape_of
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.layers import Layer

__all__ = ["COLUMNS", "MEMORY", "choose", "hessian_bytes", "hessians", "share_of", "unfold"]

Array = np.ndarray[Any, Any]

MEMORY = 1 << 30
"""Bytes of all Hessians that are collected in one run of the model."""

COLUMNS = 1 << 16
"""Columns that are enough whatever the size of the Hessian."""

COLUMNS_PER_ROW = 16


def hessian_bytes(layer: Layer) -> int:
    """Size of a layer's Hessian."""
    return layer.groups * prod(layer.shape[1:]) ** 2 * 8


def hessians(
    runner: SampleRunner,
    layers: Sequence[Layer],
    *,
    memory: int = MEMORY,
    tick: Callable[[int, int, str], None] | None = None,
) -> Iterator[tuple[Layer, Array]]:
    """Hessians ``[groups, K, K]`` float64 of layers, ``K = Cin / groups * positions``.

    Args:
        runner: The dense model and its samples.
        layers: Layers of that model.
        memory: Bytes to hold at a time; a layer larger than that is done alone.
        tick: Called with (samples done, all samples, first layer of the run).

    Raises:
        ModelError: What a layer reads is not finite.
    """
    for group in _by_memory(layers, memory):
        names = [layer.reads for layer in group]
        sums = [_Moments(layer, len(runner.samples)) for layer in group]
        done = 0
        for batch in runner.values(names):
            for moments, name in zip(sums, names, strict=True):
                moments.add(batch[name])
            done += len(batch[names[0]]) if runner.batched else 1
            if tick is not None:
                tick(min(done, len(runner.samples)), len(runner.samples), group[0].name)
        for layer in group:
            found = sums.pop(0).hessian()
            if not np.isfinite(found).all():
                raise ModelError(
                    "a value is not finite on the calibration samples", where=layer.reads
                )
            yield layer, found


def _by_memory(layers: Sequence[Layer], memory: int) -> Iterator[list[Layer]]:
    group: list[Layer] = []
    size = 0
    for layer in layers:
        needed = hessian_bytes(layer)
        if group and size + needed > memory:
            yield group
            group, size = [], 0
        group.append(layer)
        size += needed
    if group:
        yield group


class _Moments:
    """Sum of products of one layer's columns."""

    def __init__(self, layer: Layer, samples: int) -> None:
        self.layer = layer
        width = prod(layer.shape[1:])
        self.sum = np.zeros((layer.groups, width, width))
        self.columns = 0
        self.share = share_of(layer, samples)
        self.rng = np.random.default_rng(zlib.crc32(layer.name.encode()))

    def add(self, inputs: Array) -> None:
        columns = unfold(self.layer, inputs, self.share, self.rng)
        self.sum += np.matmul(columns.transpose(0, 2, 1), columns)
        self.columns += columns.shape[1]

    def hessian(self) -> Array:
        self.sum *= 2 / max(self.columns, 1)
        return self.sum


def share_of(layer: Layer, samples: int, columns: int = COLUMNS) -> float:
    """Part of all output positions of ``samples`` runs that is enough, at least ``columns``."""
    wanted = max(columns, COLUMNS_PER_ROW * prod(layer.shape[1:]))
    return min(1.0, wanted / (samples * columns_of(layer)))


def columns_of(layer: Layer) -> int:
    """Output positions of one run of the model."""
    shape = shape_of(layer.node.outputs[0])
    return prod(shape) // layer.shape[0]


def unfold(
    layer: Layer, inputs: Array, share: float = 1.0, rng: np.random.Generator | None = None
) -> Array:
    """What output positions read: float32 ``[groups, columns, K]``.

    Args:
        layer: Conv, Gemm or MatMul.
        inputs: Its first input, any batch size.
        share: Part of all output positions to take, at random.
        rng: Needed if ``share`` is below 1.
    """
    inputs = inputs.astype(np.float32, copy=False)
    if layer.node.op_type != "Conv":
        rows = inputs.reshape(-1, inputs.shape[-1])
        return rows[choose(len(rows), share, rng)][None]
    kernel = layer.kernel
    rank = len(kernel)
    strides = attribute(layer.node, "strides", [1] * rank)
    dilations = attribute(layer.node, "dilations", [1] * rank)
    pads = attribute(layer.node, "pads", [0] * 2 * rank)
    padded = np.pad(inputs, [(0, 0), (0, 0), *((pads[a], pads[a + rank]) for a in range(rank))])
    output = [
        (padded.shape[2 + a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in range(rank)
    ]
    last = np.ascontiguousarray(np.moveaxis(padded, 1, -1))  # channels together: faster to gather
    chosen = choose(len(inputs) * prod(output), share, rng)
    sample, *place = np.unravel_index(chosen, (len(inputs), *output))
    gathered = np.empty((len(chosen), prod(kernel), inputs.shape[1]), np.float32)
    for index, offset in enumerate(product(*map(range, kernel))):
        at = [p * s + o * d for p, s, o, d in zip(place, strides, offset, dilations, strict=True)]
        gathered[:, index] = last[(sample, *at)]
    columns = gathered.transpose(0, 2, 1).reshape(len(chosen), layer.groups, -1)
    return np.ascontiguousarray(columns.transpose(1, 0, 2))


def choose(count: int, share: float, rng: np.random.Generator | None) -> Array:
    """Which of ``count`` positions to take: ``share`` of them at random, in order."""
    if share >= 1 or rng is None:
        return np.arange(count)
    wanted = max(1, round(count * share))
    return np.sort(rng.choice(count, wanted, replace=False))
