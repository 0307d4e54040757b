"""Predicted cost of the matrix product's configurations, see ``matmul``."""

from __future__ import annotations

import numpy as np

from effc.devices.target import Target
from effc.kernels.lanes import uses_lanes
from effc.kernels.matmul_problem import Problem

__all__ = ["matmul_cost", "streamed"]


def matmul_cost(
    problem: Problem, target: Target, lanes: int, rows: int, vectors: int, chains: int
) -> float | None:
    """Rough cycles, or ``None`` for a configuration that makes no sense."""
    if rows > problem.m or (vectors > 1 and (vectors - 1) * lanes >= problem.n):
        return None
    if chains > 1 and (rows * vectors > 6 or chains > problem.k):
        return None
    simd = uses_lanes(target)
    held = rows if simd and problem.a.const is None and problem.a.row != 1 else -(-rows // 4)
    live = rows * vectors * chains + vectors + (held if simd else 1)
    if live > target.registers(problem.dtype):
        return None
    rate = 1.0 if lanes >= 16 else 0.5  # cycles of a multiply-add
    multiply = rows * vectors * rate
    loads = (vectors + (rows / 4 if simd else rows)) * 0.5
    latency = 4.0 / chains
    per_k = max(multiply, loads, latency) + 0.15 * loads
    panel = vectors * lanes
    size = problem.k * panel * np.dtype(problem.dtype).itemsize
    if size > target.l2_bytes // 6 and problem.m > rows:  # B comes from beyond the first cache
        per_k += vectors * target.vector_bits / 8 / 32
    tile = problem.k * per_k + rows * vectors * 2.0 + 24
    full, ragged = divmod(problem.n, panel)
    used = full + (-(-ragged // lanes) / vectors if ragged else 0)
    row_tiles = -(-problem.m // rows)
    partial = bin(ragged % lanes).count("1") * problem.m * 2.0
    copies = 0.0
    if problem.b.const is None and (problem.b.column != 1 or ragged % lanes):
        copied = problem.n if problem.b.column != 1 else ragged
        copies = problem.k * copied * (1.0 if problem.b.column != 1 else 1.0 / lanes)
    narrow = 1.05 if lanes < target.lanes else 1.0
    work = problem.batch * (tile * used * row_tiles * narrow + partial + copies)
    weights = 0 if problem.b.const is None else problem.b.const.nbytes
    return streamed(work, weights, 1, target)


def streamed(work: float, weights: float, passes: int, target: Target) -> float:
    """Cycles of ``work`` that reads ``weights`` bytes ``passes`` times from beyond the first cache.

    The shorter of both is mostly hidden behind the other.
    """
    pace = 8.0 if weights > 0.75 * target.l2_bytes else 32.0  # bytes per cycle
    traffic = weights * passes / pace
    return max(work, traffic) + 0.3 * min(work, traffic)
