"""Methods of depthwise convolutions, and bands in scratch, see ``depthwise_bands``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.kernels.builder import T, bind, local, loop, unravel, vload, vstore
from effc.kernels.depthwise_integer import Shape
from effc.kernels.epilogue import Epilogue
from effc.kernels.inline_assembly import Routine
from effc.kernels.overlap import Shifts, ascending

__all__ = ["Band", "Code", "Method"]

Expr = Any  # tvm.tirx expressions have no useful static types

_BAND_BYTES = 900
_LEAST_ROWS = 4
"""Output rows of a band, even if they need more than ``_BAND_BYTES``: some rows are moved."""


@dataclass(frozen=True)
class Code:
    """Buffers of the stage function, and what happens to sums.

    Attributes:
        zero: What padding counts as.
    """

    epilogue: Epilogue
    x: Any
    w: Any
    b: Any
    operands: Sequence[Any]
    y: Any
    scratch: Any
    zero: int

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


@dataclass(frozen=True)
class Method(ABC):
    """How a convolution is computed.

    Attributes:
        shape: Of the convolution.
    """

    shape: Shape
    source: ClassVar[str]
    per_source: ClassVar[int]
    """Element type that inputs are read as, and how many bytes it has."""

    @property
    def routines(self) -> tuple[Routine, ...]:
        """Assembly that ``emit`` calls."""
        return ()

    @property
    @abstractmethod
    def buffer(self) -> tuple[str, int]:
        """Element type and elements of the scratch."""

    @abstractmethod
    def shifts(self, result: int, serial: bool) -> Shifts:
        """Where the result may lie over the input.

        Args:
            result: Bytes of four channels of a position.
            serial: Whether units run one after another.
        """

    @abstractmethod
    def pack(self, weights: np.ndarray) -> np.ndarray:
        """Weights, int8 ``[channels, 1, *kernel]``, in order of their use."""

    @abstractmethod
    def emit(self, code: Code, begin: Expr, end: Expr) -> None:
        """The body of the stage function: quads of channels ``begin .. end - 1``."""


@dataclass(frozen=True)
class Band(Method):
    """How a band lies in scratch, and the products over it."""

    element: ClassVar[str]

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
        return self.element, 4 * self.rows * self.width

    def shifts(self, result: int, serial: bool) -> Shifts:
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
    def put(self, scratch: Any, row: Expr, column: Expr, value: Expr) -> None:
        """Store what was read at a place of the band; ``column`` counts padding."""

    @abstractmethod
    def move(self, scratch: Any) -> None:
        """Move the last rows to the beginning."""

    @abstractmethod
    def compute(self, code: Code, n: Expr, quad: Expr, first: Expr, count: Expr) -> None:
        """Output rows ``first .. first + count - 1``: those of the band."""

    def fill(self, zero: int) -> Expr:
        """A quad of padding, as read from ``source``."""
        raw = np.array([zero] * 4, np.int8)
        cell = local(1, "int32")
        vstore(cell, 0, tirx.const(int(raw.view(np.int32)[0]), "int32"), 1)
        return vload(cell, 0, 1)

    def emit(self, code: Code, begin: Expr, end: Expr) -> None:
        """See :meth:`Method.emit`."""
        shape, y = self.shape, self.shape.y
        with loop(self.rows) as row, loop(self.width) as column:
            self._put(code, row, column, None)
        with loop(begin, end) as unit:
            n, quad = unravel(unit, (shape.batch, shape.quads))
            base = bind(unit * (y.size * shape.x.size))
            if self.band == y.out:
                self._load(code, base, T.int32(0), T.int32(0))
                self.compute(code, n, quad, T.int32(0), T.int32(y.out))
            else:
                self._bands(code, base, n, quad)

    def _bands(self, code: Code, base: Expr, n: Expr, quad: Expr) -> None:
        y = self.shape.y
        with loop(-(-y.out // self.band)) as band:
            loaded = local(1, "int32")
            vstore(loaded, 0, T.int32(0), 1)
            with T.If(band > 0), T.Then():
                self.move(code.scratch)
                vstore(loaded, 0, T.int32(self.kept), 1)
            first = bind(band * self.band)
            self._load(code, base, first, bind(loaded[0]))
            count = bind(tirx.Min(T.int32(self.band), y.out - first))
            self.compute(code, n, quad, first, count)

    def _load(self, code: Code, base: Expr, first: Expr, loaded: Expr) -> None:
        """Copy the input rows that a band from output row ``first`` on needs."""
        y, x = self.shape.y, self.shape.x
        with loop(loaded, self.rows) as row:
            index = bind(first * y.stride + row - y.before)
            with T.If(tirx.all(index >= 0, index < y.size)):
                with T.Then(), loop(self.columns) as column:
                    self._put(code, row, column + x.before, bind(base + index * x.size + column))
                with T.Else(), loop(self.columns) as column:
                    self._put(code, row, column + x.before, None)

    def _put(self, code: Code, row: Expr, column: Expr, at: Expr | None) -> None:
        if self.source == "int8":
            value = vload(code.x, at * 4, 4) if at is not None else _bytes(code.zero)
        else:
            value = bind(code.x[at]) if at is not None else self.fill(code.zero)
        self.put(code.scratch, row, column, value)


def _bytes(zero: int) -> Expr:
    return T.Broadcast(tirx.const(zero, "int8"), 4)
