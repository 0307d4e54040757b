"""The constants of a program as one read-only blob."""

from __future__ import annotations

import numpy as np

from effc.memory_plan import align_up

__all__ = ["ALIGNMENT", "PackedWeights"]

ALIGNMENT = 64
"""Every tensor starts at a multiple of it."""


class PackedWeights:
    """Packs arrays into one blob; equal contents are stored once."""

    def __init__(self) -> None:
        self.arrays: list[tuple[int, np.ndarray]] = []  # offset, bytes
        self.size = 0
        self.alike: dict[tuple[int, bytes, bytes], list[tuple[int, np.ndarray]]] = {}

    def add(self, array: np.ndarray) -> int:
        """Byte offset of the array's contents in the blob, a multiple of 64."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        # Size and both ends tell nearly all arrays apart: no need to hash gigabytes.
        key = (data.size, data[:ALIGNMENT].tobytes(), data[-ALIGNMENT:].tobytes())
        alike = self.alike.setdefault(key, [])
        for offset, other in alike:
            if np.array_equal(data, other):
                return offset
        entry = (self.size, data)
        alike.append(entry)
        self.arrays.append(entry)
        self.size += align_up(data.size, ALIGNMENT)
        return entry[0]

    def blob(self) -> np.ndarray:
        """All contents as uint8."""
        packed = np.zeros(self.size, np.uint8)
        for offset, data in self.arrays:
            packed[offset : offset + data.size] = data
        return packed
