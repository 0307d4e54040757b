"""Put zeros into the weights of layers.

Graph in, graph out: each chosen layer gets the weights that a *pruner* computes for it,
nothing else changes. The default pruner is the projection by magnitude; Optimal Brain Surgeon
(``effc.passes.pruning.surgeon``) is another one and needs calibration data. Layers that
were asked for but cannot take the scheme are in the log, with the reason.

The result is not equivalent to the original; how much accuracy it costs is to be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.project import project
from effc.passes.pruning.scheme import Scheme, check_sparsity

__all__ = ["PruneWeights", "Pruned", "Pruner", "Setting", "magnitude", "misfit", "project_weights"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Setting:
    """What one layer is asked for.

    Attributes:
        scheme: What is removed together.
        sparsity: Fraction of its weights to make zero; None for the scheme's own.
    """

    scheme: Scheme
    sparsity: float | None = None


@dataclass(frozen=True)
class Pruned:
    """What became of one layer.

    Attributes:
        weight: The new weights, in the layer's shape.
        loss: Error that the zeros cause, by the measure of the method: relative to the energy of
            the weights (magnitude) or of the layer's output (surgeon).
    """

    weight: Array
    loss: float

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1 - np.count_nonzero(self.weight) / max(self.weight.size, 1)


Pruner = Callable[[Layer, Setting], Pruned]
"""Computes the new weights of a layer."""


def magnitude(layer: Layer, setting: Setting) -> Pruned:
    """Zeros where they change the weights least."""
    return project_weights(layer.weight(), setting.scheme, setting.sparsity, layer.groups)


def project_weights(
    weight: Array, scheme: Scheme, sparsity: float | None, groups: int = 1
) -> Pruned:
    """The projection of weights, and the part of their energy that it loses."""
    pruned = project(weight, scheme, sparsity, groups=groups)
    energy = float(np.square(weight, dtype=np.float64).sum())
    lost = energy - float(np.square(pruned, dtype=np.float64).sum())
    return Pruned(pruned, lost / energy if energy else 0.0)


def misfit(layer: Layer, setting: Setting) -> str | None:
    """Why a layer cannot take a scheme, or None.

    Raises:
        UsageError: No layer could: the sparsity contradicts the scheme.
    """
    check_sparsity(setting.scheme, setting.sparsity)
    cin = layer.shape[1]
    if setting.scheme.kind == "pattern" and layer.kernel != (3, 3):
        kernel = "x".join(map(str, layer.kernel)) or "no"
        return f"patterns are for 3x3 kernels, it has {kernel} kernel"
    if setting.scheme.kind == "n:m" and cin <= setting.scheme.keep:
        return f"{setting.scheme.name} removes nothing of {cin} input channels"
    if setting.scheme.kind == "channel":
        return "channels are removed from the graph, not zeroed"
    return None


class PruneWeights(Pass):
    """Zeros in the weights of layers.

    Args:
        settings: What each layer, by node name, is asked for.
        pruner: How the new weights are found.

    Attributes:
        results: What became of each layer, by name; filled by :meth:`call`.
    """

    name: ClassVar[str] = "prune_weights"

    def __init__(self, settings: Mapping[str, Setting], pruner: Pruner = magnitude) -> None:
        self.settings = settings
        self.pruner = pruner
        self.results: dict[str, Pruned] = {}

    def call(self, model: ir.Model, log: Log) -> None:
        layers, unfit = find_layers(model)
        log.refused += [(name, why) for name, why in unfit if name in self.settings]
        for layer in layers:
            setting = self.settings.get(layer.name)
            if setting is None or setting.sparsity == 0:
                continue
            why = misfit(layer, setting)
            if why is not None:
                log.refused.append((layer.name, why))
                continue
            pruned = self.pruner(layer, setting)
            self.results[layer.name] = pruned
            layer.set_weight(pruned.weight)
            log.applied.append(layer.name)
