"""Depthwise ``ConvInteger`` on quads: any kernel, stride, dilation and padding.

A parallel unit is a band of rows of one quad of channels. Its input rows are copied into
scratch with their padding (``effc.kernels.plane``; an element is 32 bits, four channels): a load
and a store per vector, which is little beside the products, and every tile is an inner one.
``rows`` output rows are then computed at once, so that the taps of an input row are
brought together once for all output rows that use them (``effc.kernels.depthwise_taps``).

Padding is ``x_zero`` and the bias holds ``-x_zero * sum w``, so nothing is subtracted from inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import Param, T, bind, loop, stage_func, unravel, vload
from effc.kernels.columns import NARROW, is_narrow
from effc.kernels.conv_shape import layout_of
from effc.kernels.depthwise_taps import (
    DotTaps,
    Taps,
    WideTaps,
    block_counts,
    pack_taps,
    taps_for,
)
from effc.kernels.dot_product import DOT_FEATURES
from effc.kernels.lanes import repeated, uses_lanes
from effc.kernels.overlap import Shifts, overlap, plane_by_plane, quad_bytes
from effc.kernels.plane import Plane
from effc.kernels.quad_epilogue import QuadEpilogue, QuadOutput
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.window import Axis, window_axes

__all__ = ["DepthwiseInteger", "Shape", "depthwise_refusal", "folded_bias", "shape_of"]

Expr = Any  # tvm.tirx expressions have no useful static types

_BAND_BYTES = 12 * 1024
_UNROLLED = 640  # products written out in one tile


class DepthwiseInteger(Template):
    """``ConvInteger`` with ``group == Cin == Cout`` on [N, C4, W, 4] or [N, C4, H, W, 4]."""

    name: ClassVar[str] = "depthwise_integer"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        if reason := depthwise_refusal(region):
            return reason
        if is_narrow(target):
            return NARROW
        op = region.anchor
        assert op is not None
        data = op.inputs[0]
        assert data is not None
        shape = shape_of(op)
        if _products(shape, taps_for(shape.x, shape.y.kernel, data.dtype, target), 1) > _UNROLLED:
            return "the kernel is too large to unroll"
        return QuadEpilogue(region, target).refusal

    def features(self, region: Region) -> frozenset[str]:
        """See :meth:`Template.features`."""
        return DOT_FEATURES

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        op = region.anchor
        assert op is not None
        assert op.inputs[0] is not None
        shape = shape_of(op)
        taps = taps_for(shape.x, shape.y.kernel, op.inputs[0].dtype, target)
        found: list[tuple[Config, float]] = []
        for blocks in block_counts(taps):
            for rows in (1, 2, 3, 4, 5, 6, 7):
                if rows <= shape.y.out and (rows == 1 or _products(shape, taps, rows) <= _UNROLLED):
                    cost = _cost(shape, taps, blocks, rows)
                    found.append(({"blocks": blocks, "rows": rows}, cost))
        return sorted(found, key=lambda item: item[1])[:8]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        assert weight.const is not None
        shape = shape_of(op)
        taps = taps_for(shape.x, shape.y.kernel, data.dtype, target)
        tiling = _Tiling(shape, taps, int(config["blocks"]), int(config["rows"]))
        epilogue = QuadEpilogue(region, target)
        weights = {
            "w": pack_taps(weight.const),
            "b": folded_bias(op),
            **epilogue.weights,
        }
        params: list[Param] = [
            ("x", "int32", data.type.size // 4),
            ("w", "int8", weights["w"].size),
            ("b", "int32", weights["b"].size),
            *epilogue.params,
            ("y", epilogue.out_dtype, op.outputs[0].type.size),
            ("scratch", "int32", tiling.scratch),
        ]
        args = (data.name, "w:w", "w:b", *epilogue.args, region.outputs[0].name, "scratch")
        fill = int(np.array([op.attrs.get("x_zero", 0)] * 4).astype(data.dtype).view(np.int32)[0])

        def body(x: Any, w: Any, b: Any, *more: Any) -> None:
            *operands, y, scratch, begin, end = more
            code = _Code(tiling, epilogue, x, w, b, operands, y, scratch, fill)
            code.emit(begin, end)

        stage = Stage(stage_func(params, body), args, tiling.units, 4 * tiling.scratch)
        elements = quad_bytes(data), quad_bytes(region.outputs[0])
        overlaps = overlap(region, data, tiling.shifts(target.serial, elements))
        return Kernel((stage,), weights, inplace=epilogue.inplace, overlaps=overlaps)


def depthwise_refusal(region: Region) -> str | None:
    """Why a region is no depthwise integer convolution with constant weights, or ``None``."""
    op = region.anchor
    if op is None or op.op_type != "ConvInteger" or op.domain != DOMAIN:
        return "the anchor is not an integer convolution"
    data, weight = op.inputs[0], op.inputs[1]
    assert data is not None
    assert weight is not None
    if layout_of(op) != "quads":
        return "the input is not in quads"
    if len(data.shape) not in (4, 5):
        return "depthwise kernels have one or two spatial axes"
    if weight.shape[1] != 1 or op.attrs.get("group", 1) != weight.shape[0]:
        return "the convolution is not depthwise"
    if data.shape[1] != -(-weight.shape[0] // 4):
        return "the convolution has several filters per channel"
    if weight.const is None or any(v is not None and v.const is None for v in op.inputs[2:]):
        return "weights or bias are computed at run time"
    if 0 in data.shape or 0 in op.outputs[0].shape:
        return "the tensor is empty"
    return None


@dataclass(frozen=True)
class Shape:
    """Geometry of a depthwise convolution; one spatial axis becomes two."""

    batch: int
    quads: int
    y: Axis
    x: Axis


def shape_of(op: Op) -> Shape:
    data, weight = op.inputs[0], op.inputs[1]
    assert data is not None
    assert weight is not None
    axes = window_axes(op, data.shape[2:-1], weight.shape[2:], op.outputs[0].shape[2:-1])
    y = axes[0] if len(axes) == 2 else Axis(1, 1, 1)
    return Shape(data.shape[0], data.shape[1], y, axes[-1])


def folded_bias(op: Op) -> np.ndarray:
    """``bias - x_zero * sum w`` for whole quads."""
    weight, bias = op.inputs[1], op.inputs[2] if len(op.inputs) > 2 else None
    assert weight is not None
    assert weight.const is not None
    channels = weight.shape[0]
    total = weight.const.astype(np.int64).reshape(channels, -1).sum(axis=1)
    folded = np.zeros(-(-channels // 4) * 4, np.int64)
    folded[:channels] = -int(op.attrs.get("x_zero", 0)) * total
    if bias is not None:
        assert bias.const is not None
        folded[:channels] += bias.const
    return folded.astype(np.int32)


@dataclass(frozen=True)
class _Tiling:
    """A convolution cut into bands of row tiles.

    A tile is ``rows`` output rows times a group of ``4 * blocks`` positions.
    """

    shape: Shape
    taps: Taps
    blocks: int
    rows: int

    @property
    def tiles(self) -> int:
        """Row tiles of a plane; the last may have fewer rows."""
        return -(-self.shape.y.out // self.rows)

    @cached_property
    def tiles_per_band(self) -> int:
        row = 4 * self.plane_of(1).row
        rows = max((_BAND_BYTES // row - self.shape.y.reach) // self.shape.y.stride + 1, 1)
        bands = -(-self.tiles // max(rows // self.rows, 1))
        return -(-self.tiles // bands)

    @property
    def bands(self) -> int:
        return -(-self.tiles // self.tiles_per_band)

    @property
    def units(self) -> int:
        return self.shape.batch * self.shape.quads * self.bands

    def shifts(self, serial: bool, elements: tuple[int, int]) -> Shifts:
        """Where the result may lie over the input: a unit copies its band before it writes."""
        y, x, planes = self.shape.y, self.shape.x, self.shape.batch * self.shape.quads
        if serial:
            rows = min(self.tiles_per_band * self.rows, y.out)
            return plane_by_plane((y, x), planes, elements, rows)
        alike = y.size * x.size * elements[0] == y.out * x.out * elements[1]
        return ((0, 0),) if alike and self.bands == 1 else ()

    @cached_property
    def plane(self) -> Plane:
        """The padded copy of a band."""
        return self.plane_of(min(self.tiles_per_band * self.rows, self.shape.y.out))

    def plane_of(self, rows: int) -> Plane:
        x = self.shape.x
        lanes = 16
        while lanes > max(x.size, 1):
            lanes //= 2
        whole = Axis(x.size, x.extent(x.out), 1, before=x.before)
        return Plane(self.shape.y, whole, lanes, rows, 0, aligned=False)

    @property
    def padded(self) -> bool:
        """Whether some elements of the copy are padding."""
        x, y = self.shape.x, self.shape.y
        return (
            max(x.before, y.before) > 0
            or x.extent(x.out) > x.before + x.size
            or y.extent(y.out) > y.before + y.size
        )

    @cached_property
    def groups(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Full groups of columns, and (blocks, valid positions) of the last one if any."""
        full, rest = divmod(self.shape.x.out, 4 * self.blocks)
        blocks = self.blocks
        while blocks > 1 and 2 * blocks >= rest:
            blocks //= 2
        return full, ((blocks, rest),) if rest else ()

    @property
    def scratch(self) -> int:
        """Elements: the copy, and what the last vectors read behind it."""
        x = self.shape.x
        behind = 4 * self.blocks * (x.stride + 1) + 4 * self.taps.groups * x.dilation
        return self.plane.elements + behind + 4 * x.stride


@dataclass(frozen=True)
class _Code:
    """Emits the body of the stage function."""

    tiling: _Tiling
    epilogue: QuadEpilogue
    x: Any
    w: Any
    b: Any
    operands: list[Any]
    y: Any
    scratch: Any
    fill: int

    def emit(self, begin: Expr, end: Expr) -> None:
        tiling, shape = self.tiling, self.tiling.shape
        plane = tiling.plane
        fill = tirx.const(self.fill, "int32")
        if tiling.padded:
            plane.clear(self.scratch, 0, fill)
        with loop(begin, end) as unit:
            n, quad, band = unravel(unit, (shape.batch, shape.quads, tiling.bands))
            image = bind((n * shape.quads + quad) * (shape.y.size * shape.x.size))
            step = tiling.tiles_per_band * tiling.rows * shape.y.stride
            first = -shape.y.before if tiling.bands == 1 else bind(band * step - shape.y.before)
            plane.copy(self.x, image, first, self.scratch, 0, fill, lambda v: v)
            output = self.epilogue.output(self.y, self.operands, n, quad)
            four = bind(vload(self.b, quad * 4, 4))
            tile = _Tile(self, output, four, bind(quad * tiling.taps.packed))
            self._band(band, tile)

    def _band(self, band: Expr, tile: _Tile) -> None:
        """All tiles of one band."""
        tiling = self.tiling
        whole, rest = divmod(tiling.shape.y.out, tiling.rows)
        if tiling.bands == 1:
            with loop(whole) as t:
                tile.columns(bind(t * tiling.rows), bind(t * tiling.rows), tiling.rows)
            if rest:
                last = tirx.const(whole * tiling.rows, "int32")
                tile.columns(last, last, rest)
            return
        begin = bind(band * tiling.tiles_per_band)
        count = bind(tirx.min(whole - begin, tiling.tiles_per_band))
        with loop(count) as t:
            row = bind(t * tiling.rows)
            tile.columns(bind(begin * tiling.rows + row), row, tiling.rows)
        if rest:
            with T.If(band == tiling.bands - 1), T.Then():
                local_row = bind((whole - begin) * tiling.rows)
                tile.columns(tirx.const(whole * tiling.rows, "int32"), local_row, rest)


