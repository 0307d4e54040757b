"""Storage: programs are executed on bytes and compared with direct evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.errors import InternalError
from effc.kernels.region import Op, Region, TensorType, Value
from effc.kernels.template import Kernel, Stage
from effc.program import Pointer, Program, StorageClass
from effc.storage import build_program
from effc.view_plan import plan_views

ITEM = 4  # bytes of a float32


def _tensor(name: str, shape: tuple[int, ...], const: np.ndarray | None = None) -> Value:
    return Value(name, TensorType(shape, "float32"), const)


def _ints(*values: int) -> Value:
    return Value("", TensorType((len(values),), "int64"), np.array(values, np.int64))


@dataclass
class Graph:
    """Builds regions of one operator and knows how to evaluate them."""

    regions: list[Region] = field(default_factory=list)

    def op(
        self,
        op_type: str,
        inputs: list[Value],
        *shapes: tuple[int, ...],
        **attrs: Any,
    ) -> list[Value]:
        number = len(self.regions)
        outputs = [_tensor(f"v{number}_{i}", shape) for i, shape in enumerate(shapes)]
        op = Op(op_type, tuple(inputs), tuple(outputs), attrs, f"node{number}")
        runtime = tuple({id(v): v for v in inputs if v.const is None}.values())
        self.regions.append(Region(f"r{number}", (op,), op, runtime, tuple(outputs)))
        return outputs


def _evaluate(op: Op, operands: list[np.ndarray]) -> list[np.ndarray]:
    """Reference semantics, by shape only where a view is meant."""
    shapes = [v.shape for v in op.outputs]
    if op.op_type in {"Identity", "Reshape"}:
        return [operands[0].reshape(shapes[0])]
    if op.op_type == "Relu":
        return [operands[0] + 1]
    if op.op_type == "Add":
        return [operands[0] + 2 * operands[1]]
    if op.op_type == "Mix":  # every element depends on every element
        return [
            np.full(shapes[0], operands[0].sum()) + np.arange(np.prod(shapes[0])).reshape(shapes[0])
        ]
    if op.op_type == "Concat":
        return [np.concatenate(operands, op.attrs["axis"])]
    if op.op_type == "Split":
        cuts = np.cumsum([s[op.attrs["axis"]] for s in shapes])[:-1]
        return list(np.split(operands[0], cuts, op.attrs["axis"]))
    assert op.op_type == "Slice"
    start, end, axis = (int(v[0]) for v in operands[1:4])
    return [operands[0].take(range(start, end), axis)]


def _kernel(region: Region) -> Kernel:
    """Kernels like those of templates: one stage, or two with a workspace."""
    names = tuple(v.name for v in region.inputs)
    (out,) = (v.name for v in region.outputs) if len(region.outputs) == 1 else ("",)
    constants = {f"c{i}": v.const for i, v in enumerate(region.constants) if v.const is not None}
    if region.ops[0].op_type == "Mix":
        scratch = Stage(None, (names[0], "t:sum", "scratch"), 1, 100)
        return Kernel((scratch, Stage(None, ("t:sum", out))), {}, {"sum": ITEM})
    outputs = tuple(v.name for v in region.outputs)
    weights = tuple(f"w:{key}" for key in constants)
    inplace = tuple((n, out) for n in names) if region.ops[0].op_type in {"Relu", "Add"} else ()
    return Kernel((Stage(None, (*names, *weights, *outputs)),), constants, {}, inplace)


class Machine:
    """Runs a program on bytes; workers' scratch and the arena start poisoned."""

    def __init__(self, program: Program, regions: Mapping[str, Region]) -> None:
        self.program = program
        self.regions = regions

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        memory = {(StorageClass.INPUT, i): a.copy() for i, a in enumerate(inputs)}
        for i, port in enumerate(self.program.outputs):
            memory[StorageClass.OUTPUT, i] = np.full(port.type.shape, np.nan, np.float32)
        memory[StorageClass.ARENA, 0] = np.full(self.program.arena_bytes, 0xFF, np.uint8)
        memory[StorageClass.WEIGHTS, 0] = self.program.weights
        self.memory = {key: a.reshape(-1).view(np.uint8) for key, a in memory.items()}
        for call in self.program.calls:
            self._call(call.symbol, call.pointers)
        for i, array in enumerate(inputs):
            assert np.array_equal(memory[StorageClass.INPUT, i], array), "an input was overwritten"
        return [memory[StorageClass.OUTPUT, i] for i in range(len(self.program.outputs))]

    def _at(self, pointer: Pointer, value: Value) -> np.ndarray:
        data = self.memory[pointer.storage, pointer.index]
        assert pointer.offset + value.type.nbytes <= data.size
        return data[pointer.offset : pointer.offset + value.type.nbytes].view(np.float32)

    def _call(self, symbol: str, pointers: tuple[Pointer, ...]) -> None:
        name, number = symbol.rsplit("_s", 1)
        region = self.regions[name]
        op = region.ops[0]
        scalar = _tensor("", (1,))
        if op.op_type == "Mix" and number == "0":
            self._at(pointers[1], scalar)[:] = self._at(pointers[0], region.inputs[0]).sum()
        elif op.op_type == "Mix":
            shape = region.outputs[0].shape
            total = self._at(pointers[0], scalar)[0]
            self._at(pointers[1], region.outputs[0])[:] = _evaluate(op, [total])[0].reshape(-1)
            assert shape == region.outputs[0].shape
        else:
            args = dict(zip([*region.inputs, *region.constants], pointers, strict=False))
            named = {
                v.name or id(v): self._at(p, v).reshape(v.shape)
                for v, p in args.items()
                if v.dtype == "float32"
            }
            operands = [
                v.const if v.const is not None else named[v.name]
                for v in op.inputs
                if v is not None
            ]
            if op.op_type == "Insert":
                result = self._at(pointers[-1], op.outputs[0]).reshape(op.outputs[0].shape)
                place = [slice(None)] * op.attrs["axis"]
                start, size = op.attrs["start"], operands[0].shape[op.attrs["axis"]]
                result[(*place, slice(start, start + size))] = operands[0]
                return
            results = _evaluate(op, [np.array(a) for a in operands])
            for pointer, value, result in zip(
                pointers[-len(region.outputs) :], region.outputs, results, strict=True
            ):
                self._at(pointer, value)[:] = result.reshape(-1)


