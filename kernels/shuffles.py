"""Vector permutations: strided loads, square transposes, transposed stores.

Written as two-operand shuffles that LLVM turns into ``vpermt2ps``, ``uzp``/``trn`` or, on
Arm, into the structure loads ``ld2`` and ``ld4``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import bind, loop, vload, vstore
from effc.kernels.lanes import concat, uses_lanes
from effc.kernels.register_tile import split_widths

__all__ = ["load_strided", "store_transposed", "transpose", "zip_blocks", "zip_quads"]

Expr = Any


def load_strided(
    buffer: Any, offset: Expr, lanes: int, stride: int, phases: int, target: Target
) -> list[Expr]:
    """``[buffer[offset + p + stride*i] for i < lanes]`` for ``p < phases``; stride 2 or 4.

    Reads ``stride * lanes`` elements.
    """
    if lanes == 1:
        return [bind(vload(buffer, offset + p, 1)) for p in range(phases)]
    if uses_lanes(target) and lanes <= 4:
        wide = bind(vload(buffer, offset, stride * lanes))
        return [
            bind(tirx.Shuffle([wide], list(range(p, stride * lanes, stride))))
            for p in range(phases)
        ]
    parts = [bind(vload(buffer, offset + i * lanes, lanes)) for i in range(stride)]
    evens = list(range(0, 2 * lanes, 2))
    odds = list(range(1, 2 * lanes, 2))

    def halve(vectors: list[Expr], order: list[int]) -> list[Expr]:
        return [
            bind(tirx.Shuffle([vectors[i], vectors[i + 1]], order))
            for i in range(0, len(vectors), 2)
        ]

    if stride == 2:
        return [halve(parts, order)[0] for order in (evens, odds)[:phases]]
    even, odd = halve(parts, evens), halve(parts, odds) if phases > 1 else []
    made = [halve(even, evens)[0]]
    if phases > 1:
        made.append(halve(odd, evens)[0])
    if phases > 2:
        made += [halve(even, odds)[0], halve(odd, odds)[0]]
    return made[:phases]


def transpose(vectors: list[Expr]) -> list[Expr]:
    """Transpose ``n`` vectors of ``n`` lanes (a power of two)."""
    size = len(vectors)
    step = 1
    while step < size:
        low = [j if not j & step else size + j - step for j in range(size)]
        high = [j + step if not j & step else size + j for j in range(size)]
        moved = list(vectors)
        for i in range(size):
            if not i & step:
                pair = [vectors[i], vectors[i + step]]
                moved[i] = bind(tirx.Shuffle(pair, low))
                moved[i + step] = bind(tirx.Shuffle(pair, high))
        vectors = moved
        step *= 2
    return vectors


def store_transposed(
    scratch: Any,
    base: Expr,
    pitch: int,
    positions: int,
    channels: int,
    room: Expr,
    lanes: int,
    store: Callable[[list[Expr], Expr, Expr, int, int], None],
    group: int = 1,
) -> None:
    """Hand ``scratch[base + position*pitch + channel]`` to ``store`` as vectors along positions.

    Args:
        scratch: Buffer with the matrix and with ``lanes**2`` free elements.
        base: First element of the matrix.
        pitch: Elements from one position to the next.
        positions, channels: Size of the matrix.
        room: First of the free elements.
        lanes: Vector width.
        store: Called as ``store(vectors, first channel, position, lanes, valid lanes)``, with
            one vector for each of ``group`` channels.
        group: Channels that are stored together; ``channels`` is a multiple of it.
    """

    def block(channel: Expr, position: Expr, width: int, valid: int) -> None:
        at = bind(base + position * pitch + channel)
        if width == 1:
            store([vload(scratch, at, 1)], channel, position, 1, 1)
            return
        rows = [bind(vload(scratch, at + i * pitch, width)) for i in range(valid)]
        columns = transpose(rows + rows[-1:] * (width - valid))
        if width <= 4:
            for i in range(0, width, group):
                store(columns[i : i + group], channel + i, position, width, valid)
            return
        # One copy of what ``store`` does, not one per channel.
        for i, column in enumerate(columns):
            vstore(scratch, room + i * width, column, width)
        with loop(width // group) as i:
            vectors = [vload(scratch, room + (i * group + j) * width, width) for j in range(group)]
            store(vectors, channel + i * group, position, width, width)

    def band(position: Expr, valid: int) -> None:
        width = max(valid, group)
        done = channels // width * width
        if done:
            with loop(done // width) as c:
                block(c * width, position, width, valid)
        for part in split_widths(channels - done, width):
            with loop(width // part) as p:
                block(done, position + p * part, part, part)
            done += part

    if positions // lanes:
        with loop(positions // lanes) as p:
            band(p * lanes, lanes)
    at = positions // lanes * lanes
    for width in split_widths(positions - at, lanes, group):
        band(at, width)
        at += width


def zip_blocks(a: Expr, b: Expr, size: int) -> list[Expr]:
    """Units of ``size`` bytes of two byte vectors in turn, within blocks of 16 bytes.

    Returns:
        What becomes of the lower and of the upper halves of the blocks (``punpckl``,
        ``punpckh``; ``zip1``, ``zip2``).
    """
    total = int(a.ty.dtype.lanes)
    return [
        bind(
            concat(
                [a, b],
                [
                    side * total + block + half + unit * size + i
                    for block in range(0, total, 16)
                    for unit in range(8 // size)
                    for side in (0, 1)
                    for i in range(size)
                ],
            )
        )
        for half in (0, 8)
    ]


def zip_quads(rows: Sequence[Expr]) -> list[Expr]:
    """Quads of four byte vectors: vector ``q`` of the result has those of bytes
    ``16b + 4q .. 16b + 4q + 3`` of the rows in block ``b``."""
    pairs = [zip_blocks(rows[0], rows[1], 1), zip_blocks(rows[2], rows[3], 1)]
    return [quads for i in (0, 1) for quads in zip_blocks(pairs[0][i], pairs[1][i], 2)]
