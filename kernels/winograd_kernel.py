"""The stages of a Winograd convolution, see ``winograd``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from effc.devices.target import Target
from effc.errors import InternalError
from effc.kernels.builder import T, bind, loop, splat, stage_func, vload, vstore
from effc.kernels.conv_shape import ConvShape
from effc.kernels.epilogue import Epilogue
from effc.kernels.register_tile import (
    Accumulators,
    Dense,
    Operand,
    Tile,
    contract,
    split_widths,
)
from effc.kernels.shuffles import load_strided, store_transposed
from effc.kernels.template import Config
from effc.kernels.winograd_matrices import matrices, transform

__all__ = ["WinogradConfig", "WinogradKernel"]

Expr = Any


@dataclass(frozen=True)
class WinogradConfig:
    """Knobs.

    Attributes:
        m: Outputs per tile and axis: 2 or 4.
        strip: Rows of tiles per unit, a divisor of their number.
        lanes: Elements of one vector.
        channels: Output channels of a register tile.
        columns: Winograd tiles (positions of the product) of a register tile.
        shared: Transform the input in a stage of its own into a workspace; otherwise each
            unit transforms its strip into scratch.
        splits: Units that share a strip, each with some of the output channels.
        unroll: Reduction steps per loop iteration.
    """

    m: int
    strip: int
    lanes: int
    channels: int
    columns: int
    shared: bool
    splits: int
    unroll: int

    @staticmethod
    def of(config: Config) -> WinogradConfig:
        return WinogradConfig(**dict(config))  # type: ignore[arg-type]


class WinogradKernel:
    """Sizes and code of both stages.

    Memory: ``V[k][cin][pitch]`` the transformed input of a strip (``k`` in ``(m+2)^2``),
    ``M[k][tile][channels]`` the products, ``S[row][column][channels]`` the outputs of a
    strip before transposition, ``Z[m+2][z_pitch]`` rows of one channel between the two
    halves of the input transform.
    """

    def __init__(
        self,
        shape: ConvShape,
        knobs: WinogradConfig,
        target: Target,
        epilogue: Epilogue,
        has_bias: bool,
    ) -> None:
        self.shape, self.knobs, self.target = shape, knobs, target
        self.epilogue, self.has_bias = epilogue, has_bias
        m = knobs.m
        self.a, _, self.b = matrices(m)
        self.size = m + 2
        self.tile_rows, self.tile_columns = (-(-n // m) for n in shape.output)
        if self.tile_rows % knobs.strip or (knobs.splits > 1 and not knobs.shared):
            raise InternalError("invalid configuration", where="winograd", got=knobs)
        self.strips = self.tile_rows // knobs.strip
        self.tiles = knobs.strip * self.tile_columns
        # Tiles of a row are transformed in whole vectors that may run over.
        self.run = min(knobs.lanes, 1 << (self.tile_columns - 1).bit_length())
        across = -(-self.tile_columns // self.run) * self.run
        self.pitch = _round(self.tiles - self.tile_columns + across, 16)
        self.z_pitch = _round(max(m * across + m, shape.output[1] + 2) + knobs.lanes, 16)
        self.v_size = self.size**2 * shape.cin * self.pitch
        self.step = self.tiles * knobs.channels + 16  # from one product matrix to the next
        self.width = self.tile_columns * m  # outputs of a strip's row, some beyond the edge
        self.full_tiles, self.rest_channels = divmod(shape.cout, knobs.channels)
        count = self.full_tiles + (1 if self.rest_channels else 0)
        self.tiles_per_split = -(-count // min(knobs.splits, count))
        self.splits = -(-count // self.tiles_per_split)
        self.v_at = 0 if knobs.shared else _round(self.size * self.z_pitch, 16)
        self.m_at = self.v_at + (0 if knobs.shared else self.v_size)
        self.s_at = self.m_at + self.size**2 * self.step
        self.room_at = self.s_at + knobs.strip * m * self.width * knobs.channels

    @property
    def units(self) -> int:
        return self.shape.batch * self.strips * self.splits

    @property
    def scratch_bytes(self) -> int:
        return 4 * (self.room_at + self.knobs.lanes**2)

    @property
    def transform_units(self) -> int:
        return self.shape.batch * self.strips * self.shape.cin

    @property
    def transform_scratch_bytes(self) -> int:
        return 4 * self.size * self.z_pitch

    @property
    def workspace_elements(self) -> int:
        """Size of ``V`` for all strips of the batch."""
        return self.shape.batch * self.strips * self.v_size

    # -- functions ------------------------------------------------------------------------------

    def transform_function(self) -> tirx.PrimFunc:
        """``(x, v, scratch)``: one unit per (batch, strip, input channel)."""
        shape = self.shape
        params = [
            ("x", "float32", shape.batch * shape.cin * shape.input_positions),
            ("v", "float32", self.workspace_elements),
            ("scratch", "float32", self.transform_scratch_bytes // 4),
        ]

        def body(x: Any, v: Any, z: Any, begin: Expr, end: Expr) -> None:
            self._clear(z)
            with loop(begin, end) as unit:
                channel = bind(tirx.truncmod(unit, shape.cin))
                strip = bind(tirx.truncdiv(unit, shape.cin))
                batch = bind(tirx.truncdiv(strip, self.strips))
                row = bind(tirx.truncmod(strip, self.strips) * self.knobs.strip)
                at = bind(strip * self.v_size + channel * self.pitch)
                self._transform_input(x, batch * shape.cin + channel, row, z, v, at)

        return stage_func(params, body)

    def function(self) -> tirx.PrimFunc:
        """``(x or v, w, [bias], epilogue..., y, scratch)``: the product and the way back."""
        shape, knobs = self.shape, self.knobs
        first = shape.batch * shape.cin * shape.input_positions
        if knobs.shared:
            first = self.workspace_elements
        params = [
            ("x", "float32", first),
            ("w", "float32", self.size**2 * shape.cout * shape.cin),
        ]
        if self.has_bias:
            params.append(("bias", "float32", shape.cout))
        params += self.epilogue.params
        outputs = shape.batch * shape.cout * shape.positions
        params.append(("y", self.epilogue.out_dtype, outputs))
        params.append(("scratch", "float32", self.scratch_bytes // 4))

        def body(*args: Any) -> None:
            self.x, self.w, *rest, begin, end = args
            self.bias = rest.pop(0) if self.has_bias else None
            *self.extra, self.y, self.scratch = rest
            if not knobs.shared:
                self._clear(self.scratch)
            with loop(begin, end) as unit:
                self._unit(unit)

        return stage_func(params, body)

    def _unit(self, unit: Expr) -> None:
        shape, knobs = self.shape, self.knobs
        split = bind(tirx.truncmod(unit, self.splits))
        strip = bind(tirx.truncdiv(unit, self.splits))
        batch = bind(tirx.truncdiv(strip, self.strips))
        row = bind(tirx.truncmod(strip, self.strips) * knobs.strip)
        if knobs.shared:
            v, at = self.x, bind(strip * self.v_size)
        else:
            v, at = self.scratch, self.v_at
            with loop(shape.cin) as c:
                to = bind(at + c * self.pitch)
                self._transform_input(
                    self.x, batch * shape.cin + c, row, self.scratch, self.scratch, to
                )
        first = bind(split * self.tiles_per_split)
        with loop(first, bind(T.min(first + self.tiles_per_split, self.full_tiles))) as tile:
            self._channels(batch, row, bind(tile * knobs.channels), knobs.channels, v, at)
        if self.rest_channels:
            with T.If(split == self.splits - 1), T.Then():
                start = self.full_tiles * knobs.channels
                self._channels(batch, row, start, self.rest_channels, v, at)

    # -- input ------------------------------------------------------------------------------------

    def _clear(self, z: Any) -> None:
        """Zero ``Z``: its padding columns stay zero for all channels."""
        lanes = self.knobs.lanes
        with loop(self.size * self.z_pitch // lanes) as i:
            vstore(z, i * lanes, splat(T.float32(0), lanes), lanes)

    def _transform_input(self, x: Any, plane: Expr, row: Expr, z: Any, v: Any, at: Expr) -> None:
        """``V[k][at...] = (B' d B)[k]`` for one channel and the tile rows of one strip."""
        height = self.shape.input[0]
        start = bind(plane * self.shape.input_positions)
        with loop(self.knobs.strip) as r:
            top = bind((row + r) * self.knobs.m - self.shape.pads[0])
            with T.If(tirx.all(top >= 0, top + self.size <= height)):
                with T.Then():
                    self._columns(x, start, top, z, inside=True)
                with T.Else():
                    self._columns(x, start, top, z, inside=False)
            self._rows(z, v, bind(at + r * self.tile_columns))

    def _columns(self, x: Any, start: Expr, top: Expr, z: Any, inside: bool) -> None:
        """``Z = B' d``: vectors along the row, where neighbours need no shuffle."""
        height, width = self.shape.input
        lanes = self.knobs.lanes
        while lanes > width:
            lanes //= 2

        def load(i: int, column: Expr, count: int) -> Expr:
            value = vload(x, start + (top + i) * width + column, count)
            if inside:
                return bind(value)
            valid = tirx.all(top + i >= 0, top + i < height)
            return bind(tirx.if_then_else(valid, value, splat(T.float32(0), count)))

        def columns(column: Expr, count: int) -> None:
            made = transform(self.b, [load(i, column, count) for i in range(self.size)], count)
            for i, value in enumerate(made):
                vstore(z, i * self.z_pitch + self.shape.pads[1] + column, value, count)

        with loop(width // lanes) as i:
            columns(i * lanes, lanes)
        if width % lanes:
            columns(width - lanes, lanes)  # overlaps the one before

    def _rows(self, z: Any, v: Any, at: Expr) -> None:
        """``V = Z B``: vectors along tiles, columns ``m`` apart."""
        m, size, run = self.knobs.m, self.size, self.run
        with loop(size) as i, loop(-(-self.tile_columns // run)) as t:
            source = bind(i * self.z_pitch + t * (run * m))
            values = load_strided(z, source, run, m, m, self.target)
            values += load_strided(z, source + m, run, m, size - m, self.target)
            step = self.shape.cin * self.pitch
            to = bind(at + i * (size * step) + t * run)
            for j, value in enumerate(transform(self.b, values, run)):
                vstore(v, to + j * step, value, run)

    # -- product and output --------------------------------------------------------------------

    def _channels(
        self, batch: Expr, row: Expr, channel: Expr, channels: int, v: Any, at: Expr
    ) -> None:
        """One tile of output channels: all products, then back to outputs."""
        shape, knobs = self.shape, self.knobs
        with loop(self.size**2) as k:
            weights = bind((k * shape.cout + channel) * shape.cin)
            source = bind(at + k * (shape.cin * self.pitch))
            target = bind(self.m_at + k * self.step)
            full, rest = divmod(self.tiles, knobs.columns)
            if full:
                with loop(full) as panel:
                    start = panel * knobs.columns
                    self._product(
                        weights, channels, v, source + start, target, start, knobs.columns
                    )
            if rest:
                start = full * knobs.columns
                self._product(weights, channels, v, source + start, target, start, rest)
        self._inverse(channel, channels)
        self._store(batch, row, channel, channels)

    def _product(
        self,
        weights: Expr,
        channels: int,
        v: Any,
        source: Expr,
        target: Expr,
        start: Expr,
        columns: int,
    ) -> None:
        acc = Accumulators(Tile(columns, split_widths(channels, self.knobs.lanes)))
        zero = T.float32(0)
        for i in range(columns):
            for p, lanes in enumerate(acc.tile.widths):
                acc.set(i, p, splat(zero, lanes))
        contract(
            acc,
            Dense(self.shape.cin, self.knobs.unroll),
            Operand(v, bind(source), self.pitch),
            Operand(self.w, weights, channels),
            self.target,
        )
        to = bind(target + start * channels)
        for i in range(columns):
            for p, (first, lanes) in enumerate(acc.tile.vectors):
                vstore(self.scratch, to + i * channels + first, acc.get(i, p), lanes)

    def _inverse(self, channel: Expr, channels: int) -> None:
        """``S = A' M A + bias``: vectors along output channels."""
        lanes = self.knobs.lanes
        with loop(self.knobs.strip) as r, loop(self.tile_columns) as t:
            if channels // lanes:
                with loop(channels // lanes) as c:
                    self._inverse_tile(r, t, channel, c * lanes, lanes, channels)
            done = channels // lanes * lanes
            for width in split_widths(channels - done, lanes):
                self._inverse_tile(r, t, channel, done, width, channels)
                done += width

    def _inverse_tile(
        self, r: Expr, t: Expr, channel: Expr, c: Expr, lanes: int, channels: int
    ) -> None:
        m, size = self.knobs.m, self.size
        at = bind(self.m_at + (r * self.tile_columns + t) * channels + c)
        columns: list[list[Expr]] = []
        for j in range(size):
            products = [
                bind(vload(self.scratch, at + (i * size + j) * self.step, lanes))
                for i in range(size)
            ]
            columns.append(transform(self.a, products, lanes))
        bias = None if self.bias is None else bind(vload(self.bias, channel + c, lanes))
        to = bind(self.s_at + (r * (m * self.width) + t * m) * channels + c)
        for y in range(m):
            for x, value in enumerate(transform(self.a, [col[y] for col in columns], lanes)):
                result = value if bias is None else value + bias
                vstore(self.scratch, to + (y * self.width + x) * channels, result, lanes)

    def _store(self, batch: Expr, row: Expr, channel: Expr, channels: int) -> None:
        """Transpose the strip's outputs, apply the epilogue, store what lies inside."""
        shape, m = self.shape, self.knobs.m
        height, width = shape.output
        rows = self.knobs.strip * m
        first = bind(row * m)
        whole = width == self.width and height % rows == 0
        with loop(1 if whole else bind(T.min(rows, height - first))) as y:
            position = bind((first + y) * width)

            def store(values: list[Expr], c: Expr, p: Expr, lanes: int, _: int) -> None:
                coords = (batch, channel + c, position + p)
                result = self.epilogue.apply(values[0], coords, self.extra, axis=2, lanes=lanes)
                at = (batch * shape.cout + channel + c) * shape.positions + position + p
                vstore(self.y, at, result, lanes)

            store_transposed(
                self.scratch,
                bind(self.s_at + y * (self.width * channels)),
                channels,
                rows * width if whole else width,
                channels,
                self.room_at,
                self.knobs.lanes,
                store,
            )


def _round(value: int, step: int) -> int:
    return -(-value // step) * step
