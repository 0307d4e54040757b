"""Sliding windows straight from the input: vectors of padded rows without a padded copy.

An output tile covers a few rows and a few vectors of columns. Input rows are read
in blocks of ``stride * lanes`` columns and dealt into ``stride`` phases; a tap
whose columns do not start on a block is two neighbouring blocks shifted
together (``ext`` on Arm, or an unaligned load where that is cheaper). Blocks that
reach over the edge of a row hold the padding value in the other lanes; taps that lie
in the padding entirely are skipped. Edges are known when code is generated: the tiles
at the borders of a plane get code of their own, those inside share a loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from effc.kernels.builder import bind, loop, splat, vload
from effc.kernels.lanes import concat, load_partial, pick
from effc.kernels.window import Axis

__all__ = ["Cut", "RowReader", "Span", "Stencil", "each_span"]

Expr = Any


@dataclass(frozen=True)
class Span:
    """Equal tiles along one axis: outputs ``[first, first + size)``, repeated ``count`` times."""

    first: int
    size: int
    count: int


@dataclass(frozen=True)
class Cut:
    """One axis cut into tiles of ``tile`` outputs; inner tiles read inner input only.

    ``granule`` is how many inputs are read at once: an inner tile reads whole granules
    inside the axis, counted from input 0.
    """

    axis: Axis
    tile: int
    granule: int

    def _inner(self, first: int) -> bool:
        axis = self.axis
        low = first * axis.stride - axis.before
        high = (first + self.tile - 1) * axis.stride - axis.before + axis.reach
        low = low // self.granule * self.granule
        high = -(-high // self.granule) * self.granule
        return first + self.tile <= axis.out and low >= 0 and high <= axis.size

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Tiles in order; runs of inner tiles are one span."""
        found: list[Span] = []
        inner_before = False
        for first in range(0, self.axis.out, self.tile):
            inner = self._inner(first)
            if inner and inner_before:
                last = found.pop()
                found.append(Span(last.first, last.size, last.count + 1))
            else:
                found.append(Span(first, min(self.tile, self.axis.out - first), 1))
            inner_before = inner
        return tuple(found)


def each_span(spans: tuple[Span, ...]) -> Iterator[tuple[Span, Expr]]:
    """Emit the loop of every span: yields the span and the first output of its current tile."""
    for span in spans:
        if span.count == 1:
            yield span, span.first
        else:
            with loop(span.count) as i:
                yield span, bind(i * span.size + span.first)


@dataclass(frozen=True)
class Stencil:
    """How one plane is read.

    Attributes:
        y, x: Window geometry.
        lanes: Vector width.
        shuffle: Shift blocks in registers instead of loading at unaligned addresses.
        fill: Padding value.
    """

    y: Axis
    x: Axis
    lanes: int
    shuffle: bool
    fill: Expr

    @property
    def block(self) -> int:
        """Columns read at once."""
        return self.x.stride * self.lanes


@dataclass
class RowReader:
    """Vectors of one input row (or the same row of a span of tiles) for one tile of columns.

    Attributes:
        stencil: Geometry.
        source: Flat input tensor.
        row: Offset of column 0 of the row.
        rows: Lowest and highest row number that ``row`` stands for.
        column: First output column of the tile.
        inner: Every block of the tile lies inside the row (``column`` may be dynamic).
    """

    stencil: Stencil
    source: Any
    row: Expr
    rows: tuple[int, int]
    column: Expr
    inner: bool
    _blocks: dict[int, list[Expr] | None] = field(default_factory=dict)

    def tap(self, kx: int, vector: int) -> Expr | None:
        """Inputs of tap ``kx`` for vector ``vector`` of the tile; ``None`` if all padding."""
        x, lanes = self.stencil.x, self.stencil.lanes
        shift = kx * x.dilation - x.before
        phase, start = shift % x.stride, vector * lanes + shift // x.stride
        index, rest = divmod(start, lanes)
        if rest == 0:
            block = self._block(index)
            return None if block is None else block[phase]
        if x.stride == 1 and not self.stencil.shuffle and self._inside(start):
            return bind(vload(self.source, self.row + self.column + start, lanes))
        left, right = self._block(index), self._block(index + 1)
        if left is None and right is None:
            return None
        fill = splat(self.stencil.fill, lanes)
        pair = [fill if side is None else side[phase] for side in (left, right)]
        return bind(concat(pair, range(rest, rest + lanes)))

    def _inside(self, start: int) -> bool:
        """Whether ``lanes`` columns from ``start`` (relative to the tile) lie in the row."""
        if self.inner:
            return True
        first = self.column + start
        return bool(first >= 0 and first + self.stencil.lanes <= self.stencil.x.size)

    def _block(self, index: int) -> list[Expr] | None:
        """The phases of block ``index`` relative to the tile, ``None`` if all padding."""
        if index not in self._blocks:
            wide = self._wide(index)
            width, stride = self.stencil.block, self.stencil.x.stride
            self._blocks[index] = (
                None
                if wide is None
                else [
                    wide if stride == 1 else bind(pick(wide, range(f, width, stride), width))
                    for f in range(stride)
                ]
            )
        return self._blocks[index]

    def _wide(self, index: int) -> Expr | None:
        width, size = self.stencil.block, self.stencil.x.size
        first = self.column * self.stencil.x.stride + index * width
        if not self.inner:
            if first >= size or first < 0:  # blocks start at column 0: never half before it
                return None
            if first + width > size:
                return bind(self._ragged(first, size - first))
        return bind(vload(self.source, self.row + first, width))

    def _ragged(self, first: int, valid: int) -> Expr:
        """The last block of a row, padded. A full load is tried where it stays in the plane."""
        width, x, y = self.stencil.block, self.stencil.x, self.stencil.y
        fill = splat(self.stencil.fill, width)
        if self.rows[1] * x.size + first + width <= y.size * x.size:
            loaded = bind(vload(self.source, self.row + first, width))
            return concat([loaded, fill], [*range(valid), *range(width, 2 * width - valid)])
        if (self.rows[0] + 1) * x.size >= width:
            begin = self.row + x.size - width
            loaded = bind(vload(self.source, begin, width))
            return concat([loaded, fill], range(width - valid, 2 * width - valid))
        return load_partial(self.source, self.row + first, valid, width, self.stencil.fill)
