"""Pruned weights of layers at levels, computed once each and kept on disk, not in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

__all__ = ["LevelWeights"]

Array = np.ndarray[Any, Any]


class LevelWeights:
    """A store of weights by layer and level that disappears in the end.

    Args:
        compute: Weights of a layer (by index) at a level (by index).
    """

    def __init__(self, compute: Callable[[int, int], Array]) -> None:
        self._compute = compute
        self._folder = tempfile.TemporaryDirectory(prefix="effc-levels-")

    def get(self, layer: int, level: int) -> Array:
        """Weights, read from disk if they have been computed before."""
        file = Path(self._folder.name) / f"{layer}-{level}.npy"
        if not file.exists():
            np.save(file, self._compute(layer, level))
        found: Array = np.load(file, mmap_mode="r")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()
