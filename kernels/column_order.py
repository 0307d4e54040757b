"""Which products of a convolution by columns (``columns``) meet in which slot.

Slots go on along the innermost kernel axis, then over quads of channels, then over the outer
kernel axes: what lies side by side in memory is read side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import ClassVar

import numpy as np

from effc.kernels.column_source import PlainSource, QuadSource, Source
from effc.kernels.conv_shape import ConvShape, layout_of
from effc.kernels.region import Op
from effc.kernels.window_arm import REACH

__all__ = ["Elements", "Order", "Quads", "Rows", "order_for", "source_for"]

_SLOTS = 16
"""Most slots that are moved without a loop."""


@dataclass(frozen=True)
class Order(ABC):
    """The order of slots.

    Attributes:
        shape: In quads.
        channels: Input channels of a group.
        whole: Whether columns are given four elements at a time.
    """

    shape: ConvShape
    channels: int
    whole: ClassVar[bool]

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many there are."""

    @abstractmethod
    def weights(self, quads: np.ndarray) -> np.ndarray:
        """Weights in this order: int8 ``[groups*cout, slots, 4]``.

        Args:
            quads: int32 ``[groups*cout, cin, *kernel]`` (``quads_of_weights``).
        """

    def _singles(self, quads: np.ndarray) -> np.ndarray:
        """int8 ``[groups*cout, taps * channels]``: channels of a tap side by side."""
        rows = quads.shape[0]
        apart = np.moveaxis(quads, 1, -1).reshape(rows, -1, self.shape.cin)
        single = np.ascontiguousarray(apart).view(np.int8)[..., : self.channels]
        return single.reshape(rows, -1)


class Quads(Order):
    """Quads of channels."""

    whole = True

    @property
    def slots(self) -> int:
        return self.shape.cin * prod(self.shape.kernel)

    def weights(self, quads: np.ndarray) -> np.ndarray:
        rows = quads.shape[0]
        ordered = np.moveaxis(quads, 1, -2).reshape(rows, -1)
        return np.ascontiguousarray(ordered).view(np.int8).reshape(rows, -1, 4)


class Elements(Order):
    """One element after the other; the last slot is filled up."""

    whole = False

    @property
    def slots(self) -> int:
        return -(-self.channels * prod(self.shape.kernel) // 4)

    def weights(self, quads: np.ndarray) -> np.ndarray:
        flat = self._singles(quads)
        return np.pad(flat, [(0, 0), (0, -flat.shape[1] % 4)]).reshape(len(flat), -1, 4)


class Rows(Order):
    """Rows of the kernel as words, which lie at any address; then what is left of each row."""

    whole = True

    @property
    def rows(self) -> int:
        """Rows of the kernel."""
        return prod(self.shape.kernel[:-1])

    @property
    def length(self) -> int:
        """Elements of a row."""
        return self.shape.kernel[-1] * self.channels

    @property
    def words(self) -> int:
        """Words of a row."""
        return self.length // 4

    @property
    def left(self) -> int:
        """Elements of a row behind its words."""
        return self.length % 4

    @property
    def slots(self) -> int:
        return self.rows * self.words - (-self.rows * self.left // 4)

    @property
    def begins(self) -> list[int]:
        """Where each row begins in memory, in bytes from the first one."""
        shape = self.shape
        found = []
        for taps in product(*map(range, shape.kernel[:-1])):
            at = 0
            for tap, dilation, size in zip(taps, shape.dilations, shape.input[1:], strict=False):
                at = (at + tap * dilation) * size
            found.append(at * self.channels)
        return found

    @property
    def near(self) -> bool:
        """Whether rows lie side by side, and are few enough for code without loops."""
        side_by_side = self.shape.dilations[-1] == 1 or self.shape.kernel[-1] == 1
        reached = self.begins[-1] + self.length <= REACH
        return side_by_side and reached and self.words > 0 and self.slots <= _SLOTS

    def weights(self, quads: np.ndarray) -> np.ndarray:
        flat = self._singles(quads)
        rows = flat.reshape(len(flat), self.rows, self.length)
        words, left = np.split(rows, [4 * self.words], axis=2)
        ordered = np.concatenate([part.reshape(len(flat), -1) for part in (words, left)], axis=1)
        return np.pad(ordered, [(0, 0), (0, -flat.shape[1] % 4)]).reshape(len(flat), -1, 4)


def order_for(op: Op, channels: int, *, words: bool) -> Order:
    """The order that suits how an operator's input lies.

    Quads are read as such where they are whole and lie at multiples of four bytes; quads of a
    single position may be a view of a model's input, which lies anywhere.

    Args:
        channels: Of a group.
        words: Whether words may be read at any address.
    """
    shape, layout = ConvShape.of(op), layout_of(op)
    if layout == "quads":
        return (Quads if channels >= 4 and shape.input_positions > 1 else Elements)(shape, channels)
    contiguous = _plain(op, shape, channels).contiguous
    if not words or not contiguous:
        return Elements(shape, channels)
    if channels == 4:
        return Quads(shape, channels)
    rows = Rows(shape, channels)
    return rows if rows.near else Elements(shape, channels)


def source_for(op: Op, order: Order) -> Source:
    """How an operator's input is read in an order."""
    if layout_of(op) == "quads":
        return QuadSource(order.shape, order.channels, order.whole)
    return _plain(op, order.shape, order.channels)


def _plain(op: Op, shape: ConvShape, channels: int) -> PlainSource:
    data = op.inputs[0]
    assert data is not None
    return PlainSource(shape, channels, layout_of(op) == "last", data.dtype == "uint8")
