"""The product stage of a matrix product: how it is cut into register tiles, and its code.

See ``matmul``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import (
    bind,
    local,
    loop,
    splat,
    tiles,
    unravel,
    vload,
    vstore,
    whole_or_rest,
)
from effc.kernels.lanes import concat, pick, pieces, uses_lanes
from effc.kernels.matmul_operands import Scalars, Store
from effc.kernels.matmul_problem import Problem
from effc.kernels.vectorbase import cast, weight_as

__all__ = ["MatMulProduct", "Tiling"]

Expr = Any


@dataclass(frozen=True)
class Tiling:
    """A problem cut into register tiles.

    A tile is ``rows`` x ``vectors`` vectors of ``lanes``; ``chains`` interleaves
    that many partial sums over k, to hide the latency of small tiles.
    """

    problem: Problem
    target: Target
    lanes: int
    rows: int
    vectors: int
    chains: int

    @property
    def panel(self) -> int:
        """Columns of a tile."""
        return self.vectors * self.lanes

    @property
    def row_tiles(self) -> int:
        return -(-self.problem.m // self.rows)

    @property
    def panels(self) -> int:
        return -(-self.problem.n // self.panel)

    @property
    def groups(self) -> int:
        """Parallel parts of the rows: enough units for a few threads, few copies of panels."""
        units = 4 if self.copied(False) else 24
        wanted = -(-units // (self.problem.batch * self.panels))
        return min(self.row_tiles, wanted)

    @property
    def units(self) -> int:
        return self.problem.batch * self.panels * self.groups

    def copied(self, last: bool) -> bool:
        """Whether a full (or the last, ragged) panel of B goes through scratch."""
        b = self.problem.b
        if b.const is not None:
            return False
        return b.column != 1 or (last and self.problem.n % self.lanes != 0)

    @property
    def scratch(self) -> int:
        """Scratch elements."""
        ragged = self.problem.n % self.panel != 0
        needed = self.copied(False) or (ragged and self.copied(True))
        return self.problem.k * self.panel if needed else 0


@dataclass(frozen=True)
class MatMulProduct:
    """Emits the body of the stage function."""

    tile: Tiling
    a: Any
    b: Any
    scratch: Any
    store: Store
    terms: int

    def emit(self, begin: Expr, end: Expr) -> None:
        tile, problem = self.tile, self.tile.problem
        full, rest = divmod(problem.n, tile.panel)
        with loop(begin, end) as unit:
            batch, panel, group = unravel(unit, (problem.batch, tile.panels, tile.groups))
            first = bind(tirx.truncdiv(group * tile.row_tiles, tile.groups))
            last = bind(tirx.truncdiv((group + 1) * tile.row_tiles, tile.groups))
            columns = partial(self._panel, batch, panel, first, last)
            whole_or_rest(panel, full, rest, lambda: columns(tile.panel), lambda: columns(rest))

    def _panel(self, batch: Expr, panel: Expr, first: Expr, last: Expr, columns: int) -> None:
        """Row tiles ``first`` to ``last`` of a panel with ``columns`` columns."""
        tile, problem = self.tile, self.tile.problem
        b = problem.b
        n = bind(panel * tile.panel)
        origin = bind(problem.batch_offset(b, batch))
        if b.const is not None:
            base = bind((origin * tile.panels + panel) * (problem.k * tile.panel))
            vectors = _Vectors(self.b, base, tile.panel)
        elif tile.copied(columns < tile.panel):
            pitch = -(-columns // tile.lanes) * tile.lanes
            self._copy(bind(origin + n * b.column), columns, pitch)
            vectors = _Vectors(self.scratch, tirx.const(0, "int32"), pitch)
        else:
            vectors = _Vectors(self.b, bind(origin + n), b.row)
        a = bind(problem.batch_offset(problem.a, batch))

        def rows(t: Expr, count: int) -> None:
            self._tile(batch, t, a, n, vectors, count, columns)

        tiles(first, last, problem.m, tile.rows, rows)

    def _copy(self, origin: Expr, columns: int, pitch: int) -> None:
        """Copy a panel of a runtime B to scratch; the columns up to ``pitch`` are zero."""
        tile, b = self.tile, self.tile.problem.b
        if pitch != columns:
            with loop(self.tile.problem.k) as k:
                zero = splat(tirx.const(0, tile.problem.dtype), tile.lanes)
                vstore(self.scratch, k * pitch + pitch - tile.lanes, zero, tile.lanes)
        if b.column != 1 and b.row == 1:
            self._transpose(origin, columns, pitch)
            return
        with loop(tile.problem.k) as k:
            for start, width in pieces(columns, tile.lanes if b.column == 1 else 1):
                source = origin + k * b.row + start * b.column
                vstore(self.scratch, k * pitch + start, vload(self.b, source, width), width)

    def _transpose(self, origin: Expr, columns: int, pitch: int) -> None:
        """Copy a panel whose columns are contiguous in memory, four by four elements at a time."""
        step, count = self.tile.problem.b.column, self.tile.problem.k
        trips = count // 4
        for first, each in ((0, 4), (trips * 4, 1)):
            with loop(trips if each == 4 else count - first) as trip:
                k = bind(first + trip * each)
                for start, width in pieces(columns, 4):
                    rows = [
                        bind(vload(self.b, origin + k + (start + i) * step, each))
                        for i in range(width)
                    ]
                    for u in range(each):
                        taken = concat(rows, [i * each + u for i in range(width)])
                        value = pick(rows[0], [u], each) if width == 1 else taken
                        vstore(self.scratch, (k + u) * pitch + start, value, width)

    def _tile(
        self,
        batch: Expr,
        t: Expr,
        a: Expr,
        n: Expr,
        vectors: _Vectors,
        rows: int,
        columns: int,
    ) -> None:
        """One register tile: ``rows`` rows from row tile ``t`` on."""
        tile, problem, lanes = self.tile, self.tile.problem, self.tile.lanes
        count = -(-columns // lanes)
        scalars = self._scalars(t, a, rows)
        m = bind(t * tile.rows)
        sums = _Sums(rows, count, tile.chains, lanes, problem.dtype)
        if problem.dtype == "float16":
            sums = self._in_parts(sums, scalars, vectors)
        else:
            self._range(tirx.const(0, "int32"), problem.k, sums, scalars, vectors)
        for i in range(rows):
            row = bind(m + i)
            for v in range(count):
                column = n + v * lanes
                valid = min(lanes, columns - v * lanes)
                self.store.vector(batch, row, column, sums.total(i, v), valid, lanes)

    def _in_parts(self, sums: _Sums, scalars: Scalars, vectors: _Vectors) -> _Sums:
        """float32 sums of float16 partial sums, see ``half_sums``."""
        totals = _Sums(sums.rows, sums.vectors, 1, sums.lanes, "float32")
        step = max(sums.chains, scalars.step)
        size = max(self.terms * sums.chains // step * step, step)
        whole, left = divmod(self.tile.problem.k, size)

        def part(k: Expr, count: int) -> None:
            sums.clear()
            self._range(k, count, sums, scalars, vectors)
            for i in range(sums.rows):
                for v in range(sums.vectors):
                    for value in sums.parts(i, v):
                        totals.add(0, i, v, cast(value, "float32"))

        with loop(whole) as number:
            part(bind(number * size), size)
        if left:
            part(tirx.const(whole * size, "int32"), left)
        return totals

    def _range(
        self, first: Expr, count: int, sums: _Sums, scalars: Scalars, vectors: _Vectors
    ) -> None:
        """Add the products of ``count`` values of k."""
        step = max(sums.chains, scalars.step)
        trips, left = divmod(count, step)
        if trips > 1:
            with loop(trips) as trip:
                self._steps(bind(first + trip * step), step, sums, scalars, vectors)
        elif trips:
            self._steps(first, step, sums, scalars, vectors)
        if left:
            self._steps(first + trips * step, left, sums, scalars, vectors)

    def _scalars(self, t: Expr, a: Expr, rows: int) -> Scalars:
        """Access to the scalars of row tile ``t``; ``a`` is the offset of the batch item."""
        tile, problem = self.tile, self.tile.problem
        simd = uses_lanes(tile.target) and problem.dtype in ("float32", "float16")
        if problem.a.const is not None:
            base = bind((a * tile.row_tiles + t) * (problem.k * tile.rows))
            return Scalars(self.a, base, 1, tile.rows, rows, simd, problem.dtype)
        row, column = problem.a.row, problem.a.column
        base = bind(a + t * (tile.rows * row))
        return Scalars(self.a, base, row, column, rows, simd, problem.dtype)

    def _steps(self, k: Expr, count: int, sums: _Sums, scalars: Scalars, vectors: _Vectors) -> None:
        """Add the products of ``count`` consecutive k."""
        lanes = self.tile.lanes
        block = scalars.load(k, count)
        for u in range(count):
            chain = u % sums.chains
            row = vectors.base + (k + u) * vectors.pitch
            xs = [
                bind(weight_as(vload(vectors.buffer, row + v * lanes, lanes), sums.dtype))
                for v in range(sums.vectors)
            ]
            for i in range(sums.rows):
                for v, x in enumerate(xs):
                    sums.add(chain, i, v, splat(block[i][u], lanes) * x)


@dataclass(frozen=True)
class _Vectors:
    """Rows of B: row ``k`` starts at ``base + k * pitch``."""

    buffer: Any
    base: Expr
    pitch: int


class _Sums:
    """The accumulators of a tile: a stack buffer that LLVM keeps in registers."""

    def __init__(self, rows: int, vectors: int, chains: int, lanes: int, dtype: str) -> None:
        self.rows, self.vectors, self.chains, self.lanes = rows, vectors, chains, lanes
        self.dtype = dtype
        self._buffer = local(chains * rows * vectors * lanes, dtype)
        self.clear()

    def clear(self) -> None:
        """Start again from zero."""
        zero = splat(tirx.const(0, self.dtype), self.lanes)
        for index in range(self.chains * self.rows * self.vectors):
            vstore(self._buffer, index * self.lanes, zero, self.lanes)

    def add(self, chain: int, row: int, vector: int, value: Expr) -> None:
        offset = ((chain * self.rows + row) * self.vectors + vector) * self.lanes
        vstore(self._buffer, offset, vload(self._buffer, offset, self.lanes) + value, self.lanes)

    def parts(self, row: int, vector: int) -> list[Expr]:
        """The sum of each chain."""
        return [
            vload(
                self._buffer,
                ((chain * self.rows + row) * self.vectors + vector) * self.lanes,
                self.lanes,
            )
            for chain in range(self.chains)
        ]

    def total(self, row: int, vector: int) -> Expr:
        """The sum over the chains."""
        parts = self.parts(row, vector)
        return bind(sum(parts[1:], parts[0]))
