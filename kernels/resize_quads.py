"""``ResizeLinear``: linear interpolation of 8-bit tensors in quads, along one or two axes.

A parallel unit is a row of results. Four channels at a time: two or four neighbours, whose
places and weights are read from tables.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import Param, T, bind, loop, splat, stage_func, unravel, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["QuadResize"]

Expr = Any

_ONE = 1 << 11  # of the weights (docs/QUANTIZATION.md)


def _view(op: Op) -> tuple[int, ...]:
    batch, quads, *sizes, four = op.outputs[0].shape
    return batch, quads, prod(sizes), four


class QuadResize(Template):
    """Linear interpolation."""

    name: ClassVar[str] = "resize_quads"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.anchor
        if op is None or (op.domain, op.op_type) != (DOMAIN, "ResizeLinear"):
            return "the anchor is not ResizeLinear"
        if any(operand(op, i).const is None for i in range(1, len(op.inputs))):
            return "the tables are not constant"
        return Epilogue(region, op.outputs[0], _view(op)).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, 2.0 * region.ops[0].outputs[0].type.size)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        x, y = operand(op, 0), op.outputs[0]
        epilogue = Epilogue(region, y, _view(op))
        weights = dict(epilogue.weights)
        for i in range(1, len(op.inputs)):
            table = operand(op, i).const
            assert table is not None
            weights[f"t{i}"] = np.ascontiguousarray(table, np.int32)
        tables = [f"t{i}" for i in range(1, len(op.inputs))]
        params: list[Param] = [("x", x.dtype, x.type.size)]
        params += [(name, "int32", weights[name].size) for name in tables]
        params += [*epilogue.params, ("y", epilogue.out_dtype, y.type.size)]
        outer, columns = y.shape[:-2], y.shape[-2]
        zero = int(op.attrs.get("x_zero", 0)) * _ONE ** (len(tables) // 2)

        def body(source: Any, *arguments: Any) -> None:
            places = arguments[: len(tables)]
            *operands, out, begin, end = arguments[len(tables) :]
            rows = _Rows(source, x.shape, places)
            with loop(begin, end) as unit:
                n, quad, *row = unravel(unit, outer)
                plane = bind((n * x.shape[1] + quad) * prod(x.shape[2:-1]))
                starts, weight = rows.of(plane, row)
                with loop(columns) as column:
                    value = rows.between(starts, weight, column)
                    value = value - vm.const(zero, value) if zero else value
                    place = bind((row[0] * columns if row else 0) + column)
                    coords = [n, quad, place, T.int32(0)]
                    value = epilogue.apply(bind(value), coords, operands, axis=3, lanes=4)
                    vstore(out, (unit * columns + column) * 4, value, 4)

        args = (x.name, *(f"w:{name}" for name in tables), *epilogue.args)
        stage = Stage(stage_func(params, body), (*args, region.outputs[0].name), prod(outer))
        return Kernel((stage,), weights, inplace=epilogue.inplace)


class _Rows:
    """Neighbours in a source of one or two axes.

    Args:
        source: Buffer of bytes.
        shape: Of the source in quads.
        tables: First neighbour and weight of the second, per axis.
    """

    def __init__(self, source: Any, shape: tuple[int, ...], tables: tuple[Any, ...]) -> None:
        self.source = source
        self.sizes = shape[2:-1]
        self.tables = tables

    def of(self, plane: Expr, row: list[Expr]) -> tuple[list[Expr], Expr]:
        """First positions of the source rows that a row of results lies between, and the weight."""
        if not row:
            return [plane], None
        height, width = self.sizes
        first = bind(self.tables[0][row[0]])
        second = tirx.Min(first + 1, T.int32(height - 1))
        return [bind(plane + first * width), bind(plane + second * width)], self._weight(0, row[0])

    def between(self, starts: list[Expr], weight: Expr, column: Expr) -> Expr:
        """Four int32 lanes."""
        first = bind(self.tables[-2][column])
        second = bind(tirx.Min(first + 1, T.int32(self.sizes[-1] - 1)))
        along = self._weight(-2, column)
        sums = [
            _mixed(self._load(start + first), self._load(start + second), along) for start in starts
        ]
        return sums[0] if len(sums) == 1 else _mixed(sums[0], sums[1], weight)

    def _weight(self, table: int, index: Expr) -> Expr:
        return bind(splat(self.tables[table + 1][index], 4))

    def _load(self, position: Expr) -> Expr:
        return bind(vm.cast(vload(self.source, position * 4, 4), "int32"))


def _mixed(a: Expr, b: Expr, weight: Expr) -> Expr:
    """``a * (1 - weight) + b * weight`` in units of the weight."""
    return bind(a * (vm.const(_ONE, weight) - weight) + b * weight)
