"""Sums of float16 products: partial sums in float16, their total in float32.

A rounding error of a sum is proportional to the sum so far, so a sum of ``K`` terms in 11 bits has
an error of about ``2^-12 sqrt(K / 2)`` of its size. Summed in parts of ``b`` terms that are added
up in float32, the error falls to ``2^-12 sqrt(b / 2)``: the parts are small (Blanchard, Higham,
Mary: A class of fast and accurate summation algorithms, SISC 2020). A part costs seven instructions
per vector of eight results, besides its ``b`` multiply-adds.

Sums of no more than ``b`` terms stay in float16 altogether. The bias comes as two float16 numbers,
its rounded value and what that leaves; the smaller one is where the sum begins, the larger one is
added last, so that no partial sum is rounded to its precision.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.arithmetic import FLOAT32, Float16
from effc.kernels.builder import bind, splat, vload
from effc.kernels.register_tile import (
    Accumulators,
    Dense,
    Operand,
    Reduction,
    Tile,
    contract,
)

__all__ = ["Bias", "half_sums", "split_bias", "tile_bias"]

Expr = Any
Bias = Callable[[int, int, int], Expr]
"""Of (row, vector, part): the vector of the bias, part 0 the large and 1 the small one."""


def split_bias(bias: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A float32 bias as two float16 ones, ``[2, size]``, whose sum it is to 22 bits."""
    large = bias.astype(np.float16)
    small = (bias - large.astype(np.float32)).astype(np.float16)
    return np.stack([large, small])


def tile_bias(
    buffer: Any, tile: Tile, channel: Expr, channels: int, *, along_space: bool
) -> Bias | None:
    """The bias of a register tile of filters.

    Args:
        buffer: ``split_bias`` of all filters; ``None`` if there is none.
        tile: Its rows are the filters if vectors run along space, otherwise its columns.
        channel: First filter.
        channels: Filters of the whole convolution.
        along_space: What vectors run along.
    """

    def bias(i: int, v: int, part: int) -> Expr:
        start, lanes = tile.vectors[v]
        if along_space:
            return splat(bind(buffer[channel + (i + part * channels)]), lanes)
        return vload(buffer, channel + (start + part * channels), lanes)

    return None if buffer is None else bias


def half_sums(
    tile: Tile,
    reduction: Reduction,
    broadcast: Operand,
    vectors: Operand,
    target: Target,
    arithmetic: Float16,
    bias: Bias | None,
    store: Callable[[int, int, Expr], None],
) -> None:
    """``store(row, vector, float16 result)`` for the results of a register tile.

    Args:
        tile, reduction, broadcast, vectors, target: As for ``contract``.
        arithmetic: Says how long a partial sum is.
        bias: What is added, if anything.
        store: Takes the results.
    """
    places = list(product(range(tile.rows), range(len(tile.widths))))
    acc = Accumulators(tile, arithmetic)

    def multiply(part: Reduction) -> None:
        contract(acc, part, broadcast, vectors, target, arithmetic)

    if isinstance(reduction, Dense) and reduction.count <= arithmetic.terms:
        for i, v in places:
            acc.set(i, v, _zero(tile.widths[v]) if bias is None else bias(i, v, 1))
        multiply(reduction)
        for i, v in places:
            value = acc.get(i, v)
            store(i, v, value if bias is None else value + bias(i, v, 0))
        return
    totals = Accumulators(tile, FLOAT32)  # too many for registers: on the stack
    for i, v in places:
        start = splat(tirx.const(0, "float32"), tile.widths[v])
        if bias is not None:
            start = vm.cast(bias(i, v, 0), "float32") + vm.cast(bias(i, v, 1), "float32")
        totals.set(i, v, start)

    def add(part: Reduction) -> None:
        for i, v in places:
            acc.set(i, v, _zero(tile.widths[v]))
        multiply(part)
        for i, v in places:
            totals.set(i, v, totals.get(i, v) + vm.cast(acc.get(i, v), "float32"))

    reduction.parts(arithmetic.terms, add)
    for i, v in places:
        store(i, v, bind(vm.cast(totals.get(i, v), "float16")))


def _zero(lanes: int) -> Expr:
    return splat(tirx.const(0, "float16"), lanes)
