"""Depthwise convolution: one filter per input channel, any kernel, stride, dilation, padding.

A parallel unit is one band of output rows of one output channel. Its input
rows are copied once into scratch with padding and, for column strides, dealt
into phases (``effc.kernels.plane``). Then ``rows`` x ``vectors`` outputs are
computed at a time: every input vector is loaded once and multiplied into all
output rows that use it, and the filter stays in registers.

The order of additions differs from ONNX Runtime's; the result differs by
rounding only, at most ``2 * kh * kw * eps * sum |x * w|``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import Param, bind, loop, splat, stage_func, unravel, vload
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import load_scalars
from effc.kernels.plane import Plane, PlaneOutput
from effc.kernels.region import Op, Region, Value
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

    @property
    def view(self) -> tuple[int, int, int]:
        return (self.batch, self.outputs, self.y.out * self.x.out)


class DepthwiseConv(Template):
    """``Conv`` with ``group == Cin`` on [N, C, W] or [N, C, H, W], float32."""

    name: ClassVar[str] = "depthwise"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or op.op_type != "Conv":
            return "the anchor is not a convolution"
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        if data.dtype != "float32":
            return f"depthwise kernels are float32, not {data.dtype}"
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
        found: dict[tuple[int, ...], tuple[Config, float]] = {}
        for lanes in _widths(shape.x.out, target.lanes):
            for vectors in (1, 2):
                for rows in (1, 2, 3, 4, 7, 8):
                    for bands in (1, 2, 4):
                        key = (lanes, vectors, rows, bands)
                        cost = _cost(shape, target, *key)
                        if cost is not None:
                            config = dict(
                                zip(("lanes", "vectors", "rows", "bands"), key, strict=True)
                            )
                            found[key] = (config, cost)
        return sorted(found.values(), key=lambda item: item[1])[:12]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        shape = _shape(op)
        lanes, bands = int(config["lanes"]), int(config["bands"])
        vectors, rows = int(config["vectors"]), int(config["rows"])
        band = shape.y.out // bands
        plane = Plane(shape.y, shape.x, lanes, band, -shape.x.out % lanes)
        epilogue = Epilogue(region, op.outputs[0], shape.view)
        data, weight, bias = op.inputs[0], op.inputs[1], _bias(op)
        assert data is not None
        assert weight is not None
        weights = dict(epilogue.weights)
        params: list[Param] = [("x", "float32", data.type.size)]
        args = [data.name]
        for name, value in (("w", weight), ("b", bias)):
            if value is not None:
                params.append((name, "float32", value.type.size))
                args.append(value.name if value.const is None else f"w:{name}")
                if value.const is not None:
                    weights[name] = value.const
        extra = len(params)
        params += epilogue.params
        params.append(("y", epilogue.out_dtype, op.outputs[0].type.size))
        params.append(("scratch", "float32", plane.elements))
        code = _Code(shape, plane, epilogue, target, rows, vectors)

        def body(*arguments: Any) -> None:
            *buffers, y, scratch, begin, end = arguments
            code.emit(buffers[:extra], buffers[extra:], y, scratch, begin, end)

        stage = Stage(
            stage_func(params, body),
            (*args, *epilogue.args, region.outputs[0].name, "scratch"),
            shape.batch * shape.outputs * bands,
            plane.elements * 4,
        )
        return Kernel((stage,), weights, inplace=epilogue.inplace)


@dataclass(frozen=True)
class _Code:
    """Emits the body of the stage function."""

    shape: _Shape
    plane: Plane
    epilogue: Epilogue
    target: Target
    rows: int
    vectors: int

    def emit(
        self, inputs: list[Any], operands: list[Any], y: Any, scratch: Any, begin: Expr, end: Expr
    ) -> None:
        shape, plane = self.shape, self.plane
        zero = tirx.const(0, "float32")
        bands = shape.y.out // plane.band
        taps = shape.y.kernel * shape.x.kernel
        plane.clear(scratch, 0, zero)
        with loop(begin, end) as unit:
            image, band = unravel(unit, (shape.batch * shape.outputs, bands))
            n, channel = unravel(image, (shape.batch, shape.outputs))
            band = bind(band * plane.band) if bands > 1 else 0
            each = shape.outputs // shape.channels
            source = bind(
                (n * shape.channels + tirx.truncdiv(channel, each)) * (shape.y.size * shape.x.size)
            )
            first = bind(band * shape.y.stride - shape.y.before) if bands > 1 else -shape.y.before
            plane.copy(inputs[0], source, first, scratch, 0, zero, lambda v: v)
            weights = load_scalars(inputs[1], bind(channel * taps), taps, self.target)
            bias = bind(inputs[2][channel]) if len(inputs) > 2 else zero
            store = PlaneOutput(self.epilogue, y, operands, shape.view[2], n, channel, image)
            self._rows(scratch, weights, bias, band, store)

    def _rows(
        self, scratch: Any, weights: list[Expr], bias: Expr, band: Expr, store: PlaneOutput
    ) -> None:
        full, rest = divmod(self.plane.band, self.rows)
        step = self.shape.y.stride * self.plane.row
        if full:
            with loop(full) as r:
                row = bind(r * self.rows)
                self._columns(scratch, weights, bias, row * step, band + row, self.rows, store)
        if rest:
            row = full * self.rows
            self._columns(scratch, weights, bias, row * step, band + row, rest, store)

    def _columns(
        self,
        scratch: Any,
        weights: list[Expr],
        bias: Expr,
        origin: Expr,
        row: Expr,
        rows: int,
        store: PlaneOutput,
    ) -> None:
        """All columns of ``rows`` output rows from output row ``row`` on."""
        lanes, width = self.plane.lanes, self.shape.x.out
        wide = self.vectors * lanes
        full, rest = divmod(width, wide)
        origin = bind(origin) if not isinstance(origin, int) else tirx.const(origin, "int32")
        start = bind(row * width)
        if full > 1:
            with loop(full) as v:
                column = bind(v * wide)
                self._tile(
                    scratch,
                    weights,
                    bias,
                    origin + column,
                    start + column,
                    rows,
                    [lanes] * self.vectors,
                    store,
                )
        elif full:
            self._tile(scratch, weights, bias, origin, start, rows, [lanes] * self.vectors, store)
        if rest:
            column = full * wide
            valid = [min(lanes, rest - i) for i in range(0, rest, lanes)]
            self._tile(scratch, weights, bias, origin + column, start + column, rows, valid, store)

    def _tile(
        self,
        scratch: Any,
        weights: list[Expr],
        bias: Expr,
        origin: Expr,
        out: Expr,
        rows: int,
        valid: list[int],
        store: PlaneOutput,
    ) -> None:
        """``rows`` x ``len(valid)`` vectors of outputs; ``valid[v]`` lanes are stored."""
        shape, lanes = self.shape, self.plane.lanes
        total: dict[tuple[int, int], Expr] = {}
        for row in range(shape.y.extent(rows)):
            users = [
                (i, (row - i * shape.y.stride) // shape.y.dilation)
                for i in range(rows)
                if (row - i * shape.y.stride) % shape.y.dilation == 0
                and 0 <= (row - i * shape.y.stride) // shape.y.dilation < shape.y.kernel
            ]
            for kx in range(shape.x.kernel if users else 0):
                for v in range(len(valid)):
                    offset = row * self.plane.row + self.plane.tap(kx) + v * lanes
                    x = bind(vload(scratch, origin + offset, lanes))
                    for i, ky in users:
                        w = splat(weights[ky * shape.x.kernel + kx], lanes)
                        before = total.get((i, v), splat(bias, lanes))
                        total[i, v] = bind(before + x * w)
        for (i, v), value in total.items():
            store.store(out + i * shape.x.out + v * lanes, value, valid[v], lanes)


def _bias(op: Op) -> Value | None:
    return op.inputs[2] if len(op.inputs) > 2 else None


def _shape(op: Op) -> _Shape:
    data, weight = op.inputs[0], op.inputs[1]
    assert data is not None
    assert weight is not None
    out = op.outputs[0].shape
    axes = window_axes(op, data.shape[2:], weight.shape[2:], out[2:])
    y = axes[0] if len(axes) == 2 else Axis(1, 1, 1)
    return _Shape(data.shape[0], data.shape[1], out[1], y, axes[-1])


def _widths(out: int, lanes: int) -> list[int]:
    """Vector widths worth trying: the register's, and narrower ones for short rows."""
    widths = [lanes]
    while widths[-1] > 4 and (len(widths) < 2 or out < widths[-1]):
        widths.append(widths[-1] // 2)
    return widths


def _cost(
    shape: _Shape, target: Target, lanes: int, vectors: int, rows: int, bands: int
) -> float | None:
    """Rough cycles, or ``None`` if the configuration makes no sense for the shape."""
    y, x = shape.y, shape.x
    if y.out % bands or rows > y.out // bands or (rows > 4 and y.out % rows):
        return None
    if vectors > 1 and vectors * lanes > max(x.out, lanes):
        return None
    band = y.out // bands
    if bands > 1 and (band % rows or band < 4):
        return None
    taps = y.kernel * x.kernel
    plane = Plane(y, x, lanes, band, -x.out % lanes)
    live = rows * vectors + 2 + min(taps, target.vector_registers // 2)
    tiles = -(-band // rows)
    per_row = -(-x.out // lanes)
    loads = tiles * min(y.extent(rows), rows * y.kernel) * x.kernel * per_row
    macs = band * taps * per_row
    copies = plane.rows * -(-x.size // lanes) * 2
    ragged = band * bin(x.out % lanes).count("1") * 2
    overhead = tiles * (6 + 4 * -(-per_row // vectors)) + 40
    spill = macs * max(live - target.vector_registers, 0) / target.vector_registers
    chains = max(1.0, 8 / (rows * vectors)) ** 0.5
    cost = macs * 0.5 * chains + loads * 0.5 + copies * 0.75 + ragged + overhead + spill
    if plane.elements * 4 > target.l1_bytes * 0.7:
        cost += (copies + loads / x.kernel) * 0.5
    return cost * bands * shape.batch * shape.outputs
