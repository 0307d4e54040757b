"""Networks put together from pruned layers, and how far their outputs are from the dense ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from scipy.special import log_softmax

from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.correct_statistics import channel_moments, match_moments
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.walk import Walk

__all__ = ["Stitcher", "divergence"]

Array = np.ndarray[Any, Any]

_TEMPERATURES = np.geomspace(0.5, 16, 21)


class Stitcher:
    """Scores networks whose layers are taken from ready-made pruned ones.

    Statistics of layer outputs are corrected while the network runs, as they will be in the
    model (``effc.passes.pruning.correct_statistics``): without it, the outputs of a network with
    many zeros say little about what becomes of it.

    Args:
        model: The dense model.
        runner: The same with calibration samples, few enough for memory.
        layers: Layers that are pruned, in the order of the levels.
        weight: Weights of a layer (by index) at a level (by index), in the layer's shape.
        correct: ``refit`` and ``statistics`` (scored alike), ``bias`` or ``none``.
    """

    def __init__(
        self,
        model: ir.Model,
        runner: SampleRunner,
        layers: Sequence[Layer],
        weight: Callable[[int, int], Array],
        correct: str,
    ) -> None:
        self._runner = runner
        self._layers = layers
        self._weight = weight
        self._correct = correct
        self._corrected: dict[str, Layer] = {}
        if correct != "none":
            found = [layer for layer in find_layers(model)[0] if layer.bias() is not None]
            self._corrected = {layer.node.outputs[0].name or "": layer for layer in found}
        places = [name for node in runner.proto.graph.node for name in node.output]
        self._outputs = [value.name for value in runner.proto.graph.output]
        wanted = {*self._corrected, *self._outputs}
        self._stops = [name for name in places if name in wanted]
        self._moments: dict[str, tuple[Array, Array]] = {}
        self._dense = self._run(runner.proto, [])

    def score(self, levels: Sequence[int]) -> float:
        """Divergence of the outputs from the dense ones, see :func:`divergence`."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._runner.proto)
        places = {tensor.name: tensor for tensor in proto.graph.initializer}
        changed = []
        for index, (layer, level) in enumerate(zip(self._layers, levels, strict=True)):
            value = layer.node.inputs[1]
            if level and value is not None:
                name = value.name or ""
                stored = layer.stored(self._weight(index, level))
                places[name].CopyFrom(numpy_helper.from_array(stored, name))
                changed.append(layer.name)
        return divergence(self._dense, self._run(proto, changed))

    def _run(self, proto: onnx.ModelProto, changed: Sequence[str]) -> list[Array]:
        """Outputs; the dense model's moments are noted, those of others made equal to them.

        Args:
            proto: The model with other weights.
            changed: Names of layers whose weights differ; none for the dense model.
        """
        runner = copy(self._runner)
        runner.proto = proto
        walk = Walk(runner, self._stops)
        found: dict[str, Array] = {}
        differs = False
        for stop in self._stops:
            walk.advance()
            batches = walk.values[stop]
            layer = self._corrected.get(stop)
            if layer is not None and not changed:
                self._moments[stop] = channel_moments(layer, batches)
            elif layer is not None:
                differs |= layer.name in changed
                if differs:
                    only = self._correct == "bias"
                    match_moments(layer, self._moments[stop], batches, bias_only=only)
            if stop in self._outputs:
                found[stop] = np.concatenate([np.atleast_1d(array) for array in batches])
        return [found[name] for name in self._outputs]


def divergence(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """How far outputs are from expected ones, summed over outputs.

    For one row of class scores per sample, the mean Kullback-Leibler divergence of their
    distributions (scores that are no distribution go through softmax) at the temperature where it
    is least: how sure a network is says little about how often it is right (Guo et al., On
    Calibration of Modern Neural Networks, ICML 2017). For any other floating point output the
    squared error over the variance. Integers do not count.
    """
    total = 0.0
    for want, have in zip(expected, got, strict=True):
        if want.dtype.kind != "f":
            continue
        want, have = want.astype(np.float64), have.astype(np.float64)
        rows = want.reshape(len(want), -1)
        if rows.shape[1] == want.shape[-1] >= 2:
            total += _kullback_leibler(rows, have.reshape(rows.shape))
        else:
            spread = float(np.square(want - want.mean()).sum())
            total += float(np.square(have - want).sum()) / max(spread, 1e-30)
    return total if np.isfinite(total) else float("inf")


def _kullback_leibler(want: Array, have: Array) -> float:
    if (want >= 0).all() and np.allclose(want.sum(axis=1), 1, atol=1e-3):
        one, other = (np.log(np.maximum(a, 1e-12)) for a in (want, have))
    else:
        one, other = log_softmax(want, axis=1), have
    share = np.exp(one)

    def at(temperature: float) -> float:
        scaled = log_softmax(other / temperature, axis=1)
        return float((share * (one - scaled)).sum(axis=1).mean())

    return min(map(at, _TEMPERATURES))
