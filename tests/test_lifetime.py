"""Lifetimes in stages, pieces of roots, in-place merges."""

from __future__ import annotations

from effc.kernels.region import Op, Region, TensorType, Value
from effc.kernels.template import Kernel, Stage
from effc.lifetime import ArenaPlan, plan_arena

ITEMS = 64  # uint8 elements per unit of size: one alignment step


def _value(name: str, units: int = 1) -> Value:
    return Value(name, TensorType((units * ITEMS,), "uint8"))


def _region(name: str, inputs: list[Value], outputs: list[Value]) -> Region:
    op = Op("Op", tuple(inputs), tuple(outputs))
    return Region(name, (op,), op, tuple(inputs), tuple(outputs))


def _one_stage(region: Region, inplace: tuple[tuple[str, str], ...] = ()) -> Kernel:
    args = tuple(v.name for v in (*region.inputs, *region.outputs))
    return Kernel((Stage(None, args),), inplace=inplace)


def _plan(
    regions: list[Region],
    kernels: dict[str, Kernel],
    slots: dict[str, tuple[str, int]] | None = None,
) -> ArenaPlan:
    values = {v.name: v for r in regions for v in (*r.inputs, *r.outputs)}
    own = {name: (name, 0) for name in values if name != "input"}
    slots = {"input": ("input", 0), **own, **(slots or {})}
    roots: dict[str, int] = {}
    for name, (root, offset) in slots.items():
        if root != "input":
            roots[root] = max(roots.get(root, 0), offset + values[name].type.nbytes)
    return plan_arena(regions, kernels, slots, roots)


def test_result_of_a_later_stage_takes_the_place_of_a_packed_input() -> None:
    x, a, b = _value("input"), _value("a", 4), _value("b", 4)
    first, second = _region("first", [x], [a]), _region("second", [a], [b])
    packed = Kernel(
        (Stage(None, ("a", "t:packed")), Stage(None, ("t:packed", "b"))), {}, {"packed": ITEMS}
    )
    plan = _plan([first, second], {"first": _one_stage(first), "second": packed})
    assert plan.offsets["a"] == plan.offsets["b"]
    assert plan.size == plan.bound.nbytes == 5 * ITEMS


def test_operands_of_a_concatenation_reserve_only_their_own_room() -> None:
    # a is written long before b; the room of b holds the intermediate until then
    x, a, t, b, y = _value("input"), _value("a"), _value("t"), _value("b"), _value("y", 2)
    regions = [
        _region("ra", [x], [a]),
        _region("rt", [x], [t]),
        _region("use", [t], [_value("u")]),
        _region("rb", [x], [b]),
        _region("rz", [y], [_value("z")]),
    ]
    slots = {"a": ("y", 0), "b": ("y", ITEMS), "y": ("y", 0)}
    plan = _plan(regions, {r.name: _one_stage(r) for r in regions}, slots)
    assert plan.offsets["t"] == plan.offsets["y"] + ITEMS
    assert plan.size == plan.bound.nbytes == 3 * ITEMS


def test_slice_that_stays_alive_frees_the_rest() -> None:
    x, a, s, b, y = _value("input"), _value("a", 4), _value("s"), _value("b", 3), _value("y")
    regions = [
        _region("ra", [x], [a]),
        _region("use", [a], [_value("u")]),
        _region("rb", [x], [b]),
        _region("ry", [b, s], [y]),
    ]
    plan = _plan(regions, {r.name: _one_stage(r) for r in regions}, {"s": ("a", 3 * ITEMS)})
    assert plan.size == plan.bound.nbytes == 5 * ITEMS


def test_in_place_result_inside_a_concatenation() -> None:
    x, a, b, c, y = _value("input"), _value("a"), _value("b"), _value("c"), _value("y", 2)
    regions = [
        _region("ra", [x], [a]),
        _region("rb", [a], [b]),
        _region("rc", [x], [c]),
        _region("ry", [y], [_value("z")]),
    ]
    kernels = {r.name: _one_stage(r) for r in regions}
    kernels["rb"] = _one_stage(regions[1], (("a", "b"),))
    slots = {"b": ("y", ITEMS), "c": ("y", 0), "y": ("y", 0)}
    plan = _plan(regions, kernels, slots)
    assert plan.inplace == [("rb", "a", "b")]
    assert plan.offsets["a"] == plan.offsets["y"] + ITEMS
    assert plan.size == 3 * ITEMS


def test_two_results_cannot_take_the_same_input() -> None:
    x, a, b, c = _value("input"), _value("a"), _value("b"), _value("c")
    regions = [
        _region("ra", [x], [a]),
        _region("rbc", [a], [b, c]),
        _region("ry", [b, c], [_value("y")]),
    ]
    kernels = {r.name: _one_stage(r) for r in regions}
    kernels["rbc"] = _one_stage(regions[1], (("a", "b"), ("a", "c")))
    plan = _plan(regions, kernels)
    assert plan.inplace == [("rbc", "a", "b")]
    assert plan.offsets["b"] != plan.offsets["c"]


def test_unread_result_lives_while_it_is_written() -> None:
    x, a, b = _value("input"), _value("a"), _value("b")
    region = _region("r", [x], [a, b])
    plan = _plan([region], {"r": _one_stage(region)})
    assert plan.offsets["a"] != plan.offsets["b"]


def _copy(source: Value, result: Value) -> Region:
    op = Op("Identity", (source,), (result,))
    return Region(f"copy_{result.name}", (op,), op, (source,), (result,))


def test_copied_half_of_a_split_stays_where_it_is() -> None:
    # ShuffleNet: one half goes straight into the concatenation, the other through a branch
    x, z, y = _value("input"), _value("z", 2), _value("y", 2)
    half, other, part, out = _value("half"), _value("other"), _value("part"), _value("out")
    middle = _value("middle")
    regions = [
        _region("rz", [x], [z]),
        _region("r1", [other], [middle]),
        _region("r2", [middle], [out]),
        _copy(half, part),
        _region("ry", [y], [_value("end")]),
    ]
    slots = {"half": ("z", 0), "other": ("z", ITEMS), "part": ("y", 0), "out": ("y", ITEMS)}
    plan = _plan(regions, {r.name: _one_stage(r) for r in regions}, slots)
    assert plan.inplace == [("copy_part", "half", "part")]
    assert plan.offsets["z"] == plan.offsets["y"]
    assert plan.size == plan.bound.nbytes == 3 * ITEMS


def test_copy_is_needed_where_the_neighbours_collide() -> None:
    x, z, y = _value("input"), _value("z", 2), _value("y", 2)
    half, other, part, out = _value("half"), _value("other"), _value("part"), _value("out")
    regions = [
        _region("rz", [x], [z]),
        _region("r1", [other], [out]),
        _copy(half, part),
        _region("ry", [y, other], [_value("end")]),  # z's other half is still alive
    ]
    slots = {"half": ("z", 0), "other": ("z", ITEMS), "part": ("y", 0), "out": ("y", ITEMS)}
    plan = _plan(regions, {r.name: _one_stage(r) for r in regions}, slots)
    assert plan.inplace == []
    assert plan.offsets["z"] != plan.offsets["y"]
