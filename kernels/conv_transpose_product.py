"""The product stage of a transposed convolution, see ``conv_transpose``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import T, bind, local, loop, splat, unravel, vload, vstore
from effc.kernels.conv_transpose_shape import (
    TransposeShape,
    phase_weights,
    sequence,
    tile_weights,
)
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import interleave, load_scalars
from effc.kernels.plane import Plane, PlaneOutput

__all__ = ["TransposeProduct"]

Expr = Any


@dataclass(frozen=True)
class TransposeProduct:
    """Emits the body of the stage function."""

    shape: TransposeShape
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
            weight = bind((group * self.tiles + tile) * (tile_weights(shape) * self.rows))
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
                first += phase_weights(shape, phase) * self.rows


@dataclass(frozen=True)
class _Row:
    """One output row of a tile of channels."""

    code: TransposeProduct
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
        steps = sequence(code.shape, self.phase)
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
