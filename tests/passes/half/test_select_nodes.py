"""Which nodes become float16: against all selections, on small generated problems."""

from __future__ import annotations

from itertools import product
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.passes.half.select_nodes import Border, Item, Way, select

NAMES = "abcd"
size = st.integers(1, 50).map(float)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Item], dict[str, float], list[Border]]:
    count = draw(st.integers(1, 5))
    items = []
    for _ in range(count):
        values = draw(st.frozensets(st.sampled_from(NAMES), max_size=3))
        ways = draw(st.lists(st.builds(Way, size, st.integers(0, 50).map(float)), max_size=3))
        items.append(Item(values, draw(size), tuple(ways)))
    places = st.integers(0, count - 1)
    borders = draw(
        st.lists(st.builds(Border, places, st.none() | places, size), max_size=4).map(
            lambda some: [b for b in some if b.first != b.second]
        )
    )
    return items, {name: draw(size) for name in NAMES}, borders


def noise_of(items: list[Item], noise: dict[str, float], ways: list[Way | None]) -> float:
    chosen = [(i, w) for i, w in zip(items, ways, strict=True) if w is not None]
    values = {name for item, _ in chosen for name in item.values}
    return sum(w.noise for _, w in chosen) + sum(noise[name] for name in values)


def time_of(items: list[Item], borders: list[Border], ways: list[Way | None]) -> float:
    nodes = sum(i.exact if w is None else w.time for i, w in zip(items, ways, strict=True))
    half = [way is not None for way in ways]
    casts = sum(
        b.time for b in borders if half[b.first] != (b.second is not None and half[b.second])
    )
    return nodes + casts


@settings(max_examples=60, deadline=None)
@given(problem=problems(), limit=st.integers(0, 300))
def test_no_selection_with_as_little_noise_is_faster(
    problem: tuple[list[Item], dict[str, float], list[Border]], limit: int
) -> None:
    items, noise, borders = problem
    found = select(items, noise, borders, limit)
    assert all(way is None or way in item.ways for item, way in zip(items, found, strict=True))
    reached = noise_of(items, noise, found)
    assert reached <= limit
    best = min(
        time_of(items, borders, list(ways))
        for ways in product(*([None, *item.ways] for item in items))
        if noise_of(items, noise, list(ways)) <= reached
    )
    assert time_of(items, borders, found) <= best * (1 + 1e-9)


def test_without_a_limit_all_is_float16() -> None:
    items = [Item(frozenset("a"), 2.0, (Way(1.0, 1.0, 1.0, 8), Way(0.5, 9.0, 9.0, 16)))] * 3
    assert [way and way.terms for way in select(items, {"a": 1.0}, [], inf)] == [16] * 3
    assert [way and way.terms for way in select(items, {"a": 1.0}, [], 5.0)] == [8] * 3


@pytest.mark.parametrize("broken", ["value", "way"])
def test_what_overflows_stays_float32(broken: str) -> None:
    noise = {"a": inf if broken == "value" else 1e-9}
    way = Way(1.0, inf if broken == "way" else 0.0)
    items = [Item(frozenset("a"), 2.0, (way,)), Item(frozenset(), 2.0, (Way(1.0),))]
    first, second = select(items, noise, [Border(1, 0, 0.1)], 1e-6)
    assert first is None
    assert second is not None
