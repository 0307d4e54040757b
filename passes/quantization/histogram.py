"""Histograms of a model's values over calibration samples, in bounded memory.

Least and largest value are exact. Bins divide ``[-reach, reach]`` evenly; when a value lies
outside, the reach doubles and bins are added up in pairs. Zeros are on every grid, so they are only
counted. Of large values every k-th element is counted, so that each batch takes bounded time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from effc.errors import ModelError
from effc.passes.pruning.batching import SampleRunner

__all__ = ["Histogram", "observe"]

Array = np.ndarray[Any, Any]

BINS = 1 << 13
"""Of both signs together; after a doubling half of them are in use at least."""

_COUNTED = 1 << 20
"""Elements of one batch of a value that are counted, about."""

_AT_A_TIME = 64 << 20
"""Bytes of one sample's values that are observed in one run of the model."""


class Histogram:
    """Of one value, or of several with one grid.

    Attributes:
        low, high: Least and largest value.
        counts: ``[BINS]`` float64, without zeros.
        zeros: How many there are.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.counts = np.zeros(BINS)
        self.zeros = 0
        self._reach = 0.0

    @property
    def edges(self) -> Array:
        """Borders of the bins, ``[BINS + 1]``."""
        return np.linspace(-self._reach, self._reach, BINS + 1)

    def add(self, array: Array) -> None:
        """Count the elements of an array.

        Raises:
            ValueError: One is not finite.
        """
        if not array.size:
            return
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._extend(max(-low, high))
        if not self._reach:
            self.zeros += array.size
            return
        flat = array.reshape(-1)
        flat = flat[:: max(1, flat.size // _COUNTED)]
        places = (flat * np.float32(BINS / 2 / self._reach)).astype(np.float32)
        found = np.bincount(
            np.clip(np.floor(places).astype(np.int32) + BINS // 2, 0, BINS - 1), minlength=BINS
        )
        zeros = int(flat.size - np.count_nonzero(flat))
        found[BINS // 2] -= zeros
        self.zeros += zeros
        self.counts += found

    def merge(self, other: Histogram) -> None:
        """Add another one's counts; ``other`` may lose resolution."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.zeros += other.zeros
        if not other._reach:
            return
        if not self._reach:
            self._reach, self.counts = other._reach, other.counts.copy()
            return
        # Reaches of different values are no powers of two apart: counts move by their centres.
        self._extend(other._reach)
        edges = other.edges
        centres = (edges[:-1] + edges[1:]) / 2
        places = np.floor(centres * (BINS / 2 / self._reach)).astype(np.int64) + BINS // 2
        np.add.at(self.counts, np.clip(places, 0, BINS - 1), other.counts)

    def _extend(self, largest: float) -> None:
        if not self._reach:
            self._reach = largest
        while largest > self._reach:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self._reach *= 2


def observe(
    runner: SampleRunner,
    names: Sequence[str],
    tick: Callable[[int, int, str], None] | None = None,
) -> dict[str, Histogram]:
    """Histograms of values and inputs of a model, by name.

    Args:
        runner: The model and its samples.
        names: What to observe.
        tick: Called with (samples done, all samples, first name).

    Raises:
        ModelError: A value is not finite.
    """
    found = {name: Histogram() for name in names}
    for part in _parts(runner, names):
        done = 0
        for batch in runner.values(part):
            for name in part:
                try:
                    found[name].add(batch[name])
                except ValueError:
                    raise ModelError(
                        "a value is not finite on the calibration samples", where=name
                    ) from None
            done += len(batch[part[0]]) if runner.batched else 1
            if tick is not None:
                tick(min(done, len(runner.samples)), len(runner.samples), part[0])
    return found


def _parts(runner: SampleRunner, names: Sequence[str]) -> list[list[str]]:
    """Names in portions that are in memory together."""
    parts: list[list[str]] = []
    room = 0
    for name in names:
        size = runner.bytes_of(name)
        if not parts or size > room:
            parts.append([])
            room = _AT_A_TIME
        parts[-1].append(name)
        room -= size
    return parts
