"""Chains of element-wise operators over one broadcast output shape.

Operands broadcast as in NumPy. Axes of size 1 are dropped, and neighbouring axes
are merged where every operand either spans both or neither; what remains is a
list of rows and one innermost axis. Operands that span the innermost axis are
loaded as vectors, the others once per row and splat. An innermost axis of four (quads,
boxes) is too short for that: it joins the axis before it, and operands that span only
one of the two are repeated within the vector. A parallel unit is a block
of a row. Tails are covered by shorter vectors at fixed places, so any split of
the work gives the same bits, and an operand may share memory with an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import T, bind, loop, splat, stage_func, vload, vstore
from effc.kernels.elementwise_ops import OPS, ElementwiseOp, evaluate, immediate, refusal
from effc.kernels.elementwise_ops import storage_dtype as storage_dtype
from effc.kernels.lanes import concat, pieces
from effc.kernels.region import Op, Region, Value
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.vectorbase import lanes_of

__all__ = ["OPS", "ElementwiseOp", "ElementwiseTemplate", "storage_dtype"]

Expr = Any  # tvm.tirx expressions have no useful static types

_FOUR = 4
_BLOCK = 4096  # elements of a row that one parallel unit covers at most
_MAX_ELEMENTS = 2**31 - 2**16  # index arithmetic is int32


@dataclass(frozen=True)
class _Plan:
    """Collapsed iteration space of a region.

    Attributes:
        rows: Extents of all collapsed axes but the innermost.
        inner: Extent of the innermost axis, or of the two innermost together.
        operands: Values that are loaded, in parameter order.
        strides: Per operand, elements per step of each row axis and of the inner axis; with
            ``fours`` of both inner axes.
        fours: Whether the innermost axis is one of four that was joined to the one before it.
    """

    rows: tuple[int, ...]
    inner: int
    operands: tuple[Value, ...]
    strides: tuple[tuple[int, ...], ...]
    fours: bool = False


def _operands(ops: Sequence[Op]) -> tuple[Value, ...]:
    made = {id(op.outputs[0]) for op in ops}
    found: dict[int, Value] = {}
    for op in ops:
        for value in op.inputs[: 1 if op.op_type == "CastLike" else None]:
            if value is not None and id(value) not in made and immediate(value) is None:
                found.setdefault(id(value), value)
    return tuple(found.values())


def _plan(region: Region, lanes: int) -> _Plan:
    shape = region.outputs[0].shape
    operands = _operands(region.ops)
    spans = [[own != 1 for own in (1,) * (len(shape) - len(v.shape)) + v.shape] for v in operands]
    merged: list[tuple[int, tuple[bool, ...]]] = []
    for axis, extent in enumerate(shape):
        spanning = tuple(span[axis] for span in spans)
        if extent == 1:
            continue
        if merged and merged[-1][1] == spanning:
            merged[-1] = (merged[-1][0] * extent, spanning)
        else:
            merged.append((extent, spanning))
    merged = merged or [(1, (True,) * len(operands))]
    strides = []
    for index in range(len(operands)):
        steps, step = [], 1
        for extent, spanning in reversed(merged):
            steps.append(step if spanning[index] else 0)
            step *= extent if spanning[index] else 1
        strides.append(tuple(reversed(steps)))
    *rows, inner = (extent for extent, _ in merged)
    fours = inner == _FOUR and bool(rows) and lanes % _FOUR == 0
    if fours:
        inner *= rows.pop()
    return _Plan(tuple(rows), inner, operands, tuple(strides), fours)


class ElementwiseTemplate(Template):
    """Fused element-wise operators, vectorized along the innermost axis."""

    name: ClassVar[str] = "elementwise"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        if region.anchor is not None:
            return f"{region.anchor.op_type} is not element-wise"
        why = next((why for op in region.ops if (why := refusal(op)) is not None), None)
        if why is not None:
            return why
        shape = region.outputs[0].shape
        if any(value.shape != shape for value in region.outputs):
            return "outputs of different shapes"
        if any(value.type.size > _MAX_ELEMENTS for value in (*region.inputs, *region.outputs)):
            return "too many elements"
        for value in _operands(region.ops):
            if np.broadcast_shapes(value.shape, shape) != shape:
                return f"an operand of shape {value.shape} is wider than the output"
        return None

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """Vector width in registers of float32; wider hides latency, narrower is smaller code."""
        elements = float(region.outputs[0].type.size * len(region.ops))
        return [({"vectors": n}, elements / target.lanes * (1 + 0.01 / n)) for n in (1, 2)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        lanes = target.lanes * int(config["vectors"])
        plan = _plan(region, lanes)
        blocks = max(-(-plan.inner // _BLOCK), 1)
        weights = {
            f"c{i}": np.ascontiguousarray(v.const).astype(storage_dtype(v.dtype), copy=False)
            for i, v in enumerate(plan.operands)
            if v.const is not None
        }
        params = [
            (f"p{i}", storage_dtype(v.dtype), v.type.size)
            for i, v in enumerate((*plan.operands, *region.outputs))
        ]
        args = [v.name if v.const is None else f"w:c{i}" for i, v in enumerate(plan.operands)]
        args += [v.name for v in region.outputs]
        func = stage_func(params, lambda *a: _emit(region, plan, lanes, blocks, a))
        return Kernel(
            (Stage(func, tuple(args), prod(plan.rows) * blocks),),
            weights=weights,
            inplace=_inplace(region, plan),
        )


def _inplace(region: Region, plan: _Plan) -> tuple[tuple[str, str], ...]:
    return tuple(
        (value.name, output.name)
        for value in plan.operands
        for output in region.outputs
        if value.const is None and value.type == output.type
    )


def _emit(region: Region, plan: _Plan, lanes: int, blocks: int, args: Sequence[Any]) -> None:
    *buffers, begin, end = args
    row = _Row(region, plan, buffers)
    if not plan.rows:
        first = begin * _BLOCK
        row.emit([0] * len(plan.operands), 0, first, end * _BLOCK, lanes)
        return
    with loop(begin, end) as unit:
        number = bind(tirx.floordiv(unit, blocks)) if blocks > 1 else unit
        bases = [
            0 if not any(s[: len(plan.rows)]) else bind(b)
            for s, b in zip(plan.strides, _row_offsets(plan, number), strict=True)
        ]
        start = bind(tirx.floormod(unit, blocks) * _BLOCK) if blocks > 1 else T.int32(0)
        stop = start + _BLOCK if blocks > 1 else T.int32(plan.inner)
        row.emit(bases, number * plan.inner, start, stop, lanes)


def _row_offsets(plan: _Plan, number: Expr) -> list[Expr]:
    offsets: list[Expr] = [T.int32(0) for _ in plan.operands]
    rest = number
    for axis in reversed(range(len(plan.rows))):
        extent = plan.rows[axis]
        index = rest if axis == 0 else bind(tirx.floormod(rest, extent))
        for i, strides in enumerate(plan.strides):
            if strides[axis]:
                offsets[i] = offsets[i] + index * strides[axis]
        if axis:
            rest = bind(tirx.floordiv(rest, extent))
    return offsets


class _Row:
    """Emits the vectors of one block of a row."""

    def __init__(self, region: Region, plan: _Plan, buffers: Sequence[Any]) -> None:
        self.region = region
        self.plan = plan
        self.sources = buffers[: len(plan.operands)]
        self.targets = buffers[len(plan.operands) :]

    def emit(self, bases: Sequence[Expr], out: Expr, start: Expr, stop: Expr, lanes: int) -> None:
        """Cover ``[start, min(stop, inner))`` of the row whose elements begin at ``bases``.

        Full vectors first; the rest of the row belongs to the block that reaches its end.
        """
        inner = self.plan.inner
        once = {
            id(v): bind(self.sources[i][bases[i]])
            for i, v in enumerate(self.plan.operands)
            if not any(self.plan.strides[i][len(self.plan.rows) :])
        }
        if self.plan.fours:
            once |= {
                id(v): bind(vload(self.sources[i], bases[i], _FOUR))
                for i, v in enumerate(self.plan.operands)
                if self.plan.strides[i][-1] and not self.plan.strides[i][-2]
            }
        full = inner // lanes
        if full:
            final = tirx.Min(tirx.truncdiv(stop, lanes), T.int32(full))
            with loop(tirx.truncdiv(start, lanes), final) as i:
                self._vector(bases, out, bind(i * lanes), lanes, once)
        tail = [(full * lanes + o, w) for o, w in pieces(inner - full * lanes, lanes)]
        if tail:
            with T.If(tirx.And(stop >= inner, start < stop)), T.Then():
                for offset, width in tail:
                    self._vector(bases, out, offset, width, once)

    def _vector(
        self, bases: Sequence[Expr], out: Expr, at: Expr, lanes: int, once: dict[int, Expr]
    ) -> None:
        def leaf(value: Value) -> Expr:
            if id(value) in once:
                return _repeated(once[id(value)], lanes)
            index = next(i for i, v in enumerate(self.plan.operands) if v is value)
            source, base = self.sources[index], bases[index]
            if self.plan.fours and not self.plan.strides[index][-1]:
                width = lanes // _FOUR
                each = bind(vload(source, base + tirx.truncdiv(at, _FOUR), width))
                if width == 1:
                    return splat(each, lanes)
                return concat([each] * _FOUR, [i // _FOUR for i in range(lanes)])
            return vload(source, base + at, lanes)

        values = evaluate(self.region.ops, leaf, {}, lanes)
        for buffer, value in zip(self.targets, self.region.outputs, strict=True):
            vstore(buffer, out + at, values[id(value)], lanes)


def _repeated(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane, or four elements over and over."""
    width = lanes_of(value)
    if width in (1, lanes):
        return splat(value, lanes) if width == 1 else value
    return concat([value] * (lanes // width), range(lanes))
