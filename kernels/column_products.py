"""The products of a convolution by columns: all of them, or those of a list of kept weights.

A list belongs to ``rows`` filters (block-punched pruning, ``sparsity``): the slots in which any of
them has a non-zero. The list holds how far to go on in the columns from slot to slot, so
a tile walks it with one addition per slot. All pairs of the ``rows`` filters walk the same list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from effc.kernels import columns_arm
from effc.kernels.builder import T, bind
from effc.kernels.columns import TILE, Columns, PairColumns
from effc.kernels.conv_shape import ConvShape
from effc.kernels.inline_assembly import Routine
from effc.kernels.sparse_pack import pack_tiles

__all__ = ["SLOT_BYTES", "AllProducts", "KeptProducts", "Products", "kept_slots"]

Expr = Any  # tvm.tirx expressions have no useful static types

SLOT_BYTES = 16
"""Of a slot in the columns of two positions."""


def kept_slots(
    shape: ConvShape, quads: np.ndarray, rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per ``rows`` filters: the slots that any of them keeps, and their weights.

    There is at least one slot, if only with zeros.

    Args:
        shape: In quads; a single group.
        quads: Weights, int32 ``[cout, cin, *kernel]``.
        rows: An even number.

    Yields:
        int64 ``[slots]`` in ascending order, int32 ``[rows / 2, slots, 2]``.
    """
    filters = quads.reshape(1, shape.cout, shape.cin, prod(shape.kernel))
    packed = pack_tiles(filters, rows, 1)
    width = shape.kernel[-1]
    slots = (packed.taps // width * shape.cin + packed.channels) * width + packed.taps % width
    for begin, end in pairwise(packed.starts):
        order = begin + np.argsort(slots[begin:end])
        kept, words = slots[order], packed.values[order, 0]
        if not order.size:
            kept, words = np.zeros(1, np.int64), np.zeros((1, rows), np.int32)
        yield kept.astype(np.int64), words.reshape(-1, rows // 2, 2).swapaxes(0, 1)


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
    """Listed slots, of pairs of filters (``PairColumns`` of two positions).

    Args:
        columns: The columns.
        shape: In quads; a single group.
        quads: Weights, int32 ``[cout, cin, *kernel]``.
        rows: Filters that share a list, a multiple of 4.
        unroll: Slots per iteration of the inner loop, 1 or 2.
    """

    def __init__(
        self, columns: PairColumns, shape: ConvShape, quads: np.ndarray, rows: int, unroll: int
    ) -> None:
        lists, values, starts = [], [], [0]
        for slots, words in kept_slots(shape, quads, rows):
            lists.append(np.diff(slots, prepend=0) * SLOT_BYTES)
            values.append(words.reshape(-1))
            starts.append(starts[-1] + len(slots))
        self._pairs, self._unroll, self.quads = rows // 2, unroll, rows // TILE
        self.weights = {
            "w": np.concatenate(values),
            "list": np.concatenate(lists).astype(np.int16),
            "starts": np.array(starts, np.int32),
        }

    @property
    def routines(self) -> tuple[Routine, ...]:
        return (columns_arm.pairs_listed(self._unroll),)

    def begin(self, block: Expr, constants: list[Any]) -> list[Expr]:
        """Where the list begins, how long it is, and where its weights begin."""
        starts = constants[2]
        first = bind(starts[block])
        return [first, bind(starts[block + 1] - first), bind(first * (2 * self._pairs))]

    def multiply(
        self,
        sums: Any,
        first: int,
        tile: Expr,
        shared: list[Expr],
        constants: list[Any],
        columns: Any,
    ) -> None:
        w, steps, _ = constants
        begin, count, weights = shared
        kept = bind(weights + tile * count * 2)
        places = (sums[first], w[kept], columns[0], steps[begin])
        self.routines[0].call(*(T.address_of(place) for place in places), count)
