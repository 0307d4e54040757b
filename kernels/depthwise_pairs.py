"""Depthwise convolutions by pairs of 16 bits: Cortex-M with the DSP extension.

Channels lie apart. A word is two neighbours in a row; ``smlad`` and ``smlabt`` take three taps,
two outputs at a time. Where the epilogue is nothing but a Requantize, all rows of a channel are
one piece of assembly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.kernels import columns_arm
from effc.kernels.builder import T, bind, local, loop, vload, vstore
from effc.kernels.depthwise_band import Band, Code
from effc.kernels.fixed_point import Scaling
from effc.kernels.inline_assembly import Routine

__all__ = ["PairRows"]

Expr = Any  # tvm.tirx expressions have no useful static types

_LEAD = 12
"""Elements for the words of ``columns_arm.plane``, so that rows begin at words."""


@dataclass(frozen=True)
class PairRows(Band):
    """Channels apart: ``[channel][row][column]`` of int16.

    Attributes:
        scaling: The epilogue, if it is nothing but a Requantize to eight bits.
    """

    scaling: Scaling | None
    source: ClassVar[str] = "int32"
    per_source: ClassVar[int] = 4
    element: ClassVar[str] = "int16"

    @property
    def width(self) -> int:
        x = self.shape.x
        pairs = -(-x.out // 2)
        last = (2 * (pairs - 1) + 1) * x.stride + 3 if x.stride == 1 else 4 * (pairs - 1) + 6
        needed = max(last, x.before + 1)
        return needed + needed % 2

    @property
    def lead(self) -> int:
        """Elements before the rows that are left to assembly."""
        return 0 if self.scaling is None else _LEAD

    @property
    def buffer(self) -> tuple[str, int]:
        element, size = super().buffer
        return element, self.lead + size

    @property
    def near(self) -> bool:
        """Whether the rows of a window are within reach of an instruction's offsets."""
        y = self.shape.y
        return (y.kernel - 1) * 2 * self.width + 8 < 1020 and y.stride * 2 * self.width < 4096

    @property
    def routines(self) -> tuple[Routine, ...]:
        y, x = self.shape.y, self.shape.x
        pitch = 2 * self.width
        if self.scaling is None:
            return (columns_arm.rows(y.kernel, x.stride, pitch),)
        strides, right = (y.stride, x.stride), self.scaling.right
        return (columns_arm.plane(y.kernel, strides, pitch, x.out, right),)

    def pack(self, weights: np.ndarray) -> np.ndarray:
        channels = weights.shape[0]
        taps = weights.reshape(channels, self.shape.y.kernel, self.shape.x.kernel)
        extra = 3 - self.shape.x.kernel
        return np.pad(taps, [(0, -channels % 4), (0, 0), (0, extra)]).reshape(-1)

    def put(self, scratch: Any, row: Expr, column: Expr, value: Expr) -> None:
        at = bind(self.lead + row * self.width + column)
        for channel in range(4):
            moved = tirx.shift_right(value, tirx.const(8 * channel, "int32")) if channel else value
            wide = T.Cast("int16", T.Cast("int8", moved))
            T.buffer_store(scratch, wide, [at + channel * (self.rows * self.width)])

    def move(self, scratch: Any) -> None:
        skipped = (self.rows - self.kept) * self.width
        with loop(4) as channel:
            start = bind(self.lead + channel * (self.rows * self.width))
            with loop(self.kept * self.width) as i:
                T.buffer_store(scratch, scratch[start + i + skipped], [start + i])

    def compute(self, code: Code, n: Expr, quad: Expr, first: Expr, count: Expr) -> None:
        y, x = self.shape.y, self.shape.x
        with loop(4) as lane:
            channel = bind(quad * 4 + lane)
            words: list[Expr] = []
            for ky in range(y.kernel):
                taps = [code.w[channel * (3 * y.kernel) + 3 * ky + kx] for kx in range(3)]
                wide = [bind(T.Cast("int32", tap)) for tap in taps]
                words += [_cell(columns_arm.pair(wide[i], wide[i + 1])) for i in (0, 1)]
            bias = _cell(code.b[channel])
            start = bind(self.lead + lane * (self.rows * self.width))
            if self.scaling is not None:
                at = bind(code.plane(n, quad) + first * (4 * x.out) + lane)
                self._whole(code, (start, at), [bias, code.multiplier(n, quad, lane)], words, count)
            else:
                self._by_pairs(code, (n, quad, first, lane), start, bias, words, count)

    def _whole(
        self,
        code: Code,
        places: tuple[Expr, Expr],
        factors: list[Expr],
        words: list[Expr],
        count: Expr,
    ) -> None:
        """All rows in assembly."""
        scaling = self.scaling
        assert scaling is not None
        half = (1 << (scaling.right - 1)) + (scaling.zero << scaling.right)
        start, at = places
        operands = (code.scratch[start], code.y[at], code.scratch[0])
        numbers = (*factors, tirx.const(half, "int32"), count)
        self.routines[0].call(*(T.address_of(place) for place in operands), *numbers, *words)

    def _by_pairs(
        self,
        code: Code,
        where: tuple[Expr, Expr, Expr, Expr],
        start: Expr,
        bias: Expr,
        words: list[Expr],
        count: Expr,
    ) -> None:
        """Two outputs at a time, with any epilogue."""
        y, x = self.shape.y, self.shape.x
        n, quad, first, lane = where
        with loop(count) as row, loop(-(-x.out // 2)) as pair:
            sums = local(2, "int32")
            for i in range(2):
                vstore(sums, i, bias, 1)
            place = code.scratch[start + row * (y.stride * self.width) + pair * (2 * x.stride)]
            self.routines[0].call(T.address_of(sums[0]), T.address_of(place), *words)
            at = bind((first + row) * x.out + pair * 2)
            code.store(n, quad, at, lane, code.finish(n, quad, at, lane, sums[0]))
            if x.out % 2 == 0:
                code.store(n, quad, at + 1, lane, code.finish(n, quad, at + 1, lane, sums[1]))
            else:
                with T.If(pair < x.out // 2), T.Then():
                    code.store(n, quad, at + 1, lane, code.finish(n, quad, at + 1, lane, sums[1]))


def _cell(value: Expr) -> Expr:
    """A value that is computed here and not where it is used."""
    cell = local(1, "int32")
    vstore(cell, 0, value, 1)
    return vload(cell, 0, 1)
