"""Pooling over windows: MaxPool, AveragePool, LpPool (p = 1, 2), 1 to 3 spatial axes.

A parallel unit is one band of output rows of one image plane. Its rows are
copied once into scratch with the padding value of the operator (minus infinity
for max, zero for sums) and dealt into stride phases (``effc.kernels.plane``).
Windows are separable: first every row is combined horizontally, then the
combined rows vertically. ``direct`` keeps the combined rows of a tile of outputs in
registers; ``separable`` (large windows) keeps them in scratch, so that each is
computed once.

Averages are multiplied by a table of reciprocal counts, which covers padding
and ``ceil_mode`` at no cost. float16 is summed in float32. Sums are reordered: results differ from
ONNX Runtime's by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import Param, bind, loop, splat, stage_func, unravel, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import dtype_lanes, lowest
from effc.kernels.plane import Plane, PlaneOutput
from effc.kernels.region import Op, Region
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.window import Axis, window_axes

__all__ = ["POOL_DTYPES", "PoolTemplate", "Reduction", "computed_in", "reduction_of"]

Expr = Any

_OPS = ("MaxPool", "AveragePool", "LpPool")
POOL_DTYPES = {
    "MaxPool": ("float16", "float32", "float64", "int8", "uint8", "int32"),
    "AveragePool": ("float16", "float32", "float64"),
    "LpPool": ("float32", "float64"),
}
_MAX_WINDOW = 64  # taps along one axis that are unrolled


@dataclass(frozen=True)
class Reduction:
    """What a window is reduced by.

    Attributes:
        fill: The padding value.
        convert: Applied to every input.
        combine: Joins two partial results.
        finish: Applied to the result (before any scaling).
    """

    fill: Expr
    convert: Callable[[Expr], Expr]
    combine: Callable[[Expr, Expr], Expr]
    finish: Callable[[Expr], Expr]


def computed_in(op: Op, dtype: str) -> str:
    """Type of partial results: sums of float16 are float32, for accuracy and range."""
    return "float32" if dtype == "float16" and not op.op_type.endswith("MaxPool") else dtype


def reduction_of(op: Op, dtype: str) -> Reduction | None:
    """The reduction of a (global) pooling operator in ``dtype``, ``None`` if it is not known."""

    def same(value: Expr) -> Expr:
        return vm.cast(value, dtype)

    def add(a: Expr, b: Expr) -> Expr:
        return a + b

    if op.op_type.endswith("MaxPool"):
        floating = np.issubdtype(np.dtype(dtype), np.floating)
        return Reduction(lowest(dtype), same, vm.maximum if floating else tirx.Max, same)
    zero = tirx.const(0, dtype)
    if op.op_type.endswith("AveragePool"):
        return Reduction(zero, same, add, same)
    order = op.attrs.get("p", 2)
    if order == 1:
        return Reduction(zero, vm.absolute, add, same)
    if order == 2:
        return Reduction(zero, lambda v: v * v, add, vm.sqrt)
    return None


@dataclass(frozen=True)
class _Shape:
    """Geometry with three spatial axes, missing ones have extent 1."""

    batch: int
    channels: int
    z: Axis
    y: Axis
    x: Axis

    @property
    def view(self) -> tuple[int, int, int]:
        return (self.batch, self.channels, self.z.out * self.y.out * self.x.out)


class PoolTemplate(Template):
    """Windowed pooling without index output."""

    name: ClassVar[str] = "pool"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or op.op_type not in _OPS:
            return "the anchor is not a pooling operator"
        data = op.inputs[0]
        assert data is not None
        if len(op.outputs) > 1:
            return "the indices of the maxima are asked for"
        if data.dtype not in POOL_DTYPES[op.op_type]:
            return f"{op.op_type} kernels do not take {data.dtype}"
        if len(data.shape) not in (3, 4, 5):
            return "pooling kernels have one to three spatial axes"
        if reduction_of(op, data.dtype) is None:
            return f"the norm p={op.attrs.get('p')} has no kernel"
        if 0 in data.shape or 0 in op.outputs[0].shape:
            return "the tensor is empty"
        shape = _shape(op)
        if max(shape.z.kernel, shape.y.kernel, shape.x.kernel) > _MAX_WINDOW:
            return "the window is too large to unroll"
        return Epilogue(region, op.outputs[0], shape.view).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        assert region.anchor is not None
        data = region.anchor.inputs[0]
        assert data is not None
        shape = _shape(region.anchor)
        widths = [dtype_lanes(target, computed_in(region.anchor, data.dtype))]
        while widths[-1] > 4 and shape.x.out < widths[-1]:
            widths.append(widths[-1] // 2)
        found: list[tuple[Config, float]] = []
        for lanes in widths[-2:]:
            for separable in (False, True):
                for rows in (1, 2, 4, 7):
                    if rows <= shape.y.out and (rows <= 2 or shape.y.out % rows == 0):
                        cost = _cost(shape, lanes, rows, separable)
                        config = {"lanes": lanes, "rows": rows, "separable": separable}
                        found.append((config, cost))
        return sorted(found, key=lambda item: item[1])[:8]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        data = op.inputs[0]
        assert data is not None
        dtype, shape = computed_in(op, data.dtype), _shape(op)
        reduction = reduction_of(op, dtype)
        assert reduction is not None
        lanes, separable = int(config["lanes"]), bool(config["separable"])
        plane = Plane(shape.y, shape.x, lanes, shape.y.out, -shape.x.out % lanes)
        epilogue = Epilogue(region, op.outputs[0], shape.view)
        weights = dict(epilogue.weights)
        params: list[Param] = [("x", data.dtype, data.type.size)]
        args = [data.name]
        scale: Expr = None
        if op.op_type == "AveragePool":
            table = _reciprocal_counts(op, shape, np.dtype(dtype))
            if (table == table[0]).all():
                scale = tirx.const(float(table[0]), dtype)
            else:
                weights["inverse"] = np.concatenate([table, np.zeros(lanes, table.dtype)])
                params.append(("inverse", dtype, weights["inverse"].size))
                args.append("w:inverse")
        code = _Code(shape, plane, reduction, scale, int(config["rows"]), separable, data.dtype)
        extra = len(params)
        params += epilogue.params
        params.append(("y", epilogue.out_dtype, op.outputs[0].type.size))
        params.append(("scratch", dtype, code.scratch))

        def body(*arguments: Any) -> None:
            *buffers, y, scratch, begin, end = arguments
            output = (epilogue, y, buffers[extra:])
            code.emit(buffers[:extra], output, scratch, begin, end)

        stage = Stage(
            stage_func(params, body),
            (*args, *epilogue.args, region.outputs[0].name, "scratch"),
            shape.batch * shape.channels * shape.z.out,
            code.scratch * np.dtype(dtype).itemsize,
        )
        return Kernel((stage,), weights, inplace=epilogue.inplace)


@dataclass(frozen=True)
class _Code:
    """Emits the body of the stage function."""

    shape: _Shape
    plane: Plane
    reduction: Reduction
    scale: Expr
    rows: int
    separable: bool
    result: str

    @property
    def slabs(self) -> int:
        """Elements of all padded input slices of one window along z."""
        return self.shape.z.kernel * self.plane.elements

    @property
    def width(self) -> int:
        """Elements of one horizontally combined row, a whole number of vectors."""
        return -(-self.shape.x.out // self.plane.lanes) * self.plane.lanes

    @property
    def scratch(self) -> int:
        """Scratch elements."""
        combined = self.shape.z.kernel * self.plane.rows * self.width if self.separable else 0
        return self.slabs + combined

    def emit(self, inputs: list[Any], output: Any, scratch: Any, begin: Expr, end: Expr) -> None:
        shape, plane = self.shape, self.plane
        epilogue, y, operands = output
        for kz in range(shape.z.kernel):
            plane.clear(scratch, kz * plane.elements, self.reduction.fill)
        with loop(begin, end) as unit:
            image, z = unravel(unit, (shape.batch * shape.channels, shape.z.out))
            n, channel = unravel(image, (shape.batch, shape.channels))
            for kz in range(shape.z.kernel):
                self._copy(inputs[0], image, z, kz, scratch)
            store = PlaneOutput(epilogue, y, operands, shape.view[2], n, channel, image)
            if self.separable:
                self._combine_rows(scratch)
            position = bind(z * (shape.y.out * shape.x.out))
            self._row_tiles(scratch, position, inputs[1:], store)

    def _copy(self, source: Any, image: Expr, z: Expr, kz: int, scratch: Any) -> None:
        """Copy slice ``kz`` of the window of output slice ``z``; outside the input it is fill."""
        shape, plane = self.shape, self.plane
        axis, base = shape.z, kz * plane.elements
        area = shape.y.size * shape.x.size
        first = -shape.y.before
        if axis.out == 1 and axis.valid(0) == axis.kernel:
            start = (image * axis.size + kz * axis.dilation - axis.before) * area
            plane.copy(
                source,
                bind(start),
                first,
                scratch,
                base,
                self.reduction.fill,
                self.reduction.convert,
            )
            return
        slice_ = bind(z * axis.stride + (kz * axis.dilation - axis.before))
        inside = tirx.all(slice_ >= 0, slice_ < axis.size)
        # A first row far below the input makes every row of the band padding.
        outside = tirx.const(shape.y.size, "int32")
        row = bind(tirx.Select(inside, tirx.const(first, "int32"), outside))
        start = bind((image * axis.size + slice_) * area)
        plane.copy(source, start, row, scratch, base, self.reduction.fill, self.reduction.convert)

    def _horizontal(self, scratch: Any, origin: Expr) -> Expr:
        """One vector of combined columns of the row that starts at ``origin``."""
        lanes = self.plane.lanes
        taps = [
            bind(vload(scratch, origin + self.plane.tap(kx), lanes))
            for kx in range(self.shape.x.kernel)
        ]
        return _tree(taps, self.reduction.combine)

    def _combine_rows(self, scratch: Any) -> None:
        lanes, plane = self.plane.lanes, self.plane
        with loop(self.shape.z.kernel * plane.rows) as r:
            for start in range(0, self.width, lanes):
                value = self._horizontal(scratch, r * plane.row + start)
                vstore(scratch, self.slabs + r * self.width + start, value, lanes)

    def _row_tiles(
        self, scratch: Any, position: Expr, tables: list[Any], store: PlaneOutput
    ) -> None:
        full, rest = divmod(self.shape.y.out, self.rows)
        if full:
            with loop(full) as r:
                row = bind(r * self.rows)
                self._columns(scratch, position, row, self.rows, tables, store)
        if rest:
            row = tirx.const(full * self.rows, "int32")
            self._columns(scratch, position, row, rest, tables, store)

    def _columns(
        self,
        scratch: Any,
        position: Expr,
        row: Expr,
        rows: int,
        tables: list[Any],
        store: PlaneOutput,
    ) -> None:
        """All columns of ``rows`` output rows from output row ``row`` on."""
        lanes, width = self.plane.lanes, self.shape.x.out
        start = bind(position + row * width)
        full, rest = divmod(width, lanes)
        if full > 1:
            with loop(full) as v:
                self._tile(scratch, row, v * lanes, start, rows, lanes, tables, store)
        elif full:
            self._tile(scratch, row, 0, start, rows, lanes, tables, store)
        if rest:
            self._tile(scratch, row, full * lanes, start, rows, rest, tables, store)

    def _tile(
        self,
        scratch: Any,
        row: Expr,
        column: Expr,
        start: Expr,
        rows: int,
        valid: int,
        tables: list[Any],
        store: PlaneOutput,
    ) -> None:
        """``rows`` vectors below each other; ``valid`` lanes are stored."""
        y, lanes, plane = self.shape.y, self.plane.lanes, self.plane
        total: dict[int, Expr] = {}
        for kz in range(self.shape.z.kernel):
            for r in range(y.extent(rows)):
                users = [
                    i
                    for i in range(rows)
                    if (r - i * y.stride) % y.dilation == 0
                    and 0 <= (r - i * y.stride) // y.dilation < y.kernel
                ]
                if not users:
                    continue
                padded = kz * plane.rows + row * y.stride + r
                if self.separable:
                    offset = self.slabs + padded * self.width + column
                    part = bind(vload(scratch, offset, lanes))
                else:
                    part = self._horizontal(scratch, padded * plane.row + column)
                for i in users:
                    total[i] = bind(self.reduction.combine(total[i], part)) if i in total else part
        for i, value in total.items():
            offset = bind(start + i * self.shape.x.out + column)
            value = self.reduction.finish(value)
            if tables:
                value = value * vload(tables[0], offset, lanes)
            elif self.scale is not None:
                value = value * splat(self.scale, lanes)
            store.store(offset, vm.cast(value, self.result), valid, lanes)


def _tree(values: list[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine pairwise: short dependency chains and small rounding errors.

    Every step is named, because an intrinsic may use its operands more than once.
    """
    while len(values) > 1:
        pairs = [bind(combine(a, b)) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(pairs) * 2 :]
    return values[0]