def _build(
    graph: Graph, inputs: list[Value], outputs: list[Value]
) -> tuple[Program, Callable[[list[np.ndarray]], list[np.ndarray]]]:
    plan = plan_views(graph.regions, inputs, outputs)
    kernels = {r.name: _kernel(r) for r in plan.regions}
    symbols = {(n, i): f"{n}_s{i}" for n, k in kernels.items() for i in range(len(k.stages))}
    program = build_program("m", inputs, outputs, plan.regions, kernels, symbols, plan)
    return program, Machine(program, {r.name: r for r in plan.regions}).run


def _reference(
    graph: Graph, inputs: list[Value], outputs: list[Value], data: list[np.ndarray]
) -> list[np.ndarray]:
    known = {v.name: a for v, a in zip(inputs, data, strict=True)}
    for region in graph.regions:
        op = region.ops[0]
        operands = [
            v.const if v.const is not None else known[v.name] for v in op.inputs if v is not None
        ]
        for value, result in zip(op.outputs, _evaluate(op, operands), strict=True):
            known[value.name] = result
    return [v.const if v.const is not None else known[v.name] for v in outputs]


def _check(graph: Graph, inputs: list[Value], outputs: list[Value]) -> Program:
    program, run = _build(graph, inputs, outputs)
    chance = np.random.default_rng(0)
    data = [chance.integers(-9, 9, v.shape).astype(np.float32) for v in inputs]
    for got, expected in zip(run(data), _reference(graph, inputs, outputs, data), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert program.arena_lower_bound_bytes <= program.arena_bytes
    assert program.arena_bytes % 64 == 0
    for call in program.calls:
        for pointer in call.pointers:
            assert pointer.offset % ITEM == 0
    return program


def test_reshape_and_concat_need_no_call() -> None:
    graph = Graph()
    x = _tensor("x", (1, 4, 5))
    (a,) = graph.op("Relu", [x], (1, 4, 5))
    (b,) = graph.op("Mix", [a], (1, 2, 5))
    (c,) = graph.op("Concat", [a, b], (1, 6, 5), axis=1)
    (d,) = graph.op("Reshape", [c, _ints(1, 30)], (1, 30))
    (y,) = graph.op("Mix", [d], (1, 3))
    program = _check(graph, [x], [y])
    assert [call.region for call in program.calls] == ["r0", "r1", "r1", "r4", "r4"]
    assert program.arena_bytes == 64 * 3


def test_operands_of_an_inner_concat_are_dropped_one_by_one() -> None:
    graph = Graph()
    x = _tensor("x", (2, 32))
    parts = []
    for _ in range(3):
        (a,) = graph.op("Relu", [x], (2, 32))
        (b,) = graph.op("Mix", [a], (2, 16))
        parts.append(b)
    constant = Value("", TensorType((2, 16), "float32"), np.ones((2, 16), np.float32))
    (c,) = graph.op("Concat", [*parts, constant], (2, 64), axis=1)
    (y,) = graph.op("Mix", [c], (1, 2))
    program = _check(graph, [x], [y])
    inserts = [call for call in program.calls if call.region.startswith("r6_")]
    assert len(inserts) == 4
    # The result, and one operand with what it is made of.
    assert program.arena_bytes <= 4 * (2 * 64 + 2 * 32 + 2 * 16 + 16)


def test_value_concatenated_twice_is_copied_once() -> None:
    graph = Graph()
    x = _tensor("x", (1, 4))
    (a,) = graph.op("Relu", [x], (1, 4))
    (b,) = graph.op("Concat", [a, a], (1, 8), axis=1)
    (c,) = graph.op("Concat", [b, a], (1, 12), axis=1)
    (y,) = graph.op("Mix", [c], (1, 2))
    program = _check(graph, [x], [y])
    assert sum(call.region.startswith("copy_") for call in program.calls) == 2


def test_outputs_that_are_inputs_constants_duplicates_or_views() -> None:
    graph = Graph()
    x = _tensor("x", (1, 6))
    k = _tensor("k", (2, 3), np.arange(6, dtype=np.float32).reshape(2, 3))
    (a,) = graph.op("Relu", [x], (1, 6))
    (b,) = graph.op("Reshape", [a, _ints(2, 3)], (2, 3))
    (c,) = graph.op("Slice", [a, _ints(2), _ints(5), _ints(1)], (1, 3))
    (d,) = graph.op("Reshape", [k, _ints(6)], (6,))
    (e,) = graph.op("Reshape", [x, _ints(3, 2)], (3, 2))
    program = _check(graph, [x], [a, a, b, c, x, k, d, e])
    assert program.arena_bytes == 0


def test_output_that_is_concatenated() -> None:
    graph = Graph()
    x = _tensor("x", (4, 2))
    (a,) = graph.op("Relu", [x], (4, 2))
    (b,) = graph.op("Mix", [x], (3, 2))
    (c,) = graph.op("Concat", [a, b, x], (11, 2), axis=0)
    _check(graph, [x], [a, c])


def test_chain_of_elementwise_runs_in_place() -> None:
    graph = Graph()
    x = value = _tensor("x", (1, 64))
    for _ in range(4):
        (value,) = graph.op("Relu", [value], (1, 64))
    (y,) = graph.op("Mix", [value], (1, 1))
    program = _check(graph, [x], [y])
    assert program.arena_bytes == 64 * ITEM + 64


def test_residual_that_is_still_needed_is_not_overwritten() -> None:
    graph = Graph()
    x = _tensor("x", (1, 64))
    (a,) = graph.op("Relu", [x], (1, 64))
    (b,) = graph.op("Relu", [a], (1, 64))
    (c,) = graph.op("Add", [a, b], (1, 64))
    (y,) = graph.op("Mix", [c], (1, 1))
    assert _check(graph, [x], [y]).arena_bytes == 2 * 64 * ITEM


def test_input_read_through_two_names_is_not_overwritten() -> None:
    graph = Graph()
    x = _tensor("x", (1, 64))
    (a,) = graph.op("Relu", [x], (1, 64))
    (b,) = graph.op("Reshape", [a, _ints(1, 64)], (1, 64))
    (c,) = graph.op("Add", [a, b], (1, 64))
    (y,) = graph.op("Mix", [c], (1, 1))
    assert _check(graph, [x], [y]).arena_bytes == 2 * 64 * ITEM


def test_equal_weights_are_stored_once() -> None:
    graph = Graph()
    x = _tensor("x", (1, 64))
    k = [_tensor(f"k{i}", (1, 64), np.full((1, 64), 3, np.float32)) for i in range(2)]
    (a,) = graph.op("Add", [x, k[0]], (1, 64))
    (y,) = graph.op("Add", [a, k[1]], (1, 64))
    program = _check(graph, [x], [y])
    assert program.weights.size == 64 * ITEM
    assert program.scratch_bytes == 0


def test_read_before_write_is_reported() -> None:
    graph = Graph()
    missing = _tensor("missing", (1,))
    (y,) = graph.op("Relu", [missing], (1,))
    with pytest.raises(InternalError, match="missing"):
        plan_views(graph.regions, [], [y])


@st.composite
def _graphs(draw: st.DrawFn) -> tuple[Graph, list[Value], list[Value]]:
    """Random networks over shapes (1, C, W) and (1, C * W)."""
    graph = Graph()
    inputs = [_tensor(f"x{i}", (1, draw(st.integers(1, 6)), 4)) for i in range(2)]
    constant = _tensor("k", (1, 3, 4), np.arange(12, dtype=np.float32).reshape(1, 3, 4))
    pool = [*inputs, constant]
    for _ in range(draw(st.integers(1, 14))):
        value = draw(st.sampled_from(pool))
        kind = draw(
            st.sampled_from(["Relu", "Add", "Mix", "Reshape", "Slice", "Split", "Concat", "Concat"])
        )
        channels = value.shape[1]
        if kind == "Concat":
            parts = [value, *draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3))]
            shape = (1, sum(v.shape[1] for v in parts), 4)
            pool += graph.op("Concat", parts, shape, axis=1)
        elif kind == "Slice":
            start = draw(st.integers(0, channels - 1))
            end = draw(st.integers(start + 1, channels))
            pool += graph.op(
                "Slice", [value, _ints(start), _ints(end), _ints(1)], (1, end - start, 4)
            )
        elif kind == "Split" and channels > 1:
            cut = draw(st.integers(1, channels - 1))
            pool += graph.op("Split", [value], (1, cut, 4), (1, channels - cut, 4), axis=1)
        elif kind == "Add":
            same = [v for v in pool if v.shape == value.shape]
            pool += graph.op("Add", [value, draw(st.sampled_from(same))], value.shape)
        elif kind == "Reshape":
            pool += graph.op("Reshape", [value, _ints(*value.shape)], value.shape)
        elif value.const is None:
            pool += graph.op(kind if kind == "Mix" else "Relu", [value], value.shape)
    outputs = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=4))
    return graph, inputs, outputs


@settings(max_examples=60, deadline=None, derandomize=True)
@given(_graphs())
def test_random_graphs_compute_the_same(case: tuple[Graph, list[Value], list[Value]]) -> None:
    _check(*case)
