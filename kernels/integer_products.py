"""Integer convolutions and matrix products of any shape: plain loops with short vectors.

The fallback of the faster families. ``ConvInteger`` adds up, per output position and quad of
filters, sixteen products at a time: each byte of an input quad, four times, by the 4x4
weights that connect the two quads. Taps that fall on padding are skipped, because padding
counts as the zero point. ``MatMulInteger`` has vectors along its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import (
    Param,
    T,
    bind,
    local,
    loop,
    splat,
    stage_func,
    unravel,
    vload,
    vstore,
)
from effc.kernels.columns import is_narrow
from effc.kernels.conv_shape import layout_of
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import concat, pick
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Op, Region, Value
from effc.kernels.strips import each_vector
from effc.kernels.taps import each_tap
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.window import Axis, window_axes

__all__ = ["PlainConvInteger", "PlainMatMulInteger"]

Expr = Any

_COST = 1.0  # cycles per product: several times what the faster families predict
_NARROW_COST = 8.0  # without wide vectors


@dataclass(frozen=True)
class _Problem:
    """A convolution in quads.

    Attributes:
        depthwise: Every channel by itself.
        depth: Input quads that a quad of filters reads.
        group_quads: Quads of filters per group.
    """

    op: Op
    axes: tuple[Axis, ...]
    depthwise: bool
    depth: int
    group_quads: int

    @classmethod
    def of(cls, op: Op) -> _Problem | str:
        x, w, y = operand(op, 0), operand(op, 1), op.outputs[0]
        if w.const is None:
            return "the weights are not constant"
        if layout_of(op) != "quads":
            return "the input is not in quads"
        axes = window_axes(op, x.shape[2:-1], w.shape[2:], y.shape[2:-1])
        group, filters, depth = int(op.attrs.get("group", 1)), *w.shape[:2]
        depthwise = group == filters and depth == 1 and group > 1
        if not depthwise and group > 1 and (depth % 4 or (filters // group) % 4):
            return "groups are not whole quads"
        quads = 1 if depthwise else -(-depth // 4)
        return cls(op, axes, depthwise, quads, -(-filters // group // 4))

    def weights(self) -> np.ndarray:
        """int8 ``[quad][tap][input quad][4 inputs][4 filters]``; depthwise ``[quad][tap][4]``."""
        w = operand(self.op, 1).const
        assert w is not None
        filters, depth, taps = w.shape[0], w.shape[1], prod(w.shape[2:])
        flat = w.reshape(filters, depth, taps)
        flat = np.pad(flat, [(0, -filters % 4), (0, 0 if self.depthwise else -depth % 4), (0, 0)])
        if self.depthwise:
            return np.ascontiguousarray(flat.reshape(-1, 4, taps).transpose(0, 2, 1))
        split = flat.reshape(-1, 4, self.depth, 4, taps)
        return np.ascontiguousarray(split.transpose(0, 4, 2, 3, 1))

    def bias(self) -> np.ndarray:
        """int32, one per channel of the output's quads."""
        filters = operand(self.op, 1).shape[0]
        value = self.op.inputs[2] if len(self.op.inputs) > 2 else None
        given = np.zeros(filters, np.int32) if value is None else value.const
        assert given is not None
        return np.pad(given.astype(np.int32), (0, -filters % 4))


def _cost(target: Target) -> float:
    return _NARROW_COST if is_narrow(target) else _COST


def _view(op: Op) -> tuple[int, ...]:
    batch, quads, *sizes, four = op.outputs[0].shape
    return batch, quads, prod(sizes), four


