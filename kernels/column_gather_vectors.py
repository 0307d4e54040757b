"""Brings inputs into ``VectorColumns`` four quads at a time (``Gather``), by MVE's gathering loads.

The quads of one row of the kernel, for all channels, lie at distances from the row that depend on
nothing but how the window lies to the borders of the innermost axis. Every such case has a list of
distances; what is outside has none and becomes the zero point.
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
from effc.kernels.columns import Columns
from effc.kernels.conv_shape import ConvShape
from effc.kernels.inline_assembly import Routine

__all__ = ["VectorGather", "gathers_vectors"]

Expr = Any  # tvm.tirx expressions have no useful static types

_REACH = columns_helium.OUTSIDE - 1


@dataclass(frozen=True)
class _Input:
    """The input, the lists, and where the list of a position begins (``None``: the only one)."""

    x: Any
    lists: Any
    begin: Expr | None


@dataclass(frozen=True)
class VectorGather(Gather):
    """For whole quads of convolutions whose rows of quads lists can reach."""

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """See :attr:`Gather.weights`."""
        found, which = self._lists
        weights = {"places": np.concatenate(found).astype(np.uint16)}
        if len(found) > 1:
            weights["cases"] = np.array(which, np.uint16)
        return weights

    @property
    def routines(self) -> tuple[Routine, ...]:
        """See :attr:`Gather.routines`."""
        fill = np.array([self.zero] * 4, np.int8).view(np.int32)[0]
        found, _ = self._lists
        count = found[0].size
        routines = [columns_helium.gather(count)]
        if any(_leaves(places) for places in found):
            routines.append(columns_helium.gather_inside(count, int(fill)))
        return tuple(routines)

    @cached_property
    def _lists(self) -> tuple[list[np.ndarray], list[int]]:
        """Lists of distances in words, those that leave the input last, and per position of the
        innermost axis where its list begins."""
        shape = self.shape
        taps = np.arange(shape.kernel[-1]) * shape.dilations[-1]
        planes = np.arange(shape.cin)[:, None] * shape.input_positions
        rows = []
        for position in range(shape.output[-1]):
            start = position * shape.strides[-1] - shape.pads[-1]
            columns = start + taps
            inside = (columns >= 0) & (columns < shape.input[-1])
            places = np.where(inside, planes + columns - max(start, 0), columns_helium.OUTSIDE)
            rows.append(tuple(places.reshape(-1)))
        found = sorted(set(rows), key=lambda row: (_leaves(np.array(row)), row))
        begins = {row: number * len(row) for number, row in enumerate(found)}
        return [np.array(row) for row in found], [begins[row] for row in rows]

    def emit(
        self, x: Any, tables: list[Any], buffer: Any, base: Expr, walk: Walk, position: Expr
    ) -> None:
        """See :meth:`Gather.emit`."""
        shape = self.shape
        lists, *cases = tables
        if self.flat:
            source = _Input(x, lists, None)
            self._run(source, buffer, [bind(base + walk.flat[0])], T.int32(0), position, None)
            return
        indices = walk.indices
        starts = [
            bind(index * stride - pad)
            for index, stride, pad in zip(indices, shape.strides, shape.pads, strict=True)
        ]
        if shape.pads[-1]:
            starts[-1] = bind(tirx.Max(starts[-1], T.int32(0)))
        begin = bind(T.Cast("int32", cases[0][indices[-1]])) if cases else None
        self._nest(_Input(x, lists, begin), buffer, base, starts, position, False)

    def _run(
        self,
        x: Any,
        buffer: Any,
        offsets: Any,
        place: Expr,
        position: Expr,
        tested: Any,
    ) -> None:
        """A row of the kernel, for all channels."""
        assert isinstance(x, _Input)
        assert isinstance(self.columns, VectorColumns)
        begin = T.int32(0) if x.begin is None else x.begin
        at = bind(position * self.columns.pitch + place)
        places = [T.address_of(p) for p in (x.x[offsets[0]], x.lists[begin], buffer[at])]
        plain, *masked = self.routines
        found, _ = self._lists
        inside = sum(not _leaves(places) for places in found)
        if not masked or not inside:
            (masked or [plain])[0].call(*places)
            return
        if x.begin is None:
            plain.call(*places)
            return
        with T.If(x.begin < inside * found[0].size):
            with T.Then():
                plain.call(*places)
            with T.Else():
                masked[0].call(*places)


def _leaves(places: np.ndarray) -> bool:
    return bool((places == columns_helium.OUTSIDE).any())


def gathers_vectors(shape: ConvShape, columns: Columns) -> bool:
    """Whether ``VectorGather`` can fill columns."""
    taps = (shape.kernel[-1] - 1) * shape.dilations[-1]
    reach = (shape.cin - 1) * shape.input_positions + taps
    rows = shape.output[-1] * shape.cin * shape.kernel[-1]
    return isinstance(columns, VectorColumns) and columns.whole and max(reach, rows) <= _REACH
