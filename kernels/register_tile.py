"""The register tile: the inner kernel of every dense product in effc.

A tile holds ``rows x vectors`` accumulators in registers and adds the outer
product of one column of broadcast scalars and one row of vectors per step of
the reduction::

    acc[i][v] += A[a + k*a_step + i] * B[b + k*b_step + start(v) ...]   for k in 0..K

Either operand of a convolution can be the broadcast one: weights broadcast and
activations as vectors (along space), or activations broadcast and weights as
vectors (along output channels). How ``k`` becomes offsets is the only thing
that differs between dense and sparse reductions, see ``Dense``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tvm import tirx

from effc.devices.target import Target
from effc.kernels.arithmetic import FLOAT32, Arithmetic
from effc.kernels.builder import T, bind, local, loop, prefetch, splat, vload, vstore
from effc.kernels.lanes import load_partial, load_scalars, pieces

__all__ = [
    "Accumulators",
    "Dense",
    "Operand",
    "Reduction",
    "Tile",
    "contract",
    "pin",
    "split_widths",
    "weights_ahead",
]

Expr = Any


@dataclass(frozen=True)
class Tile:
    """``rows`` broadcast scalars times vectors of the given lanes (powers of two)."""

    rows: int
    widths: tuple[int, ...]

    @property
    def columns(self) -> int:
        """Elements in one row of the tile."""
        return sum(self.widths)

    @property
    def starts(self) -> tuple[int, ...]:
        """First column of each vector."""
        return tuple(sum(self.widths[:v]) for v in range(len(self.widths)))

    @property
    def vectors(self) -> tuple[tuple[int, int], ...]:
        """(first column, lanes) of each vector."""
        return tuple(zip(self.starts, self.widths, strict=True))


@dataclass(frozen=True)
class Operand:
    """Elements ``i`` at ``base + k * step + at(i)`` of a flat buffer.

    Attributes:
        runs: (offset, elements) of the contiguous runs that the elements of one step lie
            in; ``None`` if they are all contiguous.
        weights: Whether these are the weights, which not every ``Arithmetic`` treats as it
            does activations.
    """

    buffer: Any
    base: Expr
    step: Expr
    runs: tuple[tuple[int, int], ...] | None = None
    weights: bool = False

    def at(self, element: int) -> int:
        """Offset of an element of one step."""
        for offset, count in self.runs or ():
            if element < count:
                return offset + element
            element -= count
        return element

    def scalars(self, offset: Expr, count: int, target: Target) -> list[Expr]:
        """The ``count`` elements of one step, each to be multiplied with whole vectors."""
        found: list[Expr] = []
        for start, length in self.runs or ((0, count),):
            found += load_scalars(self.buffer, offset + start, length, target)
        return found


class Reduction(Protocol):
    """Enumerates the reduction: calls ``step(broadcast offset, vector offset)`` per index."""

    def emit(self, step: Callable[[Expr, Expr], None], a: Operand, b: Operand) -> None: ...

    def parts(self, steps: int, each: Callable[[Reduction], None]) -> None:
        """``each(part)`` for parts of at most ``steps`` steps (or one entry), in order."""


@dataclass(frozen=True)
class Dense:
    """``k = 0 .. count-1``, ``unroll`` steps per iteration of the loop."""

    count: int
    unroll: int = 1

    def emit(self, step: Callable[[Expr, Expr], None], a: Operand, b: Operand) -> None:
        unroll = min(self.unroll, self.count)
        trips = self.count // unroll
        if trips > 1:
            with loop(trips) as trip:
                for u in range(unroll):
                    k = trip * unroll + u
                    step(a.base + k * a.step, b.base + k * b.step)
        for k in range(trips * unroll if trips > 1 else 0, self.count):
            step(a.base + k * a.step, b.base + k * b.step)

    def parts(self, steps: int, each: Callable[[Reduction], None]) -> None:
        whole, rest = divmod(self.count, steps)
        with loop(whole) as part:
            each(_From(Dense(steps, self.unroll), bind(part * steps)))
        if rest:
            each(_From(Dense(rest, self.unroll), whole * steps))


@dataclass(frozen=True)
class _From:
    """``reduction``, from step ``first`` of the operands on."""

    reduction: Reduction
    first: Expr

    def emit(self, step: Callable[[Expr, Expr], None], a: Operand, b: Operand) -> None:
        moved = [replace(o, base=bind(o.base + self.first * o.step)) for o in (a, b)]
        self.reduction.emit(step, *moved)

    def parts(self, steps: int, each: Callable[[Reduction], None]) -> None:
        self.reduction.parts(steps, lambda part: each(_From(part, self.first)))


@dataclass(frozen=True)
class Listed:
    """Entries ``begin .. end-1`` of a list, ``depth`` steps each (``sparse_pack``).

    The listed operand has step ``j`` of entry ``e`` at ``base + offsets[e] + j * step``; the
    other one, the weights, has one step behind the other for all entries.

    Attributes:
        offsets: int32 buffer.
        begin, end: Range of entries.
        depth: Steps per entry.
        unroll: Entries per iteration of the loop.
        vectors: Whether the listed operand is the one with vectors, or the broadcast one.
        ahead: Prefetch weights this many elements ahead (0: not), see ``weights_ahead``.
    """

    offsets: Any
    begin: Expr
    end: Expr
    depth: int
    unroll: int
    vectors: bool
    ahead: int = 0

    def emit(self, step: Callable[[Expr, Expr], None], a: Operand, b: Operand) -> None:
        listed, weights = (b, a) if self.vectors else (a, b)

        def entry(e: Expr, _: int) -> None:
            at = bind(listed.base + self.offsets[e])
            for j in range(self.depth):
                pair = (weights.base + (e * self.depth + j) * weights.step, at + j * listed.step)
                step(*(pair if self.vectors else pair[::-1]))

        self.each(entry, weights)

    def parts(self, steps: int, each: Callable[[Reduction], None]) -> None:
        size = max(steps // self.depth, 1)
        with loop(bind((self.end - self.begin + (size - 1)) // size)) as part:
            first = bind(self.begin + part * size)
            each(replace(self, begin=first, end=bind(T.min(first + size, self.end))))

    def each(self, entry: Callable[[Expr, int], None], weights: Operand) -> None:
        """``entry(e, u)`` for every entry ``e``, which is number ``u`` of its iteration."""
        unroll = self.unroll
        if unroll > 1:
            trips = bind((self.end - self.begin) // unroll)
            with loop(trips) as trip:
                first = bind(self.begin + trip * unroll)
                self._fetch(first, unroll, weights)
                for u in range(unroll):
                    entry(bind(first + u), u)
        rest = self.begin if unroll == 1 else bind(self.begin + trips * unroll)
        with loop(rest, self.end) as e:
            if unroll == 1:
                self._fetch(e, 1, weights)
            entry(e, 0)

    def _fetch(self, first: Expr, entries: int, weights: Operand) -> None:
        if self.ahead:
            size = self.depth * weights.step
            at = weights.base + first * size + self.ahead
            prefetch(weights.buffer, at, entries * size, write=False)


def weights_ahead(target: Target) -> int:
    """How far ahead of their use listed weights are worth a prefetch, in elements.

    Weights are read once, from far, between loads at scattered offsets: on x86 a stream that
    hardware follows badly. Elsewhere instructions are what counts.
    """
    return 512 if target.arch == "x86_64" else 0


class Accumulators:
    """The tile's accumulators: a stack buffer that LLVM keeps in registers.

    Attributes:
        lanes: Of each vector in registers: what it holds, or the arithmetic's narrowest vector.
    """

    def __init__(
        self, tile: Tile, arithmetic: Arithmetic = FLOAT32, target: Target | None = None
    ) -> None:
        self.tile, self.dtype = tile, arithmetic.sums
        narrowest = 1 if target is None else arithmetic.narrowest(target)
        self.lanes = tuple(max(width, narrowest) for width in tile.widths)
        self._buffer = local(tile.rows * sum(self.lanes), arithmetic.sums)

    def get(self, row: int, vector: int) -> Expr:
        return vload(self._buffer, self._place(row, vector), self.lanes[vector])

    def set(self, row: int, vector: int, value: Expr) -> None:
        vstore(self._buffer, self._place(row, vector), value, self.lanes[vector])

    def _place(self, row: int, vector: int) -> int:
        return row * sum(self.lanes) + sum(self.lanes[:vector])


def contract(
    acc: Accumulators,
    reduction: Reduction,
    broadcast: Operand,
    vectors: Operand,
    target: Target,
    arithmetic: Arithmetic = FLOAT32,
) -> None:
    """Add the product of both operands over the reduction to the accumulators."""
    tile, swapped = acc.tile, vectors.weights

    def step(a_offset: Expr, b_offset: Expr) -> None:
        xs = [
            bind(_widened(vectors.buffer, b_offset + vectors.at(start), valid, lanes))
            for (start, valid), lanes in zip(tile.vectors, acc.lanes, strict=True)
        ]
        for i, scalar in enumerate(broadcast.scalars(a_offset, tile.rows, target)):
            for v, lanes in enumerate(acc.lanes):
                added = arithmetic.multiply_add(
                    acc.get(i, v), scalar, xs[v], lanes, target, swapped=swapped
                )
                acc.set(i, v, added)

    reduction.emit(step, broadcast, vectors)


def _widened(buffer: Any, offset: Expr, valid: int, lanes: int) -> Expr:
    """``valid`` elements in a vector of ``lanes``; what the others hold is of no matter."""
    if valid == lanes:
        return vload(buffer, offset, lanes)
    if valid == 1:
        return splat(buffer[offset], lanes)
    return load_partial(buffer, bind(offset), valid, lanes, tirx.const(0, str(buffer.dtype)))


def pin(index: Expr, end: Expr) -> Expr:
    """Zero that depends on a loop's ``index`` as far as LLVM knows; ``end`` is never negative.

    Added to the offset of an operand that a short reduction reads in every iteration of a loop
    over tiles. Otherwise LLVM moves its broadcasts in front of that loop, where they do not
    fit the registers, and no longer finds them next to the dot products (for floating point
    multiply-adds it moves them back).
    """
    return bind(tirx.bitwise_and(index, tirx.shift_right(end, tirx.const(31, "int32"))))


def split_widths(columns: int, lanes: int, narrowest: int = 1) -> tuple[int, ...]:
    """Vectors of at most ``lanes`` elements that cover ``columns`` exactly.

    Powers of two, but for a last one below ``narrowest``.
    """
    whole = columns - columns % narrowest
    rest = (columns % narrowest,) if columns % narrowest else ()
    return (*(width for _, width in pieces(whole, lanes)), *rest)
