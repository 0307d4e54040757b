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
from functools import partial
from itertools import product
from typing import Any

from tvm import tirx

from effc.kernels.arithmetic import Float16
from effc.kernels.builder import (
    Param,
    T,
    bind,
    loop,
    prefetch,
    splat,
    stage_func,
    tiles,
    vload,
    vstore,
    whole_or_rest,
)
from effc.kernels.conv_pack import pack_row, widen
from effc.kernels.half_sums import half_sums, tile_bias
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
from effc.kernels.sparse_conv_layout import SparseLayout
from effc.kernels.sparse_positions import row_widths

__all__ = ["SparseProduct"]

Expr = Any


class SparseProduct(SparseLayout):
    """Builds the stage function."""

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

        def across(rows: int) -> None:
            emit = partial(self._block, band, block, rows)
            whole_or_rest(
                block, self.full_blocks, rest_of[1], lambda: emit(tile[1]), lambda: emit(rest_of[1])
            )

        whole_or_rest(
            band, full[0], rest_of[0], lambda: across(tile[0]), lambda: across(rest_of[0])
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
        tiles(self.first, self.last, self.shape.cout, self.knobs.rows, tile)

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
        bias = tile_bias(self.bias, tile, channel, cout, along_space=space)
        acc = Accumulators(tile, self.arithmetic, self.target)
        half_sums(
            tile,
            entries,
            *((weights, data) if space else (data, weights)),
            self.target,
            self.arithmetic,
            bias,
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
