"""What has to be placed in the arena, and which distances between two roots are forbidden."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from effc.memory_plan import Buffer, Part, align_up
from effc.merging import Pair

__all__ = ["Interval", "Problem"]

Interval = tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """Roots and workspaces with their lifetimes.

    Attributes:
        parts: Pieces of every root with their lifetimes.
        roots: Bytes of every root.
        own: Workspaces and scratch of kernels.
        pairs: Inputs and results that may share memory.
        alignment: Of the size, and of every root and workspace that is not merged into another.
    """

    parts: Mapping[str, Sequence[Part]]
    roots: Mapping[str, int]
    own: Sequence[Buffer]
    pairs: Sequence[Pair]
    alignment: int

    @cached_property
    def related(self) -> frozenset[str]:
        """Roots that may share memory: what lies behind them need not start aligned."""
        slots = [slot for p in self.pairs for slot in (p.source_slot, p.result_slot)]
        return frozenset(root for root, _ in slots)

    def pieces(self) -> dict[str, Sequence[Part]]:
        """Parts by name, of everything."""
        return {**self.parts, **{b.name: b.pieces for b in self.own}}

    def reserved(self) -> dict[str, list[Part]]:
        """Parts of everything that takes room; alone in their buffer they end aligned."""
        found = {}
        for name, parts in self.pieces().items():
            kept = [p for p in parts if p.nbytes]
            alone = len(kept) == 1 and kept[0].nbytes == self._nbytes[name]
            if alone and name not in self.related:
                p = kept[0]
                kept = [Part(p.offset, align_up(p.nbytes, self.alignment), p.first, p.last)]
            if kept:
                found[name] = kept
        return found

    def buffers(self) -> list[Buffer]:
        """Roots and workspaces as buffers that are placed one by one."""
        found = []
        for name, parts in self.reserved().items():
            end = max(p.offset + p.nbytes for p in parts)
            first, last = min(p.first for p in parts), max(p.last for p in parts)
            found.append(Buffer(name, end, first, last, tuple(parts)))
        return found

    @cached_property
    def _nbytes(self) -> dict[str, int]:
        return {**self.roots, **{b.name: b.nbytes for b in self.own}}

    def size(self, offsets: Mapping[str, int]) -> int:
        """Bytes of the arena that a plan needs."""
        ends = (
            offsets[name] + part.offset + part.nbytes
            for name, parts in self.pieces().items()
            for part in parts
        )
        return align_up(max(ends, default=0), self.alignment)

    def conflicts(self) -> Iterator[tuple[str, str, list[Interval]]]:
        """Open intervals that ``offset(b) - offset(a)`` must not lie in, for pairs with any."""
        reserved = self.reserved()
        names = list(reserved)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                if ranges := self._forbidden(a, b, reserved):
                    yield a, b, ranges

    def _forbidden(self, a: str, b: str, reserved: Mapping[str, list[Part]]) -> list[Interval]:
        forward = [p for p in self.pairs if (p.source_slot[0], p.result_slot[0]) == (a, b)]
        backward = [p for p in self.pairs if (p.source_slot[0], p.result_slot[0]) == (b, a)]
        found: list[Interval] = []
        for p in reserved[a]:
            for q in reserved[b]:
                if p.last < q.first or q.last < p.first:
                    continue
                ranges = [(p.offset - q.offset - q.nbytes, p.offset + p.nbytes - q.offset)]
                for pair in forward:
                    for allowed in _excused(pair, p, q):
                        ranges = _without(ranges, allowed)
                for pair in backward:
                    for low, high in _excused(pair, q, p):
                        ranges = _without(ranges, (-high, -low))
                found += ranges
        return _united(found)


def _excused(pair: Pair, old: Part, new: Part) -> list[Interval]:
    """Closed ranges of ``offset(result's root) - offset(source's root)`` at which ``new`` may lie
    over ``old``: the shared bytes belong to the input and the result, and the input ends there."""
    first, last = pair.span
    ends = pair.copy or old.last <= last
    if not (old.first < first <= new.first <= last and ends):
        return []
    (_, source), (_, result) = pair.source_slot, pair.result_slot
    low, high = -(1 << 60), 1 << 60
    if old.offset < source:  # the shared bytes must begin inside the input
        low = max(low, source - new.offset)
    if old.offset + old.nbytes > source + pair.source_bytes:
        high = min(high, source + pair.source_bytes - new.offset - new.nbytes)
    if new.offset < result:
        high = min(high, old.offset - result)
    if new.offset + new.nbytes > result + pair.result_bytes:
        low = max(low, old.offset + old.nbytes - result - pair.result_bytes)
    apart = source - result
    ranges = [(max(low, s + apart), min(high, t + apart)) for s, t in pair.shifts]
    return [(s, t) for s, t in ranges if s <= t]


def _without(ranges: Sequence[Interval], allowed: Interval) -> list[Interval]:
    """Open intervals less a closed one."""
    found = []
    for low, high in ranges:
        if allowed[1] <= low or allowed[0] >= high:
            found.append((low, high))
            continue
        found += [(s, t) for s, t in ((low, allowed[0]), (allowed[1], high)) if s < t]
    return found


def _united(ranges: Sequence[Interval]) -> list[Interval]:
    """Overlapping open intervals joined; a point between two of them stays allowed."""
    merged: list[Interval] = []
    for low, high in sorted(ranges):
        if merged and low < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged
