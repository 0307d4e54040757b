"""The products of a convolution by columns: all of them, or those of a list of kept weights.

A list belongs to ``rows`` filters (block-punched pruning, ``sparsity``): the slots in which any of
them has a non-zero. The list holds how far to go on in the columns from slot to slot, so
a tile walks it with one addition per slot. All pairs of the ``rows`` filters walk the same list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from effc.kernels import columns_arm
from effc.kernels.builder import T, bind
from effc.kernels.columns import Columns, PairColumns
from effc.kernels.conv_shape import ConvShape
from effc.kernels.inline_assembly import Routine
from effc.kernels.sparse_pack import pack_tiles

__all__ = ["AllProducts", "KeptProducts", "Products"]

Expr = Any  # tvm.tirx expressions have no useful static types

_SLOT = 16
"""Bytes of a slot in the columns of two positions."""


class Products(ABC):
    """What a tile of filters adds up.

    Attributes:
        weights: Constants of the stage, by name.
    """

    weights: dict[str, np.ndarray]

    @property
    @abstractmethod
    def routines(self) -> tuple[Routine, ...]:
        """Assembly that ``multiply`` calls."""

    @abstractmethod
    def multiply(
        self, sums: Any, first: int, tile: Expr, constants: list[Any], columns: Any
    ) -> None:
        """Add a tile's products to its sums, see ``Columns.multiply``.

        Args:
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
        self, sums: Any, first: int, tile: Expr, constants: list[Any], columns: Any
    ) -> None:
        self.columns.multiply(sums, first, constants[0], tile, columns)


class KeptProducts(Products):
    """Listed slots, of pairs of filters (``PairColumns`` of two positions).

    Args:
        columns: The columns.
        shape: In quads; a single group.
        quads: Weights, int32 ``[cout, cin, *kernel]``.
        rows: Filters that share a list: 2, or a multiple of 4.
    """

    def __init__(
        self, columns: PairColumns, shape: ConvShape, quads: np.ndarray, rows: int
    ) -> None:
        filters = quads.reshape(1, shape.cout, shape.cin, prod(shape.kernel))
        packed = pack_tiles(filters, rows, 1)
        width = shape.kernel[-1]
        slots = (packed.taps // width * shape.cin + packed.channels) * width + packed.taps % width
        lists, values, starts = [], [], [0]
        for begin, end in zip(packed.starts[:-1], packed.starts[1:], strict=True):
            order = begin + np.argsort(slots[begin:end])
            kept = slots[order] if order.size else np.zeros(1, np.int64)
            pairs = packed.values[order, 0] if order.size else np.zeros((1, rows), np.int32)
            lists.append(np.diff(kept, prepend=0) * _SLOT)
            values.append(pairs.reshape(-1, rows // 2, 2).swapaxes(0, 1).reshape(-1))
            starts.append(starts[-1] + len(kept))
        self._pairs = rows // 2
        self.weights = {
            "w": np.concatenate(values),
            "list": np.concatenate(lists).astype(np.int16),
            "starts": np.array(starts, np.int32),
        }

    @property
    def routines(self) -> tuple[Routine, ...]:
        return (columns_arm.pairs_listed(),)

    def multiply(
        self, sums: Any, first: int, tile: Expr, constants: list[Any], columns: Any
    ) -> None:
        w, steps, starts = constants
        number = bind(tile // self._pairs)
        begin = bind(starts[number])
        count = bind(starts[number + 1] - begin)
        kept = bind(begin * (2 * self._pairs) + (tile - number * self._pairs) * count * 2)
        places = (sums[first], w[kept], columns[0], steps[begin])
        self.routines[0].call(*(T.address_of(place) for place in places), count)
