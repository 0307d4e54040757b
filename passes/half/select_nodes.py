"""Which nodes become float16: those that save most time within a limit of noise.

Errors of different roundings are nearly independent, so their powers add up: every value that is
rounded adds its noise, and every node that computes in float16 that of its own sums and weights. A
value is rounded as soon as one node that reads or makes it is float16.

At a given price of noise, ``time + price * noise`` is least for a minimum cut between float32 and
float16 (Kolmogorov and Zabih, What Energy Functions Can Be Minimized via Graph Cuts?, PAMI 2004).
The smallest price that meets the limit is found by bisection (Everett's generalized Lagrange
multipliers, Operations Research 1963), so the result is the best one among those that some price
gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import networkx as nx

__all__ = ["Border", "Item", "Way", "select"]

_STEPS = 10
"""Bisections of the price, which is doubled until it is large enough."""


@dataclass(frozen=True)
class Way:
    """How a node can be computed in float16.

    Attributes:
        time: In any unit, the same for all.
        noise: Of weights and sums, as a share of the outputs' power.
        sums: The part of it that sums make.
        terms: Products that are added up in float16; 0 if the node adds none.
    """

    time: float
    noise: float = 0.0
    sums: float = 0.0
    terms: int = 0


@dataclass(frozen=True)
class Item:
    """A node that may become float16.

    Attributes:
        values: That are rounded then.
        exact: Time in float32.
        ways: To compute it in float16; none if it must not be.
    """

    values: frozenset[str]
    exact: float
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Border:
    """A value between two nodes, which costs a cast if only one of them is float16.

    Attributes:
        first: Index of an item.
        second: Another one; None for what is always float32.
        time: Of the cast.
    """

    first: int
    second: int | None
    time: float


def select(
    items: Sequence[Item], noise: Mapping[str, float], borders: Sequence[Border], limit: float
) -> list[Way | None]:
    """The way of each item; None for those that stay float32.

    Args:
        items: Nodes.
        noise: Of each value, if it is rounded.
        borders: Casts.
        limit: Largest sum of noise.
    """
    found = _cut(items, noise, borders, 0.0)
    if _noise(items, noise, found) <= limit:
        return found
    low, high = 0.0, 1e-3 * sum(item.exact for item in items) / max(limit, 1e-30)
    found = _cut(items, noise, borders, high)
    while _noise(items, noise, found) > limit:
        low, high = high, 4 * high
        if not isfinite(high):
            return [None] * len(items)
        found = _cut(items, noise, borders, high)
    for _ in range(_STEPS):
        price = (low * high) ** 0.5 if low else high / 4
        better = _cut(items, noise, borders, price)
        if _noise(items, noise, better) <= limit:
            found, high = better, price
        else:
            low = price
    return found


def _noise(items: Sequence[Item], noise: Mapping[str, float], ways: Sequence[Way | None]) -> float:
    """Of the rounded values and of the nodes."""
    chosen = [(item, way) for item, way in zip(items, ways, strict=True) if way is not None]
    values = {name for item, _ in chosen for name in item.values}
    return sum(way.noise for _, way in chosen) + sum(noise[name] for name in values)


def _cut(
    items: Sequence[Item], noise: Mapping[str, float], borders: Sequence[Border], price: float
) -> list[Way | None]:
    """What is least in time + price * noise. The source's side is float32."""
    best = [
        min(item.ways, key=lambda way: way.time + price * way.noise, default=None) for item in items
    ]
    halves = [inf if way is None else way.time + price * way.noise for way in best]
    for border in borders:
        if border.second is None:
            halves[border.first] += border.time
    graph = nx.DiGraph()
    for index, (item, half) in enumerate(zip(items, halves, strict=True)):
        graph.add_edge("exact", index, capacity=half)
        graph.add_edge(index, "half", capacity=item.exact)
        for name in item.values:
            graph.add_edge("exact", f"value {name}", capacity=price * noise[name] if price else 0.0)
            graph.add_edge(f"value {name}", index, capacity=inf)
    for border in borders:
        if border.second is not None:
            graph.add_edge(border.first, border.second, capacity=border.time)
            graph.add_edge(border.second, border.first, capacity=border.time)
    _, (exact, _) = nx.minimum_cut(graph, "exact", "half")
    return [None if index in exact else way for index, way in enumerate(best)]
