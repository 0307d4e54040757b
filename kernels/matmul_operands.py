"""What matrix product kernels share: scalars of the broadcast operand, and finished results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.kernels.builder import bind, splat, vload
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import pick, pieces, store_partial
from effc.kernels.matmul_problem import Problem
from effc.kernels.vectorbase import cast, weight_as

__all__ = ["Scalars", "Store"]

Expr = Any


@dataclass(frozen=True)
class Scalars:
    """The rows of A of one tile: ``A[i, k]`` is at ``base + i * row + k * column``.

    Arm multiplies by one lane of a vector register (``simd``), so there scalars
    that lie next to each other are loaded as many at a time as fill one. ``dtype`` is what
    they are computed with.
    """

    buffer: Any
    base: Expr
    row: int
    column: int
    rows: int
    simd: bool
    dtype: str = "float32"

    @property
    def _together(self) -> int:
        return 16 // np.dtype(self.dtype).itemsize

    @property
    def step(self) -> int:
        """Values of k that should be loaded together."""
        return self._together if self.simd and self.row != 1 and self.column == 1 else 1

    def load(self, k: Expr, count: int) -> list[list[Expr]]:
        """``[i][u]`` for the rows and ``count`` consecutive k."""
        found: list[list[Expr]] = [[None] * count for _ in range(self.rows)]
        along_k = self.step > 1
        outer, inner = (self.rows, count) if along_k else (count, self.rows)
        for o in range(outer):
            run = self.simd and (along_k or self.row == 1)
            for start, width in pieces(inner, self._together if run else 1):
                i, u = (o, start) if along_k else (start, o)
                offset = self.base + i * self.row + (k + u) * self.column
                loaded = bind(weight_as(vload(self.buffer, offset, width), self.dtype))
                for lane in range(width):
                    value = pick(loaded, [lane], width)
                    if along_k:
                        found[o][start + lane] = value
                    else:
                        found[start + lane][o] = value
        return found


@dataclass(frozen=True)
class Store:
    """Scales, adds the bias, applies the epilogue and stores.

    Attributes:
        problem: Whose results.
        epilogue: Under the problem's view.
        y: Buffer of the results.
        operands: Buffers of the epilogue's parameters.
        c: Buffer of the bias, if any; a constant one from ``Problem.pack_c``.
    """

    problem: Problem
    epilogue: Epilogue
    y: Any
    operands: list[Any]
    c: Any

    def vector(self, b: Expr, m: Expr, n: Expr, value: Expr, valid: int, lanes: int) -> None:
        """Store the first ``valid`` of ``lanes`` results of row ``m`` from column ``n`` on."""
        problem = self.problem

        def finish(piece: Expr, start: int, width: int) -> Expr:
            if problem.scale != 1:
                piece = piece * splat(tirx.const(problem.scale, problem.sums), width)
            if problem.c is not None:
                piece = piece + self._bias(m, n + start, width)
            piece = cast(piece, problem.dtype)
            coords, axis = problem.coordinates(b, m, n + start)
            return self.epilogue.apply(piece, coords, self.operands, axis=axis, lanes=width)

        offset = bind((b * problem.m + m) * problem.n + n)
        exact = problem.c is not None and problem.c.const is None
        if self.epilogue.params or exact:
            store_partial(self.y, offset, value, valid, lanes, finish)
        else:
            store_partial(self.y, offset, finish(value, 0, lanes), valid, lanes)

    def _bias(self, m: Expr, n: Expr, width: int) -> Expr:
        problem = self.problem
        c = problem.c
        assert c is not None
        offset = m * c.row + n * c.column
        found = (
            splat(self.c[offset], width)
            if c.column == 0
            else vload(self.c, offset, width, c.column)
        )
        found = cast(found, problem.sums)
        if c.const is None and problem.beta != 1:
            found = found * splat(tirx.const(problem.beta, problem.sums), width)
        return found
