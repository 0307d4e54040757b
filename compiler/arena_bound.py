"""How many bytes a given order needs at least, and at which step.

At every step the live bytes of all roots and workspaces lie beside each other, except
those that a result shares with an input that dies there: by inclusion and exclusion the
union has at least the sum of all sizes less what pairs can have in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from effc.memory_plan import Part, align_up, union_bytes
from effc.merging import Pair
from effc.placement import Problem

__all__ = ["Bound", "lower_bound"]


@dataclass(frozen=True)
class Bound:
    """The step that needs most.

    Attributes:
        nbytes: No plan for this order is smaller.
        step: Where that is so.
        region: Name of the region that runs there.
        live: (name, bytes) of what is alive, largest first.
        shared: Bytes of these that results may share with inputs.
    """

    nbytes: int = 0
    step: int = 0
    region: str = ""
    live: tuple[tuple[str, int], ...] = ()
    shared: int = 0


def lower_bound(problem: Problem, spans: Mapping[str, tuple[int, int]]) -> Bound:
    """The bound of a problem.

    Args:
        problem: What is placed.
        spans: First and last step of every region.
    """
    reserved = problem.reserved()
    starts = sorted({p.first for parts in reserved.values() for p in parts})
    best = Bound()
    for step in starts:
        live = {name: _live(parts, step) for name, parts in reserved.items()}
        shared = _shared(problem, reserved, step)
        total = align_up(sum(live.values()) - shared, problem.alignment)
        if total > best.nbytes:
            region = next((n for n, (a, b) in spans.items() if a <= step <= b), "")
            items = sorted(((n, b) for n, b in live.items() if b), key=lambda i: (-i[1], i[0]))
            best = Bound(total, step, region, tuple(items), shared)
    return best


def _live(parts: Iterable[Part], step: int) -> int:
    return union_bytes(p for p in parts if p.first <= step <= p.last)


def _shared(problem: Problem, reserved: Mapping[str, list[Part]], step: int) -> int:
    """Bytes that results can share with inputs at a step, at most."""
    by_source: dict[str, int] = defaultdict(int)
    by_result: dict[str, int] = defaultdict(int)
    sizes: dict[str, int] = {}
    for pair in problem.pairs:
        first, last = pair.span
        if step < first or (step > last and not pair.copy):
            continue
        old = _inside(reserved, pair, step)
        new = _new(reserved, pair, step)
        common = min(pair.most_shared, old, new)
        by_source[pair.source] += common
        by_result[pair.result] += common
        sizes[pair.source] = min(pair.source_bytes, old)
        sizes[pair.result] = min(pair.result_bytes, new)
    sides = (by_source, by_result)
    return min(sum(min(sizes[name], n) for name, n in side.items()) for side in sides)


def _inside(reserved: Mapping[str, list[Part]], pair: Pair, step: int) -> int:
    """Live bytes of the input that may be overwritten."""
    root, begin = pair.source_slot
    return sum(
        max(min(p.offset + p.nbytes, begin + pair.source_bytes) - max(p.offset, begin), 0)
        for p in reserved.get(root, ())
        if p.first < pair.span[0] and p.first <= step <= p.last
        if pair.copy or p.last <= pair.span[1]
    )


def _new(reserved: Mapping[str, list[Part]], pair: Pair, step: int) -> int:
    """Live bytes of the result."""
    root, begin = pair.result_slot
    return sum(
        max(min(p.offset + p.nbytes, begin + pair.result_bytes) - max(p.offset, begin), 0)
        for p in reserved.get(root, ())
        if pair.span[0] <= p.first <= step <= p.last
    )
