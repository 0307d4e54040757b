"""The products of a convolution by columns: all of them, or those of a list of kept weights.

A list belongs to ``rows`` filters (block-punched pruning, ``sparsity``): the slots in which any of
them has a non-zero. All tiles of the ``rows`` filters walk the same list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.kernels.builder import T, bind, loop
from effc.kernels.columns import LIST_REACH, TILE, Columns
from effc.kernels.inline_assembly import Routine

__all__ = ["LIST_OVERHEAD", "AllProducts", "KeptProducts", "Products", "kept_slots", "lists_reach"]

Expr = Any  # tvm.tirx expressions have no useful static types


def lists_reach(columns: Columns) -> str | None:
    """Why lists cannot name all slots of columns, or ``None``."""
    if columns.slots * columns.slot_step <= LIST_REACH:
        return None
    return f"lists do not reach {columns.slots} slots"


def kept_slots(weights: np.ndarray, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per ``rows`` filters: the slots that any of them keeps, and their weights.

    There is at least one slot, if only with zeros. Filters that do not exist have zeros.

    Args:
        weights: int8 ``[filters, slots, 4]``.
        rows: Filters.

    Yields:
        int64 ``[kept]`` in ascending order, int8 ``[rows, kept, 4]``.
    """
    padded = np.pad(weights, [(0, -len(weights) % rows), (0, 0), (0, 0)])
    for filters in padded.reshape(-1, rows, *weights.shape[1:]):
        kept = np.flatnonzero(filters.any(axis=(0, 2)))
        kept = kept if kept.size else np.zeros(1, np.int64)
        yield kept, filters[:, kept]


LIST_OVERHEAD = 32
"""Instructions per quad of filters and tile of positions that ``KeptProducts`` take to find a list
(measured)."""


class Products(ABC):
    """What a tile of filters adds up.

    Attributes:
        weights: Constants of the stage, by name.
        quads: Quads of filters whose tiles share what ``begin`` finds.
    """

    weights: dict[str, np.ndarray]
    quads: int = 1

    @property
    @abstractmethod
    def routines(self) -> tuple[Routine, ...]:
        """Assembly that ``multiply`` calls."""

    def begin(self, block: Expr, constants: list[Any]) -> list[Expr]:
        """What the tiles of block number ``block`` of ``quads`` share, bound.

        Args:
            constants: Buffers of ``weights``, in order.
        """
        return [block]

    def each_quad(
        self,
        first: Expr,
        total: int,
        constants: list[Any],
        body: Callable[[Expr, Expr, list[Expr]], None],
    ) -> None:
        """Go through ``total`` quads of filters from ``first`` on, where a block begins.

        Args:
            constants: Buffers of ``weights``, in order.
            body: Gets the quad's number, its number in its block, and what the block shares.
        """
        if self.quads == 1:
            with loop(total) as number:
                quad = bind(first + number)
                body(quad, T.int32(0), self.begin(quad, constants))
            return
        with loop(-(-total // self.quads)) as block:
            shared = self.begin(block, constants)
            count: Expr = self.quads
            if total % self.quads:
                count = bind(tirx.Min(T.int32(self.quads), total - block * self.quads))
            with loop(count) as number:
                body(bind(block * self.quads + number), number, shared)

    @abstractmethod
    def multiply(
        self,
        sums: Any,
        first: int,
        tile: Expr,
        shared: list[Expr],
        constants: list[Any],
        columns: Any,
    ) -> None:
        """Add a tile's products to its sums, see ``Columns.multiply``.

        Args:
            tile: Number of the tile in its block.
            shared: What ``begin`` found.
            constants: Buffers of ``weights``, in order.
            columns: Buffer of the columns.
        """


@dataclass(frozen=True)
class AllProducts(Products):
    """Every slot."""

    columns: Columns
    packed: np.ndarray

    @property
    def weights(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        return {"w": self.packed}

    @property
    def routines(self) -> tuple[Routine, ...]:
        return self.columns.routines

    def multiply(
        self,
        sums: Any,
        first: int,
        tile: Expr,
        shared: list[Expr],
        constants: list[Any],
        columns: Any,
    ) -> None:
        number = bind(shared[0] * self.columns.positions + tile)
        self.columns.multiply(sums, first, constants[0], number, columns)


class KeptProducts(Products):
    """Listed slots.

    Args:
        columns: The columns.
        weights: int8 ``[filters, slots, 4]``.
        rows: Filters that share a list, a multiple of 4.
    """

    def __init__(self, columns: Columns, weights: np.ndarray, rows: int) -> None:
        lists, values, starts = [], [], [0]
        for slots, kept in kept_slots(weights, rows):
            lists.append(columns.entries(slots))
            values.append(columns.pack_listed(kept))
            starts.append(starts[-1] + len(lists[-1]))
        self.columns, self.quads = columns, rows // TILE
        stored = np.concatenate(values)
        self._slot = stored.size // (starts[-1] * self.quads * columns.positions)
        self.weights = {
            "w": stored,
            "list": np.concatenate(lists),
            "starts": np.array(starts, np.int32),
        }

    @property
    def routines(self) -> tuple[Routine, ...]:
        return self.columns.listed_routines

    def begin(self, block: Expr, constants: list[Any]) -> list[Expr]:
        """Where the list begins, how long it is, and where its weights begin."""
        starts = constants[2]
        first = bind(starts[block])
        block_slot = self._slot * self.quads * self.columns.positions
        return [first, bind(starts[block + 1] - first), bind(first * block_slot)]

    def multiply(
        self,
        sums: Any,
        first: int,
        tile: Expr,
        shared: list[Expr],
        constants: list[Any],
        columns: Any,
    ) -> None:
        w, entries, _ = constants
        begin, count, weights = shared
        kept = bind(weights + tile * count * self._slot)
        self.columns.multiply_listed(sums, first, (w, kept), columns, (entries, begin, count))
