"""Execution order of regions that keeps the fewest bytes alive.

In: regions in a valid order and the place of every value; with their kernels, once these are
chosen, workspaces and inputs that make room for results count too. Out: a valid order
whose peak of live bytes is minimal for graphs of a few hundred thousand
reachable states (nearly all networks), and the best one found otherwise.

The search walks over sets of finished regions, cheapest peak first (a
bottleneck shortest path: Ahn et al., "Ordering chaos: memory-aware scheduling of
irregularly wired neural networks", 2020). A ready region that does not raise
the peak and frees at least as much as it allocates is taken at once: doing it
earlier never makes any later step larger, as an input that it reads can only become free sooner.
Where the walk would take too long,
a beam search replaces it. Work is limited by counts, so the result is
reproducible. The given order is kept unless another one has a smaller peak.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from effc.kernels.region import Region
from effc.kernels.template import Kernel
from effc.order_graph import Graph, bits, build_graph

__all__ = ["Order", "order_regions", "peak_bytes"]

_EXACT_STATES = 12_000
_BEAM = 24


@dataclass(frozen=True)
class Order:
    """Result of :func:`order_regions`.

    Attributes:
        regions: In execution order.
        peak: Bytes alive at the largest step.
        proven: Whether no valid order has a smaller peak, and no arena is smaller than it.
    """

    regions: list[Region]
    peak: int
    proven: bool


def order_regions(
    regions: Sequence[Region],
    slots: Mapping[str, tuple[str, int]],
    arena_roots: frozenset[str] | set[str],
    kernels: Mapping[str, Kernel] | None = None,
    serial: bool = False,
) -> Order:
    """Order regions for a small arena.

    Args:
        regions: In a valid execution order.
        slots: (root, byte offset) of every value.
        arena_roots: Roots that lie in the arena.
        kernels: By region name, if they are known.
        serial: One worker runs everything: scratch is in the arena.

    Returns:
        The same regions; in the given order if no better one is found.
    """
    graph = build_graph(regions, slots, arena_roots, kernels, serial)
    best = list(range(len(regions)))
    peak = _peak(graph, best)
    bound = graph.step_bound()
    proven = peak <= bound
    if not proven:
        exact = _bottleneck_path(graph, bound, peak)
        proven = exact is not None
        candidate = _beam_search(graph, bound) if exact is None else exact
        if candidate and (found := _peak(graph, candidate)) < peak:
            best, peak = candidate, found
    return Order([regions[i] for i in best], peak, proven and graph.exact)


def peak_bytes(
    regions: Sequence[Region],
    slots: Mapping[str, tuple[str, int]],
    arena_roots: frozenset[str] | set[str],
) -> int:
    """Largest number of live arena bytes at one region in the given order."""
    return _peak(build_graph(regions, slots, arena_roots), range(len(regions)))


def _peak(graph: Graph, order: Iterable[int]) -> int:
    done = live = peak = 0
    for i in order:
        needed, change = graph.step(done, i)
        peak = max(peak, live + needed)
        live += change
        done |= 1 << i
    return peak


@dataclass
class _State:
    """A set of finished regions."""

    done: int
    ready: int
    live: int
    peak: int
    order: tuple[_State, tuple[int, ...]] | None  # previous state, regions run since

    def path(self) -> list[int]:
        """Regions in the order in which they ran."""
        steps: list[tuple[int, ...]] = []
        link = self.order
        while link is not None:
            steps.append(link[1])
            link = link[0].order
        return [i for step in reversed(steps) for i in step]


def _start(graph: Graph, bound: int) -> _State:
    ready = sum(1 << i for i, need in enumerate(graph.needs) if not need)
    return _close(graph, _State(0, ready, 0, bound, None), ())


def _advance(graph: Graph, state: _State, i: int) -> _State:
    """Run region ``i`` and everything that is then free to run without harm."""
    nxt = _State(state.done, state.ready, state.live, state.peak, None)
    _run(graph, nxt, i)
    return _close(graph, nxt, (i,), state)


def _run(graph: Graph, state: _State, i: int) -> None:
    needed, change = graph.step(state.done, i)
    state.peak = max(state.peak, state.live + needed)
    state.live += change
    state.done |= 1 << i
    state.ready &= ~(1 << i)
    for user in graph.users[i]:
        if graph.needs[user] & ~state.done == 0:
            state.ready |= 1 << user


def _close(
    graph: Graph, state: _State, ran: tuple[int, ...], previous: _State | None = None
) -> _State:
    """Run harmless ready regions until there is none."""
    steps = list(ran)
    found = True
    while found:
        found = False
        for i in bits(state.ready):
            needed, change = graph.step(state.done, i)
            if change <= 0 and state.live + needed <= state.peak:
                _run(graph, state, i)
                steps.append(i)
                found = True
                break
    if steps:
        state.order = (previous if previous is not None else _State(0, 0, 0, 0, None), tuple(steps))
    return state


def _bottleneck_path(graph: Graph, bound: int, limit: int) -> list[int] | None:
    """Order of minimal peak; ``[]`` if none is below ``limit``, ``None`` if it takes too long."""
    full = (1 << len(graph.needs)) - 1
    start = _start(graph, bound)
    best = {start.done: start.peak}
    heap = [(start.peak, 0, 0, start)]
    serial = 0
    while heap:
        peak, _, _, state = heapq.heappop(heap)
        if state.done == full:
            return state.path()
        if peak > best[state.done]:
            continue
        for i in bits(state.ready):
            nxt = _advance(graph, state, i)
            if nxt.peak >= min(limit, best.get(nxt.done, limit)):
                continue
            best[nxt.done] = nxt.peak
            serial += 1
            if serial > _EXACT_STATES:
                return None
            heapq.heappush(heap, (nxt.peak, -nxt.done.bit_count(), serial, nxt))
    return []


def _beam_search(graph: Graph, bound: int) -> list[int]:
    """Good order: the best few states of every size survive."""
    full = (1 << len(graph.needs)) - 1
    beam = [_start(graph, bound)]
    while beam[0].done != full:
        reached: dict[int, _State] = {}
        for state in beam:
            if state.done == full:
                reached[full] = min(state, reached.get(full, state), key=lambda s: s.peak)
            for i in bits(state.ready):
                nxt = _advance(graph, state, i)
                known = reached.get(nxt.done)
                if known is None or nxt.peak < known.peak:
                    reached[nxt.done] = nxt
        beam = sorted(
            reached.values(), key=lambda s: (s.peak, s.live, -s.done.bit_count(), s.done)
        )[:_BEAM]
    return beam[0].path()
