"""All filters at two positions in one piece of assembly (``Filters``).

For convolutions whose epilogue is nothing but a Requantize to eight bits, with MVE also a residual
behind it: a tile's sums are requantized and stored from the registers that they were added up in.
Biases, weights and multipliers are one stream, as the assembly reads them. ``PairFilters`` are
for the DSP extension, ``VectorFilters`` for MVE.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.kernels import columns_arm, columns_helium
from effc.kernels.builder import T, bind
from effc.kernels.column_ending import Ending
from effc.kernels.column_filters import Filters
from effc.kernels.column_kinds import PairColumns, VectorColumns
from effc.kernels.column_products import kept_slots
from effc.kernels.columns import TILE, Columns, int16
from effc.kernels.conv_shape import ConvShape
from effc.kernels.inline_assembly import Routine

__all__ = ["AssembledFilters", "assembly_for"]

Expr = Any  # tvm.tirx expressions have no useful static types


class AssembledFilters(Filters):
    """Over all slots, or over lists of those that ``rows`` filters keep.

    Attributes:
        columns: The columns as the assembly wants them.
        together: Filters whose constants make a piece of the stream.

    Args:
        columns: Of two positions.
        shape: In quads; of one group, if there are lists.
        bias: int32, one per filter.
        ending: The epilogue.
        result: Name of the output.
        rolled: Whether tiles of filters share code.
        weights: int8 ``[groups*cout, slots, 4]``.
        rows: Filters that share a list, a multiple of 4; ``None`` without lists.
    """

    together: ClassVar[int]

    def __init__(
        self,
        columns: Columns,
        shape: ConvShape,
        bias: np.ndarray,
        ending: Ending,
        result: str,
        rolled: bool,
        weights: np.ndarray,
        rows: int | None,
    ) -> None:
        self.shape, self.scaling, self.residual = shape, ending.scaling, ending.residual
        self.rolled, self.rows = rolled, rows
        self.columns, self.more_weights = self.prepared(columns), {}
        self._factors = bias, ending.multipliers
        if self.residual is not None:
            other = self.residual.other
            self.operands, self.args = [(other.name, "int8", other.type.size)], (other.name,)
            self.inplace = ((other.name, result),)
        share = rows or len(weights)
        blocks: Iterable[tuple[np.ndarray, np.ndarray]] = [(np.arange(columns.slots), weights)]
        if rows is not None:
            blocks = kept_slots(weights, rows)
        streams, lists = [], []
        for number, (slots, kept) in enumerate(blocks):
            lists.append(self.listed(slots))
            first = number * share
            for i in range(0, min(share, len(weights) - first), self.together):
                streams.append(self.stream(first + i, kept[i : i + self.together]))
        self.weights = {"w": np.concatenate(streams)}
        if rows is not None:
            self.weights["lists"] = int16(np.concatenate(lists))
        self.routines = (self.routine(),)

    @property
    def plane(self) -> int:
        """Bytes from a quad of filters to the next one in the output."""
        return TILE * self.shape.positions

    @abstractmethod
    def prepared(self, columns: Columns) -> Columns:
        """The columns as the assembly wants them."""

    @abstractmethod
    def stream(self, first: int, weights: np.ndarray) -> np.ndarray:
        """Constants, int32, of ``together`` filters from ``first`` on.

        Args:
            weights: int8 ``[together, slots, 4]``.
        """

    @abstractmethod
    def listed(self, slots: np.ndarray) -> np.ndarray:
        """A list of slots."""

    @abstractmethod
    def routine(self) -> Routine:
        """The assembly: takes the stream, the columns, the lists if there are any, the outputs,
        the residual at the first output if there is one, and numbers."""

    @abstractmethod
    def given(self, places: list[Expr], scratch: Any) -> tuple[Expr, list[Expr], list[Expr]]:
        """For positions ``places`` of the outputs: the columns, the outputs that the assembly
        takes the addresses of, and its numbers."""

    def emit(
        self, image: Expr, group: Expr, places: list[Expr], others: list[Any], y: Any, scratch: Any
    ) -> None:
        """See :meth:`Filters.emit`."""
        shape = self.shape
        plane = bind((image * shape.groups + group) * (shape.cout // TILE * shape.positions))
        first = bind(group * (self.weights["w"].size // shape.groups))
        columns, outputs, numbers = self.given(places, scratch)
        lists = [more[0] for more in others[1 : len(self.weights)]]
        starts = [bind((plane + place) * TILE) for place in outputs]
        results = [y[at] for at in starts]
        added = [more[starts[0]] for more in others[len(self.weights) :]]
        given = (others[0][first], columns, *lists, *results, *added)
        addresses = (T.address_of(x) for x in given)
        self.routines[0].call(*addresses, *numbers)


class PairFilters(AssembledFilters):
    """For ``PairColumns``: per two filters their biases, weights slot by slot, multipliers."""

    together: ClassVar[int] = 2

    @property
    def _lead(self) -> int:
        return 4 if self.rows is None else 6

    def prepared(self, columns: Columns) -> Columns:
        assert isinstance(columns, PairColumns)
        return replace(columns, lead=self._lead)

    def stream(self, first: int, weights: np.ndarray) -> np.ndarray:
        bias, multipliers = (factor[first : first + self.together] for factor in self._factors)
        return np.concatenate([bias, self.columns.pack(weights), multipliers])

    def listed(self, slots: np.ndarray) -> np.ndarray:
        steps = np.diff(slots, prepend=0, append=0) * self.columns.slot_step
        return np.concatenate([[len(slots)], steps])

    def routine(self) -> Routine:
        columns, how = self.columns, (self.plane, self.scaling.right, self.rolled)
        if self.rows is None:
            return columns_arm.filters(columns.slots, columns.unroll, *how)
        return columns_arm.filters_listed(self.rows // TILE, columns.unroll, *how)

    def given(self, places: list[Expr], scratch: Any) -> tuple[Expr, list[Expr], list[Expr]]:
        scaling = self.scaling
        half = (1 << (scaling.right - 1)) + (scaling.zero << scaling.right)
        count = self.shape.cout // TILE * (1 + self.rolled)
        lead = self._lead if self.columns.whole else 2 * self._lead
        return scratch[lead], places, [tirx.const(n, "int32") for n in (half, count)]


class VectorFilters(AssembledFilters):
    """For ``VectorColumns``: per four filters, of 0 and 2 the biases and the weights vector by
    vector, the same of 1 and 3, then the multipliers for two positions, in the same order, and
    the numbers of a residual."""

    together: ClassVar[int] = 4

    def prepared(self, columns: Columns) -> Columns:
        assert isinstance(columns, VectorColumns)
        return replace(columns, aligned=True)

    def stream(self, first: int, weights: np.ndarray) -> np.ndarray:
        order = np.array([[0, 2], [1, 3]])
        bias, multipliers = (factor[first + order] for factor in self._factors)
        words = self.columns.pack_listed(weights[order.reshape(-1)]).reshape(2, -1)
        halves = np.concatenate([bias, words], axis=1)
        parts = [halves.reshape(-1), np.tile(multipliers, 2).reshape(-1)]
        if (added := self.residual) is not None:
            parts.append(np.array([added.own, added.factor, added.offset, added.zero], np.int32))
        return np.concatenate(parts)

    def listed(self, slots: np.ndarray) -> np.ndarray:
        entries = self.columns.entries(slots)
        return np.concatenate([[len(entries) // columns_helium.QUADS], entries])

    def routine(self) -> Routine:
        columns, shape = self.columns, self.shape
        assert isinstance(columns, VectorColumns)
        output = columns_helium.Output(
            shape.cout // TILE,
            self.plane,
            self.scaling.right,
            self.scaling.zero,
            uneven=shape.positions % 2 == 1,
            added=self.residual.right if self.residual is not None else None,
        )
        if self.rows is None:
            unroll = 1 if self.rolled else 2
            return columns_helium.filters(columns.pitch // columns_helium.QUADS, unroll, output)
        share, short = self.rows // TILE, not self.rolled
        return columns_helium.filters_listed(4 * columns.pitch, share, output, short=short)

    def given(self, places: list[Expr], scratch: Any) -> tuple[Expr, list[Expr], list[Expr]]:
        numbers = []
        if self.shape.positions % 2:  # the last position has no neighbour
            numbers = [bind((places[1] - places[0] + 1) * TILE)]
        return scratch[0], places[:1], numbers


def assembly_for(columns: Columns, ending: Ending) -> type[AssembledFilters] | None:
    """The assembly for columns and an epilogue, if there is any."""
    if columns.positions == 1:
        return None
    if isinstance(columns, PairColumns) and ending.residual is None:
        return PairFilters
    if isinstance(columns, VectorColumns) and ending.scaling.right <= columns_helium.LARGEST_SHIFT:
        return VectorFilters
    return None
