"""A sparse matrix product as filters at positions, and the knobs of its kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from effc.kernels.arithmetic import Arithmetic, float_arithmetic
from effc.kernels.matmul_problem import Factor, Problem, problem_of
from effc.kernels.quad_arithmetic import Quads, quads_of_rows
from effc.kernels.region import DOMAIN, Op
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

    A channel is an element of the arithmetic: of bytes four, where the last four overlap those
    before them if 4 does not divide how many there are.

    Attributes:
        problem: The product; of bytes with the folded bias as ``c``.
        arithmetic: Of the elements.
        matrix: The constant matrix, filters first: ``[filters, channels]``.
        data: The other operand, in its own type: ``dtype``.
        on_rows: Filters are the rows of the result, and positions contiguous in it.
        positions: How many, per item of the batch.
        position, channel: Strides of the data.
        overlap: By how much the last channel begins earlier than ``channel`` says.
    """

    problem: Problem
    arithmetic: Arithmetic
    matrix: np.ndarray
    data: Factor
    dtype: str
    on_rows: bool
    positions: int
    position: int
    channel: int
    overlap: int = 0

    @staticmethod
    def of(op: Op, *, collapse: bool) -> Roles | None:
        """``None`` unless exactly one operand is constant, and one matrix for the whole batch."""
        p, arithmetic = problem_of(op, collapse=collapse), _arithmetic(op)
        if p.a.const is not None and p.b.const is None and len(p.a.const) == 1:
            data, matrix = p.b, p.a.const[0]
            found = Roles(p, arithmetic, matrix, data, p.dtype, True, p.n, data.column, data.row)
        elif p.b.const is not None and p.a.const is None and len(p.b.const) == 1:
            data, matrix = p.a, p.b.const[0].T
            found = Roles(p, arithmetic, matrix, data, p.dtype, False, p.m, data.row, data.column)
        else:
            return None
        return found._in_quads(op) if op.domain == DOMAIN else found

    def _in_quads(self, op: Op) -> Roles:
        """The same product of ``MatMulInteger``, four bytes at a time."""
        data, zero = op.inputs[0], int(op.attrs.get("a_zero", 0))
        assert data is not None
        bias = op.inputs[2] if len(op.inputs) > 2 else None
        folded = -zero * self.matrix.sum(1, np.int64)
        if bias is not None:
            assert bias.const is not None
            folded = folded + bias.const.reshape(-1)
        wrapped = folded.astype(np.uint32).view(np.int32).reshape(1, -1)
        c = Factor("", wrapped.size, (), 0, 1, wrapped)
        return replace(
            self,
            problem=replace(self.problem, c=c),
            matrix=quads_of_rows(self.matrix),
            dtype=data.dtype,
            channel=4 * self.channel,
            overlap=-self.matrix.shape[1] % 4 * self.channel,
        )

    @property
    def filters(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def channels(self) -> int:
        return int(self.matrix.shape[1])

    @property
    def in_quads(self) -> bool:
        """Whether a channel is four bytes."""
        return self.dtype != self.arithmetic.dtype

    @property
    def adjacent(self) -> bool:
        """Whether the channels of a position lie next to each other."""
        return self.channel == (4 if self.in_quads else 1)

    def offsets(self, channels: np.ndarray) -> np.ndarray:
        """Where channels lie in the data, behind a position's first element."""
        found = channels * self.channel
        found[channels == self.channels - 1] -= self.overlap
        return found


def _arithmetic(op: Op) -> Arithmetic:
    if op.domain != DOMAIN:
        return float_arithmetic(op)
    data = op.inputs[0]
    assert data is not None
    return Quads(int(op.attrs.get("a_zero", 0)), data.dtype == "int8", op.narrow)
