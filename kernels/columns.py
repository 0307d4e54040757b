"""Columns: how processors without wide vectors add up products.

The inputs of one or two output positions (the columns of an implicit matrix product) are brought
into a small buffer, in the form that the processor's multiplications want, and used for all
filters. That is CMSIS-NN's method (Lai, Suda, Chandra 2018): a tile is four sums, two filters by
two positions, or four filters at a single position, so that every load serves two products.

The reduction is cut into *slots* of four 8-bit elements (``column_order``): a quad of channels at
one kernel tap, or any four elements that follow each other where that is not to be had. Weights lie
``[filters / tile][slot][filter of the tile]`` or as the processor's loads want them.

* ``PairColumns``: Cortex-M with the DSP extension. Activations are widened to 16 bits once;
  ``smlad`` multiplies pairs; weights are widened in registers by ``sxtb16``.
* ``VectorColumns``: Cortex-M with MVE; ``vmladava`` adds up sixteen products of bytes.
* ``ByteColumns``: any processor, one product at a time; ``UpperByteColumns`` on Armv6-M.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import columns_arm, window_arm
from effc.kernels.builder import T, bind, local, loop, vload, vstore
from effc.kernels.inline_assembly import Routine

__all__ = ["NARROW", "TILE", "Columns", "PairColumns", "columns_for", "is_narrow", "unrolls"]

Distances = tuple[int, ...]
Expr = Any  # tvm.tirx expressions have no useful static types

TILE = 4
"""Sums of a tile."""


@dataclass(frozen=True)
class Columns(ABC):
    """The buffer of one tile's columns, and the products over it.

    Attributes:
        slots: Quads of the reduction.
        positions: Columns of a tile, 1 or 2.
        whole: Whether slots are given as words of four elements, or element by element.
        unroll: Slots per iteration of the inner loop.
    """

    slots: int
    positions: int
    whole: bool
    unroll: int
    stored: ClassVar[str] = "int32"
    """Element type of packed weights."""

    @property
    def filters(self) -> int:
        """Filters of a tile."""
        return TILE // self.positions

    @property
    @abstractmethod
    def buffer(self) -> tuple[str, int]:
        """Element type and elements of the buffer."""

    @property
    def routines(self) -> tuple[Routine, ...]:
        """Assembly that ``multiply`` calls."""
        return ()

    @abstractmethod
    def put(self, buffer: Any, place: Expr, position: Expr, value: Expr) -> None:
        """Store what was read: a word of four elements if ``whole``, otherwise one of them.

        Args:
            buffer: The columns.
            place: Slot, or element of the reduction if not ``whole``.
            position: Column.
            value: A quad, or int8, bound.
        """

    @abstractmethod
    def pack(self, weights: np.ndarray) -> np.ndarray:
        """Weights as the products read them.

        Args:
            weights: int8 ``[filters, slots, 4]``, a multiple of ``TILE`` filters.
        """

    @abstractmethod
    def multiply(self, sums: Any, first: int, weights: Any, tile: Expr, buffer: Any) -> None:
        """Add a tile's products to sums that lie ``[position][TILE filters]``.

        Args:
            sums: Local int32 buffer.
            first: Which of the four filters the tile begins with.
            weights: What ``pack`` made.
            tile: Number of the tile of filters.
        """

    def window(self, words: Distances, left: Distances, *, unsigned: bool) -> Routine:
        """Assembly that fills a column of ``whole`` slots from bytes at known distances.

        Operands: the first byte, and ``buffer[self.start(position)]``.

        Args:
            words, left: Distances of words, and of single bytes behind them.
            unsigned: Whether 128 is taken off every byte.
        """
        raise NotImplementedError(f"{type(self).__name__} has no assembly for windows")

    def start(self, position: Expr) -> Expr:
        """Where in the buffer a column of ``whole`` slots begins, for ``window``."""
        raise NotImplementedError(f"{type(self).__name__} has no assembly for windows")

    def fill(self, zero: int) -> Expr:
        """What padding consists of, as a value for ``put``."""
        if not self.whole:
            return tirx.const(zero, "int8")
        quad = np.array([zero] * 4, np.int8).view(np.int32)[0]
        cell = local(1, "int32")  # TVM's folding of shifts takes no overflow
        vstore(cell, 0, tirx.const(int(quad), "int32"), 1)
        return vload(cell, 0, 1)


@dataclass(frozen=True)
class PairColumns(Columns):
    """Pairs of 16 bits: per slot and position two words, elements 0, 2 and 1, 3.

    Single elements come in order, and the bytes of their weights change places instead.

    Attributes:
        lead: Words before the columns that are left to assembly.
    """

    lead: int = 0

    @property
    def buffer(self) -> tuple[str, int]:
        words = self.lead + 2 * self.positions * self.slots
        return ("int32", words) if self.whole else ("int16", 2 * words)

    @property
    def routines(self) -> tuple[Routine, ...]:
        return (columns_arm.pairs(self.positions, self.slots, self.unroll),)

    def put(self, buffer: Any, place: Expr, position: Expr, value: Expr) -> None:
        if self.whole:
            at = bind((place * self.positions + position) * 2 + self.lead)
            T.buffer_store(buffer, columns_arm.widened(value, 0), [at])
            T.buffer_store(buffer, columns_arm.widened(value, 8), [at + 1])
            return
        at = place + 2 * self.lead
        if self.positions == 2:
            at = at + tirx.bitwise_and(place, tirx.const(-4, "int32")) + position * 4
        T.buffer_store(buffer, T.Cast("int16", value), [at])

    def window(self, words: Distances, left: Distances, *, unsigned: bool) -> Routine:
        return window_arm.pairs_of_window(words, left, 8 * self.positions, unsigned)

    def start(self, position: Expr) -> Expr:
        return position * 2 + self.lead

    def pack(self, weights: np.ndarray) -> np.ndarray:
        if not self.whole:
            weights = weights[..., [0, 2, 1, 3]]
        return _interleaved(weights, self.filters)

    def multiply(self, sums: Any, first: int, weights: Any, tile: Expr, buffer: Any) -> None:
        at = bind(tile * (self.slots * self.filters))
        places = (T.address_of(place) for place in (sums[first], weights[at], buffer[0]))
        self.routines[0].call(*places)


@dataclass(frozen=True)
class VectorColumns(Columns):
    """Bytes, one column after the other; weights one filter after the other."""

    @property
    def buffer(self) -> tuple[str, int]:
        words = self.positions * self.slots
        return ("int32", words) if self.whole else ("int8", 4 * words)

    @property
    def routines(self) -> tuple[Routine, ...]:
        return (columns_arm.vectors(self.positions, 4 * self.slots),)

    def put(self, buffer: Any, place: Expr, position: Expr, value: Expr) -> None:
        pitch = self.slots if self.whole else 4 * self.slots
        T.buffer_store(buffer, value, [position * pitch + place])

    def window(self, words: Distances, left: Distances, *, unsigned: bool) -> Routine:
        return window_arm.bytes_of_window(words, left, unsigned)

    def start(self, position: Expr) -> Expr:
        return position * self.slots

    def pack(self, weights: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(weights).view(np.int32).reshape(-1)

    def multiply(self, sums: Any, first: int, weights: Any, tile: Expr, buffer: Any) -> None:
        at = bind(tile * (self.slots * self.filters))
        places = (T.address_of(place) for place in (sums[first], weights[at], buffer[0]))
        self.routines[0].call(*places)


@dataclass(frozen=True)
class ByteColumns(Columns):
    """Bytes, the columns interleaved; weights likewise by filters of a tile."""

    stored: ClassVar[str] = "int8"

    @property
    def buffer(self) -> tuple[str, int]:
        return "int8", 4 * self.positions * self.slots

    def put(self, buffer: Any, place: Expr, position: Expr, value: Expr) -> None:
        if not self.whole:
            T.buffer_store(buffer, value, [place * self.positions + position])
            return
        at = bind(place * (4 * self.positions) + position)
        for i in range(4):
            byte = T.Cast("int8", tirx.shift_right(value, tirx.const(8 * i, "int32")))
            T.buffer_store(buffer, byte, [at + i * self.positions])

    def pack(self, weights: np.ndarray) -> np.ndarray:
        rows = weights.reshape(-1, self.filters, 4 * self.slots)
        return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)

    def multiply(self, sums: Any, first: int, weights: Any, tile: Expr, buffer: Any) -> None:
        base = bind(tile * (4 * self.slots * self.filters))
        with loop(4 * self.slots) as k:
            x = [bind(_wide(buffer[k * self.positions + p])) for p in range(self.positions)]
            for f in range(self.filters):
                w = bind(_wide(weights[base + k * self.filters + f]))
                for p in range(self.positions):
                    at = p * TILE + first + f
                    T.buffer_store(sums, sums[at] + w * x[p], [at])


@dataclass(frozen=True)
class UpperByteColumns(ByteColumns):
    """Bytes of two positions on Armv6-M, where LLVM's own loop keeps its sums on the stack."""

    @property
    def routines(self) -> tuple[Routine, ...]:
        return (columns_arm.single_bytes(),)

    def multiply(self, sums: Any, first: int, weights: Any, tile: Expr, buffer: Any) -> None:
        count = 8 * self.slots
        at = bind(tile * count)
        places = (
            T.address_of(place) for place in (sums[first], weights[at + count], buffer[count])
        )
        self.routines[0].call(*places, tirx.const(-count, "int32"))


