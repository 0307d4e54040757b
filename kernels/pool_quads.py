"""Pooling of 8-bit tensors in quads: ``SumPool`` and ``MaxPool8``.

Four channels at a time, any window; taps on padding are skipped. A sum over the whole plane
runs along the plane with wider vectors, and takes the zero point off once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, local, loop, splat, stage_func, unravel, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import lowest, pick
from effc.kernels.overlap import overlap, plane_by_plane, quad_bytes
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.taps import each_tap
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.window import Axis, window_axes

__all__ = ["QuadPool"]

Expr = Any

_OPERATORS = ("SumPool", "MaxPool8")


def _view(op: Op) -> tuple[int, ...]:
    batch, quads, *sizes, four = op.outputs[0].shape
    return batch, quads, prod(sizes), four


def _axes(op: Op) -> tuple[Axis, ...]:
    sizes, out = operand(op, 0).shape[2:-1], op.outputs[0].shape[2:-1]
    return window_axes(op, sizes, [int(k) for k in op.attrs["kernel_shape"]], out)


def _covers(axes: Sequence[Axis]) -> bool:
    return all(a.kernel == a.size and a.out == 1 and a.dilation == 1 and not a.before for a in axes)


class QuadPool(Template):
    """Sums and maxima over windows."""

    name: ClassVar[str] = "pool_quads"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.anchor
        if op is None or op.domain != DOMAIN or op.op_type not in _OPERATORS:
            return "the anchor does not pool quads"
        return Epilogue(region, op.outputs[0], _view(op)).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        op = region.ops[0]
        return [({}, op.outputs[0].type.size * float(prod(a.kernel for a in _axes(op))))]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        x, y, axes = operand(op, 0), op.outputs[0], _axes(op)
        epilogue = Epilogue(region, y, _view(op))
        params = [("x", x.dtype, x.type.size), *epilogue.params]
        params.append(("y", epilogue.out_dtype, y.type.size))
        planes = (x.shape[0], x.shape[1])
        sizes, out_sizes = x.shape[2:-1], y.shape[2:-1]
        whole = op.op_type == "SumPool" and _covers(axes)
        zero = int(op.attrs.get("x_zero", 0))

        def body(source: Any, *arguments: Any) -> None:
            *operands, out, begin, end = arguments
            with loop(begin, end) as unit:
                n, quad, *rows = unravel(unit, (*planes, *out_sizes[:-1]))
                plane = bind((n * planes[1] + quad) * prod(sizes))
                with loop(out_sizes[-1]) as column:
                    position = [*rows, column]
                    if whole:
                        value = _plane(source, plane, prod(sizes), zero)
                    elif op.op_type == "SumPool":
                        value = _window(source, plane, axes, position, "int32", zero)
                    else:
                        value = _window(source, plane, axes, position, x.dtype, None)
                    place: Expr = T.int32(0)
                    for index, size in zip(position, out_sizes, strict=True):
                        place = place * size + index
                    coords = [n, quad, bind(place), T.int32(0)]
                    value = epilogue.apply(bind(value), coords, operands, axis=3, lanes=4)
                    vstore(out, (unit * out_sizes[-1] + column) * 4, value, 4)

        stage = Stage(
            stage_func(params, body),
            (x.name, *epilogue.args, region.outputs[0].name),
            prod((*planes, *out_sizes[:-1])),
        )
        elements = quad_bytes(x), quad_bytes(region.outputs[0])
        shifts = plane_by_plane(axes, prod(planes), elements) if target.serial else ()
        overlaps = overlap(region, x, shifts)
        return Kernel((stage,), epilogue.weights, inplace=epilogue.inplace, overlaps=overlaps)


def _window(
    source: Any,
    plane: Expr,
    axes: Sequence[Axis],
    position: list[Expr],
    dtype: str,
    zero: int | None,
) -> Expr:
    """Sum (with a zero point) or maximum of one window, four lanes."""
    total = local(4, dtype)
    start = T.int32(0) if zero is not None else lowest(dtype)
    vstore(total, 0, splat(start, 4), 4)

    def tap(indices: list[Expr], kernel: list[Expr]) -> None:
        at = plane
        row: Expr = T.int32(0)
        for index, axis in zip(indices, axes, strict=True):
            row = row * axis.size + index
        x = vload(source, (at + row) * 4, 4)
        before = vload(total, 0, 4)
        if zero is None:
            vstore(total, 0, tirx.Max(before, x), 4)
        else:
            wide = vm.cast(x, dtype)
            vstore(total, 0, before + (wide - vm.const(zero, wide)), 4)

    each_tap(axes, position, tap)
    return vload(total, 0, 4)


def _plane(source: Any, plane: Expr, count: int, zero: int) -> Expr:
    """The sum over ``count`` positions, four lanes."""
    lanes = 16
    total = local(lanes, "int32")
    vstore(total, 0, splat(T.int32(0), lanes), lanes)
    start = bind(plane * 4)

    with loop(count // 4) as i:
        value = vm.cast(vload(source, start + i * lanes, lanes), "int32")
        vstore(total, 0, vload(total, 0, lanes) + value, lanes)
    whole = bind(vload(total, 0, lanes))
    parts = [pick(whole, range(p, p + 4), lanes) for p in range(0, lanes, 4)]
    for rest in range(count // 4 * 4, count):
        parts.append(vm.cast(vload(source, start + rest * 4, 4), "int32"))
    result = parts[0]
    for part in parts[1:]:
        result = bind(result + part)
    return result - vm.const(zero * count, result)
