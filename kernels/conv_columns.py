"""Integer convolutions on processors without wide vectors, by columns (``columns``).

For one or two output positions at a time: gather their inputs, and take the products with all
filters, a quad of filters after the other. Sums begin with the folded bias
(``conv_problem``); the epilogue works on single values.

Scratch is the columns of one tile. Residual operands may share memory with the output: a tile
reads them before it writes, and where the last tile has a single position left it computes that
one twice and stores the same values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import Param, T, bind, local, loop, stage_func, vstore
from effc.kernels.column_gather import Gather, Walk, column_weights, slots_of
from effc.kernels.columns import TILE, Columns, columns_for, is_narrow, unrolls
from effc.kernels.conv_problem import ConvProblem, problem_refusal
from effc.kernels.conv_shape import ConvShape
from effc.kernels.epilogue import Epilogue
from effc.kernels.inline_assembly import importing
from effc.kernels.overlap import Shifts, all_planes, overlap, quad_bytes
from effc.kernels.quad_rows import QuadRows
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Region
from effc.kernels.template import Config, Kernel, Overlap, Stage, Template
from effc.kernels.window import window_axes

__all__ = ["ColumnConv"]

Expr = Any  # tvm.tirx expressions have no useful static types


class ColumnConv(Template):
    """``ConvInteger`` in groups of whole quads."""

    name: ClassVar[str] = "conv_columns"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        if not is_narrow(target):
            return "the processor has wide vectors"
        if region.anchor is None or region.anchor.domain != DOMAIN:
            return "the anchor is not an integer convolution"
        if reason := problem_refusal(region, target):
            return reason
        data = region.anchor.inputs[0]
        assert data is not None
        if data.dtype != "int8":
            return "activations are unsigned"
        return _finish(region, ConvShape.of(region.anchor), target).epilogue.refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        assert region.anchor is not None
        macs = 4.0 * ConvShape.of(region.anchor).macs
        return [
            ({"unroll": unroll, "split": unroll > 1}, macs * (0.94 + 0.125 / unroll))
            for unroll in unrolls(target)
        ]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        problem = ConvProblem.of(region, target)
        shape = problem.shape
        channels = operand(op, 1).shape[1]
        slots, whole = slots_of(shape, channels)
        positions = min(shape.positions, 2)
        unroll = int(config["unroll"])
        columns = columns_for(target, slots, positions, whole=whole, unroll=unroll)
        gather = Gather(shape, columns, channels, int(op.attrs["x_zero"]), bool(config["split"]))
        weights = {"w": columns.pack(column_weights(shape, problem.weight, channels))}
        assert problem.bias is not None
        weights["bias"] = problem.bias
        plan = _Plan(shape, columns, gather, _finish(region, shape, target), not gather.split)
        shifts = _shifts(region, shape) if target.serial else ()
        overlaps = overlap(region, operand(op, 0), shifts)
        return plan.kernel(region, problem.data, weights, overlaps)


def _shifts(region: Region, shape: ConvShape) -> Shifts:
    """Where the result may lie over the input: the columns of positions are gathered before
    results of these positions are written."""
    op = region.ops[0]
    data, weight, result = operand(op, 0), operand(op, 1), region.outputs[0]
    if shape.batch > 1 or shape.groups > 1:
        return ()
    axes = window_axes(op, shape.input, weight.shape[2:], shape.output)
    return all_planes(
        axes, (data.shape[1], result.shape[1]), (quad_bytes(data), quad_bytes(result))
    )


@dataclass(frozen=True)
class _Plan:
    """Emits the stage."""

    shape: ConvShape
    columns: Columns
    gather: Gather
    finish: _Finish
    rolled: bool

    def kernel(
        self, region: Region, data: str, weights: dict[str, Any], overlaps: tuple[Overlap, ...]
    ) -> Kernel:
        shape, epilogue = self.shape, self.finish.epilogue
        quads = shape.batch * shape.groups * shape.cin * shape.input_positions
        source = self.columns.source
        dtype, elements = self.columns.buffer
        params: list[Param] = [
            ("x", source, quads * (4 if source == "int8" else 1)),
            ("w", self.columns.stored, weights["w"].size),
            ("bias", "int32", weights["bias"].size),
            *epilogue.params,
            ("y", epilogue.out_dtype, region.outputs[0].type.size),
            ("scratch", dtype, elements),
        ]

        def body(*arguments: Any) -> None:
            *buffers, begin, end = arguments
            with importing(self.columns.routines), loop(begin, end) as image:
                self._image(image, buffers)

        args = [data, "w:w", "w:bias", *epilogue.args, region.outputs[0].name, "scratch"]
        nbytes = elements * {"int8": 1, "int16": 2, "int32": 4}[dtype]
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
        x, w, bias, *operands, y, scratch = buffers
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
            with loop(shape.cout // TILE) as number:
                quad = bind(group * (shape.cout // TILE) + number)
                self._quad(image, quad, places, (w, bias, operands, y, scratch))

    def _quad(self, image: Expr, quad: Expr, places: list[Expr], buffers: tuple[Any, ...]) -> None:
        """Four filters at the positions of a tile."""
        w, bias, operands, y, scratch = buffers
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
            columns.multiply(sums, first, w, bind(quad * positions + part), scratch)

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


class _Finish(ABC):
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


class _OneByOne(_Finish):
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


class _AsLanes(_Finish):
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


def _finish(region: Region, shape: ConvShape, target: Target) -> _Finish:
    view = (shape.batch, shape.groups * shape.cout // TILE, shape.positions, TILE)
    if target.vector_bits >= 128:
        return _AsLanes(region, view)
    return _OneByOne(region, view, target)
