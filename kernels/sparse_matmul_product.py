"""The product stage of a sparse matrix product, see ``sparse_matmul``.

A unit takes a block of positions and walks over tiles of filters. A register tile adds up the
entries of one tile of filters (``sparse_pack``) at ``columns`` positions, in as many partial sums
(``chains``) as hide the latency of a multiply-add where a tile is small.

``space``: vectors along positions. Positions that are not contiguous are first packed into
panels ``[channel][position]`` in scratch. Where results are contiguous along filters, those of
a few tiles are collected in scratch and stored transposed.

``channel``: vectors along filters, scalars of the data read where they are. Only where results are
contiguous along filters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm import tirx

from effc.kernels.arithmetic import FLOAT32
from effc.kernels.builder import (
    Param,
    T,
    bind,
    loop,
    splat,
    stage_func,
    tiles,
    vload,
    vstore,
    whole_or_rest,
)
from effc.kernels.lanes import dtype_lanes, load_scalars, pieces, uses_lanes
from effc.kernels.matmul_operands import Scalars, Store
from effc.kernels.register_tile import (
    Accumulators,
    Listed,
    Operand,
    Reduction,
    Tile,
    split_widths,
    weights_ahead,
)
from effc.kernels.shuffles import store_transposed, transpose
from effc.kernels.sparse_matmul_layout import SparseMatMulLayout
from effc.kernels.sparse_positions import row_widths
from effc.kernels.vectorbase import cast, weight_as

__all__ = ["SparseMatMulProduct"]

Expr = Any


@dataclass(frozen=True)
class _Run:
    """Register tiles of one size side by side.

    Attributes:
        first: First position.
        panel: Which panel of the scratch it is.
        count: Register tiles.
        columns: Positions of each.
    """

    first: Expr
    panel: int
    count: Expr
    columns: int


class SparseMatMulProduct(SparseMatMulLayout):
    """Builds the stage function."""

    def function(self) -> tirx.PrimFunc:
        """The stage function; parameters: x, ``weights``, c, epilogue, y, scratch."""
        problem = self.roles.problem
        params: list[Param] = [
            ("x", self.dtype, self.roles.data.elements),
            ("w", self.stored, self.entries * self.knobs.depth * self.knobs.rows),
            ("starts", "int32", self.tiles + 1),
            ("offsets", "int32", self.entries),
        ]
        if self.splits > 1:
            params.append(("cuts", "int32", self.splits + 1))
        if problem.c is not None:
            padded = problem.pack_c(dtype_lanes(self.target, self.dtype))
            if padded is None:
                params.append(("c", self.dtype, problem.c.elements))
            else:
                params.append(("c", str(padded.dtype), padded.size))
        params += self.epilogue.params
        params.append(("y", self.epilogue.out_dtype, problem.batch * problem.m * problem.n))
        if self.scratch_elements:
            params.append(("scratch", self.dtype, self.scratch_elements))

        def body(*args: Any) -> None:
            *buffers, begin, end = args
            self._bind_buffers(dict(zip((name for name, *_ in params), buffers, strict=True)))
            with loop(begin, end) as unit:
                self._unit(unit)

        return stage_func(params, body)

    def _bind_buffers(self, named: dict[str, Any]) -> None:
        self.x, self.w = named["x"], named["w"]
        self.starts, self.offsets, self.cut_at = (
            named["starts"],
            named["offsets"],
            named.get("cuts"),
        )
        self.scratch = named.get("scratch")
        extra = [named[name] for name, *_ in self.epilogue.params]
        problem = self.roles.problem
        self.store = Store(problem, self.epilogue, named["y"], extra, named.get("c"))

    def _unit(self, unit: Expr) -> None:
        knobs, roles = self.knobs, self.roles
        block = bind(unit % self.blocks)
        rest = bind(unit // self.blocks)
        split = bind(rest % self.splits)
        self.batch = bind(rest // self.splits)
        self.base = bind(roles.problem.batch_offset(roles.data, self.batch))
        self.first, self.last = T.int32(0), T.int32(self.groups)
        if self.cut_at is not None:
            self.first, self.last = bind(self.cut_at[split]), bind(self.cut_at[split + 1])
        tail = _Run(T.int32(self.full * knobs.columns), 0, 1, self.rest)
        if not knobs.panels:
            whole = _Run(T.int32(0), 0, self.full, knobs.columns)
            tail = _Run(tail.first, self.full, 1, self.rest)
            self._block([run for run, n in ((whole, self.full), (tail, self.rest)) if n])
            return

        def whole_block() -> None:
            size = knobs.panels * knobs.columns
            count: Expr = knobs.panels
            if self.full % knobs.panels:
                count = bind(T.min(knobs.panels, self.full - block * knobs.panels))
            self._block([_Run(bind(block * size), 0, count, knobs.columns)])

        whole_or_rest(block, self.full_blocks, self.rest, whole_block, lambda: self._block([tail]))

    def _block(self, runs: list[_Run]) -> None:
        """All groups of tiles of this split at some positions."""
        if self.knobs.pack:
            for run in runs:
                with loop(run.count) as i:
                    to = bind((i + run.panel) * self.panel_size)
                    self._pack(bind(run.first + i * run.columns), to, run.columns)
        size = self.group * self.knobs.rows
        tiles(
            self.first,
            self.last,
            self.roles.filters,
            size,
            lambda group, filters: self._group(group, filters, runs),
        )

    def _pack(self, first: Expr, to: Expr, columns: int) -> None:
        """Positions from ``first`` on as ``[channel][position]``, zeros behind them."""
        roles, lanes = self.roles, self.knobs.lanes
        source = bind(self.base + first * roles.position)
        if roles.channel != 1:
            with loop(roles.channels) as k:
                row, there = bind(source + k * roles.channel), bind(to + k * self.pitch)
                for start, width in pieces(columns, lanes if roles.position == 1 else 1):
                    value = vload(self.x, row + start * roles.position, width)
                    vstore(self.scratch, there + start, value, width)
                padding = sum(row_widths(columns, lanes, True)) - columns
                for start, width in pieces(padding, lanes):
                    zeros = splat(tirx.const(0, self.dtype), width)
                    vstore(self.scratch, there + columns + start, zeros, width)
            return

        def block(k: Expr, start: int, size: int) -> None:
            rows = [
                bind(
                    vload(self.x, source + (start + i) * roles.position + k, size)
                    if start + i < columns
                    else splat(tirx.const(0, self.dtype), size)
                )
                for i in range(size)
            ]
            for i, column in enumerate(transpose(rows)):
                vstore(self.scratch, to + (k + i) * self.pitch + start, column, size)

        tile = Tile(1, row_widths(columns, lanes, True))
        for start, width in tile.vectors:
            with loop(roles.channels // width) as trip:
                block(bind(trip * width), start, width)
            done = roles.channels // width * width
            for k, part in pieces(roles.channels - done, width):
                for at in range(start, start + width, part):
                    block(T.int32(done + k), at, part)

    def _group(self, group: Expr, filters: int, runs: list[_Run]) -> None:
        """``filters`` filters, of one tile or of those whose results are stored together."""
        rows = self.knobs.rows
        whole, left = divmod(filters, rows)
        first = bind(group * (self.group * rows))
        for run in runs:
            with loop(run.count) as i:
                position = bind(run.first + i * run.columns)
                panel = bind((i + run.panel) * self.panel_size)
                if whole:
                    with loop(whole) as t:
                        self._tile(bind(group * self.group + t), rows, position, panel, run, t)
                if left:
                    tile = bind(group * self.group + whole)
                    self._tile(tile, left, position, panel, run, T.int32(whole))
                if self.collected:
                    self._store_collected(first, filters, position, run.columns)

    def _tile(
        self, number: Expr, filters: int, position: Expr, panel: Expr, run: _Run, within: Expr
    ) -> None:
        """One register tile: ``filters`` filters from tile ``number`` at one panel."""
        knobs = self.knobs
        if self.space:
            tile = Tile(filters, row_widths(run.columns, knobs.lanes, knobs.pack))
        else:
            tile = Tile(run.columns, split_widths(filters, knobs.lanes))
        sums = [Accumulators(tile, self.arithmetic) for _ in range(knobs.chains)]
        begin, end = bind(self.starts[number]), bind(self.starts[number + 1])
        unroll = knobs.unroll if filters == knobs.rows else 1
        ahead = weights_ahead(self.target)
        entries = Listed(self.offsets, begin, end, knobs.depth, unroll, self.space, ahead)
        weights = Operand(self.w, T.int32(0), knobs.rows)
        base = panel if knobs.pack else bind(self.base + position * self.roles.position)

        def add(part: Reduction) -> None:
            assert isinstance(part, Listed)
            part.each(lambda e, u: self._entry(sums, base, e, u, filters), weights)

        acc = self._sum(sums, entries, add)
        self._store_tile(acc, number, filters, position, run.columns, within)

    def _sum(
        self, sums: list[Accumulators], entries: Listed, add: Callable[[Reduction], None]
    ) -> Accumulators:
        """The sum of all partial sums; of float16 ones in float32, see ``half_sums``."""
        places = list(product(range(sums[0].tile.rows), range(len(sums[0].tile.widths))))

        def clear(acc: Accumulators) -> None:
            for i, v in places:
                acc.set(i, v, splat(tirx.const(0, acc.dtype), acc.tile.widths[v]))

        for acc in sums:
            clear(acc)
        if self.dtype == "float32":
            add(entries)
            for chain in sums[1:]:
                for i, v in places:
                    sums[0].set(i, v, sums[0].get(i, v) + chain.get(i, v))
            return sums[0]
        totals = Accumulators(sums[0].tile, FLOAT32)
        clear(totals)

        def part(some: Reduction) -> None:
            add(some)
            for acc, (i, v) in product(sums, places):
                totals.set(i, v, totals.get(i, v) + cast(acc.get(i, v), "float32"))
            for acc in sums:
                clear(acc)

        entries.parts(self.terms * len(sums), part)
        return totals

    def _entry(
        self, sums: list[Accumulators], base: Expr, entry: Expr, index: int, filters: int
    ) -> None:
        """Add the products of one entry, number ``index`` of its loop iteration."""
        knobs, tile = self.knobs, sums[0].tile
        at = bind(base + self.offsets[entry])
        weights = bind(entry * (knobs.depth * knobs.rows))
        simd = uses_lanes(self.target)
        if not self.space:
            roles = self.roles
            data = Scalars(self.x, at, roles.position, roles.channel, tile.rows, simd, self.dtype)
            scalars = data.load(T.int32(0), knobs.depth)
        for j in range(knobs.depth):
            row = weights + j * knobs.rows
            if self.space:
                column = load_scalars(self.w, row, filters, self.target, self.dtype)
                source, start = self.scratch if knobs.pack else self.x, at + j * self._step
            else:
                column = [of_position[j] for of_position in scalars]
                source, start = self.w, row
            xs = [
                bind(weight_as(vload(source, start + first, lanes), self.dtype))
                for first, lanes in tile.vectors
            ]
            acc = sums[(index * knobs.depth + j) % len(sums)]
            for (i, scalar), (v, x) in product(enumerate(column), enumerate(xs)):
                acc.set(i, v, acc.get(i, v) + splat(scalar, tile.widths[v]) * x)

    @property
    def _step(self) -> int:
        """Elements from one channel to the next where vectors are read."""
        return self.pitch if self.knobs.pack else self.roles.channel

    def _store_tile(
        self,
        acc: Accumulators,
        number: Expr,
        filters: int,
        position: Expr,
        columns: int,
        within: Expr,
    ) -> None:
        vectors = list(enumerate(acc.tile.vectors))
        first = bind(number * self.knobs.rows)
        for i, (v, (start, lanes)) in product(range(acc.tile.rows), vectors):
            value = acc.get(i, v)
            if self.collected:
                row = bind(self.sums_at + (within * self.knobs.rows + i) * self.pitch)
                vstore(self.scratch, row + start, cast(value, self.dtype), lanes)
            elif self.space:
                valid = min(lanes, columns - start)
                self.store.vector(self.batch, first + i, position + start, value, valid, lanes)
            else:
                self.store.vector(self.batch, position + i, first + start, value, lanes, lanes)

    def _store_collected(self, first: Expr, filters: int, position: Expr, columns: int) -> None:
        """Rows of filters in scratch go to the result as vectors along filters."""
        store_transposed(
            self.scratch,
            T.int32(self.sums_at),
            self.pitch,
            filters,
            columns,
            self.room_at,
            dtype_lanes(self.target, self.dtype),
            lambda values, column, row, lanes, valid: self.store.vector(
                self.batch,
                position + column,
                first + row,
                cast(values[0], self.roles.problem.sums),
                valid,
                lanes,
            ),
        )
