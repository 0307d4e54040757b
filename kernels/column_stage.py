"""The stage of an integer convolution by columns, see ``conv_columns``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import Param, T, bind, local, loop, stage_func, vstore
from effc.kernels.column_gather import Gather, Walk
from effc.kernels.column_products import Products
from effc.kernels.columns import TILE, Columns
from effc.kernels.conv_shape import ConvShape
from effc.kernels.epilogue import Epilogue
from effc.kernels.inline_assembly import importing
from effc.kernels.quad_rows import QuadRows
from effc.kernels.region import Region
from effc.kernels.template import Kernel, Overlap, Stage

__all__ = ["ColumnStage", "Finish", "finish_for"]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class ColumnStage:
    """Emits the stage.

    Attributes:
        shape: Of the convolution, in quads.
        columns, gather: How inputs are brought together.
        products: What is added up.
        finish: What becomes of the sums.
        rolled: Whether tiles share code rather than have code of their own.
    """

    shape: ConvShape
    columns: Columns
    products: Products
    gather: Gather
    finish: Finish
    rolled: bool

    def kernel(
        self, region: Region, data: str, bias: np.ndarray, overlaps: tuple[Overlap, ...]
    ) -> Kernel:
        """The kernel.

        Args:
            data: Name of the input.
            bias: int32, one per filter: where sums begin.
            overlaps: See ``Kernel``.
        """
        shape, epilogue = self.shape, self.finish.epilogue
        quads = shape.batch * shape.groups * shape.cin * shape.input_positions
        source = self.columns.source
        dtype, elements = self.columns.buffer
        weights = {"bias": bias, **self.products.weights}
        params: list[Param] = [
            ("x", source, quads * (4 if source == "int8" else 1)),
            *((name, str(array.dtype), array.size) for name, array in weights.items()),
            *epilogue.params,
            ("y", epilogue.out_dtype, region.outputs[0].type.size),
            ("scratch", dtype, elements),
        ]

        def body(*arguments: Any) -> None:
            *buffers, begin, end = arguments
            with importing(self.products.routines), loop(begin, end) as image:
                self._image(image, buffers)

        args = [
            data,
            *(f"w:{name}" for name in weights),
            *epilogue.args,
            region.outputs[0].name,
            "scratch",
        ]
        nbytes = elements * np.dtype(dtype).itemsize
        stage = Stage(stage_func(params, body), tuple(args), shape.batch, nbytes)
        inplace = tuple(pair for pair in epilogue.inplace if pair[0] != data)
        return Kernel((stage,), weights | epilogue.weights, {}, inplace, overlaps)

    def _image(self, image: Expr, buffers: list[Any]) -> None:
        shape = self.shape
        if shape.groups == 1:
            self._group(image, T.int32(0), buffers)
            return
        with loop(shape.groups) as group:
            self._group(image, group, buffers)

    def _group(self, image: Expr, group: Expr, buffers: list[Any]) -> None:
        shape, positions = self.shape, self.columns.positions
        x, bias, *others, y, scratch = buffers
        constants = others[: len(self.products.weights)]
        operands = others[len(constants) :]
        base = bind((image * shape.groups + group) * (shape.cin * shape.input_positions))
        walk = Walk(shape)
        with loop(-(-shape.positions // positions)) as tile:
            with loop(positions) as column:
                self.gather.emit(x, scratch, base, walk, column)
                walk.step()
            first = bind(tile * positions)
            places = [first]
            if positions == 2:
                last = first + 1
                if shape.positions % 2:
                    last = tirx.Min(last, T.int32(shape.positions - 1))
                places.append(bind(last))
            self._filters(image, group, places, (constants, bias, operands, y, scratch))

    def _filters(
        self, image: Expr, group: Expr, places: list[Expr], buffers: tuple[Any, ...]
    ) -> None:
        """All filters of a group at the positions of a tile."""
        total, shared = self.shape.cout // TILE, self.products.quads
        if shared == 1:
            with loop(total) as number:
                quad = bind(group * total + number)
                found = self.products.begin(quad, buffers[0])
                self._quad(image, quad, T.int32(0), found, places, buffers)
            return
        with loop(-(-total // shared)) as block:
            found = self.products.begin(block, buffers[0])
            count: Expr = shared
            if total % shared:
                count = bind(tirx.Min(T.int32(shared), total - block * shared))
            with loop(count) as number:
                quad = bind(block * shared + number)
                self._quad(image, quad, number, found, places, buffers)

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
