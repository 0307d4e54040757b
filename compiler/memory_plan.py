"""Offsets of buffers in one arena, as small as possible.

In: buffers with a size and an interval of steps during which their bytes must
be kept. Out: one offset per buffer so that no two buffers share a byte at the
same step (dynamic storage allocation, NP-hard). A buffer may be *compound*:
parts at fixed positions in it live during different intervals (operands of a
concatenation that write straight into its result, in-place results), and the
bytes of a part that is not alive are free for others.

Algorithm: first-fit placement in several orders (size, size x time, lifetime:
Pisarchyk and Lee, "Efficient memory management for deep neural net inference",
2020), then a seeded local search over the placement order that lifts buffers
which reach the top of the arena. It stops as soon as the size equals the lower
bound. Work is limited by counts, never by time, so the same buffers always get
the same offsets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Buffer", "MemoryPlan", "Part", "align_up", "plan", "union_bytes"]

_SEARCH_PLACEMENTS = 120_000  # single placements tried by the local search, about one second
_SEARCH_TRIALS = 2_000  # orders tried by the local search
_SEARCH_PATIENCE = 500  # orders tried without finding a better one


@dataclass(frozen=True)
class Part:
    """Bytes ``[offset, offset + nbytes)`` of a buffer, kept during steps ``[first, last]``."""

    offset: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Buffer:
    """Memory to place.

    Attributes:
        name: Unique.
        nbytes: Size of the whole buffer.
        first, last: Steps during which it is alive, both included.
        parts: The pieces that are really kept; empty means all bytes during all steps.
    """

    name: str
    nbytes: int
    first: int
    last: int
    parts: tuple[Part, ...] = ()

    @property
    def pieces(self) -> tuple[Part, ...]:
        """The parts, or the whole buffer as its only part."""
        return self.parts or (Part(0, self.nbytes, self.first, self.last),)


@dataclass(frozen=True)
class MemoryPlan:
    """Result of :func:`plan`.

    Attributes:
        offsets: Byte offset of each buffer by name, multiples of the alignment.
        size: Bytes of the arena, a multiple of the alignment.
        lower_bound: Largest number of bytes alive at one step; no plan can be smaller.
    """

    offsets: dict[str, int]
    size: int
    lower_bound: int


def align_up(value: int, alignment: int) -> int:
    """Smallest multiple of ``alignment`` that is at least ``value``."""
    return -(-value // alignment) * alignment


def plan(
    buffers: Sequence[Buffer],
    alignment: int = 64,
    conflicts: Iterable[tuple[str, str, Sequence[tuple[int, int]]]] | None = None,
) -> MemoryPlan:
    """Place buffers in one arena.

    Args:
        buffers: What to place; names must be unique.
        alignment: Every offset and the size are multiples of it.
        conflicts: Per pair of buffers open intervals in which ``offset(second) - offset(first)``
            must not lie, ascending; by default those where live bytes meet.

    Returns:
        The smallest plan found.
    """
    padded = [_pad(buffer, alignment) for buffer in buffers if buffer.nbytes > 0]
    bound = align_up(_lower_bound(padded), alignment)
    offsets = dict.fromkeys((buffer.name for buffer in buffers), 0)
    if padded:
        pairs = _meetings(padded) if conflicts is None else conflicts
        best = _Search(padded, alignment, pairs).run(bound)
        offsets.update({b.name: at for b, at in zip(padded, best, strict=True)})
    size = max((offsets[b.name] + b.nbytes for b in padded), default=0)
    return MemoryPlan(offsets, align_up(size, alignment), bound)


def _pad(buffer: Buffer, alignment: int) -> Buffer:
    """Round the size of a simple buffer up: what lies behind it starts aligned anyway."""
    if buffer.parts:
        return buffer
    return Buffer(buffer.name, align_up(buffer.nbytes, alignment), buffer.first, buffer.last)


def union_bytes(parts: Iterable[Part]) -> int:
    """Number of bytes covered by at least one part."""
    total = end = 0
    for part in sorted(parts, key=lambda p: p.offset):
        begin = max(part.offset, end)
        if part.offset + part.nbytes > begin:
            end = part.offset + part.nbytes
            total += end - begin
    return total


def _lower_bound(buffers: Sequence[Buffer]) -> int:
    """Largest number of bytes alive at one step."""
    changes: dict[int, int] = {}
    for buffer in buffers:
        steps = sorted({s for p in buffer.pieces for s in (p.first, p.last + 1)})
        before = 0
        for step in steps:
            now = union_bytes(p for p in buffer.pieces if p.first <= step <= p.last)
            changes[step] = changes.get(step, 0) + now - before
            before = now
    live = peak = 0
    for step in sorted(changes):
        live += changes[step]
        peak = max(peak, live)
    return peak


def _forbidden(a: Buffer, b: Buffer) -> list[tuple[int, int]]:
    """Open intervals that ``offset(a) - offset(b)`` must not lie in."""
    ranges = sorted(
        (q.offset - p.offset - p.nbytes, q.offset + q.nbytes - p.offset)
        for p in a.pieces
        for q in b.pieces
        if p.first <= q.last and q.first <= p.last and p.nbytes and q.nbytes
    )
    merged: list[tuple[int, int]] = []
    for low, high in ranges:
        if merged and low < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def _meetings(buffers: Sequence[Buffer]) -> Iterator[tuple[str, str, list[tuple[int, int]]]]:
    """Pairs of buffers with bytes that live at the same time, see ``plan``."""
    active: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: b.first):
        active = [other for other in active if other.last >= buffer.first]
        for other in active:
            if ranges := _forbidden(buffer, other):
                yield other.name, buffer.name, ranges
        active.append(buffer)


class _Search:
    """First-fit placement and local search over its order."""

    def __init__(
        self,
        buffers: Sequence[Buffer],
        alignment: int,
        conflicts: Iterable[tuple[str, str, Sequence[tuple[int, int]]]],
    ) -> None:
        self.buffers = buffers
        self.alignment = alignment
        self.sizes = [b.nbytes for b in buffers]
        number = {b.name: i for i, b in enumerate(buffers)}
        self.conflicts: list[list[tuple[int, list[tuple[int, int]]]]] = [[] for _ in buffers]
        for first, second, ranges in conflicts:
            i, j = number[first], number[second]
            self.conflicts[j].append((i, list(ranges)))
            self.conflicts[i].append((j, [(-high, -low) for low, high in reversed(ranges)]))

    def run(self, bound: int) -> list[int]:
        """Offsets of the best plan found; stops when its size is at most ``bound``."""
        best_size, best_order, best = -1, list[int](), list[int]()
        for key in self._orders():
            order = sorted(range(len(self.buffers)), key=lambda i: (key(self.buffers[i]), i))
            offsets = self.place(order)
            size = self.size(offsets)
            if best_size < 0 or size < best_size:
                best_size, best_order, best = size, order, offsets
            if best_size <= bound:
                return best
        return self._improve(best_size, best_order, best, bound)

    @staticmethod
    def _orders() -> tuple[Callable[[Buffer], tuple[int, ...]], ...]:
        return (
            lambda b: (-b.nbytes, b.first),
            lambda b: (-b.nbytes * (b.last - b.first + 1), b.first),
            lambda b: (b.first - b.last, -b.nbytes),
            lambda b: (b.first, -b.nbytes),
            lambda b: (-b.last, -b.nbytes),
        )

    def place(self, order: Sequence[int]) -> list[int]:
        """First fit: each buffer at the lowest offset that its placed neighbours allow."""
        offsets = [-1] * len(self.buffers)
        for i in order:
            taken = [
                (offsets[j] + low, offsets[j] + high)
                for j, ranges in self.conflicts[i]
                if offsets[j] >= 0
                for low, high in ranges
            ]
            taken.sort()
            at = 0
            for low, high in taken:
                if low >= at:
                    break  # sorted: every later interval begins at or above this offset
                if high > at:
                    at = align_up(high, self.alignment)
            offsets[i] = at
        return offsets

    def size(self, offsets: Sequence[int]) -> int:
        """Bytes that the plan needs."""
        return align_up(
            max(o + s for o, s in zip(offsets, self.sizes, strict=True)), self.alignment
        )

    def _improve(self, size: int, order: list[int], best: list[int], bound: int) -> list[int]:
        """Move buffers that reach the top to an earlier place in the order, keep what helps."""
        chance = random.Random(len(self.buffers))
        current, current_score = list(order), self._score(best)
        best_score = current_score
        patience = _SEARCH_PATIENCE
        for _ in range(min(_SEARCH_PLACEMENTS // len(self.buffers), _SEARCH_TRIALS)):
            if best_score[0] <= bound or patience == 0:
                break
            patience -= 1
            trial = self._neighbour(current, self.place(current), chance)
            offsets = self.place(trial)
            score = self._score(offsets)
            if score <= current_score or chance.random() < 0.02:
                current, current_score = trial, score
            if score < best_score:
                best_score, best, patience = score, offsets, _SEARCH_PATIENCE
        return best

    def _score(self, offsets: Sequence[int]) -> tuple[int, int]:
        """Size first, then how many bytes lie in its upper eighth."""
        size = self.size(offsets)
        line = size - size // 8
        above = sum(max(o + s - max(o, line), 0) for o, s in zip(offsets, self.sizes, strict=True))
        return size, above

    def _neighbour(
        self, order: Sequence[int], offsets: Sequence[int], chance: random.Random
    ) -> list[int]:
        ends = [o + s for o, s in zip(offsets, self.sizes, strict=True)]
        top = max(ends)
        high = [i for i in range(len(ends)) if ends[i] > top - top // 8]
        chosen = chance.choice(high)
        if self.conflicts[chosen] and chance.random() < 0.5:
            chosen = chance.choice(self.conflicts[chosen])[0]
        trial = list(order)
        position = trial.index(chosen)
        del trial[position]
        trial.insert(chance.randrange(position + 1), chosen)
        return trial
