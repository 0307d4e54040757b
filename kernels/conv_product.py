"""The product stage of a direct convolution, see ``conv``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx

from effc.kernels.arithmetic import Float16
from effc.kernels.builder import T, bind, loop, splat, stage_func, vload, vstore, whole_or_rest
from effc.kernels.conv_layout import ProductLayout
from effc.kernels.conv_pack import pack_panel, widen
from effc.kernels.half_sums import half_sums, tile_bias
from effc.kernels.quad_pairs import contract_pairs
from effc.kernels.register_tile import (
    Accumulators,
    Dense,
    Operand,
    Tile,
    contract,
    pin,
    split_widths,
)
from effc.kernels.shuffles import store_transposed

__all__ = ["Product"]

Expr = Any


class Product(ProductLayout):
    """Builds the stage function."""

    def function(self) -> tirx.PrimFunc:
        """The stage function ``(source, w, [taps], [bias], epilogue..., y, scratch, int, int)``."""
        shape = self.shape
        cout = shape.groups * shape.cout
        dtype = self.arithmetic.dtype
        weights = ("w", self.arithmetic.stored, cout * self.weight_steps)
        params = [("x", dtype, self.source_elements), weights]
        if self.reads_taps:
            params.append(("taps", "int32", len(self.source.taps)))
        if self.has_bias:
            parts = 2 if isinstance(self.arithmetic, Float16) else 1
            params.append(("bias", self.arithmetic.sums, parts * cout))
        params += self.results.params()
        params.append(("scratch", dtype, self.scratch_elements))

        def body(*args: Any) -> None:
            *buffers, begin, self.end = args
            self._bind_buffers(buffers)
            with loop(begin, self.end) as unit:
                self._unit(unit)

        return stage_func(params, body)

    def _bind_buffers(self, buffers: list[Any]) -> None:
        self.x, self.w, *rest = buffers
        self.taps = rest.pop(0) if self.reads_taps else None
        self.bias = rest.pop(0) if self.has_bias else None
        *self.outputs, self.scratch = rest

    def _unit(self, unit: Expr) -> None:
        block = bind(unit % self.blocks)
        split = bind(unit // self.blocks % self.splits)
        image = bind(unit // (self.blocks * self.splits))  # batch * groups + group
        self.group = bind(image % self.shape.groups)
        self.batch = bind(image // self.shape.groups)
        self.base = bind(image * (self.shape.cin * self.source.channel))
        self.first_tile = bind(split * self.tiles_per_split)
        self.last_tile = bind(T.min(self.first_tile + self.tiles_per_split, self.full_tiles))
        self.split = split
        whole_or_rest(
            block,
            self.full_blocks,
            self.rest_columns,
            lambda: self._block(block, self.knobs.columns),
            lambda: self._block(block, self.rest_columns),
        )

    def _block(self, block: Expr, columns: int) -> None:
        """All channel tiles of this split over one block of panels of ``columns`` positions."""
        knobs = self.knobs
        if columns == knobs.columns:
            first = bind(block * (knobs.panels * columns))
            count: Expr = knobs.panels
            if self.full_panels % knobs.panels:
                count = bind(T.min(knobs.panels, self.full_panels - block * knobs.panels))
        else:
            first, count = self.full_panels * knobs.columns, 1
        if isinstance(self.arithmetic, Float16):
            self._pack(0, first, count, columns)
            self._tiles(lambda tile, channels: self._half(tile, channels, first, count, columns))
            if self.spilled:
                self._tiles(
                    lambda tile, channels: self._store_sums(tile, channels, first, count, columns)
                )
            return
        if not self.spilled:
            self._pack(0, first, count, columns)
            self._tiles(lambda tile, channels: self._finish(tile, channels, first, count, columns))
            return
        self._tiles(lambda tile, channels: self._start_sums(tile, channels, count, columns))
        with loop(self.passes) as number:
            self._pack(number, first, count, columns)
            self._tiles(
                lambda tile, channels: self._add(tile, channels, number, first, count, columns)
            )
        self._tiles(lambda tile, channels: self._store_sums(tile, channels, first, count, columns))

    def _tiles(self, emit: Any) -> None:
        """``emit(tile number, channels)`` for the tiles of this split."""
        with loop(self.first_tile, self.last_tile) as tile:
            emit(tile, self.knobs.channels)
        if self.rest_channels:
            if self.splits == 1:
                emit(self.full_tiles, self.rest_channels)
            else:
                with T.If(self.split == self.splits - 1), T.Then():
                    emit(self.full_tiles, self.rest_channels)

    # -- operands ---------------------------------------------------------------------------

    def _pack(self, number: Expr, first: Expr, count: Expr, columns: int) -> None:
        if not self.knobs.pack:
            return
        base = self.base + number * (self.knobs.block * self.source.channel)
        with loop(count) as panel:
            pack_panel(
                self.shape,
                self.source,
                self.x,
                self.taps,
                base,
                bind(first + panel * columns),
                self.scratch,
                bind(panel * (self.depth * columns)),
                self.knobs.block,
                columns,
                self.knobs.lanes,
            )

    def _positions(self, number: Expr, first: Expr, panel: Expr, columns: int) -> Operand:
        """The activations of one panel in one pass."""
        if self.knobs.pack:
            return Operand(self.scratch, panel * (self.depth * columns), columns)
        skipped = number * (self.knobs.block * self.source.channel)
        start = self.base + skipped + self.source.taps[0] + first + panel * columns
        return Operand(self.x, bind(start), self.source.channel)

    def _pinned(self, operand: Operand, index: Expr) -> Operand:
        if not self.arithmetic.pinned:
            return operand
        return replace(operand, base=bind(operand.base + pin(index, self.end)))

    def _weights(self, tile: Expr, channels: int, number: Expr) -> Operand:
        """The weights of one channel tile in one pass."""
        if self.widened:
            return Operand(self.scratch, T.int32(self.wide_at), channels, weights=True)
        return Operand(self.w, self._weights_at(tile, channels, number), channels, weights=True)

    def _weights_at(self, tile: Expr, channels: int, number: Expr) -> Expr:
        start = (self.group * self.shape.cout + tile * self.knobs.channels) * self.weight_steps
        return bind(start + number * (self.depth * channels))

    def _widen(self, tile: Expr, channels: int, number: Expr) -> None:
        """Put the weights of one channel tile in one pass into scratch, if they are float16."""
        if self.widened:
            start = self._weights_at(tile, channels, number)
            lanes = self.arithmetic.lanes(self.target)
            widen(self.w, start, self.depth * channels, self.scratch, self.wide_at, lanes)

    def _tile(self, channels: int, columns: int) -> Tile:
        rows, across = (channels, columns) if self.knobs.along == "space" else (columns, channels)
        widths = split_widths(across, self.knobs.lanes, self.narrowest)
        # A packed panel's row may be read in full vectors only if the row itself has them.
        return Tile(rows, widths)

    def _multiply(
        self,
        acc: Accumulators,
        tile: Expr,
        channels: int,
        number: Expr,
        panel: Expr,
        positions: Operand,
    ) -> None:
        pair = self._operands(tile, channels, number, panel, positions)
        reduction = self._reduction(acc.tile)
        if self.arithmetic.steps > 1:
            contract_pairs(acc, reduction, *pair)
        else:
            contract(acc, reduction, *pair, self.target, self.arithmetic)

    def _operands(
        self, tile: Expr, channels: int, number: Expr, panel: Expr, positions: Operand
    ) -> tuple[Operand, Operand]:
        weights = self._pinned(self._weights(tile, channels, number), panel)
        positions = self._pinned(positions, tile)
        return (weights, positions) if self.knobs.along == "space" else (positions, weights)

    def _reduction(self, tile: Tile) -> Dense:
        # Remainder tiles run rarely: less code for them.
        full = tile.columns * tile.rows == self.knobs.channels * self.knobs.columns
        return Dense(self.depth, self.knobs.unroll if full else min(self.knobs.unroll, 2))

    # -- float16: see half_sums ----------------------------------------------------------------

    def _half(self, tile: Expr, channels: int, first: Expr, count: Expr, columns: int) -> None:
        """A tile over the panels of a block: results stored, or in scratch if spilled."""
        assert isinstance(self.arithmetic, Float16)
        shape = self._tile(channels, columns)
        channel = bind(self.group * self.shape.cout + tile * self.knobs.channels)
        cout, along_space = self.shape.groups * self.shape.cout, self.knobs.along == "space"
        bias = tile_bias(self.bias, shape, channel, cout, along_space=along_space)
        with loop(count) as panel:
            positions = self._positions(0, first, panel, columns)
            position = bind(first + panel * columns)
            at = bind(self._sums(tile, panel, channels, columns))

            def store(i: int, v: int, value: Expr) -> None:
                start, lanes = shape.vectors[v]
                if self.spilled:
                    vstore(self.scratch, at + (i * shape.columns + start), value, lanes)
                else:
                    self._store([value], channel + i, position + start, lanes, lanes)

            half_sums(
                shape,
                self._reduction(shape),
                *self._operands(tile, channels, 0, panel, positions),
                self.target,
                self.arithmetic,
                bias,
                store,
            )

    # -- one pass: results straight from registers ---------------------------------------------

    def _finish(self, tile: Expr, channels: int, first: Expr, count: Expr, columns: int) -> None:
        channel = bind(self.group * self.shape.cout + tile * self.knobs.channels)
        self._widen(tile, channels, 0)
        with loop(count) as panel:
            acc = Accumulators(self._tile(channels, columns), self.arithmetic, self.target)
            for i in range(channels):
                value = self._bias(channel + i)
                for v, lanes in enumerate(acc.lanes):
                    acc.set(i, v, splat(value, lanes))
            self._multiply(acc, tile, channels, 0, panel, self._positions(0, first, panel, columns))
            position = bind(first + panel * columns)
            group = self.results.group
            for i in range(0, channels, group):
                for v, (start, valid) in enumerate(acc.tile.vectors):
                    rows = [acc.get(i + j, v) for j in range(group)]
                    self._store(rows, channel + i, position + start, acc.lanes[v], valid)

    def _bias(self, channel: Expr) -> Expr:
        return bind(self.bias[channel]) if self.bias is not None else self.arithmetic.zero

    def _store(
        self, sums: list[Expr], channel: Expr, position: Expr, lanes: int, valid: int
    ) -> None:
        at = (self.batch, channel, position)
        self.results.store(sums, at, self.outputs, lanes, valid)

    # -- several passes, or vectors along channels: sums in scratch ----------------------------

    def _sums(self, tile: Expr, panel: Expr, channels: int, columns: int) -> Expr:
        """First element of a tile's sums: ``[channels][columns]``, or transposed."""
        room = self.knobs.channels * self.pitch(self.knobs.columns) * self.knobs.panels
        pitch = self.pitch(columns) if self.knobs.along == "space" else columns
        return self.sums_at + (tile - self.first_tile) * room + panel * (channels * pitch)

    def _places(self, acc: Accumulators, at: Expr) -> list[tuple[int, int, Expr]]:
        """(row, vector, element of scratch) of a tile's sums that begin at ``at``."""
        pitch = sum(acc.lanes)
        return [
            (i, v, at + i * pitch + start)
            for i in range(acc.tile.rows)
            for v, start in enumerate(acc.tile.starts)
        ]

    def _start_sums(self, tile: Expr, channels: int, count: Expr, columns: int) -> None:
        acc = Accumulators(self._tile(channels, columns), self.arithmetic, self.target)
        channel = bind(self.group * self.shape.cout + tile * self.knobs.channels)
        with loop(count) as panel:
            at = bind(self._sums(tile, panel, channels, columns))
            for i, v, place in self._places(acc, at):
                lanes = acc.lanes[v]
                if self.knobs.along == "space":
                    value = splat(self._bias(channel + i), lanes)
                elif self.bias is not None:
                    value = vload(self.bias, channel + acc.tile.starts[v], lanes)
                else:
                    value = splat(self.arithmetic.zero, lanes)
                vstore(self.scratch, place, value, lanes)

    def _add(
        self, tile: Expr, channels: int, number: Expr, first: Expr, count: Expr, columns: int
    ) -> None:
        self._widen(tile, channels, number)
        with loop(count) as panel:
            acc = Accumulators(self._tile(channels, columns), self.arithmetic, self.target)
            at = bind(self._sums(tile, panel, channels, columns))
            for i, v, place in self._places(acc, at):
                acc.set(i, v, vload(self.scratch, place, acc.lanes[v]))
            positions = self._positions(number, first, panel, columns)
            self._multiply(acc, tile, channels, number, panel, positions)
            for i, v, place in self._places(acc, at):
                vstore(self.scratch, place, acc.get(i, v), acc.lanes[v])

    def _store_sums(
        self, tile: Expr, channels: int, first: Expr, count: Expr, columns: int
    ) -> None:
        channel = bind(self.group * self.shape.cout + tile * self.knobs.channels)
        if self.knobs.along == "channel":
            self._store_transposed(tile, channel, channels, first, count, columns)
            return
        lanes, group, pitch = (
            self.arithmetic.lanes(self.target),
            self.results.group,
            self.pitch(columns),
        )

        def store(at: Expr, i: Expr, position: Expr, width: int, valid: int) -> None:
            rows = [vload(self.scratch, at + j * pitch, width) for j in range(group)]
            self._store(rows, channel + i * group, position, width, valid)

        with loop(count) as panel, loop(channels // group) as i:
            at = bind(self._sums(tile, panel, channels, columns) + i * (group * pitch))
            position = bind(first + panel * columns)
            if columns // lanes:
                with loop(columns // lanes) as v:
                    store(at + v * lanes, i, position + v * lanes, lanes, lanes)
            offset = columns - columns % lanes
            for valid in split_widths(columns % lanes, lanes, self.narrowest):
                width = max(valid, self.narrowest)
                store(at + offset, i, position + offset, width, valid)
                offset += valid

    def _store_transposed(
        self, tile: Expr, channel: Expr, channels: int, first: Expr, count: Expr, columns: int
    ) -> None:
        # The sums of all panels follow each other: one run of positions where it is static.
        static = isinstance(count, int)
        with loop(1 if static else count) as panel:
            position = bind(first + panel * columns)
            store_transposed(
                self.scratch,
                bind(self._sums(tile, panel, channels, columns)),
                channels,
                columns * count if static else columns,
                channels,
                self.sums_at + self.sums,
                self.knobs.lanes,
                lambda rows, c, p, lanes, valid: self._store(
                    rows, channel + c, position + p, lanes, valid
                ),
                self.results.group,
            )
