"""The kinds of ``columns``: what suits which processor.

* ``PairColumns``: Cortex-M with the DSP extension. Activations are widened to 16 bits once;
  ``smlad`` multiplies pairs; weights are widened in registers by ``sxtb16``.
* ``VectorColumns``: Cortex-M with MVE; ``vmladava`` adds up sixteen products of bytes.
* ``ByteColumns``: any processor, one product at a time; ``UpperByteColumns`` on Armv6-M.

Each has its own form of lists of slots.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import columns_arm, columns_armv6, columns_helium, window_arm
from effc.kernels.builder import T, bind, loop
from effc.kernels.columns import SLOT, TILE, Columns, Distances, Instructions, int16
from effc.kernels.inline_assembly import Routine

__all__ = ["AssembledColumns", "PairColumns", "VectorColumns", "columns_for"]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class AssembledColumns(Columns):
    """Columns that are filled and multiplied by assembly, with weights in words."""

    @abstractmethod
    def window(self, words: Distances, left: Distances, *, unsigned: bool) -> Routine:
        """Assembly that fills a column of ``whole`` slots from bytes at known distances.

        Operands: the first byte, and ``buffer[self.start(position)]``.

        Args:
            words, left: Distances of words, and of single bytes behind them.
            unsigned: Whether 128 is taken off every byte.
        """

    @abstractmethod
    def start(self, position: Expr) -> Expr:
        """Where in the buffer a column of ``whole`` slots begins, for ``window``."""

    def multiply(self, sums: Any, first: int, weights: Any, tile: Expr, buffer: Any) -> None:
        at = bind(tile * (self.slots * self.filters))
        places = (T.address_of(place) for place in (sums[first], weights[at], buffer[0]))
        self.routines[0].call(*places)

    def multiply_listed(
        self, sums: Any, first: int, kept: tuple[Any, Expr], buffer: Any, list_: tuple[Any, ...]
    ) -> None:
        """See :meth:`Columns.multiply_listed`."""
        weights, at = kept
        entries, begin, count = list_
        places = sums[first], weights[at], buffer[0], entries[begin]
        self.listed_routines[0].call(*(T.address_of(place) for place in places), count)


@dataclass(frozen=True)
class PairColumns(AssembledColumns):
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

    @property
    def listed_routines(self) -> tuple[Routine, ...]:
        return (columns_arm.pairs_listed(self.positions, min(self.unroll, 2)),)

    @property
    def slot_step(self) -> int:
        """Bytes."""
        return 8 * self.positions

    @property
    def instructions(self) -> Instructions:
        """See :attr:`Columns.instructions`."""
        slot = 15 if self.positions == 2 else 19
        return Instructions(slot + 2 / self.unroll, slot + 2 + 2 / min(self.unroll, 2), 8)

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

    def entries(self, slots: np.ndarray) -> np.ndarray:
        """Bytes to go on from slot to slot."""
        return int16(np.diff(slots, prepend=0) * self.slot_step)


@dataclass(frozen=True)
class VectorColumns(AssembledColumns):
    """Bytes, one column after the other; weights one filter after the other.

    Weights of listed slots lie four slots of one filter after the other. Lists are numbers of
    slots, filled up with slots without weights.

    Attributes:
        aligned: Whether columns are whole vectors; weights behind their end must be 0.
    """

    aligned: bool = False

    @property
    def pitch(self) -> int:
        """Words from one column to the next."""
        quads = columns_helium.QUADS
        return -(-self.slots // quads) * quads if self.aligned else self.slots

    @property
    def buffer(self) -> tuple[str, int]:
        words = self.positions * self.pitch
        return ("int32", words) if self.whole else ("int8", 4 * words)

    @property
    def routines(self) -> tuple[Routine, ...]:
        return (columns_helium.vectors(self.positions, 4 * self.slots),)

    @property
    def listed_routines(self) -> tuple[Routine, ...]:
        return (columns_helium.vectors_listed(self.positions, 4 * self.pitch),)

    @property
    def slot_step(self) -> int:
        return 1

    @property
    def instructions(self) -> Instructions:
        """See :attr:`Columns.instructions`."""
        quads = columns_helium.QUADS
        vector = 9 if self.positions == 2 else 10
        unused = (vector + 1) * (quads - 1) / 2 / quads  # of a list's last vector
        return Instructions(vector / quads, (vector + 1) / quads, unused + 4)

    def put(self, buffer: Any, place: Expr, position: Expr, value: Expr) -> None:
        pitch = self.pitch if self.whole else 4 * self.pitch
        T.buffer_store(buffer, value, [position * pitch + place])

    def window(self, words: Distances, left: Distances, *, unsigned: bool) -> Routine:
        return window_arm.bytes_of_window(words, left, unsigned)

    def start(self, position: Expr) -> Expr:
        return position * self.pitch

    def pack(self, weights: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(weights).view(np.int32).reshape(-1)

    def entries(self, slots: np.ndarray) -> np.ndarray:
        """Numbers of slots."""
        return int16(np.pad(slots, (0, -len(slots) % columns_helium.QUADS)))

    def pack_listed(self, weights: np.ndarray) -> np.ndarray:
        """See :meth:`Columns.pack_listed`."""
        quads = columns_helium.QUADS
        padded = np.pad(weights, [(0, 0), (0, -weights.shape[1] % quads), (0, 0)])
        words = np.ascontiguousarray(padded).view(np.int32)
        tiles = words.reshape(-1, self.filters, padded.shape[1] // quads, quads)
        return np.ascontiguousarray(tiles.swapaxes(1, 2)).reshape(-1)


@dataclass(frozen=True)
class ByteColumns(Columns):
    """Bytes, the columns interleaved; weights likewise by filters of a tile."""

    stored: ClassVar[str] = "int8"

    @property
    def buffer(self) -> tuple[str, int]:
        return "int8", 4 * self.positions * self.slots

    @property
    def instructions(self) -> Instructions:
        """See :attr:`Columns.instructions`."""
        slot = 48.0 if self.positions == 2 else 52.0
        overhead = 3 if self.unroll > 1 else 12
        return Instructions(slot + overhead, slot + overhead + 2, 8)

    def put(self, buffer: Any, place: Expr, position: Expr, value: Expr) -> None:
        if not self.whole:
            T.buffer_store(buffer, value, [place * self.positions + position])
            return
        at = bind(place * (4 * self.positions) + position)
        for i in range(4):
            byte = T.Cast("int8", tirx.shift_right(value, tirx.const(8 * i, "int32")))
            T.buffer_store(buffer, byte, [at + i * self.positions])

    def pack(self, weights: np.ndarray) -> np.ndarray:
        rows = weights.reshape(-1, self.filters, SLOT * weights.shape[1])
        return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)

    def multiply(self, sums: Any, first: int, weights: Any, tile: Expr, buffer: Any) -> None:
        base = bind(tile * (SLOT * self.slots * self.filters))
        step = SLOT if self.unroll > 1 else 1
        with loop(SLOT * self.slots // step) as group:
            for i in range(step):
                k = group if step == 1 else bind(group * step + i)
                self._element(sums, first, (weights, base + k * self.filters), buffer, k)

    def multiply_listed(
        self, sums: Any, first: int, kept: tuple[Any, Expr], buffer: Any, list_: tuple[Any, ...]
    ) -> None:
        """See :meth:`Columns.multiply_listed`."""
        weights, base = kept
        entries, begin, count = list_
        per = SLOT * self.filters
        with loop(count) as entry:
            place = bind(_wide(entries[begin + entry]))
            at = bind(base + entry * per)

            def element(k: Expr) -> None:
                self._element(sums, first, (weights, at + k * self.filters), buffer, place + k)

            if self.unroll > 1:
                for k in range(SLOT):
                    element(k)
            else:
                with loop(SLOT) as k:
                    element(k)

    def _element(
        self, sums: Any, first: int, weights: tuple[Any, Expr], buffer: Any, place: Expr
    ) -> None:
        """Products of one element of the reduction."""
        w, at = weights
        x = [bind(_wide(buffer[place * self.positions + p])) for p in range(self.positions)]
        for f in range(self.filters):
            factor = bind(_wide(w[at + f]))
            for p in range(self.positions):
                total = p * TILE + first + f
                T.buffer_store(sums, sums[total] + factor * x[p], [total])


@dataclass(frozen=True)
class UpperByteColumns(ByteColumns):
    """Bytes of two positions on Armv6-M, where LLVM's own loop keeps its sums on the stack."""

    @property
    def routines(self) -> tuple[Routine, ...]:
        return (columns_armv6.single_bytes(),)

    @property
    def listed_routines(self) -> tuple[Routine, ...]:
        return (columns_armv6.bytes_listed(),)

    @property
    def instructions(self) -> Instructions:
        """See :attr:`Columns.instructions`."""
        return Instructions(64, 65, 8)

    def multiply(self, sums: Any, first: int, weights: Any, tile: Expr, buffer: Any) -> None:
        count = 8 * self.slots
        at = bind(tile * count)
        places = (
            T.address_of(place) for place in (sums[first], weights[at + count], buffer[count])
        )
        self.routines[0].call(*places, tirx.const(-count, "int32"))

    @property
    def slot_step(self) -> int:
        """Bytes."""
        return SLOT * self.positions

    def entries(self, slots: np.ndarray) -> np.ndarray:
        """Bytes from the end of a slot to the next one."""
        return int16((np.diff(slots, prepend=-1) - 1) * self.slot_step)

    def multiply_listed(
        self, sums: Any, first: int, kept: tuple[Any, Expr], buffer: Any, list_: tuple[Any, ...]
    ) -> None:
        """See :meth:`Columns.multiply_listed`."""
        weights, at = kept
        entries, begin, count = list_
        places = sums[first], weights[at], buffer[0], entries[begin], entries[begin + count]
        self.listed_routines[0].call(*(T.address_of(place) for place in places))


def columns_for(target: Target, slots: int, positions: int, *, whole: bool, unroll: int) -> Columns:
    """The columns that suit a processor that ``is_narrow``.

    C compilers unroll by themselves.
    """
    if target.arch == "c":
        unroll = 1
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