def _shape(op: Op) -> _Shape:
    data = op.inputs[0]
    assert data is not None
    axes = window_axes(op, data.shape[2:], op.attrs["kernel_shape"], op.outputs[0].shape[2:])
    padded = (Axis(1, 1, 1),) * (3 - len(axes)) + axes
    return _Shape(data.shape[0], data.shape[1], *padded)


def _reciprocal_counts(op: Op, shape: _Shape, dtype: np.dtype[Any]) -> np.ndarray:
    """1 / (elements averaged) for every position of an output plane, flat."""
    stated = bool(op.attrs.get("count_include_pad", 0))

    def counts(axis: Axis) -> np.ndarray:
        count = axis.stated if stated else axis.valid
        return np.array([max(count(o), 1) for o in range(axis.out)], dtype=np.float64)

    z, y, x = counts(shape.z), counts(shape.y), counts(shape.x)
    table = 1.0 / (z[:, None, None] * y[None, :, None] * x[None, None, :])
    return np.asarray(table.reshape(-1).astype(dtype))


def _cost(shape: _Shape, lanes: int, rows: int, separable: bool) -> float:
    """Rough cycles."""
    z, y, x = shape.z, shape.y, shape.x
    vectors = -(-x.out // lanes)
    copies = z.kernel * y.extent(y.out) * -(-x.size // lanes) * 2
    tiles = -(-y.out // rows)
    if separable:
        horizontal = z.kernel * y.extent(y.out) * vectors * (x.kernel + 1)
        loads: float = tiles * min(y.extent(rows), rows * y.kernel) * z.kernel * vectors
    else:
        read = min(y.extent(rows), rows * y.kernel)
        horizontal = tiles * read * z.kernel * vectors * x.kernel
        loads = max(tiles * read * z.kernel * x.kernel - 64, 0) * 0.05  # long code
    vertical = y.out * y.kernel * z.kernel * vectors
    unrolled = rows * (y.kernel * z.kernel) * (1 if separable else x.kernel)
    penalty = 4.0 * max(unrolled - 400, 0)
    units = shape.batch * shape.channels * z.out
    return units * (copies + horizontal + loads + vertical + tiles * vectors * 4 + penalty)
