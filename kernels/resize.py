"""Resize (nearest, linear, cubic; any number of axes) by one pass per axis.

A pass views its tensor as ``[outer, length, inner]``. Along the innermost axis it gathers, or,
if the axis grows by a whole factor, interleaves one vector per phase; elsewhere it adds whole
rows with one weight each. Rows and columns of images are resampled together. The positions and
weights are tables (``effc.kernels.resize_table``) in read-only data. Nearest by whole factors of
the two innermost axes repeats elements in registers.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, loop, splat, stage_func, unravel, vload, vstore
from effc.kernels.lanes import interleave
from effc.kernels.region import Op, Region
from effc.kernels.resize_table import AxisTable, axis_tables, phases, table_refusal
from effc.kernels.strips import axis_view, each_vector
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
        data = op.inputs[0]
        assert data is not None
        parts = [f"{t.axis}x{t.taps}@{phases(t, data.shape[t.axis])}" for t in tables]
        return [({"form": " ".join(["tables", *parts])}, cost * max(len(tables), 1))]

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
    kernel = Kernel(())
    stages: list[Stage] = []
    source = data.name
    while order:
        taken = order[:2] if _is_plane(order, len(shape)) else order[:1]
        order = order[len(taken) :]
        before = tuple(shape)
        for table in taken:
            shape[table.axis] = out.shape[table.axis]
        number = len(stages)
        result = f"t:pass{number}" if order else out.name
        if order:
            kernel.workspaces[f"pass{number}"] = prod(shape) * np.dtype(dtype).itemsize
        resampling = _Pass(taken, before, prod(shape), dtype, nearest, target)
        stages.append(resampling.stage(source, result, number, kernel.weights))
        source = result
    kernel.stages = tuple(stages)
    return kernel


def _is_plane(order: list[AxisTable], rank: int) -> bool:
    """Whether rows and then columns of an image are left to resample."""
    return len(order) == 2 and [table.axis for table in order] == [rank - 2, rank - 1]


def _identity(shape: tuple[int, ...]) -> AxisTable:
    index = np.arange(shape[0], dtype=np.int32)[:, None]
    return AxisTable(0, index, np.ones(index.shape, np.float32))


class _Pass:
    """Resamples one axis, or rows (into scratch) and then columns of images in one go."""

    def __init__(
        self, tables: list[AxisTable], shape: tuple[int, ...], made: int, dtype: str,
        nearest: bool, target: Target,
    ) -> None:  # fmt: skip
        self.tables = tables
        self.view = axis_view(shape, tables[0].axis)
        self.made = made
        self.dtype = dtype
        self.nearest = nearest
        self.wide = dtype if nearest or dtype == "float64" else "float32"
        self.lanes = max(min(target.vector_bits // (8 * np.dtype(self.wide).itemsize), 16), 1)
        self.phases = None if nearest else phases(tables[-1], shape[tables[-1].axis])
        self.columns = len(tables) == 2 or self.view.inner == 1

    def stage(self, source: str, result: str, number: int, weights: dict[str, np.ndarray]) -> Stage:
        """The stage from ``source`` to ``result``; its tables go into ``weights``."""
        view, length = self.view, len(self.tables[0].index)
        size = view.outer * view.length * view.inner
        params = [("x", self.dtype, size), ("y", self.dtype, self.made)]
        args = [source, result]
        for t, table in enumerate(self.tables):
            key = f"{number}{t}"
            weights[f"i{key}"] = table.index
            params.append((f"index{t}", "int32", table.index.size))
            args.append(f"w:i{key}")
            if not self.nearest:
                weights[f"w{key}"] = table.weight
                params.append((f"weight{t}", "float32", table.weight.size))
                args.append(f"w:w{key}")
        scratch = 0
        if len(self.tables) == 2:
            params.append(("scratch", self.wide, view.inner))
            args.append("scratch")
            scratch = view.inner * np.dtype(self.wide).itemsize
        by_row = view.inner == 1 and len(self.tables) == 1
        units = view.outer * (1 if by_row else length)
        return Stage(stage_func(params, self._emit), tuple(args), units, scratch)

    def _emit(self, x: Any, y: Any, *rest: Any) -> None:
        *buffers, begin, end = rest
        scratch = buffers.pop() if len(self.tables) == 2 else None
        step = 1 if self.nearest else 2
        pairs = [(*buffers[i : i + step], None)[:2] for i in range(0, len(buffers), step)]
        out_row = len(self.tables[-1].index)
        with loop(begin, end) as unit:
            if not self.columns:
                self._rows(x, y, bind(unit * self.view.inner), unit, pairs[0])
                return
            first = bind(unit * out_row)
            if scratch is None:
                self._line(x, bind(unit * self.view.length), y, first, pairs[0])
                return
            self._rows(x, scratch, T.int32(0), unit, pairs[0])
            self._line(scratch, T.int32(0), y, first, pairs[1])

    def _combine(self, taps: int, load: Any, weigh: Any, dtype: str) -> Expr:
        if self.nearest:
            return load(0)
        total = load(0) * weigh(0)
        for tap in range(1, taps):
            total = bind(total + load(tap) * weigh(tap))
        return vm.cast(bind(total), dtype)

    def _rows(self, x: Any, y: Any, target: Expr, unit: Expr, table: tuple[Any, Any]) -> None:
        """One output row as a weighted sum of input rows."""
        index, weight = table
        view, taps = self.view, self.tables[0].taps
        outer, k = unravel(unit, (view.outer, len(self.tables[0].index)))
        base = bind(outer * (view.length * view.inner))
        starts = [bind(base + index[k * taps + t] * view.inner) for t in range(taps)]
        factors = [] if self.nearest else [
            bind(vm.cast(weight[k * taps + t], self.wide)) for t in range(taps)
        ]  # fmt: skip
        dtype = self.wide if len(self.tables) == 2 else self.dtype

        def vector(i: Expr, width: int) -> None:
            value = self._combine(
                taps,
                lambda t: vm.cast(vload(x, starts[t] + i, width), self.wide),
                lambda t: splat(factors[t], width),
                dtype,
            )
            vstore(y, target + i, value, width)

        each_vector(view.inner, self.lanes, vector)

    def _line(self, x: Any, base: Expr, y: Any, first: Expr, table: tuple[Any, Any]) -> None:
        """One row from one row."""
        length = len(self.tables[-1].index)
        if self.phases is None:
            each_vector(
                length, self.lanes, lambda k, w: self._gather(x, base, y, first, table, k, w)
            )
            return
        inside, factor = self.phases, self.phases.factor
        for start, stop in ((0, inside.first * factor), (inside.last * factor, length)):
            if start < stop:
                with loop(T.int32(start), T.int32(stop)) as k:
                    self._gather(x, base, y, first, table, k, 1)
        self._phases(x, base, y, first, table[1])

    def _gather(
        self, x: Any, base: Expr, y: Any, first: Expr, table: tuple[Any, Any], k: Expr, width: int
    ) -> None:
        index, weight = table
        taps = self.tables[-1].taps
        value = self._combine(
            taps,
            lambda t: vm.cast(
                x[splat(base, width) + vload(index, k * taps + t, width, taps)], self.wide
            ),
            lambda t: vm.cast(vload(weight, k * taps + t, width, taps), self.wide),
            self.dtype,
        )
        vstore(y, first + k, value, width)

    def _phases(self, x: Any, base: Expr, y: Any, first: Expr, weight: Any) -> None:
        """The inside of a row that grows by a whole factor: one vector per phase, interleaved."""
        inside = self.phases
        assert inside is not None
        taps = self.tables[-1].taps
        at = inside.middle * inside.factor * taps
        factors = [bind(vm.cast(weight[at + i], self.wide)) for i in range(inside.factor * taps)]
        start = bind(base + inside.first)
        target = bind(first + inside.first * inside.factor)

        def vector(i: Expr, width: int) -> None:
            loaded = {
                shift: bind(vm.cast(vload(x, start + i + shift, width), self.wide))
                for shift in sorted({s for phase in inside.shifts for s in phase})
            }
            made = [
                self._combine(
                    taps,
                    lambda t, p=p: loaded[inside.shifts[p][t]],
                    lambda t, p=p: splat(factors[p * taps + t], width),
                    self.dtype,
                )
                for p in range(inside.factor)
            ]
            count = width * inside.factor
            vstore(y, target + i * inside.factor, interleave(made, width), count)

        each_vector(inside.last - inside.first, self.lanes, vector)
