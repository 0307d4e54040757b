"""Integer convolutions on processors without wide vectors, by columns (``columns``).

For one or two output positions at a time: gather their inputs, and take the products with all
filters, a quad of filters after the other. Sums begin with the folded bias
(``conv_problem``); the epilogue works on single values.

Scratch is the columns of one tile. Residual operands may share memory with the output: a tile
reads them before it writes, and where the last tile has a single position left it computes that
one twice and stores the same values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import Param, T, bind, local, loop, stage_func
from effc.kernels.column_gather import Gather, Walk, column_weights, slots_of
from effc.kernels.columns import TILE, Columns, columns_for, is_narrow
from effc.kernels.conv_problem import ConvProblem, problem_refusal
from effc.kernels.conv_shape import ConvShape
from effc.kernels.inline_assembly import importing
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.results import QuadResults
from effc.kernels.template import Config, Kernel, Stage, Template

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
        return None if data.dtype == "int8" else "activations are unsigned"

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        assert region.anchor is not None
        macs = 4.0 * ConvShape.of(region.anchor).macs
        found: list[tuple[Config, float]] = []
        for unroll in (4, 2, 1):
            cost = macs * (0.94 + 0.125 / unroll)
            found.append(({"unroll": unroll, "split": unroll > 1}, cost))
        return found

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        problem = ConvProblem.of(region, target)
        shape, results = problem.shape, problem.results
        assert isinstance(results, QuadResults)
        channels = _channels(op)
        slots, whole = slots_of(shape, channels)
        positions = min(shape.positions, 2)
        unroll = int(config["unroll"])
        columns = columns_for(target, slots, positions, whole=whole, unroll=unroll)
        gather = Gather(shape, columns, channels, int(op.attrs["x_zero"]), bool(config["split"]))
        weights = {"w": columns.pack(column_weights(shape, problem.weight, channels))}
        assert problem.bias is not None
        weights["bias"] = problem.bias
        plan = _Plan(shape, columns, gather, results)
        return plan.kernel(region, problem.data, weights)


def _channels(op: Op) -> int:
    weight = op.inputs[1]
    assert weight is not None
    return weight.shape[1]


@dataclass(frozen=True)
class _Plan:
    """Emits the stage."""

    shape: ConvShape
    columns: Columns
    gather: Gather
    results: QuadResults

    def kernel(self, region: Region, data: str, weights: dict[str, Any]) -> Kernel:
        shape, epilogue = self.shape, self.results.epilogue
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
        return Kernel((stage,), weights | epilogue.weights, inplace=inplace)

    def _image(self, image: Expr, buffers: list[Any]) -> None:
        shape, positions = self.shape, self.columns.positions
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
        columns, positions = self.columns, self.columns.positions
        sums = local(TILE * positions, "int32")
        for f in range(TILE):
            start = bind(bias[quad * TILE + f])
            for p in range(positions):
                T.buffer_store(sums, start, [f * positions + p])
        for part in range(positions):
            columns.multiply(sums, part * TILE, w, bind(quad * positions + part), scratch)
        epilogue, shape = self.results.epilogue, self.shape
        done = [
            epilogue.finish_each(
                [bind(sums[f * positions + p]) for f in range(TILE)], (image, quad, place), operands
            )
            for p, place in enumerate(places)
        ]
        plane = bind((image * (shape.groups * shape.cout // TILE) + quad) * shape.positions)
        for place, values in zip(places, done, strict=True):
            at = bind((plane + place) * TILE)
            for f, value in enumerate(values):
                T.buffer_store(y, value, [at + f])
