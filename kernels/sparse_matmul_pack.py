"""How a sparse matrix product reads its data: single channels, or positions packed together."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from effc.kernels.builder import T, bind, loop, splat, vload, vstore
from effc.kernels.lanes import pieces
from effc.kernels.register_tile import Tile
from effc.kernels.shuffles import transpose
from effc.kernels.sparse_matmul_roles import Roles

__all__ = ["load_channels", "pack_positions"]

Expr = Any  # tvm.tirx expressions have no useful static types
At = tuple[Any, Expr]
"""A buffer and an offset in it."""


def load_channels(roles: Roles, x: Any, at: Expr, lanes: int) -> Expr:
    """Neighbouring channels of one position, which lie at element ``at`` of the data."""
    if not roles.in_quads:
        return vload(x, at, lanes)
    suffix = f"x{lanes}" if lanes > 1 else ""
    return T.reinterpret(f"{roles.arithmetic.dtype}{suffix}", vload(x, at, 4 * lanes))


def pack_positions(
    roles: Roles, source: At, target: At, columns: int, widths: tuple[int, ...], pitch: int
) -> None:
    """Positions as ``[channel][position]``, zeros behind them.

    Args:
        roles: Strides of the data.
        source: The first position.
        target: Room for ``channels * pitch`` elements.
        columns: How many positions.
        widths: Vectors that cover them.
        pitch: From one channel to the next.
    """
    if roles.adjacent:
        _pack_transposed(roles, source, target, columns, widths, pitch)
        return
    (x, first), (scratch, to) = source, target
    with loop(roles.channels) as k:
        row, there = bind(first + k * roles.channel), bind(to + k * pitch)
        for start, width in pieces(columns, max(widths) if roles.position == 1 else 1):
            value = vload(x, row + start * roles.position, width)
            vstore(scratch, there + start, value, width)
        for start, width in pieces(sum(widths) - columns, max(widths)):
            zeros = splat(tirx.const(0, roles.arithmetic.dtype), width)
            vstore(scratch, there + columns + start, zeros, width)


def _pack_transposed(
    roles: Roles, source: At, target: At, columns: int, widths: tuple[int, ...], pitch: int
) -> None:
    """The same where channels are contiguous; the last one may overlap those before."""
    (x, first), (scratch, to) = source, target

    def block(k: Expr, at: Expr, start: int, size: int) -> None:
        """``size`` channels from ``k`` on, which lie at ``at``, of as many positions."""
        rows = [
            bind(
                load_channels(roles, x, first + (start + i) * roles.position + at, size)
                if start + i < columns
                else splat(tirx.const(0, roles.arithmetic.dtype), size)
            )
            for i in range(size)
        ]
        for i, column in enumerate(transpose(rows)):
            vstore(scratch, to + (k + i) * pitch + start, column, size)

    whole = roles.channels - (1 if roles.overlap else 0)
    for start, width in Tile(1, widths).vectors:
        with loop(whole // width) as trip:
            k = bind(trip * width)
            block(k, k * roles.channel, start, width)
        done = whole // width * width
        rest = [(done + k, part) for k, part in pieces(whole - done, width)]
        rest += [(whole, 1)] if roles.overlap else []
        for number, part in rest:
            at = number * roles.channel - (roles.overlap if number == whole else 0)
            for beside in range(start, start + width, part):
                block(T.int32(number), at, beside, part)
