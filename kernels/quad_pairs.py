"""Products of 8-bit convolutions with Arm's matrix multiply instruction (Armv8.6 FEAT_I8MM).

``smmla`` adds the product of two filters and two positions over eight channels to four sums::

    acc[2*f + p] += sum over c < 8 of w[f][c] * x[p][c]

Two quads of one position are such eight channels: so the reduction takes two steps at once, as
``zip1`` and ``zip2`` put two vectors of quads side by side, and weights are packed accordingly.
A tile has as many accumulators as without it; within the reduction rows ``2i`` and ``2i + 1``
are kept as the squares that the instruction wants, and half as many instructions do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.arithmetic import Arithmetic
from effc.kernels.builder import T, bind, vload
from effc.kernels.conv_pack import pack_weights
from effc.kernels.conv_shape import ConvShape, Source
from effc.kernels.lanes import concat, load_partial
from effc.kernels.quad_arithmetic import Quads
from effc.kernels.register_tile import Accumulators, Dense, Operand

__all__ = [
    "PairedQuads",
    "as_bytes",
    "contract_pairs",
    "has_pairs",
    "multiply_add_squares",
    "pack_pairs",
    "paired",
    "to_squares",
    "whole_pairs",
]

Expr = Any  # tvm.tirx expressions have no useful static types

_LANES = 4
_FEWEST_POSITIONS = 3  # with fewer at least half of every product is idle


@dataclass(frozen=True)
class PairedQuads(Quads):
    """Quads of which the reduction takes two at once; weights lie as ``pack_pairs`` says."""

    steps: ClassVar[int] = 2


def has_pairs(arithmetic: Quads, target: Target) -> bool:
    """Whether the instruction is there, in all versions: they share packed weights."""
    return arithmetic.signed and target.arch == "aarch64" and target.promises("i8mm")


def paired(arithmetic: Arithmetic, reduction: int, positions: int, target: Target) -> Arithmetic:
    """The arithmetic with pairs of quads where that is worth it, otherwise itself.

    Args:
        arithmetic: Of a convolution.
        reduction: Its reduction steps.
        positions: Output positions of an image.
        target: Has to promise the instruction.
    """
    if (
        isinstance(arithmetic, Quads)
        and has_pairs(arithmetic, target)
        and reduction > 1
        and positions >= _FEWEST_POSITIONS
    ):
        return PairedQuads(arithmetic.zero_point, arithmetic.signed, arithmetic.narrow)
    return arithmetic


def whole_pairs(shape: ConvShape, source: Source, block: int) -> bool:
    """Whether passes over ``block`` channels have whole pairs of steps; a single one need not."""
    return block == shape.cin or block * len(source.taps) % 2 == 0


def pack_pairs(weight: np.ndarray, groups: int, tile: int) -> np.ndarray:
    """As ``pack_weights``, in tiles ``[reduction / 2][tile / 2][2 filters][2 steps]``.

    Args:
        weight: int32 quads ``[groups*cout, cin, *kernel]``, ``cout`` even. A step that an odd
            reduction lacks is 0.
        groups: Groups of filters.
        tile: Filters of a tile, even.
    """
    matrix = weight.reshape(weight.shape[0], -1)
    matrix = np.pad(matrix, [(0, 0), (0, matrix.shape[1] % 2)])
    # Two filters and two steps become one element of 16 bytes, which is packed as any other.
    squares = matrix.reshape(len(matrix) // 2, 2, -1, 2).transpose(0, 2, 1, 3)
    elements = np.ascontiguousarray(squares).reshape(*squares.shape[:2], 4).view("V16")[..., 0]
    return pack_weights(elements, groups, tile // 2).view(weight.dtype)


def contract_pairs(
    acc: Accumulators, reduction: Dense, weights: Operand, positions: Operand
) -> None:
    """Add the product of weights (rows) and positions (vectors) to the accumulators."""
    tile = acc.tile

    def activations(offset: Expr, start: int, valid: int) -> Expr:
        zero = T.int32(0)
        return bind(load_partial(positions.buffer, offset + start, valid, _LANES, zero))

    def step(w_offset: Expr, first: Expr, second: Expr) -> None:
        squares = []
        for start, valid in tile.vectors:
            both = [activations(at, start, valid) for at in (first, second)]
            squares.append([as_bytes(half) for half in _zip_quads(*both)])
        for i in range(0, tile.rows, 2):
            filters = as_bytes(bind(vload(weights.buffer, w_offset + 2 * i, _LANES)))
            for v, halves in enumerate(squares):
                for j, x in enumerate(halves):
                    acc.set(i + j, v, multiply_add_squares(acc.get(i + j, v), filters, x))

    def pair(w_offset: Expr, first: Expr) -> None:
        step(w_offset, first, first + positions.step)

    _turn(acc)
    pairs, odd = divmod(reduction.count, 2)
    doubled = [replace(o, step=2 * o.step) for o in (weights, positions)]
    Dense(pairs, max(reduction.unroll // 2, 1)).emit(pair, *doubled)
    if odd:  # the other step's weights are 0
        last = bind(positions.base + 2 * pairs * positions.step)
        step(weights.base + 2 * pairs * weights.step, last, last)
    _turn(acc)


def _turn(acc: Accumulators) -> None:
    """Two rows of four positions to two squares of two rows and positions, or back."""
    for i in range(0, acc.tile.rows, 2):
        for v in range(len(acc.lanes)):
            rows = [bind(acc.get(i + j, v)) for j in (0, 1)]
            for j, square in enumerate(to_squares(*rows)):
                acc.set(i + j, v, square)


def to_squares(first: Expr, second: Expr) -> list[Expr]:
    """The lower halves of two vectors of four, and their upper halves; that is its own inverse."""
    return [concat([first, second], order) for order in ((0, 1, 4, 5), (2, 3, 6, 7))]


def _zip_quads(a: Expr, b: Expr) -> list[Expr]:
    """Two quads each of positions 0 and 1, and of positions 2 and 3."""
    return [concat([a, b], order) for order in ((0, 4, 1, 5), (2, 6, 3, 7))]


def as_bytes(x: Expr) -> Expr:
    """Four 32-bit elements as 16 signed bytes."""
    return bind(T.reinterpret("int8x16", x))


def multiply_add_squares(acc: Expr, left: Expr, right: Expr) -> Expr:
    """``acc[2*i + j] += sum over c < 8 of left[i][c] * right[j][c]``."""
    name = "llvm.aarch64.neon.smmla.v4i32.v16i8"
    return T.call_llvm_pure_intrin("int32x4", name, acc, left, right)
