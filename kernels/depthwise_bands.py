"""Depthwise ``ConvInteger`` on processors without wide vectors, in place where it can.

A unit is one quad of channels of one image. Bands of its input rows are copied with their padding
into scratch, a band's last rows are moved to the beginning of the next one, and output rows
are written only when the input rows that they may overwrite have been copied. So input and
output share memory if they have equally large planes.

* ``PairRows`` (Cortex-M with the DSP extension; kernels of up to 3x3, strides of 1 or 2): channels
  apart, 16 bits each. A word is two neighbours in a row; ``smlad`` and ``smlabt`` take three
  taps, two outputs at a time.
* ``QuadLanes``: quads as they are, four channels at a time: lanes of an MVE register, or one
  after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import columns_arm
from effc.kernels import vectormath as vm
from effc.kernels.builder import Param, T, bind, local, loop, stage_func, unravel, vload, vstore
from effc.kernels.columns import is_narrow
from effc.kernels.depthwise_integer import Shape, depthwise_refusal, folded_bias, shape_of
from effc.kernels.epilogue import Epilogue
from effc.kernels.fixed_point import ROOM, Scaling
from effc.kernels.inline_assembly import Routine, importing
from effc.kernels.overlap import Shifts, ascending, overlap, quad_bytes
from effc.kernels.region import Op, Region
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["DepthwiseBands"]

Expr = Any  # tvm.tirx expressions have no useful static types

_BAND_BYTES = 900
_LEAST_ROWS = 4
"""Output rows of a band, even if they need more than ``_BAND_BYTES``: some rows are moved."""


class DepthwiseBands(Template):
    """``ConvInteger`` with ``group == Cin == Cout`` on [N, C4, W, 4] or [N, C4, H, W, 4]."""

    name: ClassVar[str] = "depthwise_bands"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        if not is_narrow(target):
            return "the processor has wide vectors"
        if reason := depthwise_refusal(region):
            return reason
        op = region.anchor
        assert op is not None
        assert op.inputs[0] is not None
        if op.inputs[0].dtype != "int8":
            return "activations are unsigned"
        return _epilogue(region, op).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        op = region.ops[0]
        weight = op.inputs[1]
        assert weight is not None
        return [({}, 2.0 * op.outputs[0].type.size * prod(weight.shape[2:]))]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.ops[0]
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        assert weight.const is not None
        shape = shape_of(op)
        method = _method(shape, region, target)
        epilogue = _epilogue(region, op)
        weights = {"w": method.pack(weight.const), "b": folded_bias(op), **epilogue.weights}
        dtype, elements = method.buffer
        params: list[Param] = [
            ("x", method.source, data.type.size // method.per_source),
            ("w", "int8", weights["w"].size),
            ("b", "int32", weights["b"].size),
            *epilogue.params,
            ("y", epilogue.out_dtype, op.outputs[0].type.size),
            ("scratch", dtype, elements),
        ]
        args = (data.name, "w:w", "w:b", *epilogue.args, region.outputs[0].name, "scratch")
        zero = int(op.attrs.get("x_zero", 0))

        def body(x: Any, w: Any, b: Any, *more: Any) -> None:
            *operands, y, scratch, begin, end = more
            code = _Code(method, epilogue, x, w, b, operands, y, scratch, zero)
            with importing(method.routines):
                code.emit(begin, end)

        nbytes = elements * np.dtype(dtype).itemsize
        stage = Stage(stage_func(params, body), args, shape.batch * shape.quads, nbytes)
        shifts = method.shifts(quad_bytes(region.outputs[0]), target.serial)
        overlaps = overlap(region, data, shifts)
        return Kernel((stage,), weights, {}, epilogue.inplace, overlaps)


def _epilogue(region: Region, op: Op) -> Epilogue:
    batch, quads, *sizes, _ = op.outputs[0].shape
    return Epilogue(region, op.outputs[0], (batch, quads, prod(sizes), 4))


def _method(shape: Shape, region: Region, target: Target) -> _Method:
    """The way that suits the processor and the kernel."""
    y, x = shape.y, shape.x
    thumb = target.arch == "thumb" and target.has("dsp") and not target.has("mve")
    small = y.kernel <= 3 and x.kernel <= 3 and y.dilation == x.dilation == 1
    if not thumb or not small or x.stride > 2:
        return QuadLanes(shape)
    pairs = PairRows(shape, _plain_scaling(region))
    return pairs if pairs.near else QuadLanes(shape)


def _plain_scaling(region: Region) -> Scaling | None:
    """The Requantize that is all of an epilogue, if it clamps to nothing but eight bits."""
    if [op.op_type for op in region.epilogue] != ["Requantize"]:
        return None
    scaling = Scaling.of(region.epilogue[0].attrs)
    plain = scaling.left == scaling.x_zero == 0 and scaling.right <= ROOM
    return scaling if plain and (scaling.low, scaling.high) == (-128, 127) else None


@dataclass(frozen=True)
class _Method(ABC):
    """How a band lies in scratch, and the products over it.

    Attributes:
        shape: Of the convolution.
    """

    shape: Shape
    source: ClassVar[str]
    per_source: ClassVar[int]
    """Element type that inputs are read as, and how many bytes it has."""
    element: ClassVar[str]

    @property
    def routines(self) -> tuple[Routine, ...]:
        """Assembly that ``compute`` calls."""
        return ()

    @property
    @abstractmethod
    def width(self) -> int:
        """Columns of a row, padding included."""

    @property
    def band(self) -> int:
        """Output rows of a band."""
        y = self.shape.y
        row = 4 * self.width * np.dtype(self.element).itemsize
        fit = (_BAND_BYTES // row - y.reach) // y.stride + 1
        return min(max(fit, _LEAST_ROWS), y.out)

    @property
    def rows(self) -> int:
        """Input rows of a band."""
        return self.shape.y.extent(self.band)

    @property
    def kept(self) -> int:
        """Rows that the next band needs too."""
        return max(self.rows - self.band * self.shape.y.stride, 0)

    @property
    def columns(self) -> int:
        """Input columns that are read."""
        return min(self.shape.x.size, self.width - self.shape.x.before)

    @property
    def buffer(self) -> tuple[str, int]:
        """Element type and elements of the band."""
        return self.element, 4 * self.rows * self.width

    def shifts(self, result: int, serial: bool) -> Shifts:
        """Where the result may lie over the input.

        Args:
            result: Bytes of four channels of a position.
            serial: Whether units run one after another.
        """
        y, planes = self.shape.y, self.shape.batch * self.shape.quads
        sizes = 4 * y.size * self.shape.x.size, result * y.out * self.shape.x.out
        if not serial:
            return ((0, 0),) if sizes[0] == sizes[1] else ()
        start = np.arange(0, y.out, self.band)
        loaded = np.where(start > 0, self.kept, 0)  # the rows before come from the last band
        read = np.clip(start * y.stride + loaded - y.before, 0, y.size) * (sizes[0] // y.size)
        written = np.minimum(start + self.band, y.out) * (sizes[1] // y.out)
        number = np.arange(planes)[:, None]
        first, last = number * sizes[0] + read, number * sizes[1] + written
        whole = planes * sizes[0], planes * sizes[1]
        return ascending(first.reshape(-1), last.reshape(-1), whole)

    @abstractmethod
    def pack(self, weights: np.ndarray) -> np.ndarray:
        """Weights, int8 ``[channels, 1, *kernel]``, in order of their use."""

    @abstractmethod
    def put(self, scratch: Any, row: Expr, column: Expr, value: Expr) -> None:
        """Store what was read at a place of the band; ``column`` counts padding."""

    @abstractmethod
    def move(self, scratch: Any) -> None:
        """Move the last rows to the beginning."""

    @abstractmethod
    def compute(self, code: _Code, n: Expr, quad: Expr, first: Expr, count: Expr) -> None:
        """Output rows ``first .. first + count - 1``: those of the band."""

    def fill(self, zero: int) -> Expr:
        """A quad of padding, as read from ``source``."""
        raw = np.array([zero] * 4, np.int8)
        cell = local(1, "int32")
        vstore(cell, 0, tirx.const(int(raw.view(np.int32)[0]), "int32"), 1)
        return vload(cell, 0, 1)


@dataclass(frozen=True)
class PairRows(_Method):
    """Channels apart: ``[channel][row][column]`` of int16.

    Attributes:
        scaling: The epilogue, if it is nothing but a Requantize to eight bits.
    """

    scaling: Scaling | None
    source: ClassVar[str] = "int32"
    per_source: ClassVar[int] = 4
    element: ClassVar[str] = "int16"

    @property
    def width(self) -> int:
        x = self.shape.x
        pairs = -(-x.out // 2)
        last = (2 * (pairs - 1) + 1) * x.stride + 3 if x.stride == 1 else 4 * (pairs - 1) + 6
        needed = max(last, x.before + 1)
        return needed + needed % 2

    @property
    def near(self) -> bool:
        """Whether the rows of a window are within reach of an instruction's offsets."""
        y = self.shape.y
        return (y.kernel - 1) * 2 * self.width + 8 < 1020 and y.stride * 2 * self.width < 4096

    @property
    def routines(self) -> tuple[Routine, ...]:
        y, x = self.shape.y, self.shape.x
        pitch = 2 * self.width
        if self.scaling is None:
            return (columns_arm.rows(y.kernel, x.stride, pitch),)
        strides, right = (y.stride, x.stride), self.scaling.right
        return (columns_arm.plane(y.kernel, strides, pitch, x.out, right),)

    def pack(self, weights: np.ndarray) -> np.ndarray:
        channels = weights.shape[0]
        taps = weights.reshape(channels, self.shape.y.kernel, self.shape.x.kernel)
        extra = 3 - self.shape.x.kernel
        return np.pad(taps, [(0, -channels % 4), (0, 0), (0, extra)]).reshape(-1)

    def put(self, scratch: Any, row: Expr, column: Expr, value: Expr) -> None:
        at = bind(row * self.width + column)
        for channel in range(4):
            moved = tirx.shift_right(value, tirx.const(8 * channel, "int32")) if channel else value
            wide = T.Cast("int16", T.Cast("int8", moved))
            T.buffer_store(scratch, wide, [at + channel * (self.rows * self.width)])

    def move(self, scratch: Any) -> None:
        skipped = (self.rows - self.kept) * self.width
        with loop(4) as channel:
            start = bind(channel * (self.rows * self.width))
            with loop(self.kept * self.width) as i:
                T.buffer_store(scratch, scratch[start + i + skipped], [start + i])

    def compute(self, code: _Code, n: Expr, quad: Expr, first: Expr, count: Expr) -> None:
        y, x = self.shape.y, self.shape.x
        with loop(4) as lane:
            channel = bind(quad * 4 + lane)
            words: list[Expr] = []
            for ky in range(y.kernel):
                taps = [code.w[channel * (3 * y.kernel) + 3 * ky + kx] for kx in range(3)]
                wide = [bind(T.Cast("int32", tap)) for tap in taps]
                words += [_cell(columns_arm.pair(wide[i], wide[i + 1])) for i in (0, 1)]
            bias = _cell(code.b[channel])
            start = bind(lane * (self.rows * self.width))
            if self.scaling is not None:
                at = bind(code.plane(n, quad) + first * (4 * x.out) + lane)
                self._whole(code, (start, at), [bias, code.multiplier(n, quad, lane)], words, count)
            else:
                self._by_pairs(code, (n, quad, first, lane), start, bias, words, count)

    def _whole(
        self,
        code: _Code,
        places: tuple[Expr, Expr],
        factors: list[Expr],
        words: list[Expr],
        count: Expr,
    ) -> None:
        """All rows in assembly."""
        scaling = self.scaling
        assert scaling is not None
        half = (1 << (scaling.right - 1)) + (scaling.zero << scaling.right)
        given = local(5, "int32")
        for i, value in enumerate([*factors, tirx.const(half, "int32"), count]):
            vstore(given, i, value, 1)
        start, at = places
        operands = (code.scratch[start], code.y[at], given[0])
        self.routines[0].call(*(T.address_of(place) for place in operands), *words)

    def _by_pairs(
        self,
        code: _Code,
        where: tuple[Expr, Expr, Expr, Expr],
        start: Expr,
        bias: Expr,
        words: list[Expr],
        count: Expr,
    ) -> None:
        """Two outputs at a time, with any epilogue."""
        y, x = self.shape.y, self.shape.x
        n, quad, first, lane = where
        with loop(count) as row, loop(-(-x.out // 2)) as pair:
            sums = local(2, "int32")
            for i in range(2):
                vstore(sums, i, bias, 1)
            place = code.scratch[start + row * (y.stride * self.width) + pair * (2 * x.stride)]
            self.routines[0].call(T.address_of(sums[0]), T.address_of(place), *words)
            at = bind((first + row) * x.out + pair * 2)
            code.store(n, quad, at, lane, code.finish(n, quad, at, lane, sums[0]))
            if x.out % 2 == 0:
                code.store(n, quad, at + 1, lane, code.finish(n, quad, at + 1, lane, sums[1]))
            else:
                with T.If(pair < x.out // 2), T.Then():
                    code.store(n, quad, at + 1, lane, code.finish(n, quad, at + 1, lane, sums[1]))


def _cell(value: Expr) -> Expr:
    """A value that is computed here and not where it is used."""
    cell = local(1, "int32")
    vstore(cell, 0, value, 1)
    return vload(cell, 0, 1)


@dataclass(frozen=True)
class QuadLanes(_Method):
    """Quads: ``[row][column][channel]`` of int8."""

    source: ClassVar[str] = "int8"
    per_source: ClassVar[int] = 1
    element: ClassVar[str] = "int8"

    @property
    def width(self) -> int:
        return max(self.shape.x.extent(self.shape.x.out), self.shape.x.before + 1)

    def pack(self, weights: np.ndarray) -> np.ndarray:
        channels = weights.shape[0]
        taps = np.pad(weights.reshape(channels, -1), [(0, -channels % 4), (0, 0)])
        return np.ascontiguousarray(taps.reshape(-1, 4, taps.shape[1]).swapaxes(1, 2)).reshape(-1)

    def put(self, scratch: Any, row: Expr, column: Expr, value: Expr) -> None:
        vstore(scratch, bind((row * self.width + column) * 4), value, 4)

    def move(self, scratch: Any) -> None:
        skipped = (self.rows - self.kept) * self.width * 4
        with loop(self.kept * self.width) as i:
            vstore(scratch, i * 4, vload(scratch, i * 4 + skipped, 4), 4)

    def compute(self, code: _Code, n: Expr, quad: Expr, first: Expr, count: Expr) -> None:
        y, x = self.shape.y, self.shape.x
        taps = y.kernel * x.kernel
        weights = bind(quad * (4 * taps))
        bias = bind(vload(code.b, quad * 4, 4))
        with loop(count) as row, loop(x.out) as column:
            start = bind(row * (y.stride * self.width) + column * x.stride)
            total = local(4, "int32")
            vstore(total, 0, bias, 4)

            def tap(ky: Expr, kx: int, start: Expr = start, total: Any = total) -> None:
                place = start + (ky * y.dilation * self.width + kx * x.dilation)
                value = vm.cast(vload(code.scratch, place * 4, 4), "int32")
                weight = vload(code.w, weights + (ky * x.kernel + kx) * 4, 4)
                product = bind(value) * bind(vm.cast(weight, "int32"))
                vstore(total, 0, vload(total, 0, 4) + product, 4)

            if taps <= 9:
                for ky in range(y.kernel):
                    for kx in range(x.kernel):
                        tap(ky, kx)
            else:
                with loop(y.kernel) as ky:
                    for kx in range(x.kernel):
                        tap(ky, kx)
            at = bind((first + row) * x.out + column)
            value = code.finish(n, quad, at, T.int32(0), bind(vload(total, 0, 4)), lanes=4)
            code.store(n, quad, at, T.int32(0), value, lanes=4)


@dataclass(frozen=True)
class _Code:
    """Emits the body of the stage function."""

    method: _Method
    epilogue: Epilogue
    x: Any
    w: Any
    b: Any
    operands: Sequence[Any]
    y: Any
    scratch: Any
    zero: int

    def emit(self, begin: Expr, end: Expr) -> None:
        method, shape = self.method, self.method.shape
        y = shape.y
        with loop(method.rows) as row, loop(method.width) as column:
            self._put(row, column, None)
        with loop(begin, end) as unit:
            n, quad = unravel(unit, (shape.batch, shape.quads))
            base = bind(unit * (y.size * shape.x.size))
            if method.band == y.out:
                self._load(base, T.int32(0), T.int32(0))
                method.compute(self, n, quad, T.int32(0), T.int32(y.out))
            else:
                self._bands(base, n, quad)

    def _bands(self, base: Expr, n: Expr, quad: Expr) -> None:
        method, y = self.method, self.method.shape.y
        with loop(-(-y.out // method.band)) as band:
            loaded = local(1, "int32")
            vstore(loaded, 0, T.int32(0), 1)
            with T.If(band > 0), T.Then():
                method.move(self.scratch)
                vstore(loaded, 0, T.int32(method.kept), 1)
            first = bind(band * method.band)
            self._load(base, first, bind(loaded[0]))
            count = bind(tirx.Min(T.int32(method.band), y.out - first))
            method.compute(self, n, quad, first, count)

    def _load(self, base: Expr, first: Expr, loaded: Expr) -> None:
        """Copy the input rows that a band from output row ``first`` on needs."""
        method, y, x = self.method, self.method.shape.y, self.method.shape.x
        with loop(loaded, method.rows) as row:
            index = bind(first * y.stride + row - y.before)
            with T.If(tirx.all(index >= 0, index < y.size)):
                with T.Then(), loop(method.columns) as column:
                    self._put(row, column + x.before, bind(base + index * x.size + column))
                with T.Else(), loop(method.columns) as column:
                    self._put(row, column + x.before, None)

    def _put(self, row: Expr, column: Expr, at: Expr | None) -> None:
        method = self.method
        if method.source == "int8":
            value = vload(self.x, at * 4, 4) if at is not None else _bytes(self.zero)
        else:
            value = bind(self.x[at]) if at is not None else method.fill(self.zero)
        method.put(self.scratch, row, column, value)

    def finish(
        self, n: Expr, quad: Expr, position: Expr, lane: Expr, value: Expr, lanes: int = 1
    ) -> Expr:
        """The epilogue's result, bound."""
        coords = [n, quad, position, lane]
        return bind(self.epilogue.apply(bind(value), coords, self.operands, axis=3, lanes=lanes))

    def store(
        self, n: Expr, quad: Expr, position: Expr, lane: Expr, value: Expr, lanes: int = 1
    ) -> None:
        """Store a result of ``finish``."""
        vstore(self.y, self.plane(n, quad) + position * 4 + lane, value, lanes)

    def plane(self, n: Expr, quad: Expr) -> Expr:
        """Where the results of a quad begin."""
        _, quads, plane, _ = self.epilogue.view
        return (n * quads + quad) * (4 * plane)

    def multiplier(self, n: Expr, quad: Expr, lane: Expr) -> Expr:
        """Of an epilogue that is a Requantize."""
        return self.epilogue.operand(1, (n, quad, T.int32(0), lane), self.operands)


def _bytes(zero: int) -> Expr:
    return T.Broadcast(tirx.const(zero, "int8"), 4)
