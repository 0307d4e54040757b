"""Depthwise convolution: one filter per input channel, any kernel, stride, dilation, padding.

A parallel unit is one output plane. ``rows`` x ``vectors`` outputs are computed at a time,
straight from the input (``effc.kernels.stencil``): every input vector is loaded once and
multiplied into all output rows that use it, and the filter stays in registers.

The order of additions differs from ONNX Runtime's; the result differs by
rounding only, at most ``2 * kh * kw * eps * sum |x * w|``. float16 adds up in float16: there are
few terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.arithmetic import product_dtypes
from effc.kernels.builder import Param, bind, loop, splat, stage_func, unravel
from effc.kernels.epilogue import Epilogue
from effc.kernels.half_sums import split_bias
from effc.kernels.lanes import dtype_lanes, load_scalars, uses_lanes
from effc.kernels.plane import PlaneOutput
from effc.kernels.region import Op, Region, Value
from effc.kernels.stencil import Cut, RowReader, Span, Stencil, each_span
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.window import Axis, window_axes

__all__ = ["DepthwiseConv"]

Expr = Any


@dataclass(frozen=True)
class _Shape:
    """Geometry of a depthwise convolution; one spatial axis becomes two."""

    batch: int
    channels: int
    outputs: int
    y: Axis
    x: Axis
    dtype: str

    @property
    def view(self) -> tuple[int, int, int]:
        return (self.batch, self.outputs, self.y.out * self.x.out)


class DepthwiseConv(Template):
    """``Conv`` with ``group == Cin`` on [N, C, W] or [N, C, H, W], float32 or float16."""

    name: ClassVar[str] = "depthwise"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or op.op_type != "Conv":
            return "the anchor is not a convolution"
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        if data.dtype not in product_dtypes(target):
            return f"depthwise kernels are {' or '.join(product_dtypes(target))}, not {data.dtype}"
        if len(data.shape) not in (3, 4):
            return "depthwise kernels have one or two spatial axes"
        if op.attrs.get("group", 1) != data.shape[1] or weight.shape[1] != 1:
            return "the convolution is not depthwise"
        if 0 in data.shape or 0 in op.outputs[0].shape:
            return "the tensor is empty"
        if weight.shape[2:] and max(weight.shape[2:]) > 16:
            return "the kernel is too large to unroll"
        return Epilogue(region, op.outputs[0], _shape(op).view).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        assert region.anchor is not None
        shape = _shape(region.anchor)
        found: list[tuple[Config, float]] = []
        for lanes in _widths(shape.x.out, dtype_lanes(target, shape.dtype)):
            for vectors in (1, 2, 3, 4):
                for rows in (1, 2, 3, 4, 5, 7, 8):
                    cost = _cost(shape, target, lanes, vectors, rows)
                    if cost is not None:
                        found.append(({"lanes": lanes, "vectors": vectors, "rows": rows}, cost))
        return sorted(found, key=lambda item: item[1])[:12]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        shape = _shape(op)
        stencil = Stencil(
            shape.y,
            shape.x,
            int(config["lanes"]),
            uses_lanes(target),
            tirx.const(0, shape.dtype),
        )
        epilogue = Epilogue(region, op.outputs[0], shape.view)
        data, weight, bias = op.inputs[0], op.inputs[1], _bias(op)
        assert data is not None
        assert weight is not None
        weights = dict(epilogue.weights)
        params: list[Param] = [("x", shape.dtype, data.type.size)]
        args = [data.name]
        for name, value in (("w", weight), ("b", bias)):
            if value is not None:
                const = value.const
                stored = shape.dtype if const is None or name == "b" else value.dtype
                if name == "b" and const is not None and shape.dtype == "float16":
                    const = split_bias(const.astype(np.float32, copy=False))
                size = value.type.size if const is None else const.size
                params.append((name, stored, size))
                args.append(value.name if const is None else f"w:{name}")
                if const is not None:
                    weights[name] = const
        extra = len(params)
        params += epilogue.params
        params.append(("y", epilogue.out_dtype, op.outputs[0].type.size))
        code = _Code(
            shape,
            stencil,
            epilogue,
            target,
            int(config["rows"]),
            int(config["vectors"]),
            bias is not None and bias.const is not None,
        )

        def body(*arguments: Any) -> None:
            *buffers, y, begin, end = arguments
            code.emit(buffers[:extra], buffers[extra:], y, begin, end)

        stage = Stage(
            stage_func(params, body),
            (*args, *epilogue.args, region.outputs[0].name),
            shape.batch * shape.outputs,
        )
        return Kernel((stage,), weights, inplace=epilogue.inplace)


@dataclass(frozen=True)
class _Code:
    """Emits the body of the stage function."""

    shape: _Shape
    stencil: Stencil
    epilogue: Epilogue
    target: Target
    rows: int
    vectors: int
    split: bool

    def emit(self, inputs: list[Any], operands: list[Any], y: Any, begin: Expr, end: Expr) -> None:
        shape, stencil = self.shape, self.stencil
        taps = shape.y.kernel * shape.x.kernel
        each = shape.outputs // shape.channels
        row_cut = Cut(shape.y, self.rows, 1)
        column_cut = Cut(shape.x, self.vectors * stencil.lanes, stencil.block)
        with loop(begin, end) as image:
            n, channel = unravel(image, (shape.batch, shape.outputs))
            plane = n * shape.channels + tirx.truncdiv(channel, each)
            tile = _Tile(
                self,
                inputs[0],
                bind(plane * (shape.y.size * shape.x.size)),
                load_scalars(inputs[1], bind(channel * taps), taps, self.target, shape.dtype),
                self._bias(inputs[2], channel) if len(inputs) > 2 else None,
                PlaneOutput(self.epilogue, y, operands, shape.view[2], n, channel, image),
            )
            for rows, row in each_span(row_cut.spans):
                for columns, column in each_span(column_cut.spans):
                    tile.emit(rows, row, columns, column)

    def _bias(self, buffer: Any, channel: Expr) -> tuple[Expr, ...]:
        """The bias; a constant one of float16 in two parts (``half_sums``), the smaller last."""
        parts = 2 if self.shape.dtype == "float16" and self.split else 1
        return tuple(bind(buffer[channel + part * self.shape.outputs]) for part in range(parts))


@dataclass(frozen=True)
class _Tile:
    """A register tile of one plane.

    ``bias`` is what sums begin with, or the number to add last and what they begin with.
    """

    code: _Code
    source: Any
    plane: Expr
    weights: list[Expr]
    bias: tuple[Expr, ...] | None
    output: PlaneOutput

    def emit(self, rows: Span, row: Expr, columns: Span, column: Expr) -> None:
        """Outputs from (``row``, ``column``) on, both the first of a tile of their span."""
        shape, stencil = self.code.shape, self.code.stencil
        y, x, lanes = shape.y, shape.x, stencil.lanes
        vectors = -(-columns.size // lanes)
        total: dict[tuple[int, int], Expr] = {}
        for r in range(y.extent(rows.size)):
            lowest = rows.first * y.stride - y.before + r
            highest = lowest + (rows.count - 1) * rows.size * y.stride
            users = [
                (i, (r - i * y.stride) // y.dilation)
                for i in range(rows.size)
                if (r - i * y.stride) % y.dilation == 0
                and 0 <= (r - i * y.stride) // y.dilation < y.kernel
            ]
            if not users or lowest < 0 or highest >= y.size:
                continue
            line = bind(self.plane + (row * y.stride + (r - y.before)) * x.size)
            reader = RowReader(
                stencil,
                self.source,
                line,
                (lowest, highest),
                column,
                columns.count > 1,
            )
            for v in range(vectors):
                for kx in range(x.kernel):
                    self._multiply(reader.tap(kx, v), kx, v, users, total)
        start = bind(row * x.out + column)
        for i in range(rows.size):
            for v in range(vectors):
                valid = min(lanes, columns.size - v * lanes)
                value = total.get((i, v), self._initial())
                if self.bias is not None and len(self.bias) > 1:
                    value = value + splat(self.bias[0], lanes)
                self.output.store(start + (i * x.out + v * lanes), value, valid, lanes)

    def _initial(self) -> Expr:
        value = tirx.const(0, self.code.shape.dtype) if self.bias is None else self.bias[-1]
        return splat(value, self.code.stencil.lanes)

    def _multiply(
        self,
        value: Expr | None,
        kx: int,
        v: int,
        users: list[tuple[int, int]],
        total: dict[tuple[int, int], Expr],
    ) -> None:
        """Add ``value`` times its weight to every output row that uses it."""
        if value is None:
            return
        for i, ky in users:
            weight = self.weights[ky * self.code.shape.x.kernel + kx]
            product = value * splat(weight, self.code.stencil.lanes)
            if (i, v) in total:
                total[i, v] = bind(total[i, v] + product)
            elif self.bias is None:
                total[i, v] = bind(product)
            else:
                total[i, v] = bind(self._initial() + product)


def _bias(op: Op) -> Value | None:
    return op.inputs[2] if len(op.inputs) > 2 else None


def _shape(op: Op) -> _Shape:
    data, weight = op.inputs[0], op.inputs[1]
    assert data is not None
    assert weight is not None
    out = op.outputs[0].shape
    axes = window_axes(op, data.shape[2:], weight.shape[2:], out[2:])
    y = axes[0] if len(axes) == 2 else Axis(1, 1, 1)
    return _Shape(data.shape[0], data.shape[1], out[1], y, axes[-1], data.dtype)


def _widths(out: int, lanes: int) -> list[int]:
    """Vector widths worth trying: the register's, and narrower ones for short rows."""
    widths = [lanes]
    while widths[-1] > 4 and (len(widths) < 2 or out < widths[-1]):
        widths.append(widths[-1] // 2)
    return widths


def _cost(shape: _Shape, target: Target, lanes: int, vectors: int, rows: int) -> float | None:
    """Rough cycles, or ``None`` if the configuration makes no sense for the shape."""
    y, x = shape.y, shape.x
    per_row = -(-x.out // lanes)
    if rows > y.out or vectors > per_row:
        return None
    taps = y.kernel * x.kernel
    variants = min(y.out // rows + 1, 3) * min(per_row // vectors + 1, 3)
    if variants * rows * vectors * taps > (450 if target.bare else 3000) and rows * vectors > 1:
        return None
    row_tiles, column_tiles = -(-y.out // rows), -(-per_row // vectors)
    lines = row_tiles * min(y.extent(rows), rows * y.kernel)
    macs = y.out * taps * per_row
    if uses_lanes(target):
        cost = macs + _arm_overhead(shape, target, rows, vectors, lines, macs)
    else:
        live = rows * vectors + vectors + 3 + min(taps, target.vector_registers // 3)
        spill = macs * max(live - target.vector_registers, 0) / target.vector_registers
        loads = lines * (x.kernel * per_row + column_tiles)
        wait = max(1.0, 8 / (rows * vectors)) ** 0.5
        cost = macs * 0.5 * wait + loads * 0.5 + y.out * per_row + spill
        cost *= 1.0 if lanes <= 8 else 1.8  # 512-bit operations take two cycles on Zen 4
        cost += y.out * bin(x.out % lanes).count("1") * 2 + lines * bool(x.size % lanes)
        cost += row_tiles * (6 + 6 * column_tiles)
    return (cost + 40) * shape.batch * shape.outputs


def _arm_overhead(
    shape: _Shape, target: Target, rows: int, vectors: int, lines: int, macs: int
) -> float:
    """Instructions beside the products. Fitted to counts for 3x3 and 5x5 kernels.

    A ragged last vector makes LLVM merge stores across tiles, which spills earlier.
    """
    y, x, lanes = shape.y, shape.x, dtype_lanes(target, shape.dtype)
    per_row = -(-x.out // lanes)
    row_tiles, column_tiles = -(-y.out // rows), -(-per_row // vectors)
    blocks = column_tiles * (vectors + 1) * (0.6 if x.stride == 1 else 2.0)
    shifts = per_row * max(x.kernel - x.stride, 0)
    ragged = x.out % lanes != 0
    roomy = target.vector_registers - 17
    if ragged and rows < y.out:
        roomy = 9 if x.stride == 1 else 6
    spill = 0.03 * macs * max(rows * vectors - roomy, 0)
    if rows < y.out:
        spill += 0.06 * macs * max(rows - (3 if ragged else 4), 0)
    pieces = 2 * y.out * ragged
    return lines * (blocks + shifts) + 2 * y.out * per_row + pieces + 6 * row_tiles + spill
