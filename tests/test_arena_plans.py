"""Plans of random graphs: valid when played byte by byte, bounds that hold, the smallest arena."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.arena_bound import Bound
from effc.joint import best_of_orders
from effc.kernels.region import Op, Region, TensorType, Value
from effc.kernels.template import Kernel, Overlap, Stage
from effc.lifetime import ArenaPlan, plan_arena
from effc.order import order_regions
from effc.order_graph import build_graph

UNIT = 16


@dataclass
class Net:
    """Regions with kernels; every value is a root of its own, region 0 reads the model's input."""

    regions: list[Region]
    kernels: dict[str, Kernel]

    @property
    def values(self) -> dict[str, Value]:
        return {v.name: v for r in self.regions for v in r.outputs}

    @property
    def roots(self) -> dict[str, int]:
        return {name: v.type.nbytes for name, v in self.values.items()}

    @property
    def slots(self) -> dict[str, tuple[str, int]]:
        return {name: (name, 0) for name in (*self.values, "input")}

    def plan(self) -> ArenaPlan:
        return plan_arena(self.regions, self.kernels, self.slots, self.roots, True, UNIT)


@st.composite
def nets(draw: st.DrawFn, most: int) -> Net:
    """Random graphs; some kernels have workspaces, scratch, two stages, or results over inputs."""
    source = Value("input", TensorType((UNIT,), "uint8"))
    values: list[Value] = []
    regions: list[Region] = []
    kernels: dict[str, Kernel] = {}
    for i in range(draw(st.integers(2, most))):
        reads = (
            draw(st.lists(st.integers(0, i - 1), min_size=1, max_size=2, unique=True)) if i else []
        )
        inputs = tuple(values[j] for j in reads) or (source,)
        value = Value(f"v{i}", TensorType((UNIT * draw(st.integers(1, 6)),), "uint8"))
        values.append(value)
        op = Op("Op", inputs, (value,))
        region = Region(f"r{i}", (op,), op, inputs, (value,))
        regions.append(region)
        scratch = UNIT * draw(st.sampled_from([0, 0, 1, 3]))
        names = tuple(v.name for v in inputs)
        overlaps = []
        for v in inputs if i else ():
            kind = draw(st.sampled_from(["none", "exact", "below", "planes"]))
            sizes = v.type.nbytes, value.type.nbytes
            if kind == "exact":
                overlaps.append(Overlap(v.name, value.name, ((0, 0),)))
            elif kind == "below":
                shift = draw(st.integers(-sizes[1], sizes[0]))
                overlaps.append(Overlap(v.name, value.name, ((-sizes[1], shift),)))
            elif kind == "planes":
                shifts = ((-2 * UNIT, -2 * UNIT), (UNIT, UNIT))
                overlaps.append(Overlap(v.name, value.name, shifts))
        if draw(st.booleans()):
            stages: tuple[Stage, ...] = (
                Stage(None, (*names, value.name, "scratch"), scratch=scratch),
            )
            kernels[region.name] = Kernel(stages, overlaps=tuple(overlaps))
        else:  # the inputs are packed first
            stages = (
                Stage(None, (*names, "t:packed")),
                Stage(None, ("t:packed", value.name, "scratch"), scratch=scratch),
            )
            workspace = {"packed": UNIT * draw(st.integers(1, 3))}
            kernels[region.name] = Kernel(stages, workspaces=workspace, overlaps=tuple(overlaps))
    return Net(regions, kernels)


def _ranges(net: Net, plan: ArenaPlan, region: Region, ref: str, stage: int) -> range:
    if ref == "scratch":
        begin = plan.workspaces[region.name, f"scratch:{stage}"]
        return range(begin, begin + net.kernels[region.name].stages[stage].scratch)
    if ref.startswith("t:"):
        begin = plan.workspaces[region.name, ref[2:]]
        return range(begin, begin + net.kernels[region.name].workspaces[ref[2:]])
    return range(plan.offsets[ref], plan.offsets[ref] + net.roots[ref])


