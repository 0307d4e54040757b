"""The epilogue behind a kernel that makes four vectors along positions, one per channel of a quad.

Operands with a byte per result are loaded as the 32-bit elements that their quads form, once
for all four channels, and unpacked by shifts. Chains of ``Requantize`` and ``AddRescaled`` stay in
int32 between operators; the last one narrows all four vectors together, and a byte shuffle
makes quads of them. Any other chain is evaluated channel by channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import bind, splat, vload
from effc.kernels.columns import is_narrow
from effc.kernels.elementwise_ops import evaluate, immediate
from effc.kernels.epilogue import Epilogue
from effc.kernels.fixed_point import Scaling, narrow, requantize, scale, woven
from effc.kernels.lanes import interleave, load_partial
from effc.kernels.region import DOMAIN, Op, Region, Value
from effc.kernels.shuffles import load_strided

__all__ = ["QuadRows"]

Expr = Any  # tvm.tirx expressions have no useful static types
Rows = list[Expr]  # one vector along positions per channel of a quad

_POSITION = 2  # group of the view along which vectors run
_BYTES = ("int8", "uint8")
_WIDE = ("Requantize", "AddRescaled")


class QuadRows(Epilogue):
    """``Epilogue`` under the view ``(N, C/4, positions, 4)``, four channels at a time.

    Attributes:
        merged: Whether results are bytes, which are stored as 32-bit elements.
    """

    def __init__(
        self, region: Region, result: Value, view: tuple[int, ...], target: Target
    ) -> None:
        self._woven: set[int] = set()
        self._target = target
        super().__init__(region, result, view)
        self.merged = self.out_dtype in _BYTES
        self._stays_wide = (
            bool(self._ops)
            and self.merged
            and all(op.domain == DOMAIN and op.op_type in _WIDE for op in self._ops)
        )

    def _add(self, value: Value, strides: tuple[int, ...]) -> None:
        super()._add(value, strides)
        if value.dtype not in _BYTES or strides[_POSITION:] != (4, 1):
            return
        if self.view[_POSITION] == 1 and is_narrow(self._target):
            return  # may be a view of a model's input, which lies anywhere
        self._woven.add(id(value))
        name, _, size = self.params[-1]
        self.params[-1] = (name, "int32", size // 4)
        if value.const is not None:
            self.weights[name] = self.weights[name].reshape(-1).view(np.int32)

    def finish(
        self,
        sums: Sequence[Expr],
        coords: Sequence[Expr],
        buffers: Sequence[Any],
        lanes: int,
        valid: int,
    ) -> Expr:
        """Evaluate the epilogue.

        Args:
            sums: The anchor's results, one vector along positions per channel of the quad.
            coords: Image, quad and first position.
            buffers: The buffers of ``params``.
            lanes: Lanes of each vector.
            valid: How many of them exist; operands are not read beyond.

        Returns:
            Quads in order: ``lanes`` of int32 if ``merged``, else ``4 * lanes`` of ``out_dtype``.
        """
        operands = _Operands(self, coords, buffers, lanes, valid)
        if self._stays_wide and lanes % 4 == 0:
            return self._finish_wide(list(sums), operands)
        rows = list(sums)
        if self._ops:
            rows = [self._finish_row(row, value, operands) for row, value in enumerate(sums)]
        return _merged(rows) if self.merged else bind(interleave(rows, lanes))

    def finish_each(
        self,
        sums: Sequence[Expr],
        coords: Sequence[Expr],
        buffers: Sequence[Any],
        rows: Sequence[Expr],
    ) -> Rows:
        """As ``finish``, of some channels of a position: scalars, bound.

        Args:
            rows: Which channels, of a quad: ints, or expressions.
        """
        operands = _Operands(self, coords, buffers, 1, 1, rows)
        if self._stays_wide:
            last = self._ops[-1]
            found = _unbounded(last, self._wide_inputs(list(sums), operands), self._target)
            return [bind(vm.cast(_clamped(row, last), self.out_dtype)) for row in found]
        if not self._ops:
            return list(sums)
        return [
            bind(self._finish_row(row, value, operands))
            for row, value in zip(rows, sums, strict=True)
        ]

    def _finish_row(self, row: Expr, value: Expr, operands: _Operands) -> Expr:
        def leaf(operand: Value) -> Expr:
            return operands.row(operand, row)

        values = evaluate(self._ops, leaf, {id(self._result): value}, operands.lanes)
        return values[id(self._ops[-1].outputs[0])]

    def _finish_wide(self, sums: Rows, operands: _Operands) -> Expr:
        last, found = self._ops[-1], self._wide_inputs(sums, operands)
        dtype = last.outputs[0].dtype
        if last.op_type == "Requantize":
            values, multipliers = found
            narrowed = requantize(values, multipliers, _scaling(last), dtype, self._target)
        else:
            rows = _unbounded(last, found, self._target)
            narrowed = narrow(rows, _scaling(last), dtype, self._target)
        return woven(narrowed, operands.lanes)

    def _wide_inputs(self, sums: Rows, operands: _Operands) -> list[Rows]:
        """Operands of the last operator."""
        made: dict[int, Rows] = {id(self._result): sums}
        *inner, last = self._ops

        def inputs(op: Op) -> list[Rows]:
            return [
                made[id(v)] if id(v) in made else operands.wide(v)
                for v in op.inputs
                if v is not None
            ]

        for op in inner:
            rows = _unbounded(op, inputs(op), self._target)
            made[id(op.outputs[0])] = [bind(_clamped(row, op)) for row in rows]
        return inputs(last)


class _Operands:
    """Operands of an epilogue at one place, loaded when asked for."""

    def __init__(
        self,
        epilogue: QuadRows,
        coords: Sequence[Expr],
        buffers: Sequence[Any],
        lanes: int,
        valid: int,
        rows: Sequence[Expr] = range(4),
    ) -> None:
        self.lanes = lanes
        self._rows = rows
        self._epilogue, self._coords, self._buffers = epilogue, coords, buffers
        self._valid = valid
        self._quads: dict[int, Expr] = {}
        self._fours: dict[int, Rows] = {}

    def wide(self, value: Value) -> Rows:
        """All channels that are wanted as int32."""
        scalar = immediate(value)
        if scalar is not None:
            return [bind(splat(tirx.const(int(scalar), "int32"), self.lanes))] * len(self._rows)
        if id(value) in self._epilogue._woven:
            quads = self._quads_of(value)
            return [bind(_byte(quads, row, value.dtype)) for row in self._rows]
        return [bind(vm.cast(self.row(value, row), "int32")) for row in self._rows]

    def row(self, value: Value, row: Expr) -> Expr:
        """One channel, of the operand's dtype."""
        if id(value) in self._epilogue._woven:
            return vm.cast(_byte(self._quads_of(value), row, value.dtype), value.dtype)
        found = self._epilogue._operands[id(value)]
        buffer, step = self._buffers[found.index], found.strides[_POSITION]
        offset = _dot((*self._coords, row), found.strides)
        if step == 0:
            return splat(buffer[offset], self.lanes)
        if step == 1:
            return self._load(buffer, offset)
        if found.strides[_POSITION:] == (4, 1) and isinstance(row, int) and self._whole:
            return self._four(value)[row]
        parts = [buffer[offset + min(i, self._valid - 1) * step] for i in range(self.lanes)]
        return parts[0] if self.lanes == 1 else tirx.Shuffle(parts, list(range(self.lanes)))

    @property
    def _whole(self) -> bool:
        return self._valid == self.lanes > 1

    def _four(self, value: Value) -> Rows:
        """All channels of an operand in quads whose elements are no bytes."""
        if id(value) not in self._fours:
            found = self._epilogue._operands[id(value)]
            buffer = self._buffers[found.index]
            offset = bind(_dot(self._coords, found.strides[:-1]))
            target = self._epilogue._target
            self._fours[id(value)] = load_strided(buffer, offset, self.lanes, 4, 4, target)
        return self._fours[id(value)]

    def _quads_of(self, value: Value) -> Expr:
        if id(value) not in self._quads:
            found = self._epilogue._operands[id(value)]
            offset = _dot(self._coords, [step // 4 for step in found.strides[:-1]])
            self._quads[id(value)] = self._load(self._buffers[found.index], offset)
        return self._quads[id(value)]

    def _load(self, buffer: Any, offset: Expr) -> Expr:
        if self._valid == self.lanes:
            return bind(vload(buffer, offset, self.lanes))
        fill = tirx.const(0, str(buffer.dtype))
        return bind(load_partial(buffer, bind(offset), self._valid, self.lanes, fill))


def _dot(coords: Sequence[Expr], strides: Sequence[int]) -> Expr:
    terms = [c * s for c, s in zip(coords, strides, strict=True) if s]
    return sum(terms[1:], terms[0]) if terms else 0


def _byte(quads: Expr, row: Expr, dtype: str) -> Expr:
    """Byte ``row`` (an int, or for scalars an expression) of every 32-bit element, as int32."""
    fixed = isinstance(row, int)

    def amount(value: Expr) -> Expr:
        return vm.const(value, quads) if fixed else value

    if dtype == "uint8":
        moved = tirx.shift_right(quads, amount(8 * row))
        return tirx.bitwise_and(moved, vm.const(255, quads))
    moved = tirx.shift_left(quads, amount(24 - 8 * row))
    return tirx.shift_right(moved, vm.const(24, quads))


def _scaling(op: Op) -> Scaling:
    return Scaling.of({"x_zero": 0, "left": 0, **op.attrs})


def _clamped(row: Expr, op: Op) -> Expr:
    low, high = (vm.const(int(op.attrs[name]), row) for name in ("low", "high"))
    return tirx.Min(bind(tirx.Max(row, low)), high)


def _unbounded(op: Op, inputs: list[Rows], target: Target) -> Rows:
    """Results of an operator before ``low`` and ``high``."""
    a, b = inputs
    if op.op_type == "Requantize":
        scaling = _scaling(op)
        return [scale(x, m, scaling, target) for x, m in zip(a, b, strict=True)]
    names = ("a_multiplier", "b_multiplier", "offset", "right", "zero")
    by_a, by_b, offset, right, zero = (int(op.attrs[name]) for name in names)
    if 255 * (abs(by_a) + abs(by_b)) + abs(offset) + (abs(zero) << right) < 2**31:
        offset, zero = offset + (zero << right), 0
    found = []
    for x, y in zip(a, b, strict=True):
        total = bind(x * vm.const(by_a, x) + vm.const(offset, x))
        total = bind(total + y * vm.const(by_b, x))
        moved = bind(tirx.shift_right(total, vm.const(right, x)))
        found.append(bind(moved + vm.const(zero, x)) if zero else moved)
    return found


def _merged(rows: Rows) -> Expr:
    """Quads as int32 out of four vectors of bytes."""
    words = []
    for i, row in enumerate(rows):
        word = vm.cast(vm.cast(row, "uint8"), "int32")
        words.append(bind(tirx.shift_left(word, vm.const(8 * i, word)) if i else word))
    low, high = (bind(tirx.bitwise_or(words[i], words[i + 1])) for i in (0, 2))
    return bind(tirx.bitwise_or(low, high))
