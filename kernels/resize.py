"""Resize (nearest, linear, cubic; any number of axes) by one pass per axis.

A pass views its tensor as ``[outer, length, inner]``. Behind the innermost axis it gathers
along rows; elsewhere it adds whole rows with one weight each. The positions and weights
are tables (``effc.kernels.resize_table``) in read-only data. Nearest by whole factors of the
two innermost axes is one pass that repeats elements in registers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, loop, splat, stage_func, unravel, vload, vstore
from effc.kernels.region import Op, Region
from effc.kernels.resize_table import AxisTable, axis_tables, table_refusal
from effc.kernels.strips import AxisView, axis_view, each_vector
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["ResizeTemplate"]

Expr = Any  # tvm.tirx expressions have no useful static types


class ResizeTemplate(Template):
    """Separable resampling; ``form`` and ``taps`` follow from scales that are no signature."""

    name: ClassVar[str] = "resize"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.ops[0]
        if len(region.ops) != 1 or op.op_type != "Resize" or op.domain:
            return "not a lone Resize"
        data = op.inputs[0]
        assert data is not None
        mode = op.attrs.get("mode", "nearest")
        if mode in ("nearest", b"nearest"):
            if data.dtype == "object":
                return "no numbers"
        elif data.dtype not in ("float32", "float16", "float64"):
            return f"{mode} interpolation of {data.dtype}"
        if not data.type.size or max(data.type.size, region.outputs[0].type.size) >= 2**31:
            return f"{data.shape} to {region.outputs[0].shape}"
        return table_refusal(op)

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """One configuration: what the scales ask for."""
        op = region.ops[0]
        tables = axis_tables(op)
        cost = 3.0 * region.outputs[0].type.size / target.lanes
        factors = _repeats(op, tables)
        if factors is not None:
            return [({"form": "repeat"}, cost)]
        axes = "".join(f"{t.axis}x{t.taps}" for t in tables)
        return [({"form": f"tables{axes}"}, cost * max(len(tables), 1))]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        tables = axis_tables(op)
        factors = _repeats(op, tables)
        if factors is not None:
            return _build_repeat(op, factors, target)
        return _build_passes(op, tables, target)


def _repeats(op: Op, tables: list[AxisTable]) -> tuple[int, int] | None:
    """Factors of the two innermost axes if everything is a repetition by whole factors."""
    data = op.inputs[0]
    assert data is not None
    rank = len(data.shape)
    factors = {rank - 2: 1, rank - 1: 1}
    for table in tables:
        factor = table.repeats(data.shape[table.axis])
        if table.axis not in factors or not factor:
            return None
        factors[table.axis] = factor
    if rank < 2 or factors[rank - 1] > 8:
        return None
    return factors[rank - 2], factors[rank - 1]


def _bits(dtype: str) -> str:
    return f"uint{8 * np.dtype(dtype).itemsize}"


def _build_repeat(op: Op, factors: tuple[int, int], target: Target) -> Kernel:
    data, out = op.inputs[0], op.outputs[0]
    assert data is not None
    rows, columns = factors
    width = data.shape[-1]
    dtype = _bits(data.dtype)
    lanes = max(min(target.vector_bits // (8 * np.dtype(dtype).itemsize), 16), 1)

    def emit(x: Any, y: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as unit:
            source = bind(unit * width)
            first = bind(unit * (rows * columns * width))

            def vector(i: Expr, w: int) -> None:
                value = bind(vload(x, source + i, w))
                order = [T.int32(k // columns) for k in range(w * columns)]
                if columns == 1:
                    wide = value
                elif w == 1:
                    wide = splat(value, columns)
                else:
                    wide = bind(tirx.Shuffle([value] * columns, order))
                for row in range(rows):
                    at = first + (row * columns * width) + i * columns
                    vstore(y, at, wide, w * columns)

            each_vector(width, lanes, vector)

    params = [("x", dtype, data.type.size), ("y", dtype, out.type.size)]
    units = data.type.size // width
    return Kernel((Stage(stage_func(params, emit), (data.name, out.name), units),))


def _build_passes(op: Op, tables: list[AxisTable], target: Target) -> Kernel:
    data, out = op.inputs[0], op.outputs[0]
    assert data is not None
    nearest = all(table.taps == 1 for table in tables)
    dtype = _bits(data.dtype) if nearest else data.dtype
    if not tables:
        tables = [_identity(data.shape)]
    # Shrinking axes first, then the outermost: fewest elements, rows as long as possible.
    order = sorted(tables, key=lambda t: (out.shape[t.axis] / max(data.shape[t.axis], 1), t.axis))
    shape = list(data.shape)
    weights: dict[str, np.ndarray] = {}
    workspaces: dict[str, int] = {}
    stages = []
    source = data.name
    for number, table in enumerate(order):
        view = axis_view(tuple(shape), table.axis)
        size = int(np.prod(shape))
        shape[table.axis] = out.shape[table.axis]
        made = int(np.prod(shape))
        last = number == len(order) - 1
        result = out.name if last else f"t:pass{number}"
        if not last:
            workspaces[f"pass{number}"] = made * np.dtype(dtype).itemsize
        weights[f"i{number}"] = table.index
        args = [source, result, f"w:i{number}"]
        if not nearest:
            weights[f"w{number}"] = table.weight
            args.append(f"w:w{number}")
        stage = _pass(view, table.taps, shape[table.axis], (size, made), dtype, nearest, target)
        stages.append(Stage(stage[0], tuple(args), stage[1]))
        source = result
    return Kernel(tuple(stages), weights=weights, workspaces=workspaces)


def _identity(shape: tuple[int, ...]) -> AxisTable:
    index = np.arange(shape[0], dtype=np.int32)[:, None]
    return AxisTable(0, index, np.ones(index.shape, np.float32))


def _pass(
    view: AxisView, taps: int, length: int, sizes: tuple[int, int], dtype: str, nearest: bool,
    target: Target,
) -> tuple[Any, int]:  # fmt: skip
    wide = dtype if nearest or dtype == "float64" else "float32"
    lanes = max(min(target.vector_bits // (8 * np.dtype(wide).itemsize), 16), 1)

    def combine(load: Any, weigh: Any) -> Expr:
        if nearest:
            return load(0)
        total = load(0) * weigh(0)
        for tap in range(1, taps):
            total = bind(total + load(tap) * weigh(tap))
        return vm.cast(bind(total), dtype)

    def row(x: Any, y: Any, index: Any, weight: Any, unit: Expr) -> None:
        outer, k = unravel(unit, (view.outer, length))
        base = bind(outer * (view.length * view.inner))
        starts = [bind(base + index[k * taps + t] * view.inner) for t in range(taps)]
        factors = (
            [] if nearest else [bind(vm.cast(weight[k * taps + t], wide)) for t in range(taps)]
        )
        each_vector(
            view.inner,
            lanes,
            lambda i, w: vstore(
                y,
                unit * view.inner + i,
                combine(
                    lambda t: vm.cast(vload(x, starts[t] + i, w), wide),
                    lambda t: splat(factors[t], w),
                ),
                w,
            ),
        )

    def gathered(x: Any, y: Any, index: Any, weight: Any, outer: Expr) -> None:
        base, first = bind(outer * view.length), bind(outer * length)

        def vector(k: Expr, w: int) -> None:
            def load(tap: int) -> Expr:
                at = vload(index, k * taps + tap, w, taps)
                return vm.cast(x[splat(base, w) + at], wide)

            value = combine(load, lambda t: vm.cast(vload(weight, k * taps + t, w, taps), wide))
            vstore(y, first + k, value, w)

        each_vector(length, lanes, vector)

    def emit(x: Any, y: Any, index: Any, *rest: Any) -> None:
        *weight, begin, end = rest
        with loop(begin, end) as unit:
            inner = gathered if view.inner == 1 else row
            inner(x, y, index, weight[0] if weight else None, unit)

    params = [
        ("x", dtype, sizes[0]),
        ("y", dtype, sizes[1]),
        ("index", "int32", length * taps),
    ]
    if not nearest:
        params.append(("weight", "float32", length * taps))
    return stage_func(params, emit), view.outer * (1 if view.inner == 1 else length)