NARROW = "columns suit a processor without wide vectors better"
"""Why other families of integer kernels refuse."""


def is_narrow(target: Target) -> bool:
    """Whether columns are how a processor should compute integer products."""
    return target.arch == "thumb" or target.vector_bits <= 32


def unrolls(target: Target) -> tuple[int, ...]:
    """Slots per iteration of inner loops that are worth a try, best first."""
    return {"size": (1,), "balanced": (4, 2, 1), "speed": (16, 8, 4, 2, 1)}[target.optimize]


def columns_for(target: Target, slots: int, positions: int, *, whole: bool, unroll: int) -> Columns:
    """The columns that suit a processor that ``is_narrow``."""
    kind: type[Columns] = ByteColumns
    if target.arch == "thumb" and target.has("mve"):
        kind = VectorColumns
    elif target.arch == "thumb" and target.has("dsp"):
        kind = PairColumns
    elif target.arch == "thumb" and positions == 2:
        kind = UpperByteColumns
    return kind(slots, positions, whole, unroll)


def _interleaved(weights: np.ndarray, filters: int) -> np.ndarray:
    """int8 ``[rows, slots, 4]`` as int32 ``[rows / filters][slots][filters]``."""
    words = np.ascontiguousarray(weights).view(np.int32)[..., 0]
    tiled = words.reshape(-1, filters, words.shape[1])
    return np.ascontiguousarray(tiled.swapaxes(1, 2)).reshape(-1)


def _wide(x: Expr) -> Expr:
    return T.Cast("int32", x)
