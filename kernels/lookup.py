"""``Lookup``: a table of 256 bytes, indexed by an 8-bit tensor."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, loop, stage_func, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import pick
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Region
from effc.kernels.strips import each_vector
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["LookupTemplate"]

Expr = Any

_BLOCK = 4096  # elements of one parallel unit


class LookupTemplate(Template):
    """Functions of one 8-bit tensor."""

    name: ClassVar[str] = "lookup"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.anchor
        if op is None or (op.domain, op.op_type) != (DOMAIN, "Lookup"):
            return "the anchor is not Lookup"
        if operand(op, 1).const is None:
            return "the table is not constant"
        return Epilogue(region, op.outputs[0], (op.outputs[0].type.size,)).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, float(region.outputs[0].type.size))]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        x, table, y = operand(op, 0), operand(op, 1), op.outputs[0]
        assert table.const is not None
        size = y.type.size
        epilogue = Epilogue(region, y, (size,))
        params = [("x", x.dtype, size), ("table", table.dtype, 256), *epilogue.params]
        params.append(("y", epilogue.out_dtype, size))
        lowest = int(np.iinfo(x.dtype).min)
        full, rest = divmod(size, _BLOCK)

        def body(source: Any, values: Any, *arguments: Any) -> None:
            *operands, out, begin, end = arguments

            def block(start: Expr, count: int) -> None:
                def vector(i: Expr, width: int) -> None:
                    at = bind(start + i)
                    index = bind(vm.cast(vload(source, at, width), "int32"))
                    found = [values[pick(index, [k], width) - lowest] for k in range(width)]
                    value = found[0] if width == 1 else _vector(found)
                    value = epilogue.apply(bind(value), [at], operands, axis=0, lanes=width)
                    vstore(out, at, value, width)

                each_vector(count, 16, vector)

            with loop(begin, end) as unit:
                _by_block(unit, full, rest, block)

        args = (x.name, "w:table", *epilogue.args, region.outputs[0].name)
        stage = Stage(stage_func(params, body), args, full + bool(rest))
        weights = {**epilogue.weights, "table": np.ascontiguousarray(table.const)}
        same = ((x.name, region.outputs[0].name),) if epilogue.out_dtype == x.dtype else ()
        return Kernel((stage,), weights, inplace=(*epilogue.inplace, *same))


def _vector(scalars: list[Expr]) -> Expr:
    return tirx.Shuffle(scalars, [tirx.const(i, "int32") for i in range(len(scalars))])


def _by_block(unit: Expr, full: int, rest: int, block: Any) -> None:
    if not rest:
        block(bind(unit * _BLOCK), _BLOCK)
    elif not full:
        block(T.int32(0), rest)
    else:
        with T.If(unit < full):
            with T.Then():
                block(bind(unit * _BLOCK), _BLOCK)
            with T.Else():
                block(T.int32(full * _BLOCK), rest)
