"""The product stage of a sparse matrix product, see ``sparse_matmul``.

A unit takes a block of positions and walks over tiles of filters. A register tile adds up the
entries of one tile of filters (``sparse_pack``) at ``columns`` positions, in as many partial sums
(``chains``) as hide the latency of a multiply-add where a tile is small.

``space``: vectors along positions. Positions that are not contiguous are first packed into
panels ``[channel][position]`` in scratch. Where results are contiguous along filters, those of
a few tiles are collected in scratch and stored transposed (``sparse_matmul_results``).

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
from effc.kernels.arithmetic import FLOAT32, Float16
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
from effc.kernels.lanes import load_scalars, uses_lanes
from effc.kernels.matmul_operands import Scalars
from effc.kernels.register_tile import (
    Accumulators,
    Listed,
    Operand,
    Reduction,
    Tile,
    split_widths,
    weights_ahead,
)
from effc.kernels.shuffles import store_transposed
from effc.kernels.sparse_matmul_pack import load_channels, pack_positions
from effc.kernels.sparse_matmul_results import Results, SumResults
from effc.kernels.sparse_matmul_roles import Roles, SparseMatMulConfig
from effc.kernels.sparse_pack import TILE_OVERHEAD, SparseTiles, cumulative, cut_evenly
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


class SparseMatMulProduct:
    """Builds the stage function; holds the sizes that its parts share."""

    def __init__(
        self, roles: Roles, knobs: SparseMatMulConfig, target: Target, results: Results
    ) -> None:
        self.roles, self.knobs, self.target, self.results = roles, knobs, target, results
        self.arithmetic = roles.arithmetic
        self.dtype = self.arithmetic.dtype
        full = self.arithmetic.lanes(target)
        self.narrowest = self.arithmetic.narrowest(target)
        self.space = knobs.along == "space"
        readable = knobs.pack or roles.position == 1 if self.space else not roles.on_rows
        self.unit = results.unit if self.space else 1
        single = knobs.depth == 1 or not roles.in_quads
        if not readable or not single or knobs.rows % self.unit:
            raise InternalError("invalid configuration", where="matmul_sparse", got=knobs)
        self.tiles = -(-roles.filters // knobs.rows)
        self.collected = self.space and not roles.on_rows
        self.group = max(1, full * self.unit // knobs.rows) if self.collected else 1
        self.groups = -(-self.tiles // self.group)
        self.splits = min(knobs.splits, self.groups)
        self.full, self.rest = divmod(roles.positions, knobs.columns)
        self.full_blocks, self.blocks = 0, 1
        if knobs.panels:
            self.full_blocks = -(-self.full // knobs.panels)
            self.blocks = self.full_blocks + (1 if self.rest else 0)
        self.units = roles.problem.batch * self.splits * self.blocks
        self.entries = self.tiles * -(-roles.channels // knobs.depth)
        self.pitch = sum(self._widths(knobs.columns))
        self.panel_size = roles.channels * self.pitch
        panels = (knobs.panels or self.full + (1 if self.rest else 0)) if knobs.pack else 0
        sums = self.group * knobs.rows // self.unit * self.pitch if self.collected else 0
        self.sums_at = panels * self.panel_size
        self.room_at = self.sums_at + sums
        self.scratch_elements = self.room_at + (full**2 if self.collected else 0)

    def _widths(self, columns: int) -> tuple[int, ...]:
        """Vectors along the positions of a register tile."""
        return row_widths(columns, self.knobs.lanes, self.knobs.pack, self.narrowest)

    # -- data ---------------------------------------------------------------------------------

    def weights(self, packed: SparseTiles) -> dict[str, np.ndarray]:
        """The stage's constants by parameter name."""
        channels = packed.channels.astype(np.int64)
        offsets = channels * self.pitch if self.knobs.pack else self.roles.offsets(channels)
        found = {
            "w": packed.values.reshape(-1),
            "starts": packed.starts,
            "offsets": offsets.astype(np.int32),
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
        return cumulative(work)

    @property
    def scratch_bytes(self) -> int:
        return self.scratch_elements * self.arithmetic.nbytes

    # -- code -----------------------------------------------------------------------------------

    def function(self) -> tirx.PrimFunc:
        """The stage function; parameters: x, ``weights``, those of the results, y, scratch."""
        problem = self.roles.problem
        params: list[Param] = [
            ("x", self.roles.dtype, self.roles.data.elements),
            ("w", self.arithmetic.stored, self.entries * self.knobs.depth * self.knobs.rows),
            ("starts", "int32", self.tiles + 1),
            ("offsets", "int32", self.entries),
        ]
        if self.splits > 1:
            params.append(("cuts", "int32", self.splits + 1))
        params += self.results.params
        params.append(("y", self.results.out_dtype, problem.batch * problem.m * problem.n))
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
        self.results.take([named[name] for name, *_ in self.results.params], named["y"])

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
                    first = bind(run.first + i * run.columns)
                    pack_positions(
                        self.roles,
                        (self.x, bind(self.base + first * self.roles.position)),
                        (self.scratch, to),
                        run.columns,
                        self._widths(run.columns),
                        self.pitch,
                    )
        size = self.group * self.knobs.rows
        tiles(
            self.first,
            self.last,
            self.roles.filters,
            size,
            lambda group, filters: self._group(group, filters, runs),
        )

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
            tile = Tile(filters, self._widths(run.columns))
        else:
            tile = Tile(run.columns, split_widths(filters, knobs.lanes, self.narrowest))
        sums = [Accumulators(tile, self.arithmetic, self.target) for _ in range(knobs.chains)]
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
                acc.set(i, v, splat(tirx.const(0, acc.dtype), acc.lanes[v]))

        for acc in sums:
            clear(acc)
        if not isinstance(self.arithmetic, Float16):
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

        entries.parts(self.arithmetic.terms * len(sums), part)
        return totals

    def _entry(
        self, sums: list[Accumulators], base: Expr, entry: Expr, index: int, filters: int
    ) -> None:
        """Add the products of one entry, number ``index`` of its loop iteration."""
        knobs, tile = self.knobs, sums[0].tile
        at = bind(base + self.offsets[entry])
        weights = bind(entry * (knobs.depth * knobs.rows))
        if not self.space:
            scalars = self._scalars(at, tile.rows)
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
                for first, lanes in zip(tile.starts, sums[0].lanes, strict=True)
            ]
            acc = sums[(index * knobs.depth + j) % len(sums)]
            for (i, scalar), (v, x) in product(enumerate(column), enumerate(xs)):
                lanes = acc.lanes[v]
                total = self.arithmetic.multiply_add(
                    acc.get(i, v), scalar, x, lanes, self.target, swapped=not self.space
                )
                acc.set(i, v, total)

    def _scalars(self, at: Expr, positions: int) -> list[list[Expr]]:
        """Channels of an entry at some positions: ``[position][channel]``."""
        roles, depth = self.roles, self.knobs.depth
        if roles.in_quads:
            steps = [
                [at + i * roles.position + j * roles.channel for j in range(depth)]
                for i in range(positions)
            ]
            return [[bind(load_channels(roles, self.x, step, 1)) for step in row] for row in steps]
        simd = uses_lanes(self.target)
        data = Scalars(self.x, at, roles.position, roles.channel, positions, simd, self.dtype)
        return data.load(T.int32(0), depth)

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
        knobs, unit, tile = self.knobs, self.unit, acc.tile
        first = bind(number * knobs.rows)
        row = bind(self.sums_at + within * (knobs.rows // unit * self.pitch))
        for i, (v, (start, lanes)) in product(range(0, tile.rows, unit), enumerate(tile.vectors)):
            if self.collected:  # filters that do not exist are not stored
                sums = [acc.get(min(i + j, tile.rows - 1), v) for j in range(unit)]
                held = self.results.hold(sums, first + i, lanes)
                vstore(self.scratch, row + i // unit * self.pitch + start, held, lanes)
                continue
            assert isinstance(self.results, SumResults)
            if self.space:
                valid = min(lanes, columns - start)
                place = self.batch, first + i, position + start
                self.results.store(place, acc.get(i, v), valid, lanes)
            else:
                place = self.batch, position + i, first + start
                self.results.store(place, acc.get(i, v), lanes, acc.lanes[v])

    def _store_collected(self, first: Expr, filters: int, position: Expr, columns: int) -> None:
        """Rows of filters in scratch go to the result as vectors along filters."""
        unit = self.unit
        whole, left = divmod(filters, unit)
        store_transposed(
            self.scratch,
            T.int32(self.sums_at),
            self.pitch,
            whole,
            columns,
            self.room_at,
            self.arithmetic.lanes(self.target),
            lambda values, column, row, lanes, valid: self.results.release(
                (self.batch, position + column, first + row * unit),
                values[0],
                valid * unit,
                lanes,
            ),
        )
        if left:
            with loop(columns) as column:
                held = vload(self.scratch, self.sums_at + whole * self.pitch + column, 1)
                place = self.batch, position + column, first + whole * unit
                self.results.release(place, held, left, 1)
