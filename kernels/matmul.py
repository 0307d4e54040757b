"""Matrix products: MatMul (batched, broadcasting) and Gemm, one packed or plain operand each.

``C[b, m, n] = alpha * sum_k A[b, m, k] * B[b, k, n] + beta * bias``. Vectors run along
n, scalars of A are broadcast. A constant B is packed at compile time into panels
``[n / panel][k][panel]``, padded with zeros; a constant A into tiles
``[m / rows][k][rows]``. Runtime operands are read where they are; only a ragged
or transposed panel of a runtime B is first copied to scratch, because vectors may
not read past a tensor. A matrix times a vector is computed transposed, so that
vectors run along the longer side.

Sums are split over registers: results differ from ONNX Runtime's by rounding,
at most ``2 * k * eps * sum |a * b|``; integers wrap as in ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.arithmetic import float_terms, product_dtypes
from effc.kernels.builder import (
    Param,
    T,
    bind,
    local,
    loop,
    splat,
    stage_func,
    unravel,
    vload,
    vstore,
)
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import concat, dtype_lanes, pick, pieces, uses_lanes
from effc.kernels.matmul_operands import Scalars, Store
from effc.kernels.matmul_problem import Factor, Problem, problem_of
from effc.kernels.region import Region
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.vectorbase import cast, weight_as

__all__ = ["MatMulTemplate", "streamed"]

Expr = Any

_DTYPES = ("float32", "float64", "int32", "int64", "uint32", "uint64")


class MatMulTemplate(Template):
    """``MatMul`` and ``Gemm``, any shapes, constant or runtime operands."""

    name: ClassVar[str] = "matmul"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or op.op_type not in ("MatMul", "Gemm"):
            return "the anchor is not a matrix product"
        result = op.outputs[0]
        if result.dtype not in (*_DTYPES, *product_dtypes(target)):
            return f"matrix products have no kernel for {result.dtype}"
        if any(v is not None and 0 in v.shape for v in (*op.inputs, result)):
            return "a tensor is empty"
        if result.dtype[0] != "f" and any(
            not float(op.attrs.get(name, 1.0)).is_integer() for name in ("alpha", "beta")
        ):
            return "an integer product is scaled by a fraction"
        views = [Epilogue(region, result, p.view).refusal for p in _problems(region)]
        return None if None in views else views[0]

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        problem = _problem(region)
        lanes = dtype_lanes(target, problem.dtype)
        widths = [lanes]
        while widths[-1] > 4 and problem.n <= widths[-1] // 2:
            widths.append(widths[-1] // 2)
        if lanes > 8 and target.arch == "x86_64" and widths == [lanes]:
            widths.append(lanes // 2)
        found: list[tuple[Config, float]] = []
        for width in widths:
            for rows in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14):
                for vectors in (1, 2, 3, 4, 6, 8):
                    for chains in (1, 2, 4):
                        cost = _cost(problem, target, width, rows, vectors, chains)
                        if cost is None:
                            continue
                        config = {
                            "lanes": width, "rows": rows, "vectors": vectors, "chains": chains,
                        }  # fmt: skip
                        found.append((config, cost))
        return sorted(found, key=lambda item: item[1])[:14]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        problem = _problem(region)
        epilogue = Epilogue(region, op.outputs[0], problem.view)
        tile = _Tiling(
            problem,
            target,
            int(config["lanes"]),
            int(config["rows"]),
            int(config["vectors"]),
            int(config["chains"]),
        )
        weights = dict(epilogue.weights)
        params: list[Param] = []
        args: list[str] = []
        packed = {
            "a": None if problem.a.const is None else problem.pack_a(tile.rows),
            "b": None if problem.b.const is None else problem.pack_b(tile.panel),
            "c": problem.pack_c(tile.lanes),
        }
        for name, factor in (("a", problem.a), ("b", problem.b), ("c", problem.c)):
            if factor is None:
                continue
            constant = packed[name]
            if constant is not None:
                weights[name] = constant
            size = factor.elements if constant is None else constant.size
            params.append((name, _stored(problem, factor), size))
            args.append(factor.name if constant is None else f"w:{name}")
        own = len(params)
        params += epilogue.params
        params.append(("y", epilogue.out_dtype, op.outputs[0].type.size))
        if tile.scratch:
            params.append(("scratch", problem.dtype, tile.scratch))

        def body(*arguments: Any) -> None:
            *buffers, begin, end = arguments
            scratch = buffers.pop() if tile.scratch else None
            y = buffers.pop()
            store = Store(problem, epilogue, y, buffers[own:], buffers[2] if own > 2 else None)
            _Code(tile, buffers[0], buffers[1], scratch, store, float_terms(op)).emit(begin, end)

        stage = Stage(
            stage_func(params, body),
            (
                *args,
                *epilogue.args,
                region.outputs[0].name,
                *(("scratch",) if tile.scratch else ()),
            ),
            tile.units,
            tile.scratch * np.dtype(problem.dtype).itemsize,
        )
        return Kernel((stage,), weights, inplace=epilogue.inplace)


@dataclass(frozen=True)
class _Tiling:
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
class _Code:
    """Emits the body of the stage function."""

    tile: _Tiling
    a: Any
    b: Any
    scratch: Any
    store: Store
    terms: int

    def emit(self, begin: Expr, end: Expr) -> None:
        tile, problem = self.tile, self.tile.problem
        full = problem.n // tile.panel
        with loop(begin, end) as unit:
            batch, panel, group = unravel(unit, (problem.batch, tile.panels, tile.groups))
            first = bind(tirx.truncdiv(group * tile.row_tiles, tile.groups))
            last = bind(tirx.truncdiv((group + 1) * tile.row_tiles, tile.groups))
            rest = problem.n - full * tile.panel
            if not rest:
                self._panel(batch, panel, first, last, tile.panel)
            elif not full:
                self._panel(batch, panel, first, last, rest)
            else:
                with T.If(panel < full):
                    with T.Then():
                        self._panel(batch, panel, first, last, tile.panel)
                    with T.Else():
                        self._panel(batch, panel, first, last, rest)

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
        whole = problem.m // tile.rows
        rest = problem.m - whole * tile.rows
        a = bind(problem.batch_offset(problem.a, batch))
        if whole:
            with loop(first, tirx.min(last, whole) if rest else last) as t:
                self._tile(batch, t, a, n, vectors, tile.rows, columns)
        if rest:
            with T.If(last > whole), T.Then():
                t = tirx.const(whole, "int32")
                self._tile(batch, t, a, n, vectors, rest, columns)

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


def _stored(problem: Problem, factor: Factor) -> str:
    """Element type of an operand in memory."""
    if factor.const is not None:
        return str(factor.const.dtype)
    return problem.dtype


def _problems(region: Region) -> list[Problem]:
    assert region.anchor is not None
    return [problem_of(region.anchor, collapse=True), problem_of(region.anchor, collapse=False)]


def _problem(region: Region) -> Problem:
    """The form with the largest m that the epilogue allows."""
    assert region.anchor is not None
    result = region.anchor.outputs[0]
    return next(p for p in _problems(region) if Epilogue(region, result, p.view).refusal is None)


def _cost(
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
