"""Optimal Brain Surgeon over a whole model: traces of all layers, and weights at given sparsities.

Layers are independent (each sees the dense model's inputs), so they are done one after the other,
in the order of the graph, and what is done is kept in a ``TraceStore``. Only the Hessians of as
many layers as one run of the model collects are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from effc.compression.store import TraceStore
from effc.options import ProgressCallback
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.calibration import hessian_bytes, hessians
from effc.passes.pruning.layers import Layer
from effc.passes.pruning.prune_weights import Pruned, Setting
from effc.passes.pruning.surgeon import Trace, occupied, output_loss, refit, trace_layer

__all__ = ["HESSIAN_LIMIT", "prune_layers", "prune_levels", "trace_layers", "unfit_for_surgeon"]

Array = np.ndarray[Any, Any]

HESSIAN_LIMIT = 4 << 30
"""Bytes of the largest Hessian of one layer; several copies of it are in memory at a time."""


def unfit_for_surgeon(layer: Layer) -> str | None:
    """Why a layer is too large, or None."""
    size = hessian_bytes(layer)
    if size > HESSIAN_LIMIT:
        return f'its Hessian would take {size / 1e9:.1f} GB; set method = "magnitude" for it'
    return None


def trace_layers(
    runner: SampleRunner,
    settings: Sequence[tuple[Layer, Setting]],
    store: TraceStore,
    progress: ProgressCallback | None = None,
) -> dict[str, Trace]:
    """Traces of layers by name, from the store as far as it has them.

    Args:
        runner: The dense model and its samples.
        settings: Layers with their schemes; sparsities do not matter.
        store: Where finished traces are and go.
        progress: Called in the phases ``calibrate`` and ``prune``.
    """
    traces = {layer.name: store.load(layer, setting.scheme) for layer, setting in settings}
    schemes = {layer.name: setting.scheme for layer, setting in settings}
    missing = [layer for layer, _ in settings if traces[layer.name] is None]
    for number, (layer, moments) in enumerate(_hessians(runner, missing, progress)):
        step = _Step(progress, number, len(missing), layer.name)
        trace = trace_layer(layer.weight(), moments, schemes[layer.name], tick=step)
        store.save(layer, trace)
        traces[layer.name] = trace
        step(1, 1)
    return {name: trace for name, trace in traces.items() if trace is not None}


def prune_layers(
    runner: SampleRunner,
    settings: Sequence[tuple[Layer, Setting]],
    traces: Mapping[str, Trace],
    progress: ProgressCallback | None = None,
) -> dict[str, Pruned]:
    """Weights of layers at their sparsities, by name.

    Args:
        runner: The dense model and its samples.
        settings: Layers with scheme and sparsity.
        traces: As :func:`trace_layers` gives them.
        progress: Called in the phases ``calibrate`` and ``refit``.
    """
    each = [(layer, [setting]) for layer, setting in settings]
    return {layer.name: pruned for layer, _, pruned in prune_levels(runner, each, traces, progress)}


def prune_levels(
    runner: SampleRunner,
    settings: Sequence[tuple[Layer, Sequence[Setting]]],
    traces: Mapping[str, Trace],
    progress: ProgressCallback | None = None,
) -> Iterator[tuple[Layer, Setting, Pruned]]:
    """Like :func:`prune_layers`, each layer at several sparsities, one result after the other."""
    layers = [layer for layer, _ in settings]
    wanted = {layer.name: chosen for layer, chosen in settings}
    for number, (layer, moments) in enumerate(_hessians(runner, layers, progress)):
        weight = layer.weight()
        for setting in wanted[layer.name]:
            trace = traces[layer.name]
            # Of a layer with more zeros than asked for none are filled.
            mask = trace.mask(setting.sparsity or 0.0) & occupied(weight, trace.grid)
            new = refit(weight, moments, mask)
            yield layer, setting, Pruned(new, output_loss(weight, new, moments))
        if progress is not None:
            progress("refit", number + 1, len(layers), layer.name)


def _hessians(
    runner: SampleRunner, layers: Sequence[Layer], progress: ProgressCallback | None
) -> Iterator[tuple[Layer, Array]]:
    def tick(done: int, total: int, name: str) -> None:
        if progress is not None:
            progress("calibrate", done, total, name)

    return hessians(runner, layers, tick=tick)


class _Step:
    """Progress within one layer, in thousandths of the whole."""

    def __init__(
        self, progress: ProgressCallback | None, number: int, count: int, name: str
    ) -> None:
        self.progress, self.number, self.count, self.name = progress, number, count, name

    def __call__(self, done: int, total: int) -> None:
        if self.progress is not None:
            at = self.number * 1000 + done * 1000 // total
            self.progress("prune", at, self.count * 1000, self.name)
