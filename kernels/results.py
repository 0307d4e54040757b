"""How sums that lie in registers become a region's output.

A convolution kernel makes vectors along positions, one per output channel, and hands them over
``group`` channels at a time. ``PlainResults`` stores each behind the epilogue (NCHW);
``QuadResults`` applies the epilogue to four channels and weaves them into quads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.kernels import vectormath as vm
from effc.kernels.builder import Param, bind, vstore
from effc.kernels.conv_shape import ConvShape
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import interleave, store_partial
from effc.kernels.quad_rows import QuadRows
from effc.kernels.region import Region

__all__ = ["PlainResults", "QuadResults", "Results"]

Expr = Any  # tvm.tirx expressions have no useful static types


class Results(ABC):
    """Stores the results of one region's convolution.

    Attributes:
        epilogue: What is applied to sums first; its ``refusal`` holds for the results too.
        group: Channels that are stored together; tiles of channels are multiples of it.
        out: Element type and elements of the output, as the stage function sees it.
    """

    group: ClassVar[int]
    epilogue: Epilogue
    out: tuple[str, int]

    def params(self) -> list[Param]:
        """Parameters of the stage function: the epilogue's and ``y``."""
        return [*self.epilogue.params, ("y", *self.out)]

    @abstractmethod
    def offset(self, batch: Expr, channel: Expr, position: Expr) -> Expr:
        """Element of ``y`` that holds a result."""

    @abstractmethod
    def store(
        self,
        sums: Sequence[Expr],
        at: tuple[Expr, Expr, Expr],
        buffers: Sequence[Any],
        lanes: int,
        valid: int,
    ) -> None:
        """Finish and store the sums of ``group`` channels.

        Args:
            sums: One vector along positions per channel.
            at: Image, first channel (a multiple of ``group``), first position.
            buffers: Those of ``params``.
            lanes: Of each vector.
            valid: How many of the lanes are results.
        """


class PlainResults(Results):
    """One channel after the other: ``[N, C, positions]``."""

    group = 1

    def __init__(self, region: Region, shape: ConvShape) -> None:
        assert region.anchor is not None
        channels = shape.groups * shape.cout
        view = (shape.batch, channels, shape.positions)
        self.epilogue = Epilogue(region, region.anchor.outputs[0], view)
        self.out = (self.epilogue.out_dtype, shape.batch * channels * shape.positions)
        self._view = view

    def offset(self, batch: Expr, channel: Expr, position: Expr) -> Expr:
        return (batch * self._view[1] + channel) * self._view[2] + position

    def store(
        self,
        sums: Sequence[Expr],
        at: tuple[Expr, Expr, Expr],
        buffers: Sequence[Any],
        lanes: int,
        valid: int,
    ) -> None:
        assert valid == lanes
        *extra, y = buffers
        result = self.epilogue.apply(sums[0], at, extra, axis=2, lanes=lanes)
        vstore(y, self.offset(*at), result, lanes)


class QuadResults(Results):
    """Four channels of one position side by side: ``[N, C/4, positions, 4]``.

    Bytes are stored as the 32-bit elements that they form together.
    """

    group = 4
    epilogue: QuadRows

    def __init__(self, region: Region, shape: ConvShape) -> None:
        assert region.anchor is not None
        quads = shape.groups * shape.cout // 4
        self._view = (shape.batch, quads, shape.positions)
        self.epilogue = QuadRows(region, region.anchor.outputs[0], (*self._view, 4))
        self._bytes = np.dtype(self.epilogue.out_dtype).itemsize == 1
        size = shape.batch * quads * shape.positions
        self.out = ("int32", size) if self._bytes else (self.epilogue.out_dtype, 4 * size)

    def offset(self, batch: Expr, channel: Expr, position: Expr) -> Expr:
        element = (batch * self._view[1] + channel // 4) * self._view[2] + position
        return element if self._bytes else element * 4

    def store(
        self,
        sums: Sequence[Expr],
        at: tuple[Expr, Expr, Expr],
        buffers: Sequence[Any],
        lanes: int,
        valid: int,
    ) -> None:
        *extra, y = buffers
        batch, channel, position = at
        coords = (batch, bind(channel // 4), position)
        rows = self.epilogue.apply_quads(sums, coords, extra, lanes=lanes, valid=valid)
        if self._bytes:
            store_partial(y, self.offset(*at), woven(rows), valid, lanes)
        else:
            store_partial(y, self.offset(*at), interleave(rows, lanes), 4 * valid, 4 * lanes)


def woven(rows: Sequence[Expr]) -> Expr:
    """Bytes ``[r0, r1, r2, r3]`` of every lane of four vectors, as one int32 each."""
    words = []
    for i, row in enumerate(rows):
        word = vm.cast(vm.cast(row, "uint8"), "int32")
        words.append(bind(tirx.shift_left(word, vm.const(8 * i, word)) if i else word))
    low, high = (bind(tirx.bitwise_or(words[i], words[i + 1])) for i in (0, 2))
    return bind(tirx.bitwise_or(low, high))
