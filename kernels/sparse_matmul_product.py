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
from itertools import pairwise, product
from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.errors import InternalError
from effc.kernels.arithmetic import FLOAT32, Arithmetic, Float16
from effc.kernels.builder import Param, T, bind, loop, splat, stage_func, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import dtype_lanes, load_scalars, pieces, uses_lanes
from effc.kernels.matmul_operands import Scalars, Store
from effc.kernels.matmul_problem import Factor, Problem
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
from effc.kernels.sparse_pack import TILE_OVERHEAD, SparseTiles, cut_evenly
from effc.kernels.sparse_positions import row_widths
from effc.kernels.template import Config
from effc.kernels.vectorbase import cast, weight_as

__all__ = ["Roles", "SparseMatMulConfig", "SparseMatMulProduct"]

Expr = Any


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


class SparseMatMulProduct:
    """Builds the stage function; holds the sizes that its parts share."""

    def __init__(
        self,
        roles: Roles,
        knobs: SparseMatMulConfig,
        target: Target,
        epilogue: Epilogue,
        terms: int,
    ) -> None:
        self.roles, self.knobs, self.target, self.epilogue = roles, knobs, target, epilogue
        self.dtype, self.stored, self.terms = roles.problem.dtype, str(roles.matrix.dtype), terms
        self.arithmetic: Arithmetic = Float16(terms) if self.dtype == "float16" else FLOAT32
        full = dtype_lanes(target, self.dtype)
        self.space = knobs.along == "space"
        readable = knobs.pack or roles.position == 1 if self.space else not roles.on_rows
        if not readable:
            raise InternalError("invalid configuration", where="matmul_sparse", got=knobs)
        self.tiles = -(-roles.filters // knobs.rows)
        self.collected = self.space and not roles.on_rows
        self.group = max(1, full // knobs.rows) if self.collected else 1
        self.groups = -(-self.tiles // self.group)
        self.splits = min(knobs.splits, self.groups)
        self.full, self.rest = divmod(roles.positions, knobs.columns)
        self.full_blocks, self.blocks = 0, 1
        if knobs.panels:
            self.full_blocks = -(-self.full // knobs.panels)
            self.blocks = self.full_blocks + (1 if self.rest else 0)
        self.units = roles.problem.batch * self.splits * self.blocks
        self.entries = self.tiles * -(-roles.channels // knobs.depth)
        self.pitch = sum(row_widths(knobs.columns, knobs.lanes, True))
        self.panel_size = roles.channels * self.pitch
        panels = (knobs.panels or self.full + (1 if self.rest else 0)) if knobs.pack else 0
        sums = self.group * knobs.rows * self.pitch if self.collected else 0
        self.sums_at = panels * self.panel_size
        self.room_at = self.sums_at + sums
        self.scratch_elements = self.room_at + (full**2 if self.collected else 0)

    # -- data ---------------------------------------------------------------------------------

    def weights(self, packed: SparseTiles) -> dict[str, np.ndarray]:
        """The stage's constants by parameter name."""
        step = self.pitch if self.knobs.pack else self.roles.channel
        found = {
            "w": packed.values.reshape(-1),
            "starts": packed.starts,
            "offsets": (packed.channels * np.int64(step)).astype(np.int32),
        }
        if self.splits > 1:
            found["cuts"] = np.array(self._cuts(packed), np.int32)
        return found

    def _group_starts(self, packed: SparseTiles) -> np.ndarray:
        """First entry of each group of tiles, and the end."""
        ends = np.minimum(np.arange(self.groups + 1) * self.group, self.tiles)
        return packed.starts[ends]

    def _cuts(self, packed: SparseTiles) -> list[int]:
        """First group of tiles of each split, and the end."""
        overhead = TILE_OVERHEAD * self.group
        return cut_evenly(self._group_starts(packed), self.groups, self.splits, overhead)

    def bounds(self, packed: SparseTiles) -> tuple[int, ...] | None:
        """Cumulative work per unit; ``None`` if all units do the same."""
        if self.splits == 1 and self.blocks == 1:
            return None
        entries = np.diff(self._group_starts(packed)) + TILE_OVERHEAD * self.group
        of_split = np.array([entries[a:b].sum() for a, b in pairwise(self._cuts(packed))])
        positions = [self.roles.positions]
        if self.knobs.panels:
            size = self.knobs.panels * self.knobs.columns
            whole = self.full * self.knobs.columns
            positions = [min(size, whole - i * size) for i in range(self.full_blocks)]
            positions += [self.rest] if self.rest else []
        work = np.tile(np.outer(of_split, positions).reshape(-1), self.roles.problem.batch)
        return tuple(int(b) for b in np.concatenate([[0], np.cumsum(work)]))

    @property
    def scratch_bytes(self) -> int:
        return self.scratch_elements * np.dtype(self.dtype).itemsize

    # -- code -----------------------------------------------------------------------------------

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

        if not self.rest:
            whole_block()
        elif not self.full:
            self._block([tail])
        else:
            with T.If(block < self.full_blocks):
                with T.Then():
                    whole_block()
                with T.Else():
                    self._block([tail])

    def _block(self, runs: list[_Run]) -> None:
        """All groups of tiles of this split at some positions."""
        if self.knobs.pack:
            for run in runs:
                with loop(run.count) as i:
                    to = bind((i + run.panel) * self.panel_size)
                    self._pack(bind(run.first + i * run.columns), to, run.columns)
        size = self.group * self.knobs.rows
        whole, left = divmod(self.roles.filters, size)
        with loop(self.first, T.min(self.last, whole) if left else self.last) as group:
            self._group(group, size, runs)
        if left:
            with T.If(self.last > whole), T.Then():
                self._group(T.int32(whole), left, runs)

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
