"""Columns: how processors without wide vectors add up products.

The inputs of one or two output positions (the columns of an implicit matrix product) are brought
into a small buffer, in the form that the processor's multiplications want, and used for all
filters. That is CMSIS-NN's method (Lai, Suda, Chandra 2018): a tile is four sums, two filters by
two positions, or four filters at a single position, so that every load serves two products.

The reduction is cut into *slots* of four 8-bit elements (``column_order``): a quad of channels at
one kernel tap, or any four elements that follow each other where that is not to be had. Weights lie
``[filters / tile][slot][filter of the tile]`` or as the processor's loads want them.

Products are over all slots, or over a list of those that a tile's filters keep
(``column_products``). What suits which processor: ``column_kinds``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import local, vload, vstore
from effc.kernels.inline_assembly import Routine

__all__ = [
    "LIST_REACH",
    "NARROW",
    "SLOT",
    "TILE",
    "Columns",
    "Distances",
    "Instructions",
    "int16",
    "is_narrow",
    "unrolls",
]

Distances = tuple[int, ...]
Expr = Any  # tvm.tirx expressions have no useful static types

TILE = 4
"""Sums of a tile."""
SLOT = 4
"""Elements of a slot."""


class Instructions(NamedTuple):
    """Instructions of a tile: per slot, per listed slot, and per list beside its slots."""

    slot: float
    listed: float
    list: float


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

    @property
    def listed_routines(self) -> tuple[Routine, ...]:
        """Assembly that ``multiply_listed`` calls."""
        return ()

    @property
    def slot_step(self) -> int:
        """What lists count from a slot to the next one."""
        return SLOT

    @property
    @abstractmethod
    def instructions(self) -> Instructions:
        """Of a tile's products, for predictions."""

    def predicted(self, share: float | None = None, overhead: float = 0.0) -> float:
        """Instructions of a tile's products: over all slots, or a list of that share of them.

        Args:
            share: Of the slots, at least one of them; ``None``: all, without a list.
            overhead: What lists of all tiles of a quad cost beside that.
        """
        costs = self.instructions
        if share is None:
            return costs.slot * self.slots
        kept = max(share * self.slots, 1)
        return costs.listed * kept + costs.list + overhead / self.positions

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

    def entries(self, slots: np.ndarray) -> np.ndarray:
        """A list of slots as ``multiply_listed`` reads it, int16.

        Args:
            slots: Numbers in ascending order, at least one.
        """
        return int16(slots * self.slot_step)

    def pack_listed(self, weights: np.ndarray) -> np.ndarray:
        """Weights of listed slots as the products read them: ``stored``, per entry and tile one
        slot of all filters.

        Args:
            weights: int8 ``[filters, listed slots, 4]``, a multiple of ``TILE`` filters.
        """
        return self.pack(weights)

    @abstractmethod
    def multiply_listed(
        self, sums: Any, first: int, kept: tuple[Any, Expr], buffer: Any, list_: tuple[Any, ...]
    ) -> None:
        """As ``multiply``, over listed slots.

        Args:
            kept: Buffer of ``pack_listed``, and where the tile's weights begin.
            list_: Buffer of ``entries``, where the list begins, and its length.
        """

    def fill(self, zero: int) -> Expr:
        """What padding consists of, as a value for ``put``."""
        if not self.whole:
            return tirx.const(zero, "int8")
        quad = np.array([zero] * 4, np.int8).view(np.int32)[0]
        cell = local(1, "int32")  # TVM's folding of shifts takes no overflow
        vstore(cell, 0, tirx.const(int(quad), "int32"), 1)
        return vload(cell, 0, 1)


NARROW = "columns suit a processor without wide vectors better"
"""Why other families of integer kernels refuse."""


def is_narrow(target: Target) -> bool:
    """Whether columns are how a processor should compute integer products."""
    return target.arch == "thumb" or target.vector_bits <= 32


def unrolls(target: Target) -> tuple[int, ...]:
    """Slots per iteration of inner loops that are worth a try, best first."""
    return {"size": (1,), "balanced": (4, 2, 1), "speed": (16, 8, 4, 2, 1)}[target.optimize]


LIST_REACH = 32767
"""Of lists, in ``Columns.slot_step``."""


def int16(values: np.ndarray) -> np.ndarray:
    """As int16, which must hold them."""
    found = values.astype(np.int16)
    assert np.array_equal(found, values)
    return found
