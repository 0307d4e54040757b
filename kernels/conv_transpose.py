"""Transposed convolution by sub-pixel phases.

Output ``y`` receives input ``i`` through tap ``k`` when ``y + pad == i * stride +
k * dilation``. Outputs with the same ``y % stride`` (a phase) use the same few taps,
at fixed shifts of the input; so a transposed convolution with stride ``s`` is
``s`` (times ``s``) small dense convolutions whose results interleave. Nothing is
scattered and no product with an inserted zero is computed.

Stage 1 pads the input planes into a workspace. In stage 2 a parallel unit is
the output rows of one input row position for a tile of output channels; a
register tile holds ``rows`` channels x column phases x ``vectors``, the weights
are packed in the order of use, and the phases are interleaved by shuffles, so
that all stores are contiguous.

Results differ from ONNX Runtime's by the rounding of reordered sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
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
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import interleave, load_scalars, uses_lanes
from effc.kernels.plane import Plane, PlaneOutput
from effc.kernels.region import Op, Region
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.window import Axis

__all__ = ["ConvTranspose"]

Expr = Any

_MAX_TAPS = 400  # unrolled taps of one row of phases


@dataclass(frozen=True)
class _Phases:
    """One spatial axis: which taps, at which input shifts, make each output phase."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    before: int

    @cached_property
    def count(self) -> int:
        """Positions per phase: output ``stride * q + phase`` for ``q < count``."""
        return -(-self.out // self.stride)

    def taps(self, phase: int) -> list[tuple[int, int]]:
        """(kernel tap, input shift): output q of the phase reads input ``q + shift``."""
        found = []
        for k in range(self.kernel):
            distance = phase + self.before - k * self.dilation
            if distance % self.stride == 0:
                found.append((k, distance // self.stride))
        return found

    @cached_property
    def window(self) -> Axis:
        """The input window that covers the taps of all phases."""
        shifts = [s for phase in range(self.stride) for _, s in self.taps(phase)]
        low, high = min([0, *shifts]), max([0, *shifts])
        return Axis(self.size, self.count, high - low + 1, before=-low)


@dataclass(frozen=True)
class _Shape:
    """Geometry; ``cin`` and ``cout`` count one group."""

    batch: int
    groups: int
    cin: int
    cout: int
    y: _Phases
    x: _Phases

    @property
    def view(self) -> tuple[int, int, int]:
        return (self.batch, self.groups * self.cout, self.y.out * self.x.out)


class ConvTranspose(Template):
    """``ConvTranspose`` on [N, C, W] or [N, C, H, W], float32, constant weights."""

    name: ClassVar[str] = "conv_transpose"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or op.op_type != "ConvTranspose":
            return "the anchor is not a transposed convolution"
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        if data.dtype != "float32":
            return f"transposed convolution kernels are float32, not {data.dtype}"
        if op.inputs[1] is None or op.inputs[1].dtype != "float32":
            return "the weights are not float32"
        if len(data.shape) not in (3, 4):
            return "transposed convolution kernels have one or two spatial axes"
        if weight.const is None:
            return "the weights are not constant"
        if 0 in data.shape or 0 in op.outputs[0].shape:
            return "the tensor is empty"
        shape = _shape(op)
        if shape.x.stride > 8:
            return "the column stride is too large to interleave"
        if max(len(shape.y.taps(f)) for f in range(shape.y.stride)) * shape.x.kernel > _MAX_TAPS:
            return "the kernel is too large to unroll"
        return Epilogue(region, op.outputs[0], shape.view).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        assert region.anchor is not None
        shape = _shape(region.anchor)
        widths = [target.lanes]
        while widths[-1] > 4 and shape.x.count < widths[-1]:
            widths.append(widths[-1] // 2)
        found: list[tuple[Config, float]] = []
        for lanes in widths[-2:]:
            for rows in range(1, 13):
                for vectors in (1, 2, 3, 4):
                    cost = _cost(shape, target, lanes, rows, vectors)
                    if cost is not None:
                        config = {"lanes": lanes, "rows": rows, "vectors": vectors}
                        found.append((config, cost))
        return sorted(found, key=lambda item: item[1])[:12]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        shape = _shape(op)
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        assert weight.const is not None
        bias = op.inputs[2] if len(op.inputs) > 2 else None
        epilogue = Epilogue(region, op.outputs[0], shape.view)
        lanes, rows = int(config["lanes"]), int(config["rows"])
        plane = _plane(shape, lanes)
        images = shape.batch * shape.groups * shape.cin
        weights = dict(epilogue.weights)
        weights["w"] = _pack(shape, np.asarray(weight.const), rows)
        params: list[Param] = [
            ("x", "float32", images * plane.elements),
            ("w", "float32", weights["w"].size),
        ]
        args = ["t:padded", "w:w"]
        if bias is not None:
            params.append(("b", "float32", bias.type.size))
            args.append(bias.name if bias.const is None else "w:b")
            if bias.const is not None:
                weights["b"] = bias.const
        own = len(params)
        params += epilogue.params
        params.append(("y", epilogue.out_dtype, op.outputs[0].type.size))
        code = _Code(shape, plane, epilogue, target, rows, int(config["vectors"]))

        def body(*arguments: Any) -> None:
            *buffers, y, begin, end = arguments
            code.emit(buffers[:own], buffers[own:], y, begin, end)

        pad = Stage(_pad_stage(plane, data.type.size, images), (data.name, "t:padded"), images)
        product = Stage(
            stage_func(params, body), (*args, *epilogue.args, region.outputs[0].name), code.units
        )
        workspaces = {"padded": images * plane.elements * 4}
        return Kernel((pad, product), weights, workspaces, epilogue.inplace)


def _pad_stage(plane: Plane, elements: int, images: int) -> tirx.PrimFunc:
    """Copy every input plane into the workspace, with its padding."""
    zero = tirx.const(0, "float32")

    def body(x: Any, padded: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as image:
            start = bind(image * (plane.y.size * plane.x.size))
            base = bind(image * plane.elements)
            plane.clear(padded, base, zero)
            plane.copy(x, start, -plane.y.before, padded, base, zero, lambda v: v)

    params = [("x", "float32", elements), ("padded", "float32", images * plane.elements)]
    return stage_func(params, body)


@dataclass(frozen=True)
class _Code:
    """Emits the product stage."""

    shape: _Shape
    plane: Plane
    epilogue: Epilogue
    target: Target
    rows: int
    vectors: int

    @property
    def tiles(self) -> int:
        """Channel tiles of one group."""
        return self.shape.cout // self.rows

    @property
    def units(self) -> int:
        shape = self.shape
        return shape.batch * shape.groups * self.tiles * shape.y.count

    def offset(self, dy: int, dx: int) -> int:
        """Offset in the padded plane of input shift (dy, dx) for output position 0."""
        plane = self.plane
        return (dy + plane.y.before) * plane.row + plane.lead + dx + plane.x.before

    def emit(self, inputs: list[Any], operands: list[Any], y: Any, begin: Expr, end: Expr) -> None:
        shape, axis = self.shape, self.shape.y
        with loop(begin, end) as unit:
            n, group, tile, q = unravel(unit, (shape.batch, shape.groups, self.tiles, axis.count))
            channel = bind((group * self.tiles + tile) * self.rows)
            image = bind((n * shape.groups + group) * shape.cin)
            source = bind(image * self.plane.elements + q * self.plane.row)
            weight = bind((group * self.tiles + tile) * (_tile_weights(shape) * self.rows))
            outputs = [
                PlaneOutput(
                    self.epilogue,
                    y,
                    operands,
                    shape.view[2],
                    n,
                    channel + i,
                    bind(n * shape.view[1] + channel + i),
                )
                for i in range(self.rows)
            ]
            bias = [
                bind(inputs[2][channel + i]) if len(inputs) > 2 else None for i in range(self.rows)
            ]
            first = 0
            for phase in range(axis.stride):
                line = bind(q * axis.stride + phase)
                row = _Row(self, phase, inputs, source, weight + first, line, outputs, bias)
                if phase < axis.out - (axis.count - 1) * axis.stride:
                    row.emit()
                elif phase < axis.out:
                    with T.If(line < axis.out), T.Then():
                        row.emit()
                first += _phase_weights(shape, phase) * self.rows


@dataclass(frozen=True)
class _Row:
    """One output row of a tile of channels."""

    code: _Code
    phase: int
    inputs: list[Any]
    source: Expr
    weight: Expr
    line: Expr
    outputs: list[PlaneOutput]
    bias: list[Expr]

    def emit(self) -> None:
        axis, lanes = self.code.shape.x, self.code.plane.lanes
        span = lanes * axis.stride
        full = axis.out // span
        wide = self.code.vectors
        if full // wide > 1:
            with loop(full // wide) as chunk:
                column = bind(chunk * (wide * lanes))
                self._tile(column, [span] * wide)
        elif full // wide:
            self._tile(tirx.const(0, "int32"), [span] * wide)
        done = full // wide * wide
        rest = axis.out - done * span
        if rest:
            valid = [min(span, rest - i) for i in range(0, rest, span)]
            self._tile(tirx.const(done * lanes, "int32"), valid)

    def _tile(self, column: Expr, valid: list[int]) -> None:
        """Columns ``column * stride`` on; ``valid[v]`` outputs of vector ``v`` are stored."""
        code, axis = self.code, self.code.shape.x
        lanes, rows, count = code.plane.lanes, code.rows, len(valid)
        sums = local(rows * axis.stride * count * lanes)
        zero = splat(tirx.const(0, "float32"), lanes)

        def at(i: int, phase: int, v: int) -> int:
            return ((i * axis.stride + phase) * count + v) * lanes

        for index in range(rows * axis.stride * count):
            vstore(sums, index * lanes, zero, lanes)
        steps = _sequence(code.shape, self.phase)
        if steps:
            with loop(code.shape.cin) as c:
                weight = bind(self.weight + c * (len(steps) * rows))
                scalars = load_scalars(self.inputs[1], weight, len(steps) * rows, code.target)
                origin = bind(self.source + c * code.plane.elements + column)
                xs: dict[tuple[int, int], list[Expr]] = {}
                for s, (_, _, dy, dx, phase) in enumerate(steps):
                    if (dy, dx) not in xs:
                        offset = code.offset(dy, dx)
                        xs[dy, dx] = [
                            bind(vload(self.inputs[0], origin + offset + v * lanes, lanes))
                            for v in range(count)
                        ]
                    for i in range(rows):
                        w = splat(scalars[s * rows + i], lanes)
                        for v, x in enumerate(xs[dy, dx]):
                            where = at(i, phase, v)
                            vstore(sums, where, vload(sums, where, lanes) + w * x, lanes)
        start = bind(self.line * axis.out + column * axis.stride)
        for i in range(rows):
            for v in range(count):
                parts = [vload(sums, at(i, phase, v), lanes) for phase in range(axis.stride)]
                width = lanes * axis.stride
                value = interleave(parts, lanes)
                if self.bias[i] is not None:
                    value = value + splat(self.bias[i], width)
                self.outputs[i].store(start + v * width, value, valid[v], width)


def _sequence(shape: _Shape, phase: int) -> list[tuple[int, int, int, int, int]]:
    """Products of one row of phases in order of use: (ky, kx, dy, dx, column phase).

    Ordered by shift, so that products with the same input vector are neighbours.
    """
    found = [
        (ky, kx, dy, dx, column)
        for ky, dy in shape.y.taps(phase)
        for column in range(shape.x.stride)
        for kx, dx in shape.x.taps(column)
    ]
    return sorted(found, key=lambda item: (item[2], item[3], item[4], item[0], item[1]))


def _phase_weights(shape: _Shape, phase: int) -> int:
    """Weights of one output channel for one row of phases."""
    return len(_sequence(shape, phase)) * shape.cin


def _tile_weights(shape: _Shape) -> int:
    """Weights of one output channel."""
    return sum(_phase_weights(shape, phase) for phase in range(shape.y.stride))


def _pack(shape: _Shape, weight: np.ndarray, rows: int) -> np.ndarray:
    """[groups * cin, cout, kh, kw] to [groups][tile][row phase][cin][product][rows]."""
    w = weight.reshape(shape.groups, shape.cin, shape.cout // rows, rows, shape.y.kernel, -1)
    parts = []
    for phase in range(shape.y.stride):
        steps = _sequence(shape, phase)
        if steps:
            picked = np.stack([w[..., ky, kx] for ky, kx, *_ in steps], axis=3)
            parts.append(picked.swapaxes(1, 2).reshape(shape.groups, shape.cout // rows, -1))
    packed = np.concatenate(parts, axis=2) if parts else np.zeros((1,), weight.dtype)
    return np.ascontiguousarray(packed).reshape(-1)


def _plane(shape: _Shape, lanes: int) -> Plane:
    vectors = -(-shape.x.out // (lanes * shape.x.stride))
    slack = max(vectors * lanes - shape.x.count, 0)
    return Plane(shape.y.window, shape.x.window, lanes, shape.y.count, slack)


def _shape(op: Op) -> _Shape:
    data, weight = op.inputs[0], op.inputs[1]
    assert data is not None
    assert weight is not None
    rank = len(data.shape) - 2
    out = op.outputs[0].shape[2:]
    strides = list(op.attrs.get("strides") or [1] * rank)
    dilations = list(op.attrs.get("dilations") or [1] * rank)
    extra = list(op.attrs.get("output_padding") or [0] * rank)
    axes = []
    for i in range(rank):
        size, kernel = data.shape[2 + i], weight.shape[2 + i]
        reach = strides[i] * (size - 1) + extra[i] + (kernel - 1) * dilations[i] + 1
        before = _pad_before(op, i, reach - out[i])
        axes.append(_Phases(size, out[i], kernel, strides[i], dilations[i], before))
    y = axes[0] if rank == 2 else _Phases(1, 1, 1, 1, 1, 0)
    groups = int(op.attrs.get("group", 1))
    return _Shape(data.shape[0], groups, data.shape[1] // groups, weight.shape[1], y, axes[-1])


def _pad_before(op: Op, axis: int, total: int) -> int:
    """Output elements cut off at the beginning; ``total`` at both ends together."""
    mode = op.attrs.get("auto_pad", "NOTSET")
    if "output_shape" not in op.attrs and mode == "NOTSET":
        pads = op.attrs.get("pads")
        return int(pads[axis]) if pads else 0
    if mode == "VALID":
        return 0
    total = max(total, 0)
    return total // 2 if mode == "SAME_UPPER" else total - total // 2


def _cost(shape: _Shape, target: Target, lanes: int, rows: int, vectors: int) -> float | None:
    """Rough cycles, or ``None`` for a configuration that makes no sense."""
    x = shape.x
    if shape.cout % rows:
        return None
    per_row = -(-x.out // (lanes * x.stride))
    if vectors > per_row:
        return None
    taps = [len(_sequence(shape, phase)) for phase in range(shape.y.stride)]
    live = rows * x.stride * vectors + vectors + 1 + rows // 4
    unrolled = max(taps) * rows * vectors
    if (live > target.registers("float32") or unrolled > 600) and rows * vectors > 1:
        return None
    tiles = -(-per_row // vectors)
    used = per_row * shape.cin
    simd = uses_lanes(target)
    cost = 0.0
    for count in taps:
        inputs = min(count, len(range(shape.y.window.kernel * shape.x.window.kernel)))
        scalars = count * rows * (0.25 if simd else 1.0) * tiles * shape.cin
        multiply = count * rows * used
        loads = inputs * used
        # Fewer than eight independent sums wait for each other.
        wait = max(1.0, 8.0 / (rows * x.stride * vectors)) if count else 1.0
        cost += max(multiply * 0.5 * wait, (scalars + loads) * 0.5) + 0.1 * (scalars + loads)
        cost += tiles * rows * x.stride * vectors * 3 + 20
    units = shape.batch * shape.groups * (shape.cout // rows) * shape.y.count
    return cost * units