class PlainConvInteger(Template):
    """``ConvInteger`` of any shape."""

    name: ClassVar[str] = "conv_integer_plain"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.anchor
        if op is None or (op.domain, op.op_type) != (DOMAIN, "ConvInteger"):
            return "the anchor is not ConvInteger"
        problem = _Problem.of(op)
        return (
            problem
            if isinstance(problem, str)
            else Epilogue(region, op.outputs[0], _view(op)).refusal
        )

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        op = region.ops[0]
        return [({}, _cost(target) * op.outputs[0].type.size * prod(operand(op, 1).shape[1:]))]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        problem = _Problem.of(op)
        assert not isinstance(problem, str)
        x, y = operand(op, 0), op.outputs[0]
        epilogue = Epilogue(region, y, _view(op))
        weights = {**epilogue.weights, "w": problem.weights(), "bias": problem.bias()}
        params: list[Param] = [
            ("x", x.dtype, x.type.size),
            ("w", "int8", weights["w"].size),
            ("bias", "int32", weights["bias"].size),
            *epilogue.params,
            ("y", epilogue.out_dtype, y.type.size),
        ]
        outer = (*y.shape[:2], *y.shape[2:-2])
        length = y.shape[-2]

        def body(source: Any, filters: Any, bias: Any, *arguments: Any) -> None:
            *operands, out, begin, end = arguments
            with loop(begin, end) as unit:
                n, quad, *rows = unravel(unit, outer)
                with loop(length) as column:
                    total = _Sum(problem, source, filters)
                    value = total.emit(n, quad, [*rows, column], vload(bias, quad * 4, 4))
                    at = bind(unit * length + column)
                    place = _flat([*rows, column], y.shape[2:-1])
                    coords = [n, quad, place, T.int32(0)]
                    value = epilogue.apply(value, coords, operands, axis=3, lanes=4)
                    vstore(out, at * 4, value, 4)

        args = (x.name, "w:w", "w:bias", *epilogue.args, region.outputs[0].name)
        stage = Stage(stage_func(params, body), args, prod(outer))
        return Kernel((stage,), weights, inplace=epilogue.inplace)


def _flat(indices: Sequence[Expr], shape: Sequence[int]) -> Expr:
    at = indices[0]
    for index, size in zip(indices[1:], shape[1:], strict=True):
        at = at * size + index
    return bind(at)


