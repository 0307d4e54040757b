"""Depthwise convolutions by quads: any kernel on any processor, four channels at a time.

The four are lanes of an MVE register, or come one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, local, loop, vload, vstore
from effc.kernels.depthwise_band import Band, Code

__all__ = ["QuadLanes"]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class QuadLanes(Band):
    """Quads: ``[row][column][channel]`` of int8."""

    source: ClassVar[str] = "int8"
    per_source: ClassVar[int] = 1
    element: ClassVar[str] = "int8"

    @property
    def width(self) -> int:
        return max(self.shape.x.extent(self.shape.x.out), self.shape.x.before + 1)

    def pack(self, weights: np.ndarray) -> np.ndarray:
        channels = weights.shape[0]
        taps = np.pad(weights.reshape(channels, -1), [(0, -channels % 4), (0, 0)])
        return np.ascontiguousarray(taps.reshape(-1, 4, taps.shape[1]).swapaxes(1, 2)).reshape(-1)

    def put(self, scratch: Any, row: Expr, column: Expr, value: Expr) -> None:
        vstore(scratch, bind((row * self.width + column) * 4), value, 4)

    def move(self, scratch: Any) -> None:
        skipped = (self.rows - self.kept) * self.width * 4
        with loop(self.kept * self.width) as i:
            vstore(scratch, i * 4, vload(scratch, i * 4 + skipped, 4), 4)

    def compute(self, code: Code, n: Expr, quad: Expr, first: Expr, count: Expr) -> None:
        y, x = self.shape.y, self.shape.x
        taps = y.kernel * x.kernel
        weights = bind(quad * (4 * taps))
        bias = bind(vload(code.b, quad * 4, 4))
        with loop(count) as row, loop(x.out) as column:
            start = bind(row * (y.stride * self.width) + column * x.stride)
            total = local(4, "int32")
            vstore(total, 0, bias, 4)

            def tap(ky: Expr, kx: int, start: Expr = start, total: Any = total) -> None:
                place = start + (ky * y.dilation * self.width + kx * x.dilation)
                value = vm.cast(vload(code.scratch, place * 4, 4), "int32")
                weight = vload(code.w, weights + (ky * x.kernel + kx) * 4, 4)
                product = bind(value) * bind(vm.cast(weight, "int32"))
                vstore(total, 0, vload(total, 0, 4) + product, 4)

            if taps <= 9:
                for ky in range(y.kernel):
                    for kx in range(x.kernel):
                        tap(ky, kx)
            else:
                with loop(y.kernel) as ky:
                    for kx in range(x.kernel):
                        tap(ky, kx)
            at = bind((first + row) * x.out + column)
            value = code.finish(n, quad, at, T.int32(0), bind(vload(total, 0, 4)), lanes=4)
            code.store(n, quad, at, T.int32(0), value, lanes=4)
