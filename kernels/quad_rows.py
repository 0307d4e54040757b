"""The epilogue behind an anchor whose results are quads ``[N, C/4, positions, 4]``.

Four vectors along positions, one per channel of a quad, are finished together: an operand with
a byte per result is loaded as the 32-bit elements that its quads form, once for all four, and
unpacked by shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from effc.kernels import vectormath as vm
from effc.kernels.builder import bind, splat, vload
from effc.kernels.elementwise_ops import evaluate
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import load_partial
from effc.kernels.region import Region, Value

__all__ = ["QuadRows"]

Expr = Any  # tvm.tirx expressions have no useful static types

_POSITION = 2  # group of the view along which vectors run


class QuadRows(Epilogue):
    """``Epilogue`` under the view ``(N, C/4, positions, 4)``, four channels at a time."""

    def __init__(self, region: Region, result: Value, view: tuple[int, ...]) -> None:
        self._woven: set[int] = set()
        super().__init__(region, result, view)

    def _add(self, value: Value, strides: tuple[int, ...]) -> None:
        super()._add(value, strides)
        if np.dtype(value.dtype).itemsize != 1 or strides[_POSITION:] != (4, 1):
            return
        self._woven.add(id(value))
        name, _, size = self.params[-1]
        self.params[-1] = (name, "int32", size // 4)
        if value.const is not None:
            self.weights[name] = self.weights[name].reshape(-1).view(np.int32)

    def apply_quads(
        self,
        sums: Sequence[Expr],
        coords: Sequence[Expr],
        buffers: Sequence[Any],
        lanes: int,
        valid: int,
    ) -> list[Expr]:
        """Evaluate the epilogue on four vectors.

        Args:
            sums: The anchor's results, one vector along positions per channel of the quad.
            coords: Image, quad and first position.
            buffers: The buffers of ``params``.
            lanes: Lanes of each vector.
            valid: How many of them exist; operands are not read beyond.

        Returns:
            Four vectors of ``out_dtype``.
        """
        if not self._ops:
            return list(sums)
        loaded: dict[int, Expr] = {}

        def element(value: Value, row: int) -> Expr:
            found = self._operands[id(value)]
            buffer, woven = buffers[found.index], id(value) in self._woven
            if woven and id(value) not in loaded:
                terms = [c * (s // 4) for c, s in zip(coords, found.strides, strict=False) if s]
                loaded[id(value)] = _load(buffer, sum(terms[1:], terms[0]), lanes, valid)
            if woven:
                return _byte(loaded[id(value)], row, value.dtype)
            offset, step = self._offset(value, coords, row), found.strides[_POSITION]
            if step == 0:
                return splat(buffer[offset], lanes)
            if step == 1:
                return _load(buffer, offset, lanes, valid)
            parts = [buffer[offset + min(i, valid - 1) * step] for i in range(lanes)]
            return parts[0] if lanes == 1 else tirx.Shuffle(parts, list(range(lanes)))

        def finish(value: Expr, row: int) -> Expr:
            known = {id(self._result): value}
            values = evaluate(self._ops, lambda operand: element(operand, row), known, lanes)
            return values[id(self._ops[-1].outputs[0])]

        return [finish(value, row) for row, value in enumerate(sums)]

    def _offset(self, value: Value, coords: Sequence[Expr], row: int) -> Expr:
        strides = self._operands[id(value)].strides
        terms = [c * s for c, s in zip((*coords, row), strides, strict=True) if s]
        return sum(terms[1:], terms[0]) if terms else 0


def _load(buffer: Any, offset: Expr, lanes: int, valid: int) -> Expr:
    if valid == lanes:
        return bind(vload(buffer, offset, lanes))
    fill = tirx.const(0, str(buffer.dtype))
    return bind(load_partial(buffer, bind(offset), valid, lanes, fill))


def _byte(quads: Expr, row: int, dtype: str) -> Expr:
    """Byte ``row`` of every 32-bit element."""
    moved = tirx.shift_right(quads, vm.const(8 * row, quads)) if row else quads
    return vm.cast(moved, dtype)
