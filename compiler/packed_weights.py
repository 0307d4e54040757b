"""The constants of a program as one read-only blob."""

from __future__ import annotations

import numpy as np

from effc.memory_plan import align_up

__all__ = ["PackedWeights"]

_ENDS = 64
"""Bytes of an array's ends that tell it from others."""


class PackedWeights:
    """Packs arrays into one blob; equal contents are stored once.

    Args:
        alignment: Every array starts at a multiple of it.
    """

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.arrays: list[tuple[int, np.ndarray]] = []  # offset, bytes
        self.size = 0
        self.alike: dict[tuple[int, bytes, bytes], list[tuple[int, np.ndarray]]] = {}

    def add(self, array: np.ndarray) -> int:
        """Byte offset of the array's contents in the blob, a multiple of the alignment."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        # Size and both ends tell nearly all arrays apart: no need to hash gigabytes.
        key = (data.size, data[:_ENDS].tobytes(), data[-_ENDS:].tobytes())
        alike = self.alike.setdefault(key, [])
        for offset, other in alike:
            if np.array_equal(data, other):
                return offset
        entry = (self.size, data)
        alike.append(entry)
        self.arrays.append(entry)
        self.size += align_up(data.size, self.alignment)
        return entry[0]

    def blob(self) -> np.ndarray:
        """All contents as uint8."""
        packed = np.zeros(self.size, np.uint8)
        for offset, data in self.arrays:
            packed[offset : offset + data.size] = data
        return packed