def _play(net: Net, plan: ArenaPlan) -> None:
    """Write every buffer with its name where it lies, and find it again when it is read."""
    memory: dict[int, str] = {}
    for region in net.regions:
        kernel = net.kernels[region.name]
        allowed = {(o.source, o.result): o.shifts for o in kernel.sharing}
        outputs = {v.name for v in region.outputs}
        for number, stage in enumerate(kernel.stages):
            args = [ref for ref in stage.args if ref != "input"]
            places = {ref: _ranges(net, plan, region, ref, number) for ref in args}
            written = {ref for ref in args if ref in outputs or ref == "scratch"}
            written |= {ref for ref in args if ref.startswith("t:") and number == 0}
            for ref in args:
                if ref not in written:
                    assert all(memory.get(at) == _tag(region, ref) for at in places[ref]), ref
            for a, b in itertools.combinations(args, 2):
                common = range(
                    max(places[a].start, places[b].start), min(places[a].stop, places[b].stop)
                )
                if len(common) and places[a] and places[b]:
                    apart = places[b].start - places[a].start
                    shifts = allowed.get((a, b), ())
                    assert any(low <= apart <= high for low, high in shifts), (a, b, apart)
            for ref in written:
                memory.update(dict.fromkeys(places[ref], _tag(region, ref)))
    assert max(memory, default=-1) < plan.size


def _tag(region: Region, ref: str) -> str:
    return f"{region.name}/{ref}" if ref.startswith("t:") or ref == "scratch" else ref


@settings(max_examples=100, deadline=None, derandomize=True)
@given(nets(9))
def test_plans_can_be_played(net: Net) -> None:
    plan = net.plan()
    _play(net, plan)
    assert plan.bound.nbytes <= plan.size
    assert plan.size % UNIT == 0
    assert net.plan() == plan


def _fits(net: Net, size: int) -> bool:
    """Whether any offsets fit an arena, by trying them all; constraints are those of pairs."""
    workspaces = [
        (r.name, name)
        for r in net.regions
        for name in (
            *net.kernels[r.name].workspaces,
            *(f"scratch:{i}" for i, s in enumerate(net.kernels[r.name].stages) if s.scratch),
        )
    ]
    items: list[str | tuple[str, str]] = [*net.roots, *workspaces]
    items.sort(key=lambda item: -_bytes(net, item))

    @cache
    def apart(a: int, b: int, distance: int) -> bool:
        start = 1 << 10
        return _valid(net, {items[a]: start, items[b]: start + distance})

    def extend(done: list[int]) -> bool:
        if len(done) == len(items):
            return True
        i = len(done)
        return any(
            all(apart(j, i, at - done[j]) for j in range(i)) and extend([*done, at])
            for at in range(0, size - _bytes(net, items[i]) + 1, UNIT)
        )

    return extend([])


def _bytes(net: Net, item: str | tuple[str, str]) -> int:
    if isinstance(item, str):
        return net.roots[item]
    kernel = net.kernels[item[0]]
    if item[1].startswith("scratch:"):
        return kernel.stages[int(item[1][8:])].scratch
    return kernel.workspaces[item[1]]


def _valid(net: Net, done: dict[str | tuple[str, str], int]) -> bool:
    """Whether what is placed can be played, with everything else far away."""
    far = itertools.count(1 << 20, 1 << 12)
    offsets = {name: done.get(name, next(far)) for name in net.roots}
    workspaces = {
        (r.name, name): done.get((r.name, name), next(far))
        for r in net.regions
        for name in (
            *net.kernels[r.name].workspaces,
            *(f"scratch:{i}" for i, _ in enumerate(net.kernels[r.name].stages)),
        )
    }
    plan = ArenaPlan(offsets, workspaces, 1 << 30, Bound(), False)
    try:
        _play(net, plan)
    except AssertionError:
        return False
    return True


