"""Brings rows of the kernel into columns as words (``column_order.Rows``).

For inputs with their channels last: what a row of the kernel reads lies side by side, at any
address. A window without padding is read where it is, of one at a border a padded copy is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from effc.kernels.builder import T, bind, local, loop, vstore
from effc.kernels.column_gather import Gather, Walk
from effc.kernels.column_gather_vectors import VectorGather, gathers_vectors
from effc.kernels.column_kinds import AssembledColumns
from effc.kernels.column_order import Order, Quads, Rows
from effc.kernels.column_source import PlainSource, Source
from effc.kernels.columns import Columns
from effc.kernels.inline_assembly import Routine

__all__ = ["RowGather", "gather_for"]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class RowGather(Gather):
    """Fills columns with words."""

    source: PlainSource
    columns: AssembledColumns

    @property
    def order(self) -> Rows:
        """Where the elements go."""
        return Rows(self.shape, self.source.channels)

    def emit(
        self, x: Any, tables: list[Any], buffer: Any, base: Expr, walk: Walk, position: Expr
    ) -> None:
        """See :meth:`Gather.emit`."""
        starts = self._starts(walk.indices)
        origin = bind((base + self._flat(starts)) * self.source.channels)
        outside = self._outside(starts)
        if not outside:
            self._move(self.routines[0], x[origin], buffer, position)
            return
        with T.If(tirx.any(*outside)):
            with T.Then():
                self._tested(x, buffer, origin, starts, position)
            with T.Else():
                self._move(self.routines[0], x[origin], buffer, position)

    def _routine(self, begins: Sequence[int], *, unsigned: bool) -> Routine:
        order = self.order
        behind = 4 * order.words
        words = tuple(row + at for row in begins for at in range(0, behind, 4))
        left = tuple(row + at for row in begins for at in range(behind, order.length))
        return self.columns.window(words, left, unsigned=unsigned)

    @property
    def routines(self) -> tuple[Routine, ...]:
        """For windows in the input, and for padded copies of those at borders."""
        order = self.order
        rows = range(0, order.rows * order.length, order.length)
        return (
            self._routine(order.begins, unsigned=self.source.unsigned),
            self._routine(rows, unsigned=False),
        )

    def _tested(
        self, x: Any, buffer: Any, origin: Expr, starts: Sequence[Expr], position: Expr
    ) -> None:
        """A window of which some taps are padding: a copy with the padding."""
        shape, order, channels = self.shape, self.order, self.source.channels
        words = -(-order.rows * order.length // 4)
        copy = local(4 * words, "int8")
        for word in range(words):
            vstore(copy, 4 * word, T.Broadcast(tirx.const(self.zero, "int8"), 4), 4)
        columns = [bind(starts[-1] + k * shape.dilations[-1]) for k in range(shape.kernel[-1])]

        def outer(axis: int, row: Expr, at: Expr, valid: Expr) -> None:
            """``row``: rows so far; ``at``: flat index of their first positions."""
            if axis < len(shape.kernel) - 1:
                with loop(shape.kernel[axis]) as tap:
                    index = bind(starts[axis] + tap * shape.dilations[axis])
                    outer(
                        axis + 1,
                        bind(row * shape.kernel[axis] + tap),
                        bind((at + tap * shape.dilations[axis]) * shape.input[axis + 1]),
                        tirx.all(valid, index >= 0, index < shape.input[axis]),
                    )
                return
            begin, to = bind(origin + at * channels), bind(row * order.length)
            with T.If(valid), T.Then():
                for k, column in enumerate(columns):
                    with T.If(tirx.all(column >= 0, column < shape.input[-1])), T.Then():
                        for i in range(k * channels, (k + 1) * channels):
                            T.buffer_store(copy, self.source.byte(x, begin + i), [to + i])

        outer(0, T.int32(0), T.int32(0), tirx.const(True, "bool"))
        self._move(self.routines[1], copy[0], buffer, position)

    def _move(self, routine: Routine, first: Any, buffer: Any, position: Expr) -> None:
        column = bind(self.columns.start(position))
        routine.call(T.address_of(first), T.address_of(buffer[column]))


def gather_for(source: Source, order: Order, columns: Columns, zero: int, *, split: bool) -> Gather:
    """What fills columns in an order.

    Args:
        zero: What padding counts as.
        split: Whether positions without padding have a loop of their own.
    """
    if isinstance(order, Rows):
        assert isinstance(source, PlainSource)
        assert isinstance(columns, AssembledColumns)
        return RowGather(source, columns, zero, split)
    if isinstance(order, Quads) and gathers_vectors(source, columns):
        return VectorGather(source, columns, zero, split)
    return Gather(source, columns, zero, split)
