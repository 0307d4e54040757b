"""The product stage of a sparse convolution, see ``sparse_conv``.

A unit takes a block of output positions, or all of them where weights are larger than
activations, and walks over the tiles of filters; each visit of a tile covers the whole block. A
register tile adds up the entries of one tile of filters (``sparse_pack``) at a few positions. The
positions of a register tile form a small rectangle: ``height`` output rows of ``columns``
positions, or one run of positions where rows follow each other in memory (``height`` 0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.errors import InternalError
from effc.kernels.arithmetic import Float16
from effc.kernels.builder import Param, T, bind, loop, prefetch, splat, stage_func, vload, vstore
from effc.kernels.conv_pack import pack_row, panel_slack, widen
from effc.kernels.conv_problem import ConvProblem
from effc.kernels.conv_shape import Source
from effc.kernels.half_sums import half_sums
from effc.kernels.lanes import pick
from effc.kernels.register_tile import (
    Accumulators,
    Listed,
    Operand,
    Tile,
    contract,
    split_widths,
    weights_ahead,
)
from effc.kernels.shuffles import store_transposed
from effc.kernels.sparse_pack import TILE_OVERHEAD, SparseTiles, cut_evenly
from effc.kernels.sparse_positions import Positions, SparseConfig, row_widths

__all__ = ["SparseProduct"]

Expr = Any


class SparseProduct:
    """Builds the stage function; holds the sizes that its parts share."""

    def __init__(
        self,
        problem: ConvProblem,
        source: Source,
        knobs: SparseConfig,
        target: Target,
        source_elements: int,
    ) -> None:
        shape, arithmetic, results = problem.shape, problem.arithmetic, problem.results
        self.shape, self.source, self.knobs, self.target = shape, source, knobs, target
        self.arithmetic, self.results = arithmetic, results
        self.has_bias, self.source_elements = problem.bias is not None, source_elements
        self.narrowest = arithmetic.narrowest(target)
        valid = knobs.rows % results.group == 0 and not (knobs.sort and results.group > 1)
        if not valid or (knobs.height == 0 and not knobs.pack and not source.flat):
            raise InternalError("invalid configuration", where="conv_sparse", got=knobs)
        self.positions = Positions.of(shape, source, knobs)
        self.padded = knobs.height > 0 and source.copied
        self.tiles = -(-shape.cout // knobs.rows)
        self.splits = min(knobs.splits, self.tiles)
        self.full_blocks, self.blocks, self.bands = 0, 1, 1
        if knobs.panels:
            self.full_blocks = -(-self.positions.full[1] // knobs.panels)
            self.blocks = self.full_blocks + (1 if self.positions.rest[1] else 0)
            self.bands = self.positions.full[0] + (1 if self.positions.rest[0] else 0)
        most_panels = knobs.panels or -(-self.positions.width // knobs.columns)
        self.units = shape.batch * shape.groups * self.splits * self.bands * self.blocks
        self.most_entries = self.tiles * -(-shape.cin // knobs.depth) * len(source.taps)
        most_slots = self.most_entries // self.tiles
        panel = most_slots * knobs.depth * knobs.columns * most_panels if knobs.pack else 0
        slack = panel_slack(shape, source, knobs.columns, knobs.lanes)[1] if knobs.pack else 0
        self.sums_at = -(-(panel + slack) // 16) * 16
        sums = knobs.rows * max(knobs.height, 1) * knobs.columns
        room = arithmetic.lanes(target) ** 2
        self.room_at = self.sums_at + sums
        self.wide_at = self.sums_at + (sums + room if knobs.along == "channel" else 0)
        self.widened = self.arithmetic.stored != self.arithmetic.dtype
        wide = most_slots * knobs.depth * knobs.rows if self.widened else 0
        self.scratch_elements = self.wide_at + wide

    # -- data ---------------------------------------------------------------------------------

    def weights(self, packed: SparseTiles) -> dict[str, np.ndarray]:
        """The stage's constants by parameter name."""
        knobs, source = self.knobs, self.source
        taps = np.array(source.taps, np.int64)
        found = {"w": packed.values.reshape(-1), "starts": packed.starts}
        reach = packed.channels * np.int64(source.channel) + taps[packed.taps]
        if not knobs.pack:
            found["offsets"] = reach.astype(np.int32)
        else:
            which = [slots[2] for slots in packed.slots]
            found["offsets"] = (np.concatenate(which) * (knobs.depth * knobs.columns)).astype(
                np.int32
            )
            sources = [c * source.channel + taps[t] for c, t, _ in packed.slots]
            ends = np.cumsum([0, *(s.size for s in sources)]) + len(sources) + 1
            found["slots"] = np.concatenate([ends, *sources]).astype(np.int32)
        if self.splits > 1:
            found["cuts"] = np.array(self.cuts(packed), np.int32)
        return found

    def cuts(self, packed: SparseTiles) -> list[int]:
        """First tile of filters of each split, and the end."""
        return cut_evenly(packed.starts, self.tiles, self.splits, TILE_OVERHEAD)

    def bounds(self, packed: SparseTiles) -> tuple[int, ...] | None:
        """Cumulative work per unit; ``None`` if all units do the same."""
        if self.splits * self.shape.groups == 1:
            return None
        entries = (np.diff(packed.starts) + TILE_OVERHEAD).reshape(self.shape.groups, self.tiles)
        cuts = self.cuts(packed)
        parts = [entries[:, a:b].sum(axis=1) for a, b in pairwise(cuts)]
        of_image = np.stack(parts, axis=1).reshape(-1)  # [groups * splits]
        work = np.repeat(np.tile(of_image, self.shape.batch), self.bands * self.blocks)
        return tuple(int(b) for b in np.concatenate([[0], np.cumsum(work)]))

    @property
    def scratch_bytes(self) -> int:
        return self.scratch_elements * self.arithmetic.nbytes

    # -- code -----------------------------------------------------------------------------------

    def function(self) -> tirx.PrimFunc:
        """The stage function; parameters: source, ``weights``, bias, epilogue, y, scratch."""
        shape, knobs, dtype = self.shape, self.knobs, self.arithmetic.dtype
        cout = shape.groups * shape.cout
        entries = shape.groups * self.most_entries
        params: list[Param] = [
            ("x", dtype, self.source_elements),
            ("w", self.arithmetic.stored, entries * knobs.depth * knobs.rows),
            ("starts", "int32", shape.groups * self.tiles + 1),
            ("offsets", "int32", entries),
        ]
        if knobs.pack:
            params.append(("slots", "int32", entries + shape.groups + 1))
        if self.splits > 1:
            params.append(("cuts", "int32", self.splits + 1))
        if knobs.sort:
            params.append(("order", "int32", cout))
        if self.has_bias:
            parts = 2 if isinstance(self.arithmetic, Float16) else 1
            params.append(("bias", self.arithmetic.sums, parts * cout))
        params += self.results.params()
        if self.scratch_elements:
            params.append(("scratch", dtype, self.scratch_elements))

        def body(*args: Any) -> None:
            *buffers, begin, end = args
            self._bind_buffers(dict(zip((name for name, *_ in params), buffers, strict=True)))
            with loop(begin, end) as unit:
                self._unit(unit)

        return stage_func(params, body)

    def _bind_buffers(self, named: dict[str, Any]) -> None:
        self.x, self.w = named["x"], named["w"]
        self.starts, self.offsets = named["starts"], named["offsets"]
        self.slots: Any = named.get("slots")
        self.cut_at: Any = named.get("cuts")
        self.bias, self.scratch = named.get("bias"), named.get("scratch")
        self.order: Any = named.get("order")
        self.outputs = [named[name] for name, *_ in self.results.params()]

    def _unit(self, unit: Expr) -> None:
        block = bind(unit % self.blocks)
        rest = bind(unit // self.blocks)
        band = bind(rest % self.bands)
        rest = bind(rest // self.bands)
        split = bind(rest % self.splits)
        image = bind(rest // self.splits)  # batch * groups + group
        self.group = bind(image % self.shape.groups)
        self.batch = bind(image // self.shape.groups)
        self.base = bind(image * (self.shape.cin * self.source.channel))
        self.first, self.last = T.int32(0), T.int32(self.tiles)
        if self.cut_at is not None:
            self.first, self.last = bind(self.cut_at[split]), bind(self.cut_at[split + 1])
        if not self.knobs.panels:
            self._everywhere()
            return
        full, rest_of, tile = self.positions.full, self.positions.rest, self.positions.tile
        vertical = _kinds([(band < full[0], tile[0]), (None, rest_of[0])], full[0], rest_of[0])
        across = _kinds(
            [(block < self.full_blocks, tile[1]), (None, rest_of[1])], full[1], rest_of[1]
        )
        _either(
            vertical,
            lambda rows: _either(across, lambda columns: self._block(band, block, rows, columns)),
        )

    def _block(self, band: Expr, block: Expr, rows: int, columns: int) -> None:
        """All tiles of filters of this split over one block of positions."""
        knobs, full = self.knobs, self.positions.full[1]
        count: Expr = 1
        first: Expr = full * knobs.columns
        if columns == knobs.columns:
            first, count = bind(block * (knobs.panels * columns)), knobs.panels
            if full % knobs.panels:
                count = bind(T.min(knobs.panels, full - block * knobs.panels))
        top = bind(band * self.positions.tile[0])
        if knobs.pack:
            self._pack(first, T.int32(0), count, columns)

        def tile(number: Expr, filters: int) -> None:
            self._widen(number)
            if knobs.fetch:
                self._fetch_next(number, first)
            with loop(count) as panel:
                left = bind(first + panel * columns)
                self._tile(number, filters, top, left, panel, rows, columns)

        self._tiles(tile)

    def _everywhere(self) -> None:
        """All tiles of filters of this split, each over all positions."""
        positions = self.positions
        rows, columns = (
            [(0, full, size), (full, 1, rest)] if rest else [(0, full, size)]
            for full, rest, size in zip(positions.full, positions.rest, positions.tile, strict=True)
        )
        if self.knobs.pack:
            for first, count, width in columns:
                start = first * self.knobs.columns
                self._pack(T.int32(start), T.int32(first), count, width)

        def tile(number: Expr, filters: int) -> None:
            self._widen(number)
            for (band, bands, height), (block, blocks, width) in product(rows, columns):
                with loop(bands) as i, loop(blocks) as j:
                    top = bind(i * height + band * positions.tile[0])
                    left = bind(j * width + block * positions.tile[1])
                    self._tile(number, filters, top, left, bind(j + block), height, width)

        self._tiles(tile)

    def _tiles(self, tile: Callable[[Expr, int], None]) -> None:
        """``tile(number, filters)`` for the tiles of filters of this split."""
        whole, left = divmod(self.shape.cout, self.knobs.rows)
        with loop(self.first, T.min(self.last, whole) if left else self.last) as number:
            tile(number, self.knobs.rows)
        if left:
            with T.If(self.last > whole), T.Then():
                tile(T.int32(whole), left)

    def _widen(self, number: Expr) -> None:
        """Put the weights of a tile into scratch, if they are float16."""
        if self.widened:
            row = bind(self.group * self.tiles + number)
            size = self.knobs.depth * self.knobs.rows
            start, end = self.starts[row] * size, self.starts[row + 1] * size
            lanes = self.arithmetic.lanes(self.target)
            first = bind(start)
            widen(self.w, first, bind(end - first), self.scratch, self.wide_at, lanes)

    def _pack(self, first: Expr, number: Expr, count: Expr, columns: int) -> None:
        """Panels from position ``first`` on, one row per used (kernel position, channel)."""
        knobs = self.knobs
        begin, end = bind(self.slots[self.group]), bind(self.slots[self.group + 1])
        self.panel_size = bind((end - begin) * (knobs.depth * knobs.columns))
        with loop(count) as panel:
            position = bind(first + panel * columns)
            to = bind((panel + number) * self.panel_size)
            copy = pack_row(
                self.shape, self.source, self.x, position, self.scratch, columns, knobs.lanes
            )
            with loop(begin, end) as slot:
                start = bind(self.base + self.slots[slot])
                row = bind(to + (slot - begin) * (knobs.depth * knobs.columns))
                for j in range(knobs.depth):
                    copy(bind(start + j * self.source.channel), bind(row + j * knobs.columns))

    def _tile(
        self,
        number: Expr,
        filters: int,
        top: Expr,
        left: Expr,
        panel: Expr,
        rows: int,
        columns: int,
    ) -> None:
        """One register tile: ``filters`` filters at ``rows`` x ``columns`` positions."""
        knobs, positions = self.knobs, self.positions
        space = knobs.along == "space"
        row = bind(self.group * self.tiles + number)
        weights = Operand(self.w, T.int32(0), knobs.rows, weights=True)
        if self.widened:
            base = bind(self.wide_at - self.starts[row] * (knobs.depth * knobs.rows))
            weights = replace(weights, buffer=self.scratch, base=base)
        if knobs.pack:
            data = Operand(self.scratch, bind(panel * self.panel_size), knobs.columns)
        else:
            base = bind(self.base + top * positions.pitch + left)
            across = sum(self._widths(columns)) if space else columns
            data = Operand(self.x, base, self.source.channel, positions.runs(rows, across))
        entries = Listed(
            self.offsets,
            bind(self.starts[row]),
            bind(self.starts[row + 1]),
            knobs.depth,
            knobs.unroll if filters == knobs.rows else 1,
            space,
            0 if self.widened else weights_ahead(self.target),
        )
        channel = bind(self.group * self.shape.cout + number * knobs.rows)
        position = bind(top * positions.width + left)
        if knobs.fetch:
            self._fetch_results(channel, position, filters, columns)
        if isinstance(self.arithmetic, Float16):
            self._half(entries, weights, data, channel, position, rows, columns, filters)
        elif space:
            widths = self._widths(columns) * rows
            acc = Accumulators(Tile(filters, widths), self.arithmetic, self.target)
            for i, v in product(range(filters), range(len(widths))):
                acc.set(i, v, splat(self._bias(channel + i), acc.lanes[v]))
            contract(acc, entries, weights, data, self.target, self.arithmetic)
            self._store_rows(acc, channel, position, rows, columns)
        else:
            shape = Tile(rows * columns, split_widths(filters, knobs.lanes))
            acc = Accumulators(shape, self.arithmetic, self.target)
            for i, (v, (start, lanes)) in product(
                range(rows * columns), enumerate(acc.tile.vectors)
            ):
                acc.set(i, v, self._biases(channel + start, lanes))
            contract(acc, entries, data, weights, self.target, self.arithmetic)
            self._store_columns(acc, channel, position, rows, columns, filters)

    def _half(
        self,
        entries: Listed,
        weights: Operand,
        data: Operand,
        channel: Expr,
        position: Expr,
        rows: int,
        columns: int,
        filters: int,
    ) -> None:
        """A register tile of float16 sums, see ``half_sums``."""
        assert isinstance(self.arithmetic, Float16)
        knobs, cout = self.knobs, self.shape.groups * self.shape.cout
        space = knobs.along == "space"
        widths = self._widths(columns) * rows
        tile = (
            Tile(filters, widths)
            if space
            else (Tile(rows * columns, split_widths(filters, knobs.lanes)))
        )

        biases: Any = self.bias

        def bias(i: int, v: int, part: int) -> Expr:
            start, lanes = tile.vectors[v]
            if space:
                return splat(bind(biases[channel + (i + part * cout)]), lanes)
            return vload(biases, channel + (start + part * cout), lanes)

        acc = Accumulators(tile, self.arithmetic, self.target)
        half_sums(
            tile,
            entries,
            *((weights, data) if space else (data, weights)),
            self.target,
            self.arithmetic,
            None if self.bias is None else bias,
            acc.set,
        )
        if space:
            self._store_rows(acc, channel, position, rows, columns)
        else:
            self._store_columns(acc, channel, position, rows, columns, filters)

    def _fetch_next(self, number: Expr, first: Expr) -> None:
        """A tile's share of the rows that the next block of positions reads."""
        share = -(-self.shape.cin // self.tiles)
        run = self.knobs.panels * self.knobs.columns
        at = bind(self.base + number * (share * self.source.channel) + first + run)
        for i in range(share):
            prefetch(self.x, at + i * self.source.channel, run, write=False)

    def _fetch_results(self, channel: Expr, position: Expr, filters: int, columns: int) -> None:
        """Where a register tile's results go, and the operands of the epilogue beside them."""
        *extra, y = self.outputs
        for i in range(0, filters, self.results.group):
            at = bind(self.results.offset(self.batch, self._filter(channel + i), position))
            prefetch(y, at, columns, write=True)
            for index in self.results.epilogue.streamed:
                prefetch(extra[index], at, columns, write=False)

    def _widths(self, columns: int) -> tuple[int, ...]:
        return row_widths(columns, self.knobs.lanes, self.padded, self.narrowest)

    def _bias(self, channel: Expr) -> Expr:
        return bind(self.bias[channel]) if self.bias is not None else self.arithmetic.zero

    def _biases(self, channel: Expr, lanes: int) -> Expr:
        if self.bias is None:
            return splat(self.arithmetic.zero, lanes)
        return vload(self.bias, channel, lanes)

    def _store_rows(
        self, acc: Accumulators, channel: Expr, position: Expr, rows: int, columns: int
    ) -> None:
        """Vectors along positions go straight to the result."""
        across, group = len(acc.tile.widths) // rows, self.results.group
        channels = [self._filter(channel + i) for i in range(0, acc.tile.rows, group)]
        for i, (v, (start, lanes)) in product(range(len(channels)), enumerate(acc.tile.vectors)):
            row, first = v // across, start - acc.tile.starts[v // across * across]
            place = position + (row * self.positions.width + first)
            sums = [acc.get(i * group + j, v) for j in range(group)]
            at = 0
            for valid in split_widths(min(lanes, columns - first), lanes, self.narrowest):
                width = max(valid, self.narrowest)
                parts = [pick(value, range(at, at + width), acc.lanes[v]) for value in sums]
                self._store(parts, channels[i], place + at, width, valid)
                at += valid

    def _store_columns(
        self,
        acc: Accumulators,
        channel: Expr,
        position: Expr,
        rows: int,
        columns: int,
        filters: int,
    ) -> None:
        """Vectors along filters are transposed in scratch."""
        for i in range(acc.tile.rows):
            for v, (start, lanes) in enumerate(acc.tile.vectors):
                vstore(self.scratch, self.sums_at + i * filters + start, acc.get(i, v), lanes)
        # Whole rows follow each other in the result.
        parts, length = (rows, columns) if columns < self.positions.width else (1, rows * columns)
        for part in range(parts):
            store_transposed(
                self.scratch,
                T.int32(self.sums_at + part * length * filters),
                filters,
                length,
                filters,
                self.room_at,
                self.arithmetic.lanes(self.target),
                lambda rows, c, p, lanes, valid, part=part: self._store(  # type: ignore[misc]
                    rows,
                    self._filter(channel + c),
                    position + part * self.positions.width + p,
                    lanes,
                    valid,
                ),
                self.results.group,
            )

    def _filter(self, channel: Expr) -> Expr:
        """Output channel of a filter, given its place in the packed weights."""
        return bind(channel if self.order is None else self.order[channel])

    def _store(
        self, sums: list[Expr], channel: Expr, position: Expr, lanes: int, valid: int
    ) -> None:
        """Store at an output channel."""
        at = (self.batch, channel, position)
        self.results.store(sums, at, self.outputs, lanes, valid)


def _kinds(kinds: list[tuple[Expr, int]], full: int, rest: int) -> list[tuple[Expr, int]]:
    """Which of (full, rest) exist."""
    return [kind for kind, present in zip(kinds, (full, rest), strict=True) if present]


def _either(kinds: list[tuple[Expr, int]], emit: Callable[[int], None]) -> None:
    """``emit(size)`` under the condition that tells the kinds apart."""
    if len(kinds) == 1:
        emit(kinds[0][1])
        return
    (condition, size), (_, other) = kinds
    with T.If(condition):
        with T.Then():
            emit(size)
        with T.Else():
            emit(other)
