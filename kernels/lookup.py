"""``Lookup``: a table of 256 bytes, indexed by an 8-bit tensor.

The table lies in registers where a processor can index registers: four of 64 bytes on
x86 with VBMI (``vpermi2b``), sixteen of 16 bytes on 64-bit Arm (``tbl``, ``tbx``). Elsewhere
every element is a load. It is packed in the order of the index's bits as an unsigned
number, so that signed indices need no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, loop, stage_func, vload, vstore, whole_or_rest
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import concat, pick
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Region
from effc.kernels.strips import each_vector
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.vectorbase import bits_as

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
        x, y = operand(op, 0), op.outputs[0]
        size = y.type.size
        epilogue = Epilogue(region, y, (size,))
        table = _by_bits(operand(op, 1).const, x.dtype)
        params = [("x", x.dtype, size), ("table", y.dtype, 256), *epilogue.params]
        params.append(("y", epilogue.out_dtype, size))
        full, rest = divmod(size, _BLOCK)

        def body(source: Any, values: Any, *arguments: Any) -> None:
            *operands, out, begin, end = arguments
            lanes, look_up = _method(target, values, y.dtype)

            def block(start: Expr, count: int) -> None:
                def vector(i: Expr, width: int) -> None:
                    at = bind(start + i)
                    index = bind(bits_as(vload(source, at, width), "uint8"))
                    value = bind(look_up(index, width))
                    value = epilogue.apply(value, [at], operands, axis=0, lanes=width)
                    vstore(out, at, value, width)

                each_vector(count, lanes, vector)

            with loop(begin, end) as unit:
                _by_block(unit, full, rest, block)

        args = (x.name, "w:table", *epilogue.args, region.outputs[0].name)
        stage = Stage(stage_func(params, body), args, full + bool(rest))
        same = ((x.name, region.outputs[0].name),) if epilogue.out_dtype == x.dtype else ()
        weights = {**epilogue.weights, "table": table}
        return Kernel((stage,), weights, inplace=(*epilogue.inplace, *same))


def _by_bits(table: np.ndarray | None, dtype: str) -> np.ndarray:
    """The table in the order of the index's bits: negative ones come last."""
    assert table is not None
    return np.roll(table, 128) if dtype == "int8" else np.ascontiguousarray(table)


LookUp = Callable[[Expr, int], Expr]


def _method(target: Target, values: Any, dtype: str) -> tuple[int, LookUp]:
    """Lanes, and what looks up a vector (or scalar) of uint8 indices."""
    if target.arch == "x86_64" and target.has("avx512vbmi"):
        return 64, _whole(64, _permute(_load(values, 64), dtype))
    if target.arch == "aarch64":
        return 16, _whole(16, _tables(_load(values, 16), dtype))

    def each(index: Expr, width: int) -> Expr:
        wide = bind(vm.cast(index, "int32"))
        found = [values[pick(wide, [k], width)] for k in range(width)]
        if width == 1:
            return found[0]
        return tirx.Shuffle(found, [tirx.const(k, "int32") for k in range(width)])

    return 16, each


def _load(values: Any, lanes: int) -> list[Expr]:
    """The table in registers."""
    return [bind(vload(values, start, lanes)) for start in range(0, 256, lanes)]


def _whole(lanes: int, look_up: Callable[[Expr], Expr]) -> LookUp:
    """Looks up fewer lanes as a whole vector."""

    def method(index: Expr, width: int) -> Expr:
        if width == lanes:
            return look_up(index)
        if width == 1:
            wide = T.Broadcast(index, lanes)
        else:
            wide = concat([index] * (lanes // width), range(lanes))
        return pick(bind(look_up(bind(wide))), range(width), lanes)

    return method


def _bytes(name: str, lanes: int, *args: Expr) -> Expr:
    signless = [bits_as(a, "int8") for a in args]  # LLVM's bytes have no sign
    return bind(tirx.call_llvm_pure_intrin(f"int8x{lanes}", name, *signless))


def _permute(table: Sequence[Expr], dtype: str) -> Callable[[Expr], Expr]:
    """Two registers at a time; the index's top bit chooses the pair."""

    def look_up(index: Expr) -> Expr:
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        low, high = (_bytes(name, 64, table[i], index, table[i + 1]) for i in (0, 2))
        found = vm.select(index < vm.const(128, index), low, high)
        return bits_as(bind(found), dtype)

    return look_up


def _tables(table: Sequence[Expr], dtype: str) -> Callable[[Expr], Expr]:
    """Four registers at a time; an index out of their range leaves what was found."""

    def look_up(index: Expr) -> Expr:
        found = _bytes("llvm.aarch64.neon.tbl4.v16i8", 16, *table[:4], index)
        for part in (4, 8, 12):
            index = bind(index - vm.const(64, index))
            name = "llvm.aarch64.neon.tbx4.v16i8"
            found = _bytes(name, 16, found, *table[part : part + 4], index)
        return bits_as(found, dtype)

    return look_up


def _by_block(unit: Expr, full: int, rest: int, block: Callable[[Expr, int], None]) -> None:
    whole_or_rest(
        unit,
        full,
        rest,
        lambda: block(bind(unit * _BLOCK), _BLOCK),
        lambda: block(T.int32(full * _BLOCK), rest),
    )
