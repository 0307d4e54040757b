"""What is done with the columns of a tile (``columns``): all filters, and what becomes of sums.

``TileFilters`` goes through tiles of filters, with any products and any epilogue.
``AssembledFilters`` are one piece of assembly, for convolutions whose epilogue is nothing but a
Requantize to eight bits: at two positions, a tile's sums are requantized and stored from the
registers that they were added up in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import columns_arm
from effc.kernels.builder import Param, T, bind, local, loop, vstore
from effc.kernels.column_kinds import PairColumns
from effc.kernels.column_products import Products, kept_slots
from effc.kernels.columns import TILE, Columns, int16
from effc.kernels.conv_shape import ConvShape
from effc.kernels.epilogue import Epilogue
from effc.kernels.fixed_point import Scaling
from effc.kernels.inline_assembly import Routine
from effc.kernels.quad_rows import QuadRows
from effc.kernels.region import Region

__all__ = [
    "AllInAssembly",
    "AssembledFilters",
    "Filters",
    "Finish",
    "KeptInAssembly",
    "TileFilters",
    "finish_for",
]

Expr = Any  # tvm.tirx expressions have no useful static types


class Filters(ABC):
    """All filters of a convolution.

    Attributes:
        weights: Constants of the stage, by name, in order.
        operands: Further parameters of the stage: those of the epilogue.
        args: The matching ``Stage.args``.
        more_weights: Constants among them.
        out_dtype: Element type of the output.
        inplace: See ``Kernel``.
        routines: Assembly that ``emit`` calls.
    """

    weights: dict[str, np.ndarray]
    operands: Sequence[Param] = ()
    args: tuple[str, ...] = ()
    more_weights: dict[str, np.ndarray]
    out_dtype: str = "int8"
    inplace: tuple[tuple[str, str], ...] = ()
    routines: tuple[Routine, ...] = ()

    @abstractmethod
    def emit(
        self, image: Expr, group: Expr, places: list[Expr], others: list[Any], y: Any, scratch: Any
    ) -> None:
        """All filters of a group at the positions of a tile.

        Args:
            places: The positions.
            others: Buffers of ``weights`` and ``operands``.
            y, scratch: Buffers of the output and of the columns.
        """


class AssembledFilters(Filters):
    """In assembly, two filters at a time.

    Constants are one stream, as the assembly reads them: per pair of filters their biases, their
    weights slot by slot, and their multipliers.

    Attributes:
        columns: The columns, with room for words of the assembly before them.

    Args:
        columns: Of two positions.
        shape: In quads.
        factors: Biases and multipliers, int32, one of each per filter.
        scaling: The epilogue.
        rolled: Whether pairs of filters share code.
    """

    lead: ClassVar[int] = 4

    def __init__(
        self,
        columns: PairColumns,
        shape: ConvShape,
        factors: tuple[np.ndarray, np.ndarray],
        scaling: Scaling,
        rolled: bool,
    ) -> None:
        self.rolled = rolled
        self.columns = replace(columns, lead=self.lead)
        self.shape, self.scaling = shape, scaling
        self.more_weights = {}
        self._factors = [factor.reshape(-1, 2) for factor in factors]

    @property
    def plane(self) -> int:
        """Bytes from a quad of filters to the next one in the output."""
        return TILE * self.shape.positions

    def stream(self, number: int, words: np.ndarray) -> np.ndarray:
        """The constants of pair ``number``, given its weights."""
        bias, multipliers = self._factors
        return np.concatenate([bias[number], words.reshape(-1), multipliers[number]])

    def emit(
        self, image: Expr, group: Expr, places: list[Expr], others: list[Any], y: Any, scratch: Any
    ) -> None:
        shape, scaling = self.shape, self.scaling
        quads = shape.cout // TILE
        plane = bind((image * shape.groups + group) * (quads * shape.positions))
        half = (1 << (scaling.right - 1)) + (scaling.zero << scaling.right)
        outputs = [y[bind((plane + place) * TILE)] for place in places]
        lead = self.lead if self.columns.whole else 2 * self.lead
        first = bind(group * (self.weights["w"].size // shape.groups))
        given = (others[0][first], scratch[lead], *(more[0] for more in others[1:]), *outputs)
        numbers = (tirx.const(number, "int32") for number in (half, quads * (1 + self.rolled)))
        self.routines[0].call(*(T.address_of(place) for place in given), *numbers)


class AllInAssembly(AssembledFilters):
    """Every slot.

    Args:
        weights: int8 ``[groups*cout, slots, 4]``.
    """

    def __init__(
        self,
        columns: PairColumns,
        shape: ConvShape,
        factors: tuple[np.ndarray, np.ndarray],
        scaling: Scaling,
        rolled: bool,
        weights: np.ndarray,
    ) -> None:
        super().__init__(columns, shape, factors, scaling, rolled)
        words = columns.pack(weights).reshape(-1, 2 * columns.slots)
        streams = [self.stream(number, row) for number, row in enumerate(words)]
        self.weights = {"w": np.concatenate(streams)}
        self.routines = (
            columns_arm.filters(columns.slots, columns.unroll, self.plane, scaling.right, rolled),
        )


class KeptInAssembly(AssembledFilters):
    """Slots that ``rows`` filters keep, by lists; a single group.

    Args:
        weights: int8 ``[cout, slots, 4]``.
        rows: Filters that share a list, a multiple of 4.
    """

    lead: ClassVar[int] = 6

    def __init__(
        self,
        columns: PairColumns,
        shape: ConvShape,
        factors: tuple[np.ndarray, np.ndarray],
        scaling: Scaling,
        rolled: bool,
        weights: np.ndarray,
        rows: int,
    ) -> None:
        super().__init__(columns, shape, factors, scaling, rolled)
        lists: list[np.ndarray] = []
        streams: list[np.ndarray] = []
        for number, (slots, kept) in enumerate(kept_slots(weights, rows)):
            steps = np.diff(slots, prepend=0, append=0) * columns.slot_step
            lists += [np.array([len(slots)]), steps]
            first = number * (rows // 2)
            present = min(rows // 2, shape.cout // 2 - first)
            words = columns.pack_listed(kept).reshape(rows // 2, -1)
            streams += [self.stream(first + i, words[i]) for i in range(present)]
        self.weights = {
            "w": np.concatenate(streams).astype(np.int32),
            "lists": int16(np.concatenate(lists)),
        }
        share = rows // TILE
        self.routines = (
            columns_arm.filters_listed(share, columns.unroll, self.plane, scaling.right, rolled),
        )


class TileFilters(Filters):
    """Tile by tile.

    Args:
        shape: In quads.
        columns: How inputs are brought together.
        products: What is added up.
        bias: int32, one per filter: where sums begin.
        finish: What becomes of the sums.
        rolled: Whether tiles share code rather than have code of their own.
    """

    def __init__(
        self,
        shape: ConvShape,
        columns: Columns,
        products: Products,
        bias: np.ndarray,
        finish: Finish,
        *,
        rolled: bool,
    ) -> None:
        self.shape, self.columns, self.products = shape, columns, products
        self.finish, self.rolled = finish, rolled
        epilogue = finish.epilogue
        self.weights = {"bias": bias, **products.weights}
        self.operands, self.args = epilogue.params, epilogue.args
        self.more_weights, self.out_dtype = epilogue.weights, epilogue.out_dtype
        self.inplace, self.routines = epilogue.inplace, products.routines

    def emit(
        self, image: Expr, group: Expr, places: list[Expr], others: list[Any], y: Any, scratch: Any
    ) -> None:
        bias, *constants = others[: len(self.weights)]
        buffers = (constants, bias, others[len(self.weights) :], y, scratch)
        total = self.shape.cout // TILE

        def quad(index: Expr, number: Expr, shared: list[Expr]) -> None:
            self._quad(image, index, number, shared, places, buffers)

        first = T.int32(0) if self.shape.groups == 1 else bind(group * total)
        self.products.each_quad(first, total, constants, quad)

    def _quad(
        self,
        image: Expr,
        quad: Expr,
        number: Expr,
        shared: list[Expr],
        places: list[Expr],
        buffers: tuple[Any, ...],
    ) -> None:
        """Four filters at the positions of a tile: quad ``number`` of a block of products."""
        constants, bias, operands, y, scratch = buffers
        columns, shape = self.columns, self.shape
        positions = columns.positions
        plane = bind((image * (shape.groups * shape.cout // TILE) + quad) * shape.positions)
        sums = local(TILE * positions, "int32")

        def tile(part: Expr, first: int) -> None:
            """Some of the filters, whose sums lie from ``first`` on."""
            for i in range(columns.filters):
                start = bind(bias[quad * TILE + part * columns.filters + i])
                for p in range(positions):
                    T.buffer_store(sums, start, [p * TILE + first + i])
            index = bind(number * positions + part)
            self.products.multiply(sums, first, index, shared, constants, scratch)

        def finish(rows: Sequence[Expr], first: int) -> None:
            ready = [
                [bind(sums[p * TILE + first + i]) for i in range(len(rows))]
                for p in range(positions)
            ]
            done = [
                self.finish.apply(values, rows, (image, quad, place), operands)
                for values, place in zip(ready, places, strict=True)
            ]
            for place, values in zip(places, done, strict=True):
                self.finish.store(y, bind((plane + place) * TILE), rows, values)

        def rows_of(part: Expr) -> list[Expr]:
            return [part * columns.filters + i for i in range(columns.filters)]

        if self.finish.whole:
            for part in range(positions):
                tile(part, part * columns.filters)
            finish(range(TILE), 0)
        elif self.rolled:
            with loop(positions) as part:
                tile(part, 0)
                finish(rows_of(part), 0)
        else:
            for part in range(positions):
                tile(part, 0)
                finish(rows_of(part), 0)


class Finish(ABC):
    """What happens to sums of filters of a quad.

    Attributes:
        epilogue: Of the region.
        whole: Whether it takes all four filters at once, or as soon as some are ready.
    """

    epilogue: Epilogue
    whole: ClassVar[bool]

    @abstractmethod
    def apply(
        self, sums: list[Expr], rows: Sequence[Expr], coords: Sequence[Expr], operands: list[Any]
    ) -> list[Expr]:
        """The epilogue's results for filters ``rows``, bound."""

    @abstractmethod
    def store(self, y: Any, at: Expr, rows: Sequence[Expr], values: list[Expr]) -> None:
        """Store them; ``at`` is where the quad begins."""


