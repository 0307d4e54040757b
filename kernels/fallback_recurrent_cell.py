"""One direction of a recurrent operator: its shape, its matrix product and its cell.

The cell runs one batch entry through time: ``h R^T + Rb`` and the projected input give the gates,
these the new state. Equations: the ONNX operator specifications; gate order is i, o, f, c (LSTM)
and z, r, h (GRU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.errors import UnsupportedError
from effc.kernels import vectormath as vm
from effc.kernels.builder import bind, local, loop, splat, vload, vstore
from effc.kernels.fallback_recurrent_activations import Function
from effc.kernels.lanes import pieces
from effc.kernels.region import Op

__all__ = ["GATES", "Cell", "RecurrentShape", "product"]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Gates per hidden unit."""

_BLOCK = 4  # vectors of accumulators in a product

Expr = Any


@dataclass(frozen=True)
class RecurrentShape:
    kind: str
    dtype: str
    steps: int
    batch: int
    inputs: int
    hidden: int
    directions: int
    batch_first: bool
    reverse: bool

    @classmethod
    def of(cls, op: Op) -> RecurrentShape:
        x, r = op.inputs[0], op.inputs[2]
        if x is None or r is None:
            raise UnsupportedError(f"{op.op_type} lacks operands")
        batch_first = bool(op.attrs.get("layout", 0))
        steps, batch = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
        reverse = op.attrs.get("direction", "forward") == "reverse"
        return cls(
            op.op_type,
            x.dtype,
            steps,
            batch,
            x.shape[2],
            r.shape[2],
            r.shape[0],
            batch_first,
            reverse,
        )

    @property
    def gates(self) -> int:
        return GATES[self.kind]

    @property
    def width(self) -> int:
        """Columns of one product: all gates of all hidden units."""
        return self.gates * self.hidden

    @property
    def itemsize(self) -> int:
        return int(np.dtype(self.dtype).itemsize)

    def x_row(self, step: Expr, entry: Expr) -> Expr:
        """Offset of an input row."""
        row = entry * self.steps + step if self.batch_first else step * self.batch + entry
        return row * self.inputs

    def y_row(self, step: Expr, direction: int, entry: Expr) -> Expr:
        """Offset of a row of ``Y``."""
        if self.batch_first:
            return ((entry * self.steps + step) * self.directions + direction) * self.hidden
        return ((step * self.directions + direction) * self.batch + entry) * self.hidden

    def state_row(self, direction: int, entry: Expr) -> Expr:
        """Offset of a row of ``Y_h``, ``Y_c``, ``initial_h`` and ``initial_c``."""
        if self.batch_first:
            return (entry * self.directions + direction) * self.hidden
        return (direction * self.batch + entry) * self.hidden


def product(
    rows: int,
    columns: int,
    lanes: int,
    start: Callable[[Expr, int], Expr],
    x: Callable[[Expr], Expr],
    weights: Any,
    base: Expr,
    stride: int,
    finish: Callable[[Expr, Expr, int], None],
) -> None:
    """``finish(j, start(j) + sum_i x(i) * weights[base + i * stride + j], lanes)`` for all j."""

    def block(offset: Expr, widths: Sequence[int]) -> None:
        accumulator = local(sum(widths), str(weights.ty.dtype))
        at = 0
        for width in widths:
            vstore(accumulator, at, start(offset + at, width), width)
            at += width
        with loop(rows) as i:
            factor = bind(x(i))
            at = 0
            for width in widths:
                row = vload(weights, base + i * stride + offset + at, width)
                vstore(
                    accumulator,
                    at,
                    vload(accumulator, at, width) + splat(factor, width) * row,
                    width,
                )
                at += width
        at = 0
        for width in widths:
            finish(offset + at, vload(accumulator, at, width), width)
            at += width

    full = columns // (lanes * _BLOCK)
    if full:
        with loop(full) as j:
            block(j * (lanes * _BLOCK), [lanes] * _BLOCK)
    done = full * lanes * _BLOCK
    rest = [width for _, width in pieces(columns - done, lanes)]
    if rest:
        block(tirx.const(done, "int32"), rest)


