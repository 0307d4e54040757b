"""Order and placement together, for small graphs on microcontrollers.

The order with the fewest live bytes need not have the smallest arena, where placement cannot reach
the bound. Then every other order that could be better, by its bound, is placed too; with all of
them proven, so is the best (branch and bound over orders, an integer program for each).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from effc.kernels.region import Region
from effc.lifetime import ArenaPlan
from effc.order_graph import Graph, bits

__all__ = ["best_of_orders"]

_ORDERS = 32
_STATES = 20_000


def best_of_orders(
    graph: Graph,
    regions: Sequence[Region],
    first: ArenaPlan,
    place: Callable[[list[Region]], ArenaPlan],
) -> tuple[list[Region], ArenaPlan, bool]:
    """Look for an order whose arena is smaller.

    Args:
        graph: Of the regions, in their present order.
        regions: In that order.
        first: Its plan.
        place: Plans an order.

    Returns:
        The best order, its plan, and whether no order has a smaller arena.
    """
    best, plan = list(regions), first
    proven = first.proven
    walk = _Walk(graph, lambda: plan.size)
    present = list(range(len(regions)))
    for number, order in enumerate(walk.orders()):
        if number >= _ORDERS:
            return best, plan, False
        if order == present:
            continue
        other = [regions[i] for i in order]
        found = place(other)
        proven = proven and (found.proven or found.bound.nbytes >= plan.size)
        if found.size < plan.size:
            best, plan = other, found
    return best, plan, proven and not walk.ended


class _Walk:
    """Depth-first over orders whose peak stays below a limit that may fall."""

    def __init__(self, graph: Graph, limit: Callable[[], int]) -> None:
        self.graph = graph
        self.limit = limit
        self.states = 0
        self.ended = False

    def orders(self) -> Iterator[list[int]]:
        """Every order of a smaller peak, until too many states have been seen."""
        ready = sum(1 << i for i, need in enumerate(self.graph.needs) if not need)
        yield from self._extend([], 0, ready, 0)

    def _extend(self, order: list[int], done: int, ready: int, live: int) -> Iterator[list[int]]:
        self.states += 1
        if self.states > _STATES:
            self.ended = True
            return
        if not ready:
            yield list(order)
            return
        for i in bits(ready):
            needed, change = self.graph.step(done, i)
            if live + needed >= self.limit():
                continue
            after = done | 1 << i
            freed = sum(1 << u for u in self.graph.users[i] if not self.graph.needs[u] & ~after)
            yield from self._extend([*order, i], after, ready & ~(1 << i) | freed, live + change)
