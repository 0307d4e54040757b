"""Strided copies: out[sum i_k * o_k] = in[sum i_k * s_k] over a box of indices.

Transposes, slices with any steps, expansion and tiling (stride 0), splits,
concatenations, and depth to space are all such copies. A copy is normalized
(axes of size 1 dropped, axes merged where both sides allow) and then emitted in the first
form that fits: contiguous rows; interleaving of a few planes; square tiles transposed in
registers; rows gathered with a stride.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from effc.kernels.builder import (
    T,
    bind,
    loop,
    splat,
    stage_func,
    unravel,
    vload,
    vstore,
    whole_or_rest,
)
from effc.kernels.lanes import interleave
from effc.kernels.shuffles import transpose
from effc.kernels.strips import blocks, each_vector

__all__ = ["Axis", "Copy", "copy_stage", "dense_strides"]

Expr = Any  # tvm.tirx expressions have no useful static types

_ROW_BYTES = 16384  # a parallel unit copies at most this much of a contiguous row
_FEW = 8  # planes that are interleaved in registers


@dataclass(frozen=True)
class Axis:
    """One axis of a copy: extent, element stride in the source and in the destination."""

    extent: int
    source: int
    target: int


@dataclass(frozen=True)
class Copy:
    """A box of elements moved from one buffer to another.

    Attributes:
        axes: Outermost first; target strides descending.
        source, target: Element offsets of the first element.
        source_size, target_size: Elements of the whole buffers.
        itemsize: Bytes per element.
    """

    axes: tuple[Axis, ...]
    source: int
    target: int
    source_size: int
    target_size: int
    itemsize: int

    def normalized(self) -> Copy:
        """The same copy with as few axes as possible."""
        kept: list[Axis] = []
        for axis in self.axes:
            if axis.extent == 1:
                continue
            last = kept[-1] if kept else None
            if (
                last is not None
                and last.source == axis.source * axis.extent
                and last.target == axis.target * axis.extent
            ):
                kept[-1] = Axis(last.extent * axis.extent, axis.source, axis.target)
            else:
                kept.append(axis)
        axes = tuple(kept) or (Axis(1, 1, 1),)
        sizes = (self.source_size, self.target_size)
        return Copy(axes, self.source, self.target, *sizes, self.itemsize)


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major element strides."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def copy_stage(copy: Copy, vector_bits: int) -> tuple[Any, int]:
    """Stage function ``(source, target, begin, end)`` of a copy, and its number of units."""
    copy = copy.normalized()
    dtype = f"uint{copy.itemsize * 8}"
    lanes = max(min(vector_bits // (8 * copy.itemsize), 16), 1)
    form = _form(copy, lanes)
    params = [("x", dtype, copy.source_size), ("y", dtype, copy.target_size)]

    def body(x: Any, y: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as unit:
            form.emit(x, y, unit)

    return stage_func(params, body), form.units


class _Form(ABC):
    """A way to emit a copy. ``outer`` axes are unravelled from the unit, inner ones are loops."""

    def __init__(self, copy: Copy, outer: Sequence[Axis], parts: int) -> None:
        self.copy = copy
        self.outer = tuple(outer)
        self.parts = parts  # units per combination of outer indices

    @property
    def units(self) -> int:
        """Number of parallel units."""
        return prod(axis.extent for axis in self.outer) * self.parts

    def emit(self, x: Any, y: Any, unit: Expr) -> None:
        """One parallel unit."""
        *indices, part = unravel(unit, (*(axis.extent for axis in self.outer), self.parts))
        source: Expr = T.int32(self.copy.source)
        target: Expr = T.int32(self.copy.target)
        for index, axis in zip(indices, self.outer, strict=True):
            source = source + index * axis.source
            target = target + index * axis.target
        self.inner(x, y, bind(source), bind(target), part)

    @abstractmethod
    def inner(self, x: Any, y: Any, source: Expr, target: Expr, part: Expr) -> None:
        """The inner loops from element offsets on."""


class _Rows(_Form):
    """Rows contiguous in the target; contiguous, strided or constant in the source."""

    def __init__(self, copy: Copy, lanes: int) -> None:
        self.row = copy.axes[-1]
        self.lanes = lanes
        self.block = max(_ROW_BYTES // copy.itemsize, lanes)
        super().__init__(copy, copy.axes[:-1], -(-self.row.extent // self.block))

    def inner(self, x: Any, y: Any, source: Expr, target: Expr, part: Expr) -> None:
        """See ``_Form.inner``."""

        def move(first: Expr, count: int) -> None:
            start = bind(source + first * self.row.source)
            out = bind(target + first * self.row.target)
            each_vector(count, self.lanes, lambda i, w: self._vector(x, y, start, out, i, w))

        full, rest = divmod(self.row.extent, self.block)
        if not full:
            move(T.int32(0), rest)
        elif not rest:
            move(part * self.block, self.block)
        else:
            with T.If(part < full):
                with T.Then():
                    move(part * self.block, self.block)
                with T.Else():
                    move(T.int32(full * self.block), rest)

    def _vector(self, x: Any, y: Any, start: Expr, out: Expr, i: Expr, width: int) -> None:
        row = self.row
        if row.source == 0:
            value = splat(x[start], width)
        else:
            value = vload(x, start + i * row.source, width, row.source)
        if row.target == 1 or width == 1:
            vstore(y, out + i * row.target, value, width)
        else:
            T.buffer_store(y, value, [T.Ramp(out + i * row.target, row.target, width)])


class _Interleave(_Form):
    """A few planes, each contiguous in the source, become the innermost target axis."""

    def __init__(self, copy: Copy, long: int, lanes: int) -> None:
        self.long = copy.axes[long]
        self.few = copy.axes[-1]
        self.lanes = lanes
        outer = [a for i, a in enumerate(copy.axes[:-1]) if i != long]
        super().__init__(copy, outer, -(-self.long.extent // (lanes * 8)))

    def inner(self, x: Any, y: Any, source: Expr, target: Expr, part: Expr) -> None:
        """See ``_Form.inner``."""

        def vector(i: Expr, width: int) -> None:
            planes = [
                bind(vload(x, source + p * self.few.source + i, width))
                for p in range(self.few.extent)
            ]
            count = width * self.few.extent
            vstore(y, target + i * self.long.target, interleave(planes, width), count)

        _in_parts(self.long.extent, self.lanes, 8, part, vector)


class _Tiles(_Form):
    """Square tiles: vectors along a contiguous source axis, stored along the target's."""

    def __init__(self, copy: Copy, long: int, lanes: int) -> None:
        self.along = copy.axes[long]
        self.across = copy.axes[-1]
        self.lanes = lanes
        outer = [a for i, a in enumerate(copy.axes[:-1]) if i != long]
        super().__init__(copy, outer, -(-self.along.extent // lanes))

    def inner(self, x: Any, y: Any, source: Expr, target: Expr, part: Expr) -> None:
        """See ``_Form.inner``."""

        def columns(first: Expr, width: int) -> None:
            start, out = bind(source + first), bind(target + first * self.along.target)
            each_vector(
                self.across.extent,
                self.lanes,
                lambda i, w: self._tile(x, y, start, out, i, (width, w)),
            )

        blocks(self.along.extent, self.lanes, part, columns)

    def _tile(self, x: Any, y: Any, start: Expr, out: Expr, i: Expr, size: tuple[int, int]) -> None:
        """``size`` elements (along, across); a ragged tile is gathered row by row."""
        along, across = size
        stride = self.across.source
        if along == across and along > 1:
            rows = [bind(vload(x, start + (i + r) * stride, along)) for r in range(across)]
            for column, vector in enumerate(transpose(rows)):
                vstore(y, out + column * self.along.target + i, vector, across)
            return
        for column in range(along):
            value = vload(x, start + column + i * stride, across, stride)
            vstore(y, out + column * self.along.target + i, value, across)


def _in_parts(
    count: int, lanes: int, vectors: int, part: Expr, body: Callable[[Expr, int], None]
) -> None:
    """Run ``body`` for part ``part`` (``vectors`` vectors each) of a strip."""
    size = lanes * vectors
    full, rest = divmod(count, size)

    def run(first: Expr, length: int) -> None:
        each_vector(length, lanes, lambda i, w: body(bind(first + i), w))

    whole_or_rest(
        part,
        full,
        rest,
        lambda: run(bind(part * size), size),
        lambda: run(T.int32(full * size), rest),
    )


def _form(copy: Copy, lanes: int) -> _Form:
    last = copy.axes[-1]
    if last.source in (0, 1) or last.target != 1 or lanes == 1:
        return _Rows(copy, lanes)
    long = next((i for i, a in enumerate(copy.axes[:-1]) if a.source == 1), None)
    if long is None or copy.axes[long].extent < 4:
        return _Rows(copy, lanes)
    if last.extent <= _FEW and copy.axes[long].target == last.extent:
        return _Interleave(copy, long, max(lanes // 2, 1) if last.extent > 4 else lanes)
    return _Tiles(copy, long, lanes)
