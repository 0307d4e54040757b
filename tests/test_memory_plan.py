"""Memory plans: live buffers never share a byte, and the arena is as small as can be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.memory_plan import Buffer, MemoryPlan, Part, plan

ALIGNMENT = 64


def _check(buffers: list[Buffer], result: MemoryPlan) -> None:
    """No overlap in bytes and time, aligned, inside the arena, above the bound."""
    assert result.offsets.keys() == {b.name for b in buffers}
    assert all(offset % ALIGNMENT == 0 for offset in result.offsets.values())
    assert result.size % ALIGNMENT == 0
    assert result.lower_bound <= result.size
    for b in buffers:
        assert 0 <= result.offsets[b.name] <= result.size - b.nbytes
    for a, b in itertools.combinations(buffers, 2):
        for p, q in itertools.product(a.pieces, b.pieces):
            if p.first <= q.last and q.first <= p.last:
                begin_p, begin_q = (
                    result.offsets[a.name] + p.offset,
                    result.offsets[b.name] + q.offset,
                )
                assert begin_p + p.nbytes <= begin_q or begin_q + q.nbytes <= begin_p


def _live(buffers: list[Buffer]) -> int:
    """Largest number of bytes alive at one step, counted byte by byte."""
    steps = {p.first for b in buffers for p in b.pieces}
    return max(
        (
            sum(
                len(
                    set().union(
                        *(
                            range(p.offset, p.offset + p.nbytes)
                            for p in b.pieces
                            if p.first <= s <= p.last
                        )
                    )
                )
                for b in buffers
            )
            for s in steps
        ),
        default=0,
    )


_SIMPLE = st.tuples(st.integers(0, 1000), st.integers(0, 20), st.integers(0, 6))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(_SIMPLE, max_size=25))
def test_random_buffers(specs: list[tuple[int, int, int]]) -> None:
    buffers = [Buffer(f"b{i}", n, t, t + d) for i, (n, t, d) in enumerate(specs)]
    result = plan(buffers)
    _check(buffers, result)
    assert result.lower_bound >= _live(buffers)
    assert plan(buffers) == result


@st.composite
def _compound(draw: st.DrawFn, name: str) -> Buffer:
    parts = []
    offset = 0
    for _ in range(draw(st.integers(1, 4))):
        size = 4 * draw(st.integers(1, 60))
        first = draw(st.integers(0, 10))
        parts.append(Part(offset, size, first, first + draw(st.integers(0, 5))))
        offset += size * draw(st.integers(0, 1))
    end = max(p.offset + p.nbytes for p in parts)
    return Buffer(name, end, min(p.first for p in parts), max(p.last for p in parts), tuple(parts))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_random_compound_buffers(data: st.DataObject) -> None:
    buffers = [data.draw(_compound(f"b{i}")) for i in range(data.draw(st.integers(1, 12)))]
    result = plan(buffers)
    _check(buffers, result)
    assert result.lower_bound >= _live(buffers)


def test_nothing_to_place() -> None:
    assert plan([]) == MemoryPlan({}, 0, 0)
    assert plan([Buffer("empty", 0, 0, 3)]) == MemoryPlan({"empty": 0}, 0, 0)


def test_chain_needs_two_neighbours() -> None:
    sizes = [640, 128, 1280, 64, 320, 1920, 64]
    result = plan([Buffer(f"b{i}", n, i, i + 1) for i, n in enumerate(sizes)])
    assert result.size == result.lower_bound == max(a + b for a, b in itertools.pairwise(sizes))


def test_hole_of_a_compound_buffer_is_used() -> None:
    concat = Buffer("c", 256, 0, 9, (Part(0, 128, 0, 9), Part(128, 128, 8, 9)))
    result = plan([concat, Buffer("x", 128, 2, 5)])
    assert result.size == result.lower_bound == 256


@pytest.mark.parametrize("seed", range(4))
def test_networks_with_long_skips_stay_near_the_bound(seed: int) -> None:
    import random

    chance = random.Random(seed)
    buffers = []
    for i in range(150):
        life = chance.choice([1, 1, 1, 2, 3, chance.randrange(4, 40)])
        buffers.append(Buffer(f"b{i}", 64 * chance.randrange(1, 400), i, i + life))
    result = plan(buffers)
    _check(buffers, result)
    assert result.size <= 1.05 * result.lower_bound


def test_plan_where_first_fit_by_size_fails() -> None:
    # Big buffers first leave a hole that the long-lived small one cannot use.
    buffers = [
        Buffer("a", 512, 0, 1),
        Buffer("b", 448, 2, 3),
        Buffer("c", 128, 1, 2),
        Buffer("d", 192, 3, 4),
        Buffer("e", 448, 4, 5),
        Buffer("f", 64, 0, 5),
    ]
    result = plan(buffers)
    _check(buffers, result)
    assert result.size == result.lower_bound
