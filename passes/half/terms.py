"""How noisy sums in float16 are, found by doing them on a few real inputs of a layer.

The sums of a few filters at a few output positions are computed as the kernels compute them:
products and partial sums of ``terms`` products rounded to float16 after every multiply-add, partial
sums added up in float32. Their error is compared with the one that rounding the results to float16
makes anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["TERMS", "noise_by_terms", "rounding_error", "sum_errors"]

Array = np.ndarray[Any, Any]

TERMS = (8, 16, 32, 64, 128, 256, 512)
"""Lengths of partial sums to choose from; fewer terms would cost as much as float32."""

_PEAK = 65504.0 / 2


def sum_errors(columns: Array, filters: Array, terms: Sequence[int]) -> tuple[Array, Array]:
    """Mean squared error of sums of products, and the largest partial sum, per length.

    Args:
        columns: What output positions read, float32 ``[groups, positions, K]``.
        filters: Weights, float32 ``[groups, filters, K]``.
        terms: Lengths of partial sums.

    Returns:
        Two arrays ``[terms]``.
    """
    x = columns.astype(np.float16).astype(np.float32)
    w = filters.astype(np.float16).astype(np.float32)
    exact = x.astype(np.float64) @ w.transpose(0, 2, 1).astype(np.float64)
    lengths = np.array(terms)
    part = np.zeros((len(terms), *exact.shape), np.float32)
    total = np.zeros_like(part)
    peak = np.zeros(len(terms))
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(x.shape[2]):
            if k:
                done = k % lengths == 0
                total[done] += part[done]
                part[done] = 0
            part += x[:, :, k, None] * w[:, None, :, k]
            part = part.astype(np.float16).astype(np.float32)
            if k % 8 == 7 or k == x.shape[2] - 1:
                peak = np.maximum(peak, np.abs(part).max(axis=(1, 2, 3)))
        error = np.square(total + part - exact).mean(axis=(1, 2, 3))
    return np.where(np.isfinite(error), error, np.inf), peak


def rounding_error(results: Array) -> float:
    """Mean squared error of float64 results as float16."""
    with np.errstate(over="ignore"):
        return float(np.square(results - results.astype(np.float16)).mean())


def noise_by_terms(columns: Array, filters: Array, rounding: float) -> dict[int, float]:
    """Error of sums, as a multiple of the error of rounding results, by length of partial sums.

    Lengths whose partial sums come near the largest float16 are left out.

    Args:
        columns: float32 ``[groups, positions, K]``.
        filters: float32 ``[groups, filters, K]``.
        rounding: Mean squared error of the rounded results.
    """
    lengths = [t for t in TERMS if t < columns.shape[2]]
    lengths.append(columns.shape[2])
    errors, peaks = sum_errors(columns, filters, lengths)
    return {
        t: float(error) / max(rounding, np.finfo(np.float64).tiny)
        for t, error, peak in zip(lengths, errors, peaks, strict=True)
        if peak <= _PEAK
    }
