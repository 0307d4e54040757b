"""Pruned weights of every layer at every level, on disk, for scoring networks made of them.

A layer's Hessian is in memory once, when all its levels are refitted; afterwards any level can be
had again and again without it. Only weights that are not zero are kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from effc.compression.surgery import prune_levels
from effc.options import ProgressCallback
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.layers import Layer
from effc.passes.pruning.prune_weights import Pruned, Setting, magnitude
from effc.passes.pruning.surgeon import Trace

__all__ = ["LevelLibrary"]

Array = np.ndarray[Any, Any]


class LevelLibrary:
    """A pruner that remembers; its files disappear in the end.

    Layers that were not added are pruned by magnitude, on demand.

    Args:
        correct: What makes up for the zeros in the pruned model, see ``CompressOptions``.
        compute: Adds layers; called once, when the library is needed.
    """

    def __init__(
        self, correct: str = "none", compute: Callable[[LevelLibrary], None] | None = None
    ) -> None:
        self.correct = correct
        self._compute = compute
        self._folder = tempfile.TemporaryDirectory(prefix="effc-levels-")
        self._losses: dict[tuple[str, float], tuple[int, float]] = {}

    def fill(self) -> None:
        """Compute what is to be in the library, unless that has been done."""
        compute, self._compute = self._compute, None
        if compute is not None:
            compute(self)

    def add_surgeon(
        self,
        runner: SampleRunner,
        layers: Sequence[tuple[Layer, Sequence[Setting]]],
        traces: Mapping[str, Trace],
        progress: ProgressCallback | None = None,
    ) -> None:
        """Refit layers at all their levels by Optimal Brain Surgeon.

        Args:
            runner: The dense model and its samples.
            layers: Layers with their levels.
            traces: Removal traces by layer name.
            progress: Called in the phases ``calibrate`` and ``refit``.
        """
        for layer, setting, pruned in prune_levels(runner, layers, traces, progress):
            number = len(self._losses)
            mask = pruned.weight != 0
            np.save(self._file(number, "mask"), np.packbits(mask))
            np.save(self._file(number, "kept"), pruned.weight[mask])
            self._losses[layer.name, setting.sparsity or 0.0] = (number, pruned.loss)

    def __call__(self, layer: Layer, setting: Setting) -> Pruned:
        """The layer at one of its levels."""
        found = self._losses.get((layer.name, setting.sparsity or 0.0))
        if found is None:
            return magnitude(layer, setting)
        number, loss = found
        kept = np.load(self._file(number, "kept"))
        weight: Array = np.zeros(layer.shape, kept.dtype)
        bits = np.unpackbits(np.load(self._file(number, "mask")), count=weight.size)
        weight[bits.reshape(layer.shape) == 1] = kept
        return Pruned(weight, loss)

    def loss(self, layer: Layer, setting: Setting) -> float:
        """Its relative error, without reading weights where it is known."""
        found = self._losses.get((layer.name, setting.sparsity or 0.0))
        return magnitude(layer, setting).loss if found is None else found[1]

    def _file(self, number: int, what: str) -> Path:
        return Path(self._folder.name) / f"{number}-{what}.npy"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()
