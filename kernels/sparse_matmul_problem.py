"""A matrix product by a matrix with zeros as filters at positions, and the knobs of its kernel.

See ``sparse_matmul``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effc.kernels.matmul_problem import Factor, Problem
from effc.kernels.template import Config

__all__ = ["Roles", "SparseMatMulConfig"]


@dataclass(frozen=True)
class SparseMatMulConfig:
    """Knobs of the product stage.

    Attributes:
        along: ``space`` or ``channel``: what the vectors run along.
        lanes: Elements of one vector.
        rows: Filters of a tile.
        depth: Channels of an entry.
        columns: Positions of a register tile.
        pack: Pack the positions that a unit reads into scratch first (``space`` only).
        panels: Register tiles, side by side, in a block of positions; 0: all positions.
        splits: Units that share a block of positions, each with some tiles of filters.
        unroll: Entries per loop iteration.
        chains: Partial sums.
    """

    along: str
    lanes: int
    rows: int
    depth: int
    columns: int
    pack: bool
    panels: int
    splits: int
    unroll: int
    chains: int

    @staticmethod
    def of(config: Config) -> SparseMatMulConfig:
        return SparseMatMulConfig(**dict(config))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Roles:
    """A matrix product as filters, the rows or columns of the constant matrix, at positions.

    Attributes:
        problem: The product.
        matrix: The constant matrix, filters first: ``[filters, channels]``.
        data: The other operand.
        on_rows: Filters are the rows of the result, and positions contiguous in it.
        positions: How many, per item of the batch.
        position, channel: Strides of the data.
    """

    problem: Problem
    matrix: np.ndarray
    data: Factor
    on_rows: bool
    positions: int
    position: int
    channel: int

    @staticmethod
    def of(problem: Problem) -> Roles | None:
        """``None`` unless exactly one operand is constant, and one matrix for the whole batch."""
        p = problem
        if p.a.const is not None and p.b.const is None and len(p.a.const) == 1:
            return Roles(p, p.a.const[0], p.b, True, p.n, p.b.column, p.b.row)
        if p.b.const is not None and p.a.const is None and len(p.b.const) == 1:
            return Roles(p, p.b.const[0].T, p.a, False, p.m, p.a.row, p.a.column)
        return None

    @property
    def filters(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def channels(self) -> int:
        return int(self.matrix.shape[1])
