"""Softmax and layer normalization of 8-bit rows in integers, in NumPy: these define the bits.

Exponentials come from a table of the 256 distances to the row's maximum (as in integer-only
attention, e.g. I-BERT, ICML 2021, which has a polynomial instead); one division per row. Mean and
variance are exact integers, ``N`` and ``N^2`` times their values.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

from effc.passes.integer.arithmetic import requantize

__all__ = [
    "LONGEST_LAYER_NORM",
    "LONGEST_SOFTMAX",
    "LayerNormConstants",
    "SoftmaxConstants",
    "layer_norm",
    "layer_norm_constants",
    "softmax",
    "softmax_constants",
]

Array = np.ndarray[Any, Any]

LONGEST_SOFTMAX = 1024
"""Longer rows may miss the exact value by more than an eighth of a step."""
LONGEST_LAYER_NORM = 32768
"""Squares of longer rows may leave int32 when they are added up."""

_MOST_RIGHT = 21  # offsets of 512 steps fit then
_FRACTION = 20  # fractional bits of a normalized value
_LIMIT = 2**31


@dataclass(frozen=True)
class SoftmaxConstants:
    """Constants of ``SoftmaxInteger``.

    Attributes:
        table: int32 ``[256]``, ``2^shift * exp(-scale * d)``.
        shift, multiplier, right: See docs/QUANTIZATION.md.
    """

    table: Array
    shift: int
    multiplier: int
    right: int


def softmax_constants(length: int, scale: float, step: float) -> SoftmaxConstants:
    """Constants for rows of ``length`` elements.

    Args:
        length: Elements of a row, at most ``LONGEST_SOFTMAX``.
        scale: Of the input.
        step: Scale of the result.

    Raises:
        ValueError: There is no fixed-point form.
    """
    if not 1 <= length <= LONGEST_SOFTMAX:
        raise ValueError(f"a softmax of {length} elements")
    shift = 31 - length.bit_length()
    mantissa, exponent = np.frexp(1.0 / step)
    multiplier, places = round(float(mantissa) * _LIMIT), 31 - int(exponent)
    if multiplier == _LIMIT:
        multiplier, places = multiplier // 2, places - 1
    right = shift + places - 32
    if not 1 <= right <= 31:
        raise ValueError(f"no fixed-point form of a softmax in steps of {step}")
    table = np.rint(np.exp(-scale * np.arange(256)) * 2.0**shift).astype(np.int32)
    return SoftmaxConstants(table, shift, multiplier, right)


def softmax(
    x: Array,
    table: Array,
    *,
    shift: int,
    multiplier: int,
    right: int,
    zero: int,
    low: int,
    high: int,
) -> Array:
    """``SoftmaxInteger`` along the last axis, as int32."""
    wide = x.astype(np.int64)
    terms = table[wide.max(-1, keepdims=True) - wide].astype(np.int64)
    factor = (multiplier << shift) // terms.sum(-1, keepdims=True)
    return requantize(terms, factor, right=right, zero=zero, low=low, high=high)


@dataclass(frozen=True)
class LayerNormConstants:
    """Constants of ``LayerNormInteger``.

    Attributes:
        gamma, beta: int32, one per element of a row.
        epsilon, right: See docs/QUANTIZATION.md.
    """

    gamma: Array
    beta: Array
    epsilon: int
    right: int


def layer_norm_constants(
    gamma: Array, beta: Array, epsilon: float, scale: float, step: float
) -> LayerNormConstants:
    """Constants of ``gamma * (x - mean) / sqrt(variance + epsilon) + beta``.

    Args:
        gamma, beta: Floats, one per element of a row.
        epsilon: As in LayerNormalization.
        scale: Of the input.
        step: Scale of the result.

    Raises:
        ValueError: There is no fixed-point form.
    """
    length = gamma.size
    if not 1 <= length <= LONGEST_LAYER_NORM:
        raise ValueError(f"a layer normalization of {length} elements")
    factors = gamma.astype(np.float64) / step
    largest = max(float(np.abs(factors).max()), 2.0**-20)
    right = min(38 - _FRACTION - int(np.frexp(largest)[1]), _MOST_RIGHT)  # 30 bits of gamma
    offsets = np.rint(beta.astype(np.float64) / step * 2.0**right)
    constant = round(length**2 * epsilon / scale**2)
    if right < 1 or np.abs(offsets).max() >= 2**30 or constant >= 2**60:
        raise ValueError("no fixed-point form of a layer normalization")
    scaled = np.rint(factors * 2.0 ** (32 + right - _FRACTION))
    return LayerNormConstants(
        scaled.astype(np.int32), offsets.astype(np.int32), max(constant, 1), right
    )


def layer_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    *,
    epsilon: int,
    right: int,
    zero: int,
    low: int,
    high: int,
) -> Array:
    """``LayerNormInteger`` along the last axis, as int32."""
    length = x.shape[-1]
    wide = x.astype(np.int64)
    total = wide.sum(-1, keepdims=True)
    centred = length * wide - total
    spread = length * (wide * wide).sum(-1, keepdims=True) - total * total + epsilon
    inverse, shift = _inverse_roots(spread)
    z = (centred * inverse) >> shift
    p = ((z * gamma.astype(np.int64)) >> 32) + beta
    r = (p + (1 << (right - 1))) >> right
    return np.asarray(np.clip(r + zero, low, high).astype(np.int32))


def _inverse_roots(spread: Array) -> tuple[Array, Array]:
    """``inverse * 2^-shift`` is ``2^20 / sqrt(spread)``."""
    inverse, shift = np.empty_like(spread), np.empty_like(spread)
    for index in np.ndindex(spread.shape):
        value = int(spread[index])
        k = (62 - value.bit_length()) // 2
        inverse[index] = 2**61 // isqrt(value << (2 * k))
        shift[index] = 61 - _FRACTION - k
    return inverse, shift
