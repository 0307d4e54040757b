"""Vector helpers for ragged edges: pieces, lane extraction, partial stores, reductions.

A tensor's last few elements must be neither read nor written past the end, so a
vector that holds fewer valid lanes than its width is moved in power-of-two
pieces, the largest first (7 lanes: 4 + 2 + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import bind, vload, vstore
from effc.kernels.vectorbase import weight_as

__all__ = [
    "concat",
    "dtype_lanes",
    "interleave",
    "load_partial",
    "load_scalars",
    "lowest",
    "pick",
    "pieces",
    "reduce_lanes",
    "repeated",
    "store_partial",
    "uses_lanes",
]

Expr = Any


def uses_lanes(target: Target) -> bool:
    """Whether scalars are multiplied from lanes of a vector register (Arm)."""
    return target.arch in ("aarch64", "arm")


def dtype_lanes(target: Target, dtype: str) -> int:
    """Elements of ``dtype`` in one vector register (at least 1)."""
    return max(target.vector_bits // (8 * np.dtype(dtype).itemsize), 1)


def lowest(dtype: str) -> Expr:
    """Identity of ``max``: minus infinity or the smallest integer."""
    if np.issubdtype(np.dtype(dtype), np.floating):
        return tirx.min_value(dtype) if dtype == "float16" else tirx.const(float("-inf"), dtype)
    return tirx.const(int(np.iinfo(np.dtype(dtype)).min), dtype)


def pieces(count: int, lanes: int) -> Iterator[tuple[int, int]]:
    """Cover ``count`` elements by (offset, width): full vectors, then powers of two.

    Args:
        count: Elements to cover.
        lanes: Widest piece, a power of two.
    """
    offset = 0
    while offset < count:
        while lanes > count - offset:
            lanes //= 2
        yield offset, lanes
        offset += lanes


def pick(vector: Expr, indices: Sequence[int], lanes: int) -> Expr:
    """Lanes ``indices`` of a vector of ``lanes`` (or of a scalar) as a vector or scalar."""
    if lanes == 1 or list(indices) == list(range(lanes)):
        return vector
    return tirx.Shuffle([vector], [tirx.const(i, "int32") for i in indices])


def concat(vectors: Sequence[Expr], indices: Sequence[int]) -> Expr:
    """Lanes ``indices`` out of the concatenation of equally wide vectors."""
    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in indices])


def interleave(vectors: Sequence[Expr], lanes: int) -> Expr:
    """``[a0, b0, c0, a1, b1, c1, ...]`` of equally wide vectors (or scalars)."""
    if len(vectors) == 1:
        return vectors[0]
    order = [v * lanes + i for i in range(lanes) for v in range(len(vectors))]
    return concat(vectors, order)


def repeated(vector: Expr, times: int) -> Expr:
    """A vector that holds ``vector`` several times."""
    return bind(concat([vector] * times, range(int(vector.ty.dtype.lanes) * times)))


def load_partial(buffer: Any, offset: Expr, valid: int, lanes: int, fill: Expr) -> Expr:
    """Load ``valid`` elements into a vector of ``lanes``; the other lanes hold ``fill``."""
    if valid >= lanes:
        return vload(buffer, offset, lanes)
    scalars: list[Expr] = []
    for start, width in pieces(valid, lanes):
        piece = bind(vload(buffer, offset + start, width))
        scalars += [pick(piece, [i], width) for i in range(width)]
    scalars += [fill] * (lanes - valid)
    return tirx.Shuffle(scalars, [tirx.const(i, "int32") for i in range(lanes)])


def load_scalars(
    buffer: Any, offset: Expr, count: int, target: Target, dtype: str = ""
) -> list[Expr]:
    """Load ``count`` neighbours, each to be multiplied with whole vectors.

    As ``dtype``, if it is given: they may be stored as float16 and computed with in float32.

    Arm multiplies by one lane of a register (``fmla v, v, v.s[i]``), so there as many as
    fill a register share a load; other processors broadcast from memory.
    """
    dtype = dtype or str(buffer.dtype)
    size = np.dtype(dtype).itemsize
    found: list[Expr] = []
    for start, width in pieces(count, 16 // size if uses_lanes(target) else 1):
        loaded = bind(weight_as(vload(buffer, offset + start, width), dtype))
        found += [pick(loaded, [lane], width) for lane in range(width)]
    return found


def store_partial(
    buffer: Any,
    offset: Expr,
    value: Expr,
    valid: int,
    lanes: int,
    finish: Callable[[Expr, int, int], Expr] | None = None,
) -> None:
    """Store the first ``valid`` lanes of a vector.

    Args:
        buffer: Flat destination.
        offset: Element offset of lane 0.
        value: Vector of ``lanes``.
        valid: Lanes to store, at most ``lanes``.
        lanes: Width of ``value``.
        finish: Applied to each piece before the store: ``finish(piece, start, width)``.
    """
    whole = value if valid == lanes else bind(value)
    for start, width in pieces(min(valid, lanes), lanes):
        piece = pick(whole, range(start, start + width), lanes)
        if finish is not None:
            piece = finish(piece, start, width)
        vstore(buffer, offset + start, piece, width)


def reduce_lanes(vector: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine all lanes (a power of two) to one scalar by halving."""
    while lanes > 1:
        half = lanes // 2
        whole = bind(vector)
        vector = combine(pick(whole, range(half), lanes), pick(whole, range(half, lanes), lanes))
        lanes = half
    return vector
