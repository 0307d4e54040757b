"""Brings the inputs of output positions of a convolution into columns (``columns``).

Taps on padding become the zero point. There is no padded copy of the input: rows that stick out
over a border are tested tap by tap, all others have a loop without tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from effc.kernels.builder import T, bind, loop
from effc.kernels.column_source import Source
from effc.kernels.columns import Columns
from effc.kernels.conv_shape import ConvShape
from effc.kernels.inline_assembly import Routine

__all__ = ["Gather", "Walk", "inside_tests", "outside_tests"]

Expr = Any  # tvm.tirx expressions have no useful static types

_UNROLLED = 4
"""Quads that an iteration moves, where code may be longer."""
_SINGLE_ELEMENTS = 64
"""Most single elements that are moved without a loop."""


class Walk:
    """Goes through the output positions of an image in order."""

    def __init__(self, shape: ConvShape) -> None:
        self._cells = [_cell(0) for _ in shape.output]
        self._shape = shape
        self.flat = _cell(0)

    @property
    def indices(self) -> list[Expr]:
        """Coordinates of the present position."""
        return [bind(cell[0]) for cell in self._cells]

    def step(self) -> None:
        """Go on to the next position; the last one is not left."""
        with T.If(self.flat[0] < self._shape.positions - 1), T.Then():
            _store(self.flat, self.flat[0] + 1)
            self._carry(len(self._cells) - 1)

    def _carry(self, axis: int) -> None:
        cell = self._cells[axis]
        _store(cell, cell[0] + 1)
        if axis:
            with T.If(cell[0] == self._shape.output[axis]), T.Then():
                _store(cell, T.int32(0))
                self._carry(axis - 1)


def _cell(value: int) -> Any:
    cell = T.alloc_buffer((1,), "int32", scope="local")
    _store(cell, T.int32(value))
    return cell


def _store(cell: Any, value: Expr) -> None:
    T.buffer_store(cell, value, [0])


@dataclass(frozen=True)
class Gather:
    """Fills columns.

    Attributes:
        source: Where from.
        columns: Where to.
        zero: What padding counts as.
        split: Whether positions without padding have a loop of their own.
    """

    source: Source
    columns: Columns
    zero: int
    split: bool

    @property
    def shape(self) -> ConvShape:
        """Of the convolution, in quads."""
        return self.source.shape

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Constants of the stage, by name, in order."""
        return {}

    @property
    def routines(self) -> tuple[Routine, ...]:
        """Assembly that ``emit`` calls."""
        return ()

    @property
    def flat(self) -> bool:
        """Whether inputs of a position are those at the same place: a 1x1 kernel."""
        shape = self.shape
        plain = set(shape.kernel) == {1} and set(shape.strides) == {1}
        return plain and not any(shape.pads) and shape.input == shape.output

    def emit(
        self, x: Any, tables: list[Any], buffer: Any, base: Expr, walk: Walk, position: Expr
    ) -> None:
        """Fill one column.

        Args:
            x: Buffer of the input.
            tables: Buffers of ``weights``.
            buffer: The columns.
            base: Place at which the image's group begins.
            walk: The output position.
            position: Which column.
        """
        self._finish(buffer, position)
        if self.flat:
            at = bind(base + walk.flat[0])
            self._run(x, buffer, [at], T.int32(0), position, None)
            return
        shape = self.shape
        starts = self._starts(walk.indices)
        outside = outside_tests(shape, len(starts) - 1, starts[-1])
        if not outside or not self.split:
            self._nest(x, buffer, base, starts, position, bool(outside))
            return
        with T.If(tirx.any(*outside)):
            with T.Then():
                self._nest(x, buffer, base, starts, position, True)
            with T.Else():
                self._nest(x, buffer, base, starts, position, False)

    def _starts(self, indices: Sequence[Expr]) -> list[Expr]:
        """Coordinates in the input of a window's first tap; negative in padding."""
        shape = self.shape
        return [
            bind(index * stride - pad)
            for index, stride, pad in zip(indices, shape.strides, shape.pads, strict=True)
        ]

    def _outside(self, starts: Sequence[Expr]) -> list[Expr]:
        """Tests of which one holds if a window reaches over a border."""
        return [
            t for axis, start in enumerate(starts) for t in outside_tests(self.shape, axis, start)
        ]

    def _flat(self, starts: Sequence[Expr]) -> Expr:
        """Flat index of a window's first tap."""
        flat = starts[0]
        for start, size in zip(starts[1:], self.shape.input[1:], strict=True):
            flat = flat * size + start
        return flat

    def _finish(self, buffer: Any, position: Expr) -> None:
        """Elements that only fill up the last slot: any value will do, their weights are 0."""
        if self.columns.whole:
            return
        used = self.source.channels * prod(self.shape.kernel)
        for place in range(used, 4 * self.columns.slots):
            self.columns.put(buffer, T.int32(place), position, tirx.const(0, "int8"))

    def _nest(
        self, x: Any, buffer: Any, base: Expr, starts: Sequence[Expr], position: Expr, tested: bool
    ) -> None:
        shape = self.shape
        # Known places of single elements save most of what it takes to store them.
        few = 4 * self.columns.slots <= _SINGLE_ELEMENTS
        unrolled = self.split and not tested and not self.columns.whole and few

        def outer(axis: int, place: Expr, row: Expr, valid: list[Expr]) -> None:
            """``place``: taps so far; ``row``: flat index of outer inputs so far."""
            if axis == len(shape.kernel) - 1:
                self._row(x, buffer, base, (place, row, starts[-1]), position, (valid, tested))
                return

            def tap(k: Expr) -> None:
                index = bind(starts[axis] + k * shape.dilations[axis])
                tests = valid + inside_tests(shape, axis, index)
                taps = place * shape.kernel[axis] + k
                outer(
                    axis + 1,
                    taps if unrolled else bind(taps),
                    bind(row * shape.input[axis] + index),
                    tests,
                )

            if unrolled:
                for k in range(shape.kernel[axis]):
                    tap(k)
            else:
                with loop(shape.kernel[axis]) as k:
                    tap(k)

        outer(0, 0 if unrolled else T.int32(0), T.int32(0), [])

    def _row(
        self,
        x: Any,
        buffer: Any,
        base: Expr,
        where: tuple[Expr, Expr, Expr],
        position: Expr,
        tests: tuple[list[Expr], bool],
    ) -> None:
        """All taps of one row of the kernel."""
        shape = self.shape
        taps, row, start = where
        valid, tested = tests
        per = shape.cin if self.columns.whole else self.source.channels
        place = _named(taps * (shape.kernel[-1] * per))
        first = bind(base + row * shape.input[-1] + start)
        offsets = [first + k * shape.dilations[-1] for k in range(shape.kernel[-1])]

        def inside() -> None:
            columns = [start + k * shape.dilations[-1] for k in range(shape.kernel[-1])]
            self._run(x, buffer, offsets, place, position, columns if tested else None)

        if not valid:
            inside()
            return
        with T.If(tirx.all(*valid)):
            with T.Then():
                inside()
            with T.Else():
                fill = self.columns.fill(self.zero)
                with loop(shape.kernel[-1] * per) as i:
                    self.columns.put(buffer, bind(place + i), position, fill)

    def _run(
        self,
        x: Any,
        buffer: Any,
        offsets: Sequence[Expr],
        place: Expr,
        position: Expr,
        tested: Sequence[Expr] | None,
    ) -> None:
        """Taps side by side, for all channels; ``tested``: their indices, to be compared."""
        shape, columns, source = self.shape, self.columns, self.source
        taps, channels = len(offsets), source.channels

        def tap(k: int, read: Any, put: Any) -> None:
            if tested is None:
                put(read())
                return
            column = bind(tested[k])
            with T.If(tirx.all(column >= 0, column < shape.input[-1])):
                with T.Then():
                    put(read())
                with T.Else():
                    put(columns.fill(self.zero))

        if not columns.whole:
            if channels > 4:  # of one position: all quads lie behind each other
                for k, offset in enumerate(offsets):
                    with loop(channels) as c:
                        at = bind(place + k * channels + c)
                        tap(
                            k,
                            lambda offset=offset, c=c: bind(source.element(x, offset, c)),
                            lambda value, at=at: columns.put(buffer, at, position, value),
                        )
                return
            for k, offset in enumerate(offsets):
                for c in range(channels):
                    at = _named(place + (k * channels + c))
                    tap(
                        k,
                        lambda offset=offset, c=c: bind(source.element(x, offset, c)),
                        lambda value, at=at: columns.put(buffer, at, position, value),
                    )
            return

        def quad(q: Expr) -> None:
            for k, offset in enumerate(offsets):
                at = bind(place + q * taps + k)
                tap(
                    k,
                    lambda offset=offset: bind(source.quad(x, offset, q)),
                    lambda value, at=at: columns.put(buffer, at, position, value),
                )

        step = max(_UNROLLED // taps, 1) if self.split and tested is None else 1
        if shape.cin >= step:
            with loop(shape.cin // step) as group:
                for i in range(step):
                    quad(bind(group * step + i))
        for q in range(shape.cin // step * step, shape.cin):
            quad(T.int32(q))


def _named(value: Expr) -> Expr:
    """A Python number as a constant, anything else evaluated once."""
    return tirx.const(value, "int32") if isinstance(value, int) else bind(value)


def outside_tests(shape: ConvShape, axis: int, start: Expr) -> list[Expr]:
    """Whether a window from ``start`` on reaches over a border of an axis: any of these."""
    reach = (shape.kernel[axis] - 1) * shape.dilations[axis]
    last = (shape.output[axis] - 1) * shape.strides[axis] - shape.pads[axis] + reach
    tests = [start < 0] if shape.pads[axis] else []
    return [*tests, start + reach >= shape.input[axis]] if last >= shape.input[axis] else tests


def inside_tests(shape: ConvShape, axis: int, index: Expr) -> list[Expr]:
    """Whether an index of an axis is one of the input, all of these; none if it must be."""
    if not outside_tests(shape, axis, index):
        return []
    return [index >= 0, index < shape.input[axis]]