@settings(max_examples=20, deadline=None, derandomize=True)
@given(nets(4))
def test_proven_plans_are_the_smallest(net: Net) -> None:
    plan = net.plan()
    assert plan.proven  # four regions are a small problem
    assert not _fits(net, plan.size - UNIT)


def _orders(net: Net) -> Iterator[list[Region]]:
    for order in itertools.permutations(net.regions):
        seen = {"input"}
        for region in order:
            if any(v.name not in seen for v in region.inputs):
                break
            seen.update(v.name for v in region.outputs)
        else:
            yield list(order)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(nets(5))
def test_no_order_has_a_plan_below_the_proven_peak(net: Net) -> None:
    order = order_regions(net.regions, net.slots, set(net.roots), net.kernels, True)
    assert order.proven
    smallest = min(Net(o, net.kernels).plan().size for o in _orders(net))
    assert order.peak <= smallest
    assert Net(order.regions, net.kernels).plan().bound.nbytes <= -(-order.peak // UNIT) * UNIT


@settings(max_examples=30, deadline=None, derandomize=True)
@given(nets(5))
def test_order_and_placement_together_are_the_smallest(net: Net) -> None:
    order = order_regions(net.regions, net.slots, set(net.roots), net.kernels, True)
    first = Net(order.regions, net.kernels)
    graph = build_graph(first.regions, net.slots, set(net.roots), net.kernels, True)
    best, plan, proven = best_of_orders(
        graph, first.regions, first.plan(), lambda r: Net(r, net.kernels).plan()
    )
    assert proven
    _play(Net(best, net.kernels), plan)
    assert plan.size == min(Net(o, net.kernels).plan().size for o in _orders(net))


def test_distances_that_exclude_each_other_are_found_by_the_integer_program() -> None:
    """Either input alone could lie under the result; both together cannot, which no bound sees."""
    source, a, b, c = (
        Value(name, TensorType((UNIT * units,), "uint8"))
        for name, units in (("input", 1), ("a", 1), ("b", 2), ("c", 3))
    )
    regions = [
        Region(f"r{i}", (Op("Op", reads, (made,)),), None, reads, (made,))
        for i, (reads, made) in enumerate([((source,), a), ((a,), b), ((a, b), c)])
    ]
    kernels = {
        r.name: Kernel((Stage(None, tuple(v.name for v in (*r.inputs, *r.outputs))),))
        for r in regions
    }
    kernels["r2"].overlaps = (
        Overlap("a", "c", ((-2 * UNIT, -2 * UNIT), (UNIT, UNIT))),
        Overlap("b", "c", ((-3 * UNIT, -1),)),
    )
    net = Net(regions, kernels)
    plan = net.plan()
    _play(net, plan)
    assert (plan.bound.nbytes, plan.size, plan.proven) == (3 * UNIT, 4 * UNIT, True)
    assert not _fits(net, 3 * UNIT)


@pytest.mark.parametrize("shift", [-UNIT, 0, UNIT])
def test_the_stated_distance_is_taken(shift: int) -> None:
    a, b = (Value(n, TensorType((4 * UNIT,), "uint8")) for n in "ab")
    source = Value("input", TensorType((UNIT,), "uint8"))
    make = Region("make", (Op("Op", (source,), (a,)),), None, (source,), (a,))
    use = Region("use", (Op("Op", (a,), (b,)),), None, (a,), (b,))
    kernels = {
        "make": Kernel((Stage(None, ("input", "a")),)),
        "use": Kernel((Stage(None, ("a", "b")),), overlaps=(Overlap("a", "b", ((shift, shift),)),)),
    }
    plan = Net([make, use], kernels).plan()
    assert plan.offsets["b"] - plan.offsets["a"] == shift
    assert plan.size == plan.bound.nbytes == 4 * UNIT + abs(shift)
    assert plan.inplace == [("use", "a", "b")]
