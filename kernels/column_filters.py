"""What is done with the columns of a tile (``columns``): all filters, and what becomes of sums.

``TileFilters`` goes through tiles of filters, with any products and any epilogue. Convolutions
whose epilogue is nothing but a Requantize have ``column_assembly``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import Param, T, bind, local, loop, vstore
from effc.kernels.column_products import Products
from effc.kernels.columns import TILE, Columns
from effc.kernels.conv_shape import ConvShape
from effc.kernels.epilogue import Epilogue
from effc.kernels.inline_assembly import Routine
from effc.kernels.quad_rows import QuadRows
from effc.kernels.region import Region

__all__ = [
    "Filters",
    "Finish",
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
