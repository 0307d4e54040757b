"""Two models side by side: what each layer reads, and what it should compute.

Both advance together from layer to layer (``effc.passes.pruning.walk``), the changed model with the
layers before already changed. What lies between is in memory for all samples; where values are
large, fewer samples have room (and have more columns each), and once more have room the models
start again with more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import shape_of, single_user
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.calibration import COLUMNS, MEMORY
from effc.passes.pruning.channel_moments import Moments, Target
from effc.passes.pruning.layers import Layer
from effc.passes.pruning.walk import Walk, live_bytes

__all__ = ["paired_moments"]

Array = np.ndarray[Any, Any]

_FEWEST = 16
"""Samples, however large the values."""

_BATCHES = 8
"""At least, so that a quarter of them can be held out."""


def paired_moments(
    model: ir.Model,
    original: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    layers: Sequence[Layer],
    targets: Sequence[Target],
    *,
    like: ir.Model | None = None,
    memory: int = MEMORY,
    columns: int = COLUMNS,
) -> Iterator[tuple[Moments, Moments]]:
    """Moments of three quarters of the samples, and of the others, of one layer after the other.

    The layer may be changed before the next one is asked for, which then reads what comes of it.

    Args:
        model: What is changed.
        original: What it should compute.
        samples: Inputs of both.
        layers: Of ``model``, in the order of the graph.
        targets: For each of them the layer of ``original``.
        like: As for ``SampleRunner``, of ``model``.
        memory: Bytes of values between layers, of both models together.
        columns: As for ``Moments``.
    """
    start = 0
    counts = _sample_counts(original, [target.layer for target in targets], len(samples), memory)
    for count, group in groupby(counts):
        stops = (
            {layer.reads for layer in layers[start:]},
            {target.layer.reads for target in targets[start:]},
        )
        ours, theirs = _walks((model, original), samples[:count], stops, like)
        end = start + len(list(group))
        for layer, target in zip(layers[start:end], targets[start:end], strict=True):
            for walk, name in ((ours, layer.reads), (theirs, target.layer.reads)):
                while name not in walk.values:
                    walk.advance()
            parts = (
                Moments(layer, count, target, columns),
                Moments(layer, count, target, columns),
            )
            _collect(parts, ours, theirs)
            yield parts
            for node in layer.nodes:
                ours.update(node)
        start = end


def _walks(
    models: tuple[ir.Model, ir.Model],
    samples: Sequence[Mapping[str, Array]],
    stops: tuple[set[str], set[str]],
    like: ir.Model | None,
) -> Iterator[Walk]:
    """Walks that halt where the layers' inputs are known."""
    runners = [SampleRunner(models[0], samples, like), SampleRunner(models[1], samples)]
    size = min(max(1, len(samples) // _BATCHES), *(runner.batch_size(()) for runner in runners))
    for model, runner, inputs in zip(models, runners, stops, strict=True):
        made = [value.name for node in model.graph for value in node.outputs if value.name]
        # The last value is no halt: up to there Walk keeps what is still to be read.
        yield Walk(runner, [name for name in made if name in inputs] + made[-1:], size)


def _sample_counts(
    model: ir.Model, layers: Sequence[Layer], available: int, memory: int
) -> list[int]:
    """How many samples each layer is refitted with; they at least double where they change."""
    live = live_bytes(model)
    places = {node: index for index, node in enumerate(model.graph)}
    end = max((places[layer.node] for layer in layers), default=0)
    counts: list[int] = []
    for layer in layers:
        largest = max(live[places[layer.node] : end + 1])
        room = min(available, max(_FEWEST, memory // (2 * largest)))
        grown = not counts or room >= 2 * counts[-1] or room == available
        counts.append(room if grown else counts[-1])
    return counts


def _collect(parts: tuple[Moments, Moments], ours: Walk, theirs: Walk) -> None:
    """Three quarters of the batches into the first part, the others into the second."""
    layer, target = parts[0].layer, parts[0].target
    assert target is not None
    beside = _beside(layer, ours)
    pairs = zip(ours.values[layer.reads], theirs.values[target.layer.reads], strict=True)
    for index, (here, there) in enumerate(pairs):
        missing = None
        if beside is not None:
            axis = 1 if layer.kernel else -1
            left = np.compress(target.kept, theirs.values[beside][index], axis)
            missing = left - ours.values[beside][index]
        parts[index % 4 == 3].add(here, there, missing)


def _beside(layer: Layer, walk: Walk) -> str | None:
    """What is added to a layer's result, if it is known already."""
    result = layer.node.outputs[0]
    add = single_user(result)
    if add is None or add.domain or add.op_type != "Add" or layer.bias() is None:
        return None
    other = add.inputs[1] if add.inputs[0] is result else add.inputs[0]
    if other is None or other.name not in walk.values or shape_of(other) != shape_of(result):
        return None
    return other.name
