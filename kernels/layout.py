"""Operators that only move elements, as strided copies.

Each operator becomes one or more ``Copy`` boxes (one per operand or per result).
Where the storage planner makes a view of it, none of this is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.copies import Axis, Copy, copy_stage, dense_strides
from effc.kernels.gather import GatherTemplate
from effc.kernels.pad import PadTemplate
from effc.kernels.region import DOMAIN, Op, Region, Value
from effc.kernels.resize import ResizeTemplate
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["LAYOUT_TEMPLATES", "CopyTemplate"]

Moves = list[tuple[Value, Value, Copy]]  # source, destination, box
Planner = Callable[[Op, Value], "Moves | str"]


def _copy(
    source: Value,
    target: Value,
    axes: Sequence[Axis],
    source_offset: int = 0,
    target_offset: int = 0,
) -> tuple[Value, Value, Copy]:
    itemsize = np.dtype(source.dtype).itemsize
    sizes = (source.type.size, target.type.size)
    return source, target, Copy(tuple(axes), source_offset, target_offset, *sizes, itemsize)


def _zip(extents: Sequence[int], source: Sequence[int], target: Sequence[int]) -> list[Axis]:
    return [Axis(e, s, t) for e, s, t in zip(extents, source, target, strict=True)]


def _axis(op: Op, rank: int, default: int = 0) -> int:
    return int(op.attrs.get("axis", default)) % rank


def _reshape(op: Op, data: Value) -> Moves | str:
    return [_copy(data, op.outputs[0], [Axis(data.type.size, 1, 1)])]


def _transpose(op: Op, data: Value) -> Moves | str:
    out = op.outputs[0]
    order = op.attrs.get("perm") or tuple(reversed(range(len(data.shape))))
    strides = dense_strides(data.shape)
    source = [strides[int(axis)] for axis in order]
    return [_copy(data, out, _zip(out.shape, source, dense_strides(out.shape)))]


def _concat(op: Op, data: Value) -> Moves | str:
    out = op.outputs[0]
    axis = _axis(op, len(out.shape))
    strides = dense_strides(out.shape)
    moves, at = [], 0
    for value in op.inputs:
        assert value is not None
        axes = _zip(value.shape, dense_strides(value.shape), strides)
        moves.append(_copy(value, out, axes, 0, at * strides[axis]))
        at += value.shape[axis]
    return moves


def _insert(op: Op, data: Value) -> Moves | str:
    """One operand of a concatenation into its place; ``axis`` and ``start`` there."""
    out, axis = op.outputs[0], int(op.attrs["axis"])
    strides = dense_strides(out.shape)
    axes = _zip(data.shape, dense_strides(data.shape), strides)
    return [_copy(data, out, axes, 0, int(op.attrs["start"]) * strides[axis])]


def _split(op: Op, data: Value) -> Moves | str:
    axis = _axis(op, len(data.shape))
    strides = dense_strides(data.shape)
    moves, at = [], 0
    for out in op.outputs:
        axes = _zip(out.shape, strides, dense_strides(out.shape))
        moves.append(_copy(data, out, axes, at * strides[axis]))
        at += out.shape[axis]
    return moves


def _slice(op: Op, data: Value) -> Moves | str:
    rank = len(data.shape)
    operands = [v for v in op.inputs[1:] if v is not None]
    if any(v.const is None for v in operands):
        return "the range is not constant"
    starts, axes, steps = (
        None if len(op.inputs) <= i or op.inputs[i] is None else _ints(op.inputs[i])
        for i in (1, 3, 4)
    )
    assert starts is not None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    strides = dense_strides(data.shape)
    source, offset = list(strides), 0
    for start, axis, step in zip(starts, axes, steps, strict=True):
        axis %= rank
        size = data.shape[axis]
        first = start + size if start < 0 else start
        first = min(max(first, 0), size if step > 0 else size - 1)
        offset += first * strides[axis]
        source[axis] = step * strides[axis]
    out = op.outputs[0]
    return [_copy(data, out, _zip(out.shape, source, dense_strides(out.shape)), offset)]


def _ints(value: Value | None) -> list[int]:
    assert value is not None
    assert value.const is not None
    return [int(v) for v in value.const.reshape(-1)]


def _expand(op: Op, data: Value) -> Moves | str:
    out = op.outputs[0]
    shape = (1,) * (len(out.shape) - len(data.shape)) + data.shape
    strides = dense_strides(shape)
    source = [0 if own == 1 else s for own, s in zip(shape, strides, strict=True)]
    return [_copy(data, out, _zip(out.shape, source, dense_strides(out.shape)))]


def _tile(op: Op, data: Value) -> Moves | str:
    out = op.outputs[0]
    axes: list[Axis] = []
    for extent, total, s, t in zip(
        data.shape, out.shape, dense_strides(data.shape), dense_strides(out.shape), strict=True
    ):
        repeats = total // extent if extent else 0
        axes += [Axis(repeats, 0, extent * t), Axis(extent, s, t)]
    return [_copy(data, out, axes)]


def _depth_to_space(op: Op, data: Value) -> Moves | str:
    n, c, h, w = data.shape
    b = int(op.attrs["blocksize"])
    depth = c // (b * b)
    if op.attrs.get("mode", "DCR") == "DCR":
        strides = {"y": b * depth * h * w, "x": depth * h * w, "c": h * w}
    else:
        strides = {"c": b * b * h * w, "y": b * h * w, "x": h * w}
    extents = (n, depth, h, b, w, b)
    source = (c * h * w, strides["c"], w, strides["y"], 1, strides["x"])
    return [_copy(data, op.outputs[0], _zip(extents, source, dense_strides(extents)))]


def _space_to_depth(op: Op, data: Value) -> Moves | str:
    n, c, h, w = data.shape
    b = int(op.attrs["blocksize"])
    rows, columns = h // b, w // b
    if op.attrs.get("mode", "DCR") == "DCR":
        extents, source = (n, b, b, c, rows, columns), (c * h * w, w, 1, h * w, b * w, b)
    else:
        extents, source = (n, c, b, b, rows, columns), (c * h * w, h * w, w, 1, b * w, b)
    return [_copy(data, op.outputs[0], _zip(extents, source, dense_strides(extents)))]


_PLANNERS: dict[str, Planner] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "Identity": _reshape,
    "Insert": _insert,  # of domain effc, made by effc.storage
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}


class CopyTemplate(Template):
    """Data movement by strided copies."""

    name: ClassVar[str] = "copy"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        if len(region.ops) != 1:
            return "has an epilogue"
        op = region.ops[0]
        if op.domain != (DOMAIN if op.op_type == "Insert" else "") or op.op_type not in _PLANNERS:
            return f"{op.op_type} is not a copy"
        data = op.inputs[0]
        if data is None or data.dtype == "object" or data.dtype.startswith("str"):
            return "no numbers"
        if any(v.type.size >= 2**31 for v in (*region.inputs, *region.outputs)):
            return "too many elements"
        moves = _PLANNERS[op.op_type](op, data)
        return moves if isinstance(moves, str) else None

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, float(sum(v.type.size for v in region.outputs)) / target.lanes)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        assert op.inputs[0] is not None
        moves = _PLANNERS[op.op_type](op, op.inputs[0])
        assert not isinstance(moves, str)
        stages, weights = [], {}
        for index, (source, out, box) in enumerate(moves):
            if not prod(axis.extent for axis in box.axes):
                continue
            func, units = copy_stage(box, target.vector_bits)
            name = source.name
            if source.const is not None:
                name = f"w:c{index}"
                weights[f"c{index}"] = np.ascontiguousarray(source.const)
            stages.append(Stage(func, (name, out.name), units))
        return Kernel(tuple(stages), weights=weights)


LAYOUT_TEMPLATES: tuple[Template, ...] = (
    CopyTemplate(),
    PadTemplate(),
    GatherTemplate(),
    ResizeTemplate(),
)