class Cell:
    """Code of one batch entry's run through time."""

    def __init__(
        self,
        op: Op,
        shape: RecurrentShape,
        direction: int,
        lanes: int,
        buffers: dict[str, Any],
        entry: Expr,
        functions: Sequence[Function],
    ) -> None:
        self.shape, self.direction, self.lanes = shape, direction, lanes
        self.buffers, self.entry, self.functions = buffers, entry, functions
        self.clip = op.attrs.get("clip")
        self.couple = bool(op.attrs.get("input_forget", 0))
        self.linear_before_reset = bool(op.attrs.get("linear_before_reset", 0))
        self.reverse = shape.reverse or direction == 1
        base = bind(entry * (shape.width + 3 * shape.hidden))
        self.g, self.h = base, base + shape.width
        self.c, self.tmp = self.h + shape.hidden, self.h + 2 * shape.hidden

    def run(self) -> None:
        shape, state = self.shape, self.buffers["state"]
        row = bind(shape.state_row(self.direction, self.entry))
        for role, at in (("h0", self.h), ("c0", self.c)):
            for j, n in self._each():
                start = (
                    vload(self.buffers[role], row + j, n)
                    if role in self.buffers
                    else splat(tirx.const(0, shape.dtype), n)
                )
                vstore(state, at + j, start, n)
        length: Expr = tirx.const(shape.steps, "int32")
        if "lengths" in self.buffers:
            given = tirx.Cast("int32", self.buffers["lengths"][self.entry])
            length = bind(tirx.max(tirx.min(given, shape.steps), 0))
        with loop(length) as step:
            self._step(bind(length - 1 - step if self.reverse else step))
        if "y" in self.buffers and "lengths" in self.buffers:
            with loop(length, shape.steps) as step:
                self._write("y", shape.y_row(step, self.direction, self.entry), None)
        self._write("yh", row, self.h)
        self._write("yc", row, self.c)

    def _each(self) -> list[tuple[int, int]]:
        return list(pieces(self.shape.hidden, self.lanes))

    def _write(self, role: str, row: Expr, source: Expr | None) -> None:
        if role not in self.buffers:
            return
        for j, n in self._each():
            value = (
                splat(tirx.const(0, self.shape.dtype), n)
                if source is None
                else vload(self.buffers["state"], source + j, n)
            )
            vstore(self.buffers[role], row + j, value, n)

    def _step(self, step: Expr) -> None:
        shape = self.shape
        row = bind((step * shape.batch + self.entry) * shape.width)
        if shape.kind == "GRU":
            self._gru(row)
        else:
            self._multiply(self.h, 0, shape.width, row)
            (self._lstm if shape.kind == "LSTM" else self._rnn)()
        self._write("y", shape.y_row(step, self.direction, self.entry), self.h)

    def _multiply(self, source: Expr, first: int, count: int, row: Expr | None) -> None:
        """``g[first:first+count] = source R^T + Rb`` and, with ``row``, the projected input."""
        shape, buffers = self.shape, self.buffers
        state, width = buffers["state"], shape.width

        def start(j: Expr, n: int) -> Expr:
            value = splat(tirx.const(0, shape.dtype), n)
            if "bias" in buffers:
                value = vload(buffers["bias"], (self.direction * 2 + 1) * width + first + j, n)
            if row is not None:
                value = value + vload(buffers["gates"], row + first + j, n)
            return value

        product(
            shape.hidden,
            count,
            self.lanes,
            start,
            lambda i: state[source + i],
            buffers["weights"],
            self.direction * shape.hidden * width + first,
            width,
            lambda j, value, n: vstore(state, self.g + first + j, value, n),
        )

    def _gate(self, gate: int, j: int, n: int) -> Expr:
        return vload(self.buffers["state"], self.g + gate * self.shape.hidden + j, n)

    def _clipped(self, x: Expr) -> Expr:
        if self.clip is None:
            return bind(x)
        return bind(tirx.max(tirx.min(x, vm.const(self.clip, x)), vm.const(-self.clip, x)))

    def _peephole(self, gate: int, j: int, n: int, cell: Expr) -> Expr:
        if "peephole" not in self.buffers:
            return splat(tirx.const(0, self.shape.dtype), n)
        at = (self.direction * 3 + gate) * self.shape.hidden + j
        return vload(self.buffers["peephole"], at, n) * cell

    def _lstm(self) -> None:
        state = self.buffers["state"]
        f, g, h = self.functions
        for j, n in self._each():
            cell = bind(vload(state, self.c + j, n))
            enter = bind(f(self._clipped(self._gate(0, j, n) + self._peephole(0, j, n, cell))))
            if self.couple:
                keep = 1 - enter
            else:
                keep = f(self._clipped(self._gate(2, j, n) + self._peephole(2, j, n, cell)))
            fresh = g(self._clipped(self._gate(3, j, n)))
            new = bind(keep * cell + enter * fresh)
            leave = f(self._clipped(self._gate(1, j, n) + self._peephole(1, j, n, new)))
            vstore(state, self.c + j, new, n)
            vstore(state, self.h + j, leave * h(new), n)

    def _rnn(self) -> None:
        for j, n in self._each():
            value = self.functions[0](self._clipped(self._gate(0, j, n)))
            vstore(self.buffers["state"], self.h + j, value, n)

    def _gru(self, row: Expr) -> None:
        """z and r first; the candidate needs r before or after its product with R."""
        hidden, state = self.shape.hidden, self.buffers["state"]
        f, g = self.functions
        self._multiply(self.h, 0, 2 * hidden, row)
        if self.linear_before_reset:
            self._multiply(self.h, 2 * hidden, hidden, None)
        else:
            for j, n in self._each():
                reset = f(self._clipped(self._gate(1, j, n)))
                vstore(state, self.tmp + j, reset * vload(state, self.h + j, n), n)
            self._multiply(self.tmp, 2 * hidden, hidden, row)
        for j, n in self._each():
            candidate = self._gate(2, j, n)
            if self.linear_before_reset:
                reset = f(self._clipped(self._gate(1, j, n)))
                fed = vload(self.buffers["gates"], row + 2 * hidden + j, n)
                candidate = fed + reset * candidate
            update = bind(f(self._clipped(self._gate(0, j, n))))
            fresh = g(self._clipped(candidate))
            old = vload(state, self.h + j, n)
            vstore(state, self.h + j, (1 - update) * fresh + update * old, n)
