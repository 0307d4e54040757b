"""Uniform grids: what a scale and a zero point can represent.

    q = saturate(round_even(x / scale) + zero),    x' = (q - zero) * scale

as ONNX defines QuantizeLinear and DequantizeLinear. Activations: unsigned, asymmetric, one grid per
tensor, 0 always on it. Weights: signed, symmetric, one scale per output channel, without the most
negative integer, so that ``-w`` is on the grid when ``w`` is and products with 8 bits fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Grid", "grid_of", "largest_integer", "round_to", "scales_of"]

Array = np.ndarray[Any, Any]

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Grid:
    """Of an activation.

    Attributes:
        scale: A float32.
        zero: Zero point, 0 to ``2**bits - 1``.
        bits: 8 or 16.
    """

    scale: float
    zero: int
    bits: int = 8

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """Of the integers."""
        return np.uint8 if self.bits == 8 else np.uint16

    @property
    def low(self) -> float:
        """The least number on the grid."""
        return -self.zero * self.scale

    @property
    def high(self) -> float:
        """The largest number on the grid."""
        return (int(2**self.bits) - 1 - self.zero) * self.scale

    def quantize(self, x: Array) -> Array:
        """Integers."""
        steps = np.rint(np.asarray(x, np.float32) / np.float32(self.scale)) + self.zero
        return np.asarray(np.clip(steps, 0, 2**self.bits - 1), self.dtype)

    def dequantize(self, q: Array) -> Array:
        """Numbers, float32."""
        return (q.astype(np.int32) - self.zero).astype(np.float32) * np.float32(self.scale)


def grid_of(low: float, high: float, bits: int = 8) -> Grid:
    """The grid of all integers over a range, extended to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    steps = 2**bits - 1
    scale = float(np.float32((high - low) / steps))
    if not scale >= SMALLEST_SCALE:  # nothing but zeros
        return Grid(1.0, 0, bits)
    return Grid(scale, int(np.clip(np.rint(-low / scale), 0, steps)), bits)


def largest_integer(bits: int) -> int:
    """Of the symmetric grid of weights: 127 for 8 bits, 7 for 4."""
    return int(2 ** (bits - 1)) - 1


def scales_of(rows: Array, bits: int = 8) -> Array:
    """Scales that clip nothing, float32 ``[rows]``; 1 where a row is zero.

    Args:
        rows: ``[rows, any]``.
        bits: Of the integers.
    """
    largest = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
    scales = (largest / largest_integer(bits)).astype(np.float32)
    return np.where(scales >= SMALLEST_SCALE, scales, np.float32(1))


def round_to(rows: Array, scales: Array, bits: int = 8) -> Array:
    """Nearest integers ``[rows, any]`` int8 of weights on symmetric grids."""
    most = largest_integer(bits)
    steps = np.rint(rows.astype(np.float64) / scales.astype(np.float64)[:, None])
    return np.clip(steps, -most, most).astype(np.int8)
