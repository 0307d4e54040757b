"""How sums that lie in registers become a region's output.

A convolution kernel makes vectors along positions, one per output channel, and hands them over
``group`` channels at a time. ``PlainResults`` stores each behind the epilogue (NCHW);
``QuadResults`` applies the epilogue to four channels and weaves them into quads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

from effc.devices.target import Target
from effc.kernels.builder import Param, bind, vstore
from effc.kernels.conv_shape import ConvShape
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import store_partial
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

    def __init__(self, region: Region, shape: ConvShape, target: Target) -> None:
        assert region.anchor is not None
        self._view = (shape.batch, shape.groups * shape.cout // 4, shape.positions)
        self.epilogue = QuadRows(region, region.anchor.outputs[0], (*self._view, 4), target)
        self._width = 1 if self.epilogue.merged else 4  # elements of a quad
        dtype = "int32" if self.epilogue.merged else self.epilogue.out_dtype
        self.out = (dtype, prod(self._view) * self._width)

    def offset(self, batch: Expr, channel: Expr, position: Expr) -> Expr:
        quad = batch * self._view[1] + channel // 4
        return (quad * self._view[2] + position) * self._width

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
        result = self.epilogue.finish(sums, coords, extra, lanes, valid)
        store_partial(y, self.offset(*at), result, valid * self._width, lanes * self._width)