class _OneByOne(Finish):
    whole: ClassVar[bool] = False

    def __init__(self, region: Region, view: tuple[int, ...], target: Target) -> None:
        assert region.anchor is not None
        self.epilogue: QuadRows = QuadRows(region, region.anchor.outputs[0], view, target)

    def apply(
        self, sums: list[Expr], rows: Sequence[Expr], coords: Sequence[Expr], operands: list[Any]
    ) -> list[Expr]:
        return self.epilogue.finish_each(sums, coords, operands, rows)

    def store(self, y: Any, at: Expr, rows: Sequence[Expr], values: list[Expr]) -> None:
        for f, value in zip(rows, values, strict=True):
            T.buffer_store(y, value, [at + f])


class _AsLanes(Finish):
    whole: ClassVar[bool] = True

    def __init__(self, region: Region, view: tuple[int, ...]) -> None:
        assert region.anchor is not None
        self.epilogue = Epilogue(region, region.anchor.outputs[0], view)

    def apply(
        self, sums: list[Expr], rows: Sequence[Expr], coords: Sequence[Expr], operands: list[Any]
    ) -> list[Expr]:
        quad = bind(tirx.Shuffle(sums, list(range(TILE))))
        place = (*coords, T.int32(0))
        return [bind(self.epilogue.apply(quad, place, operands, axis=3, lanes=TILE))]

    def store(self, y: Any, at: Expr, rows: Sequence[Expr], values: list[Expr]) -> None:
        vstore(y, at, values[0], TILE)


def finish_for(region: Region, shape: ConvShape, target: Target) -> Finish:
    view = (shape.batch, shape.groups * shape.cout // TILE, shape.positions, TILE)
    if target.vector_bits >= 128:
        return _AsLanes(region, view)
    return _OneByOne(region, view, target)
