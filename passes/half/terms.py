"""How many products a layer can add up in float16, found by doing it on a few of its inputs.

The sums of a few filters at a few output positions are computed as the kernels compute them:
products and partial sums of ``terms`` products rounded to float16 after every multiply-add, partial
sums added up in float32. Their error is compared with the one that rounding the results to float16
makes anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["TERMS", "choose_terms", "sum_errors"]

Array = np.ndarray[Any, Any]

TERMS = (8, 16, 32, 64, 128, 256, 512)
"""Lengths of partial sums to choose from; fewer terms would cost as much as float32."""

_PEAK = 65504.0 / 2
_FILTERS, _COLUMNS = 32, 16


def sum_errors(columns: Array, filters: Array, terms: Sequence[int]) -> tuple[Array, Array]:
    """Mean squared error of sums of products, and the largest partial sum, per length.

    Args:
        columns: What output positions read, float32 ``[positions, K]``.
        filters: Weights, float32 ``[filters, K]``.
        terms: Lengths of partial sums.

    Returns:
        Two arrays ``[terms]``.
    """
    x = columns.astype(np.float16).astype(np.float32)
    w = filters.astype(np.float16).astype(np.float32)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    lengths = np.array(terms)
    part = np.zeros((len(terms), *exact.shape), np.float32)
    total = np.zeros_like(part)
    peak = np.zeros(len(terms))
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(x.shape[1]):
            if k:
                done = k % lengths == 0
                total[done] += part[done]
                part[done] = 0
            part += np.outer(x[:, k], w[:, k])
            part = part.astype(np.float16).astype(np.float32)
            if k % 8 == 7 or k == x.shape[1] - 1:
                peak = np.maximum(peak, np.abs(part).max(axis=(1, 2)))
        error = np.square(total + part - exact).mean(axis=(1, 2))
    return np.where(np.isfinite(error), error, np.inf), peak


def choose_terms(columns: Array, filters: Array, bias: Array | None, share: float) -> int:
    """The longest partial sums whose error is at most ``share`` times that of rounding results.

    Args:
        columns: float32 ``[positions, K]``.
        filters: float32 ``[filters, K]``.
        bias: ``[filters]``.
        share: How much error is allowed.
    """
    step = max(len(filters) // _FILTERS, 1)
    some = slice(0, _FILTERS * step, step)
    columns, filters = columns[:_COLUMNS], filters[some]
    results = columns.astype(np.float64) @ filters.T.astype(np.float64)
    if bias is not None:
        results = results + bias[some]
    with np.errstate(over="ignore"):
        rounding = float(np.square(results - results.astype(np.float16)).mean())
    lengths = [t for t in TERMS if t < columns.shape[1]]
    lengths.append(columns.shape[1])
    errors, peaks = sum_errors(columns, filters, lengths)
    good = [
        t
        for t, error, peak in zip(lengths, errors, peaks, strict=True)
        if error <= share * rounding and peak <= _PEAK
    ]
    return max(good, default=lengths[0])