class _Sum:
    """The sum of one output position for a quad of filters."""

    def __init__(self, problem: _Problem, source: Any, filters: Any) -> None:
        self.problem = problem
        self.source = source
        self.filters = filters
        self.zero = int(problem.op.attrs.get("x_zero", 0))
        self.width = 4 if problem.depthwise else 16

    def emit(self, n: Expr, quad: Expr, position: Sequence[Expr], bias: Expr) -> Expr:
        """Four int32 lanes."""
        problem, width = self.problem, self.width
        shape = operand(problem.op, 0).shape
        total = local(width, "int32")
        vstore(total, 0, splat(T.int32(0), width), width)
        if problem.depthwise:
            first = quad
        else:
            group = bind(tirx.truncdiv(quad, problem.group_quads))
            first = bind(group * problem.depth)
        taps = prod(axis.kernel for axis in problem.axes)

        def tap(indices: list[Expr], kernel: list[Expr]) -> None:
            place = _flat(indices, shape[2:-1])
            number = _flat(kernel, [axis.kernel for axis in problem.axes])
            weight = bind((quad * taps + number) * problem.depth)
            with loop(problem.depth) as depth:
                row = bind(n * shape[1] + first + depth)
                x = bind(vload(self.source, (row * prod(shape[2:-1]) + place) * 4, 4))
                self._add(total, x, bind((weight + depth) * width))

        each_tap(problem.axes, position, tap)
        sums = vload(total, 0, width)
        while width > 4:
            width //= 2
            whole = bind(sums)
            sums = pick(whole, range(width), 2 * width) + pick(
                whole, range(width, 2 * width), 2 * width
            )
        return bind(sums + bias)

    def _add(self, total: Any, x: Expr, weight: Expr) -> None:
        width = self.width
        if width == 16:
            x = concat([x] * 4, [i // 4 for i in range(16)])
        wide = vm.cast(x, "int32")
        if self.zero:
            wide = wide - vm.const(self.zero, wide)
        w = vm.cast(vload(self.filters, weight, width), "int32")
        vstore(total, 0, vload(total, 0, width) + bind(wide) * bind(w), width)


class PlainMatMulInteger(Template):
    """``MatMulInteger`` of any shape."""

    name: ClassVar[str] = "matmul_integer_plain"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.anchor
        if op is None or (op.domain, op.op_type) != (DOMAIN, "MatMulInteger"):
            return "the anchor is not MatMulInteger"
        if len(op.inputs) > 2 and op.inputs[2] is not None and op.inputs[2].const is None:
            return "the bias is not constant"
        return Epilogue(region, op.outputs[0], _matrix_view(op)).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        op = region.ops[0]
        return [({}, _cost(target) * op.outputs[0].type.size * operand(op, 0).shape[-1])]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        a, b, y = operand(op, 0), operand(op, 1), op.outputs[0]
        batch, rows, columns = _matrix_view(op)
        depth = a.shape[-1]
        epilogue = Epilogue(region, y, (batch, rows, columns))
        weights = dict(epilogue.weights)
        params: list[Param] = []
        args: list[str] = []
        for name, value in (("a", a), ("b", b), ("bias", _bias(op))):
            if isinstance(value, Value):
                params.append((name, value.dtype, value.type.size))
                args.append(value.name if value.const is None else f"w:{name}")
                if value.const is not None:
                    weights[name] = np.ascontiguousarray(value.const)
            else:
                params.append((name, "int32", value.size))
                args.append(f"w:{name}")
                weights[name] = value
        params += [*epilogue.params, ("y", epilogue.out_dtype, y.type.size)]
        zeros = [int(op.attrs.get(name, 0)) for name in ("a_zero", "b_zero")]

        def wide(x: Expr, zero: int) -> Expr:
            x = vm.cast(x, "int32")
            return bind(x - vm.const(zero, x) if zero else x)

        def body(left: Any, right: Any, bias: Any, *arguments: Any) -> None:
            *operands, out, begin, end = arguments
            with loop(begin, end) as unit:
                matrix, row = unravel(unit, (batch, rows))
                places = unravel(matrix, y.shape[:-2]) if len(y.shape) > 2 else []
                a_row = bind((_broadcast(places, a.shape[:-2]) * rows + row) * depth)
                b_base = bind(_broadcast(places, b.shape[:-2]) * (depth * columns))

                def vector(at: Expr, width: int) -> None:
                    total = local(width, "int32")
                    vstore(total, 0, vload(bias, at, width), width)
                    with loop(depth) as k:
                        x = splat(wide(left[a_row + k], zeros[0]), width)
                        w = wide(vload(right, b_base + k * columns + at, width), zeros[1])
                        vstore(total, 0, vload(total, 0, width) + x * w, width)
                    value = epilogue.apply(
                        bind(vload(total, 0, width)),
                        [matrix, row, at],
                        operands,
                        axis=2,
                        lanes=width,
                    )
                    vstore(out, unit * columns + at, value, width)

                each_vector(columns, 2 * target.lanes, vector)

        stage = Stage(
            stage_func(params, body),
            (*args, *epilogue.args, region.outputs[0].name),
            batch * rows,
        )
        return Kernel((stage,), weights, inplace=epilogue.inplace)


def _matrix_view(op: Op) -> tuple[int, int, int]:
    *batch, rows, columns = op.outputs[0].shape
    return prod(batch), rows, columns


def _bias(op: Op) -> np.ndarray:
    value = op.inputs[2] if len(op.inputs) > 2 else None
    given = np.zeros(op.outputs[0].shape[-1], np.int32) if value is None else value.const
    assert given is not None
    return np.broadcast_to(given.astype(np.int32), op.outputs[0].shape[-1:]).copy()


def _broadcast(places: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """Number of the matrix at ``places`` in a stack of ``shape`` that broadcasts."""
    at: Expr = T.int32(0)
    for place, size in zip(places[len(places) - len(shape) :], shape, strict=True):
        at = at * size + (place if size > 1 else 0)
    return at
