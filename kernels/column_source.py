"""How the input of a convolution by columns (``columns``) lies in memory.

Quads, or a tensor as the model has it, ``[N, C, *S]`` or ``[N, *S, C]`` (attribute ``layout``
of ``ConvInteger``): the first convolution reads the caller's memory, which may lie at any address.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from effc.kernels.builder import T, vload
from effc.kernels.conv_shape import ConvShape

__all__ = ["PlainSource", "QuadSource", "Source"]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class Source(ABC):
    """The input of a convolution.

    A *place* is a position of the image of a group, counted from ``base``.

    Attributes:
        shape: In quads.
        channels: Of a group.
    """

    shape: ConvShape
    channels: int

    @property
    @abstractmethod
    def param(self) -> tuple[str, int]:
        """Type and number of the elements that are read."""

    @abstractmethod
    def base(self, image: Expr, group: Expr) -> Expr:
        """The place of a group's first position."""

    @abstractmethod
    def element(self, x: Any, place: Expr, channel: Expr) -> Expr:
        """One channel as int8."""

    @abstractmethod
    def quad(self, x: Any, place: Expr, quad: Expr) -> Expr:
        """Four channels as int32."""


@dataclass(frozen=True)
class QuadSource(Source):
    """Quads.

    Attributes:
        whole: Whether they are read as such, or by channels.
    """

    whole: bool

    @property
    def param(self) -> tuple[str, int]:
        shape = self.shape
        quads = shape.batch * shape.groups * shape.cin * shape.input_positions
        return ("int32", quads) if self.whole else ("int8", 4 * quads)

    def base(self, image: Expr, group: Expr) -> Expr:
        shape = self.shape
        return (image * shape.groups + group) * (shape.cin * shape.input_positions)

    def element(self, x: Any, place: Expr, channel: Expr) -> Expr:
        return x[place * 4 + channel]

    def quad(self, x: Any, place: Expr, quad: Expr) -> Expr:
        return x[place + quad * self.shape.input_positions]


@dataclass(frozen=True)
class PlainSource(Source):
    """A tensor of bytes, one group.

    Attributes:
        last: Whether channels are the last axis, or the second one.
        unsigned: Whether elements are unsigned; 128 less is what they are read as.
    """

    last: bool
    unsigned: bool

    @property
    def param(self) -> tuple[str, int]:
        count = self.shape.batch * self.channels * self.shape.input_positions
        return ("uint8" if self.unsigned else "int8"), count

    @property
    def contiguous(self) -> bool:
        """Whether what lies side by side along the last axis of an image does so in memory."""
        return self.last or self.channels == 1

    def base(self, image: Expr, group: Expr) -> Expr:
        per = self.shape.input_positions
        return image * (per if self.contiguous else per * self.channels)

    def element(self, x: Any, place: Expr, channel: Expr) -> Expr:
        if self.contiguous:
            return self.byte(x, place * self.channels + channel)
        return self.byte(x, place + channel * self.shape.input_positions)

    def quad(self, x: Any, place: Expr, quad: Expr) -> Expr:
        """Of a position that has four channels."""
        return self.word(x, place * 4)

    def byte(self, x: Any, at: Expr) -> Expr:
        """The element at an address, as int8."""
        if not self.unsigned:
            return x[at]
        return T.Cast("int8", tirx.bitwise_xor(x[at], tirx.const(0x80, "uint8")))

    def word(self, x: Any, at: Expr) -> Expr:
        """Four elements from an address on, as int32."""
        if not self.unsigned:
            return T.reinterpret("int32", vload(x, at, 4))
        four = T.reinterpret("uint32", vload(x, at, 4))
        return T.reinterpret("int32", tirx.bitwise_xor(four, tirx.const(0x80808080, "uint32")))
