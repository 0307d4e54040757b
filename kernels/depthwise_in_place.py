"""Depthwise convolutions of stride 2 that read bytes where they lie (``depthwise_arm``).

There is no copy of the input. The four channels of a quad are computed one after the other; each
reads and writes bytes of its own, so that the result of a plane may begin where its input does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.kernels import columns_arm, depthwise_arm
from effc.kernels.builder import T, bind, local, loop, unravel, vload, vstore
from effc.kernels.depthwise_band import Code, Method
from effc.kernels.fixed_point import Scaling
from effc.kernels.inline_assembly import Routine
from effc.kernels.overlap import Shifts, plane_by_plane

__all__ = ["BytesInPlace"]

Expr = Any  # tvm.tirx expressions have no useful static types

_CLIPPED = 2
"""Most rows, and most columns, that have code of their own."""


@dataclass(frozen=True)
class BytesInPlace(Method):
    """Kernels of at most nine taps without dilation.

    Attributes:
        scaling: The epilogue.
        zero: What padding counts as.
        in_pairs: Whether neighbouring outputs share loads.
    """

    scaling: Scaling
    zero: int
    in_pairs: bool
    source: ClassVar[str] = "int8"
    per_source: ClassVar[int] = 1

    @property
    def near(self) -> bool:
        """Whether all inputs are within reach of offsets, and few windows have padding."""
        y, x = self.shape.y, self.shape.x
        window = 4 * ((y.kernel - 1) * x.size + x.stride + x.kernel)
        reach = max(window, depthwise_arm.distance(y, x), 4 * x.out, 4 * y.stride * x.size)
        few = max(depthwise_arm.clipped(y), depthwise_arm.clipped(x)) <= _CLIPPED
        return few and reach <= depthwise_arm.REACH

    @property
    def buffer(self) -> tuple[str, int]:
        return "int32", 0

    @property
    def routines(self) -> tuple[Routine, ...]:
        y, x = self.shape.y, self.shape.x
        right = self.scaling.right
        return (depthwise_arm.plane_in_place(y, x, right, self.zero, self.in_pairs),)

    def shifts(self, result: int, serial: bool) -> Shifts:
        planes = self.shape.batch * self.shape.quads
        return plane_by_plane((self.shape.y, self.shape.x), planes, (4, result)) if serial else ()

    def pack(self, weights: np.ndarray) -> np.ndarray:
        channels = weights.shape[0]
        return np.pad(weights.reshape(channels, -1), [(0, -channels % 4), (0, 0)]).reshape(-1)

    def emit(self, code: Code, begin: Expr, end: Expr) -> None:
        """See :meth:`Method.emit`."""
        y, x, scaling = self.shape.y, self.shape.x, self.scaling
        taps = y.kernel * x.kernel
        half = (1 << (scaling.right - 1)) + (scaling.zero << scaling.right)
        with loop(begin, end) as unit, loop(4) as lane:
            n, quad = unravel(unit, (self.shape.batch, self.shape.quads))
            channel = bind(quad * 4 + lane)
            numbers = local(5, "int32")
            vstore(numbers, 0, code.b[channel], 1)
            vstore(numbers, 1, code.multiplier(n, quad, lane), 1)
            vstore(numbers, 2, tirx.const(half, "int32"), 1)
            wide = [bind(T.Cast("int32", code.w[channel * taps + i])) for i in range(taps)]
            wide += [tirx.const(0, "int32")] * (taps % 2)
            words = [
                _cell(columns_arm.pair(low, high))
                for low, high in zip(wide[::2], wide[1::2], strict=True)
            ]
            first = bind(unit * (4 * y.size * x.size) + lane)
            places = (code.x[first], code.y[bind(code.plane(n, quad) + lane)], numbers[0])
            self.routines[0].call(*(T.address_of(place) for place in places), *words)


def _cell(value: Expr) -> Expr:
    """A value that is computed here and not where it is used."""
    cell = local(1, "int32")
    vstore(cell, 0, value, 1)
    return vload(cell, 0, 1)