@dataclass(frozen=True)
class _Tile:
    """Register tiles of one plane."""

    code: _Code
    output: QuadOutput
    bias: Expr
    weights_at: Expr

    def columns(self, row: Expr, copied: Expr, rows: int) -> None:
        """All tiles of output rows from ``row`` on, which is row ``copied`` of the band."""
        tiling = self.code.tiling
        full, rest = tiling.groups
        size = 4 * tiling.blocks
        if full:
            with loop(full) as group:
                self._emit(row, copied, rows, bind(group * size), tiling.blocks, size)
        for blocks, valid in rest:
            column = tirx.const(full * size, "int32")
            self._emit(row, copied, rows, column, blocks, valid)

    def _emit(
        self, row: Expr, copied: Expr, rows: int, column: Expr, blocks: int, valid: int
    ) -> None:
        tiling = self.code.tiling
        shape, taps, plane = tiling.shape, tiling.taps, tiling.plane
        y, x = shape.y, shape.x
        weights = taps.weights(self.code.w, self.weights_at, blocks)
        start = bind(copied * (y.stride * plane.row) + (plane.lead + column * x.stride))
        bias = self.bias if blocks == 1 else repeated(self.bias, blocks)
        total = {(i, q): bias for i in range(rows) for q in range(4)}
        for r in range(y.extent(rows)):
            users = [
                (i, (r - i * y.stride) // y.dilation)
                for i in range(rows)
                if (r - i * y.stride) % y.dilation == 0
                and 0 <= (r - i * y.stride) // y.dilation < y.kernel
            ]
            if not users:
                continue
            data = taps.read(self.code.scratch, start + r * plane.row, blocks)
            for i, ky in users:
                for q in range(4):
                    total[i, q] = taps.add(total[i, q], data[q], weights[ky])
        at = bind(row * x.out + column)
        for i in range(rows):
            self.output.store(at + i * x.out, [total[i, q] for q in range(4)], valid)


def _products(shape: Shape, taps: Taps, rows: int) -> int:
    """Multiplication instructions in one tile."""
    each = shape.x.kernel if isinstance(taps, WideTaps) else taps.groups
    return rows * 4 * shape.y.kernel * each


def _cost(shape: Shape, taps: Taps, blocks: int, rows: int) -> float:
    """Rough instructions, which is also cycles on a processor with wide vectors."""
    y, x = shape.y, shape.x
    tiles, rest = divmod(y.out, rows)
    full, tail = divmod(x.out, 4 * blocks)
    groups = full + bool(tail)
    wide = isinstance(taps, WideTaps)
    each = x.kernel if wide else taps.groups * (1 if isinstance(taps, DotTaps) else 2)
    read = (1.5 * x.stride + 1.5) if wide else 8.0 * taps.groups

    def tile(count: int) -> float:
        live = 4 * count + (y.kernel * each if wide else 3) + 6
        spill = 2.0 * max(live - taps.target.vector_registers, 0)
        if uses_lanes(taps.target):  # LLVM loads all rows first; fitted to counts
            spill += 5.0 * max(y.extent(count) * y.stride - 10, 0)
        products = 4 * count * y.kernel * each
        return y.extent(count) * read + products + 4 * count * 8 + spill + 6

    copied = y.out * y.stride * x.size / (4.0 * blocks) * 2
    rate = 1.6 if blocks == 4 else 1.0  # 512-bit operations take two cycles on Zen 4
    work = groups * (tiles * tile(rows) + (tile(rest) if rest else 0)) * rate + copied
    return shape.batch * shape.quads * (work + 60)
