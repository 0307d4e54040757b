"""Pad in all modes (constant, edge, reflect, wrap), with cropping by negative constant pads.

An output row is a border, a contiguous run of the input, and another border; which
input row it comes from, if any, follows from the outer coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import T, bind, loop, splat, stage_func, unravel, vload, vstore
from effc.kernels.elementwise_ops import immediate, storage_dtype
from effc.kernels.region import Op, Region, Value
from effc.kernels.strips import each_vector
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.vectormath import scalar

__all__ = ["PadTemplate"]

Expr = Any  # tvm.tirx expressions have no useful static types

_MODES = ("constant", "edge", "reflect", "wrap")


@dataclass(frozen=True)
class _Axis:
    """Input extent, elements put before it (negative: cropped), output extent."""

    size: int
    before: int
    out: int

    @property
    def plain(self) -> bool:
        return self.before == 0 and self.size == self.out


def _input(op: Op, index: int) -> Value | None:
    return op.inputs[index] if len(op.inputs) > index else None


def _axes(op: Op) -> list[_Axis]:
    """One entry per axis, neighbours merged where the mode allows."""
    data, pads, chosen = op.inputs[0], _input(op, 1), _input(op, 3)
    assert data is not None
    assert pads is not None
    assert pads.const is not None
    values = [int(v) for v in pads.const.reshape(-1)]
    before = [0] * len(data.shape)
    which = range(len(data.shape))
    if chosen is not None:
        assert chosen.const is not None
        which = [int(a) % len(data.shape) for a in chosen.const.reshape(-1)]  # type: ignore[assignment]
    for i, axis in enumerate(which):
        before[axis] = values[i]
    constant = op.attrs.get("mode", "constant") == "constant"
    merged: list[_Axis] = []
    for size, pad, out in zip(data.shape, before, op.outputs[0].shape, strict=True):
        axis_ = _Axis(size, pad, out)
        last = merged[-1] if merged else None
        if last is not None and axis_.plain and (constant or last.plain):
            merged[-1] = _Axis(last.size * size, last.before * size, last.out * size)
        else:
            merged.append(axis_)
    return merged or [_Axis(1, 0, 1)]


class PadTemplate(Template):
    """Pad with constant amounts."""

    name: ClassVar[str] = "pad"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.ops[0]
        if len(region.ops) != 1 or op.op_type != "Pad" or op.domain:
            return "not a lone Pad"
        data, pads, chosen = op.inputs[0], _input(op, 1), _input(op, 3)
        if pads is None or pads.const is None or (chosen is not None and chosen.const is None):
            return "the amounts are not constant"
        assert data is not None
        mode = op.attrs.get("mode", "constant")
        if mode not in _MODES:
            return f"mode {mode}"
        if mode != "constant" and (min(int(p) for p in pads.const.reshape(-1)) < 0):
            return f"negative pads in mode {mode}"
        if mode != "constant" and 0 in data.shape:
            return "an empty tensor"
        if max(data.type.size, region.outputs[0].type.size) >= 2**31 or data.dtype == "object":
            return f"{data.dtype}{data.shape}"
        return None

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, 1.5 * region.outputs[0].type.size / target.lanes)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        data, fill = op.inputs[0], _input(op, 2)
        assert data is not None
        out = op.outputs[0]
        dtype = storage_dtype(data.dtype)
        axes = _axes(op)
        lanes = max(min(target.vector_bits // (8 * np.dtype(dtype).itemsize), 16), 1)
        params = [("x", dtype, data.type.size), ("y", dtype, out.type.size)]
        args, weights = [data.name, out.name], {}
        if data.const is not None:
            args[0], weights["x"] = "w:x", np.ascontiguousarray(data.const)
        known = 0 if fill is None else immediate(fill)
        if known is None:
            assert fill is not None
            params.append(("fill", dtype, 1))
            args.append(fill.name if fill.const is None else "w:fill")
            if fill.const is not None:
                weights["fill"] = np.ascontiguousarray(fill.const)
        emitter = _Pad(axes, op.attrs.get("mode", "constant"), lanes, dtype, known)
        rows = prod(axis.out for axis in axes[:-1]) if out.type.size else 0
        stage = Stage(stage_func(params, emitter.emit), tuple(args), rows)
        return Kernel((stage,), weights=weights)


class _Pad:
    """Emits the stage function; a unit is an output row."""

    def __init__(
        self, axes: Sequence[_Axis], mode: str, lanes: int, dtype: str, fill: float | int | None
    ) -> None:
        self.outer, self.row = axes[:-1], axes[-1]
        self.mode = mode
        self.lanes = lanes
        self.dtype = dtype
        self.fill = fill

    def emit(self, x: Any, y: Any, *rest: Any) -> None:
        """Body of the stage function."""
        *extra, begin, end = rest
        fill = bind(extra[0][0]) if extra else scalar(self.fill or 0, self.dtype)
        with loop(begin, end) as unit:
            indices = unravel(unit, [axis.out for axis in self.outer]) if self.outer else []
            positions = [bind(i - a.before) for i, a in zip(indices, self.outer, strict=True)]
            target = bind(unit * self.row.out)
            if self.mode != "constant":
                self._copy(x, y, self._source(positions), target, fill)
                return
            inside = [
                tirx.And(p >= 0, p < a.size)
                for p, a in zip(positions, self.outer, strict=True)
                if a.before > 0 or a.out - a.before > a.size
            ]
            if not inside:
                self._copy(x, y, self._source(positions), target, fill)
                return
            with T.If(reduce(tirx.And, inside)):
                with T.Then():
                    self._copy(x, y, self._source(positions), target, fill)
                with T.Else():
                    self._fill(y, target, self.row.out, fill)

    def _source(self, positions: Sequence[Expr]) -> Expr:
        offset: Expr = T.int32(0)
        for position, axis in zip(positions, self.outer, strict=True):
            offset = offset * axis.size + self._mapped(position, axis)
        return bind(offset * self.row.size)

    def _mapped(self, position: Expr, axis: _Axis) -> Expr:
        """Input coordinate of a coordinate that may lie outside the input."""
        if axis.plain or self.mode == "constant":
            return position
        last = axis.size - 1
        if self.mode == "edge":
            return tirx.Min(tirx.Max(position, T.int32(0)), T.int32(last))
        if self.mode == "wrap":
            return tirx.floormod(position, axis.size)
        if last == 0:
            return T.int32(0)
        folded = bind(tirx.floormod(position, 2 * last))
        return tirx.Min(folded, 2 * last - folded)

    def _copy(self, x: Any, y: Any, source: Expr, target: Expr, fill: Expr) -> None:
        row = self.row
        left = min(max(row.before, 0), row.out)
        right = max(min(row.before + row.size, row.out), left)
        shift = left - row.before
        self._border(x, y, source, target, (0, left), fill)
        each_vector(
            right - left,
            self.lanes,
            lambda i, w: vstore(y, target + left + i, vload(x, source + shift + i, w), w),
        )
        self._border(x, y, source, target, (right, row.out), fill)

    def _border(
        self, x: Any, y: Any, source: Expr, target: Expr, span: tuple[int, int], fill: Expr
    ) -> None:
        first, stop = span
        if first == stop:
            return
        if self.mode == "constant":
            self._fill(y, bind(target + first), stop - first, fill)
            return
        with loop(T.int32(first), T.int32(stop)) as i:
            position = self._mapped(bind(i - self.row.before), self.row)
            vstore(y, target + i, x[source + position], 1)

    def _fill(self, y: Any, target: Expr, count: int, fill: Expr) -> None:
        each_vector(count, self.lanes, lambda i, w: vstore(y, target + i, splat(fill, w), w))
