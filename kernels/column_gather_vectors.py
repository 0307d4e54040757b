"""Brings inputs into ``VectorColumns`` four quads at a time (``Gather``), by MVE's gathering loads.

The quads of a window that lies within the input are at fixed distances from its first one: a list
of places, in words. Where windows reach over a border, rows of the kernel that lie outside consist
of the zero point, and for the others there is a list for every way in which the window lies to the
borders of the innermost axis: what is outside has no place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tvm import tirx

from effc.kernels import columns_helium
from effc.kernels.builder import T, bind
from effc.kernels.column_gather import Gather, Walk
from effc.kernels.column_kinds import VectorColumns
from effc.kernels.column_source import QuadSource, Source
from effc.kernels.columns import Columns
from effc.kernels.conv_shape import ConvShape
from effc.kernels.inline_assembly import Routine

__all__ = ["VectorGather", "gathers_vectors"]

Expr = Any  # tvm.tirx expressions have no useful static types

_REACH = columns_helium.OUTSIDE - 1


@dataclass(frozen=True)
class _Row:
    """The input, the lists of rows, and where the list of a position begins."""

    x: Any
    lists: Any
    begin: Expr


@dataclass(frozen=True)
class VectorGather(Gather):
    """For whole quads of convolutions whose windows lists can reach."""

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """See :attr:`Gather.weights`."""
        weights = {"window": _window(self.shape).astype(np.uint16)}
        if self._leaves:
            rows, begins = self._rows
            weights["rows"] = np.concatenate(rows).astype(np.uint16)
            weights["begins"] = np.array(begins, np.uint16)
        return weights

    @property
    def routines(self) -> tuple[Routine, ...]:
        """See :attr:`Gather.routines`."""
        window = columns_helium.gather(self.columns.slots)
        if not self._leaves:
            return (window,)
        fill = int(np.array([self.zero] * 4, np.int8).view(np.int32)[0])
        count = self.shape.cin * self.shape.kernel[-1]
        return window, columns_helium.gather_inside(count, fill)

    @property
    def _leaves(self) -> bool:
        """Whether windows reach over borders."""
        return bool(self._outside([T.int32(0)] * len(self.shape.kernel)))

    @cached_property
    def _rows(self) -> tuple[list[np.ndarray], list[int]]:
        """Lists of a row of the kernel, from its first column in the input on; per position of the
        innermost axis where its list begins."""
        shape = self.shape
        taps = np.arange(shape.kernel[-1]) * shape.dilations[-1]
        planes = np.arange(shape.cin)[:, None] * shape.input_positions
        found: dict[tuple[int, ...], int] = {}
        begins = []
        for position in range(shape.output[-1]):
            start = position * shape.strides[-1] - shape.pads[-1]
            columns = start + taps
            inside = (columns >= 0) & (columns < shape.input[-1])
            places = np.where(inside, planes + columns - max(start, 0), columns_helium.OUTSIDE)
            row = tuple(places.reshape(-1).tolist())
            begins.append(found.setdefault(row, len(found) * len(row)))
        return [np.array(row) for row in found], begins

    def emit(
        self, x: Any, tables: list[Any], buffer: Any, base: Expr, walk: Walk, position: Expr
    ) -> None:
        """See :meth:`Gather.emit`."""
        assert isinstance(self.columns, VectorColumns)
        column = T.address_of(buffer[bind(position * self.columns.pitch)])
        if self.flat:
            first = T.address_of(x[bind(base + walk.flat[0])])
            self.routines[0].call(first, T.address_of(tables[0][0]), column)
            return
        indices = walk.indices
        starts = self._starts(indices)
        outside = self._outside(starts)

        def window() -> None:
            first = T.address_of(x[bind(base + self._flat(starts))])
            self.routines[0].call(first, T.address_of(tables[0][0]), column)

        if not outside:
            window()
            return
        with T.If(tirx.any(*outside)):
            with T.Then():
                begin = bind(T.Cast("int32", tables[2][indices[-1]]))
                inside = [*starts[:-1], bind(tirx.Max(starts[-1], T.int32(0)))]
                row = _Row(x, tables[1], begin)
                self._nest(row, buffer, base, inside, position, False)
            with T.Else():
                window()

    def _run(
        self, x: Any, buffer: Any, offsets: Any, place: Expr, position: Expr, tested: Any
    ) -> None:
        """A row of the kernel, for all channels."""
        assert isinstance(x, _Row)
        assert isinstance(self.columns, VectorColumns)
        at = bind(position * self.columns.pitch + place)
        places = x.x[offsets[0]], x.lists[x.begin], buffer[at]
        self.routines[1].call(*(T.address_of(place) for place in places))


def _window(shape: ConvShape) -> np.ndarray:
    """Places of a window's quads, in the order of slots."""
    places = np.zeros((1,) * len(shape.kernel), np.int64)
    pitch = 1
    for axis in reversed(range(len(shape.kernel))):
        steps = np.arange(shape.kernel[axis]) * shape.dilations[axis] * pitch
        places = places + np.expand_dims(steps, [i for i in range(len(shape.kernel)) if i != axis])
        pitch *= shape.input[axis]
    planes = np.arange(shape.cin)[:, None] * shape.input_positions
    rows: np.ndarray = places.reshape(-1, 1, shape.kernel[-1]) + planes
    return rows.reshape(-1)


def gathers_vectors(source: Source, columns: Columns) -> bool:
    """Whether ``VectorGather`` can fill columns with quads of an input."""
    if not isinstance(columns, VectorColumns) or not isinstance(source, QuadSource):
        return False
    shape = source.shape
    rows = shape.output[-1] * shape.cin * shape.kernel[-1]
    return max(int(_window(shape).max()), rows) <= _REACH
