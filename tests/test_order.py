"""Orders: valid, reproducible, and of minimal peak where that can be checked."""

from __future__ import annotations

import itertools
import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from effc.kernels.region import Op, Region, TensorType, Value
from effc.order import order_regions, peak_bytes

Edges = list[tuple[int, list[int]]]  # per region: size of its result, regions it reads


def _regions(edges: Edges) -> tuple[list[Region], dict[str, tuple[str, int]], set[str]]:
    values = [Value(f"v{i}", TensorType((size,), "uint8")) for i, (size, _) in enumerate(edges)]
    regions = []
    for i, (_, reads) in enumerate(edges):
        inputs = tuple(values[j] for j in reads)
        op = Op("Op", inputs, (values[i],))
        regions.append(Region(f"r{i}", (op,), op, inputs, (values[i],)))
    return regions, {v.name: (v.name, 0) for v in values}, {v.name for v in values}


def _valid(order: list[Region]) -> bool:
    seen: set[str] = set()
    for region in order:
        if any(v.name not in seen for v in region.inputs):
            return False
        seen.update(v.name for v in region.outputs)
    return True


@st.composite
def _graphs(draw: st.DrawFn, most: int) -> Edges:
    edges: Edges = []
    for i in range(draw(st.integers(1, most))):
        reads = draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        edges.append((draw(st.integers(1, 50)), reads))
    return edges


@settings(max_examples=60, deadline=None, derandomize=True)
@given(_graphs(7))
def test_minimal_on_small_graphs(edges: Edges) -> None:
    regions, slots, roots = _regions(edges)
    found = order_regions(regions, slots, roots).regions
    assert _valid(found)
    orders = (list(p) for p in itertools.permutations(regions))
    best = min(peak_bytes(p, slots, roots) for p in orders if _valid(p))
    assert peak_bytes(found, slots, roots) == best


@settings(max_examples=40, deadline=None, derandomize=True)
@given(_graphs(30))
def test_never_worse_and_reproducible(edges: Edges) -> None:
    regions, slots, roots = _regions(edges)
    found = order_regions(regions, slots, roots).regions
    assert _valid(found)
    assert sorted(r.name for r in found) == sorted(r.name for r in regions)
    assert peak_bytes(found, slots, roots) <= peak_bytes(regions, slots, roots)
    assert [r.name for r in order_regions(regions, slots, roots).regions] == [r.name for r in found]


def test_given_order_is_kept_when_it_is_best() -> None:
    regions, slots, roots = _regions([(4, []), (4, [0]), (4, [0]), (4, [1, 2])])
    assert order_regions(regions, slots, roots).regions == regions


def test_branches_run_one_after_another() -> None:
    # Interleaved branches keep two large tensors alive.
    edges: Edges = [(1, []), (100, [0]), (100, [0]), (1, [1]), (1, [2]), (1, [3, 4])]
    regions, slots, roots = _regions(edges)
    assert peak_bytes(regions, slots, roots) == 201
    assert peak_bytes(order_regions(regions, slots, roots).regions, slots, roots) == 102


def test_two_writers_of_one_root_come_before_its_reader() -> None:
    parts = [Value(f"p{i}", TensorType((8,), "uint8")) for i in range(2)]
    whole, last = (Value(n, TensorType((16,), "uint8")) for n in ("whole", "last"))
    regions = [Region(f"w{i}", (), None, (), (part,)) for i, part in enumerate(parts)] + [
        Region("r", (), None, (whole,), (last,))
    ]
    slots = {"p0": ("whole", 0), "p1": ("whole", 8), "whole": ("whole", 0), "last": ("last", 0)}
    assert peak_bytes(regions, slots, {"whole", "last"}) == 32
    assert [r.name for r in order_regions(regions, slots, {"whole", "last"}).regions][-1] == "r"


def test_large_graphs_take_bounded_work() -> None:
    chance = random.Random(1)
    edges: Edges = [(10, [])]
    for i in range(1, 300):
        reads = sorted({i - 1 - min(chance.randrange(12), i - 1) for _ in range(2)})
        edges.append((chance.randrange(1, 100), reads))
    regions, slots, roots = _regions(edges)
    start = time.process_time()
    found = order_regions(regions, slots, roots).regions
    assert _valid(found)
    assert time.process_time() - start < 30  # far above what is needed; catches exponential work
