"""Padded, phase-split copies of one image plane in a worker's scratch.

Stencils (depthwise convolution, pooling) read every input several times at
shifted offsets. A band of input rows is copied once into small scratch, with
its padding, so that the stencil itself has no borders; for a column stride of
``s`` the columns are dealt into ``s`` phases on the way, so that every tap of
a vector of outputs is one contiguous load.

Layout: ``[rows][phase][pitch]``; padded column ``p`` is element ``p // s`` of
phase ``p % s``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvm import tirx

from effc.kernels.builder import bind, loop, splat, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import pick, store_partial
from effc.kernels.window import Axis

__all__ = ["Plane", "PlaneOutput"]

Expr = Any


@dataclass(frozen=True)
class Plane:
    """A band of padded rows in scratch.

    Attributes:
        y, x: Window geometry of rows and columns.
        lanes: Vector width of copies and of the stencil's loads.
        band: Output rows that one copy serves.
        slack: Output columns that the stencil may compute past ``x.out``
            (to the end of its last vector).
        aligned: Whether the real columns start on a vector, or the padding before them.
    """

    y: Axis
    x: Axis
    lanes: int
    band: int
    slack: int
    aligned: bool = True

    @cached_property
    def rows(self) -> int:
        """Padded rows held at once."""
        return self.y.extent(self.band)

    @cached_property
    def lead(self) -> int:
        """Unused elements before each phase, so that real columns start on a vector."""
        if self.x.stride > 1 or not self.aligned:
            return 0
        return -self.x.before % self.lanes

    @cached_property
    def pitch(self) -> int:
        """Elements of one phase of one row."""
        shift = (self.x.reach - 1) // self.x.stride
        need = self.lead + self.x.out + self.slack + shift
        return -(-need // self.lanes) * self.lanes

    @cached_property
    def row(self) -> int:
        """Elements from one padded row to the next."""
        return self.x.stride * self.pitch

    @cached_property
    def elements(self) -> int:
        """Elements of the whole band."""
        return self.rows * self.row

    def tap(self, kx: int) -> int:
        """Offset in a row of the input that tap ``kx`` of output column 0 reads."""
        column = kx * self.x.dilation
        stride = self.x.stride
        return (column % stride) * self.pitch + self.lead + column // stride

    def clear(self, scratch: Any, base: int, fill: Expr) -> None:
        """Fill the band with the padding value; once per call is enough."""
        self._fill(scratch, base, self.elements // self.lanes, fill)

    def copy(
        self,
        source: Any,
        start: Expr,
        first: Expr,
        scratch: Any,
        base: int,
        fill: Expr,
        convert: Callable[[Expr], Expr],
    ) -> None:
        """Copy the rows of one band.

        Args:
            source: Flat input tensor.
            start: Offset of the plane in ``source``.
            first: Input row of the band's first padded row, may be negative.
                A Python int promises that it is the same in every call.
            scratch: Flat scratch buffer.
            base: Offset of the band in ``scratch``.
            fill: Padding value.
            convert: Applied to every vector on the way.
        """
        fixed = isinstance(first, int)
        low = max(-first, 0) if fixed else bind(tirx.max(-first, 0))
        high = (
            min(self.rows, self.y.size - first)
            if fixed
            else bind(tirx.min(tirx.max(self.y.size - first, 0), self.rows))
        )
        if fixed:
            if high <= low:
                return
        else:
            vectors = self.row // self.lanes
            self._fill(scratch, base, tirx.min(low, self.rows) * vectors, fill)
            self._fill(scratch, base + high * self.row, (self.rows - high) * vectors, fill)
        with loop(low, high) as r:
            origin = bind(start + (first + r) * self.x.size)
            target = bind(base + r * self.row)
            self._copy_row(source, origin, scratch, target, convert)

    def _fill(self, scratch: Any, base: Expr, vectors: Expr, fill: Expr) -> None:
        with loop(vectors) as i:
            vstore(scratch, base + i * self.lanes, splat(fill, self.lanes), self.lanes)

    def _copy_row(
        self, source: Any, origin: Expr, scratch: Any, target: Expr, convert: Callable[[Expr], Expr]
    ) -> None:
        stride = self.x.stride
        width = min(self.x.size, (self.pitch - self.lead) * stride - self.x.before)
        chunk = stride * self.lanes
        full = width // chunk
        if full > 8:
            with loop(full) as i:
                self._deal(
                    source,
                    origin + i * chunk,
                    scratch,
                    target + i * self.lanes,
                    0,
                    self.lanes,
                    convert,
                )
        else:
            for i in range(full):
                self._deal(source, origin, scratch, target, i * chunk, self.lanes, convert)
        column = full * chunk
        if column < width and full:
            self._deal(source, origin, scratch, target, width - chunk, self.lanes, convert)
            return
        lanes = self.lanes
        while column < width:
            while lanes > 1 and stride * lanes > width - column:
                lanes //= 2
            if stride * lanes > width - column:  # fewer columns left than phases
                self._place(source, origin, scratch, target, column, convert)
                column += 1
            else:
                self._deal(source, origin, scratch, target, column, lanes, convert)
                column += stride * lanes

    def _place(
        self,
        source: Any,
        origin: Expr,
        scratch: Any,
        target: Expr,
        column: int,
        convert: Callable[[Expr], Expr],
    ) -> None:
        position = column + self.x.before
        offset = (position % self.x.stride) * self.pitch + self.lead + position // self.x.stride
        vstore(scratch, target + offset, convert(vload(source, origin + column, 1)), 1)

    def _deal(
        self,
        source: Any,
        origin: Expr,
        scratch: Any,
        target: Expr,
        column: int,
        lanes: int,
        convert: Callable[[Expr], Expr],
    ) -> None:
        """Copy ``stride * lanes`` columns from a fixed column on, dealt into the phases."""
        stride = self.x.stride
        width = stride * lanes
        loaded = bind(convert(vload(source, origin + column, width)))
        for k in range(stride):
            position = column + k + self.x.before
            phase = position % stride
            if phase * self.pitch > self.tap_limit:
                continue
            offset = phase * self.pitch + self.lead + position // stride
            part = pick(loaded, range(k, width, stride), width)
            vstore(scratch, target + offset, part, lanes)

    @cached_property
    def tap_limit(self) -> int:
        """Largest row offset that any tap of column 0 reads."""
        return max(self.tap(k) for k in range(self.x.kernel))


@dataclass(frozen=True)
class PlaneOutput:
    """Applies the epilogue and stores vectors of one output plane of [N, C, plane].

    Attributes:
        epilogue: For the view (N, C, plane).
        buffer: The flat output tensor.
        operands: Buffers of the epilogue's parameters.
        size: Elements of one plane.
        n, channel, image: Position of the plane; ``image = n * C + channel``.
    """

    epilogue: Epilogue
    buffer: Any
    operands: Sequence[Any]
    size: int
    n: Expr
    channel: Expr
    image: Expr

    def store(self, position: Expr, value: Expr, valid: int, lanes: int) -> None:
        """Store the first ``valid`` of ``lanes`` results from plane position ``position`` on."""

        def finish(piece: Expr, start: int, width: int) -> Expr:
            coords = (self.n, self.channel, position + start)
            return self.epilogue.apply(piece, coords, self.operands, axis=2, lanes=width)

        offset = self.image * self.size + position
        if self.epilogue.params:
            store_partial(self.buffer, offset, value, valid, lanes, finish)
        else:
            store_partial(self.buffer, offset, finish(value, 0, lanes), valid, lanes)
