"""Fixed-point arithmetic of quantized models, in NumPy: what docs/QUANTIZATION.md says.

These functions define the result, bit by bit, of the operators that leave 32-bit
accumulators (``Requantize``) and of sums of tensors with different scales (``AddRescaled``),
and compute their constants from real factors in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["AddFactors", "Factors", "add_factors", "add_rescaled", "factors", "requantize"]

Array = np.ndarray[Any, Any]

_MULTIPLIER_BITS = 31
_ADD_BITS = 21  # of a multiplier of AddRescaled: 255 * 2^21 is a quarter of int32
_MAX_RIGHT = 31


@dataclass(frozen=True)
class Factors:
    """Real factors ``multiplier * 2^(left - 32 - right)``.

    Attributes:
        multiplier: int32, one per factor, in ``[0, 2^31)``.
        left, right: Shifts of the whole tensor.
    """

    multiplier: Array
    left: int
    right: int


@dataclass(frozen=True)
class AddFactors:
    """Constants of ``AddRescaled``."""

    a_multiplier: int
    b_multiplier: int
    offset: int
    right: int


def factors(values: Array | float) -> Factors:
    """Fixed-point form of non-negative real factors; the largest has 31 bits.

    Args:
        values: Any shape.

    Raises:
        ValueError: A factor is negative, infinite, NaN, or 2^20 and more.
    """
    values = np.asarray(values, np.float64)
    largest = float(values.max(initial=0.0))
    if not np.isfinite(values).all() or values.min(initial=0.0) < 0 or largest >= 2.0**20:
        raise ValueError(f"no fixed-point form of factors up to {largest}")
    mantissa, exponent = np.frexp(largest)
    if round(float(mantissa) * 2**_MULTIPLIER_BITS) == 2**_MULTIPLIER_BITS:
        exponent += 1
    left = max(int(exponent) + 2, 0) if largest else 0
    right = min(left - int(exponent) - 1, _MAX_RIGHT)
    scaled = np.rint(values * 2.0 ** (32 + right - left))
    return Factors(np.asarray(scaled, np.int32), left, right)


def requantize(
    x: Array,
    multiplier: Array,
    *,
    x_zero: int = 0,
    left: int = 0,
    right: int,
    zero: int,
    low: int,
    high: int,
) -> Array:
    """``clamp(round_half_up((x - x_zero) * factor) + zero, low, high)`` as int32.

    Args:
        x: Integers of at most 32 bits.
        multiplier: int32, broadcast to ``x``.
        x_zero: Zero point of ``x``.
        left, right: Shifts, see :class:`Factors`.
        zero, low, high: Zero point and bounds of the result.
    """
    limits = np.iinfo(np.int32)
    v = np.clip((x.astype(np.int64) - x_zero) << left, limits.min, limits.max)
    p = (v * multiplier.astype(np.int64)) >> 32
    r = (p + (1 << (right - 1))) >> right
    return np.asarray(np.clip(r + zero, low, high).astype(np.int32))


def add_factors(a: float, b: float, a_zero: int, b_zero: int) -> AddFactors:
    """Constants of ``round((x - a_zero) * a + (y - b_zero) * b)``.

    Args:
        a, b: Real factors of either sign.
        a_zero, b_zero: Zero points of the operands.

    Raises:
        ValueError: A factor is not finite, or 2^20 and more.
    """
    largest = max(abs(a), abs(b))
    if not np.isfinite(largest) or largest >= 2.0 ** (_ADD_BITS - 1):
        raise ValueError(f"no fixed-point form of factors up to {largest}")
    right = min(_ADD_BITS - int(np.frexp(largest)[1]), 30)
    if round(largest * 2**right) == 2**_ADD_BITS:
        right -= 1
    left_factor, right_factor = round(a * 2**right), round(b * 2**right)
    offset = (1 << (right - 1)) - a_zero * left_factor - b_zero * right_factor
    return AddFactors(left_factor, right_factor, offset, right)


def add_rescaled(
    a: Array,
    b: Array,
    *,
    a_multiplier: int,
    b_multiplier: int,
    offset: int,
    right: int,
    zero: int,
    low: int,
    high: int,
) -> Array:
    """``clamp(((a * a_multiplier + b * b_multiplier + offset) >> right) + zero, low, high)``."""
    total = a.astype(np.int64) * a_multiplier + b.astype(np.int64) * b_multiplier + offset
    if np.abs(total).max(initial=0) >= 2**31:
        raise OverflowError("AddRescaled leaves int32")
    return np.asarray(np.clip((total >> right) + zero, low, high).astype(np.int32))
