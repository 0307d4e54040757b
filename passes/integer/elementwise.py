"""Sums, products and functions of 8-bit tensors.

Operands lie where they are: in quads if any of them does and all can, else in plain order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.evaluate import evaluate
from effc.passes.graph import const, shape_of
from effc.passes.integer.arithmetic import add_factors
from effc.passes.integer.grid import Grid, grid_of, is_quantized, source
from effc.passes.integer.operators import DOMAIN
from effc.passes.integer.reference import to_quads
from effc.passes.integer.rules import (
    Destination,
    State,
    bounds_of,
    clamped,
    destination,
    has_planes,
    reached,
    requantized,
)

__all__ = ["addition", "function", "multiplication", "rectifier"]

Array = np.ndarray[Any, Any]

_FUNCTIONS = frozenset(
    {
        "Abs", "Add", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu",
        "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu",
        "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
        "Softplus", "Softsign", "Sqrt", "Sub", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
"""Operators that a table can hold: element-wise, the same for every element."""


def _operands(node: ir.Node) -> tuple[tuple[ir.Value, Grid], tuple[ir.Value, Grid]] | None:
    if len(node.inputs) != 2:
        return None
    a, b = (source(v) for v in node.inputs)
    return None if a is None or b is None else (a, b)


def _placed(state: State, values: Sequence[ir.Value], out: ir.Value) -> tuple[list[ir.Value], str]:
    """Tensors in one layout, and its name."""
    tensors, writer = state.tensors, state.writer
    shapes = [shape_of(v) for v in values]
    whole = has_planes(out) and all(
        len(s) == len(shape_of(out)) and s[1] == shape_of(out)[1] for s in shapes
    )
    if whole and any(tensors.in_quads(v) for v in values):
        return [tensors.quads(v, writer) for v in values], "quads"
    return [tensors.plain(v, writer) for v in values], "plain"


def addition(state: State) -> bool | str:
    """``Add`` and ``Sub`` of two tensors."""
    node = state.node
    if node.op_type not in ("Add", "Sub"):
        return False
    found, result = _operands(node), destination(node.outputs[0], state.tensors.dtype)
    if found is None or result is None:
        return False
    (a, a_grid), (b, b_grid) = found
    a_grid, b_grid = (g.moved(state.tensors.dtype) for g in (a_grid, b_grid))
    sign = 1 if node.op_type == "Add" else -1
    step = result.grid.scale
    try:
        constants = add_factors(
            a_grid.scale / step, sign * b_grid.scale / step, a_grid.zero, b_grid.zero
        )
    except ValueError as error:
        return str(error)
    operands, layout = _placed(state, (a, b), node.outputs[0])
    made = state.writer.op(
        "AddRescaled", *operands, domain=DOMAIN, **vars(constants), **result.attributes
    )
    state.tensors.define(result.tensor, **{layout: made})
    return True


def multiplication(state: State) -> bool | str:
    """``Mul`` of two tensors."""
    node = state.node
    if node.op_type != "Mul":
        return False
    found, result = _operands(node), destination(node.outputs[0], state.tensors.dtype)
    if found is None or result is None:
        return False
    (a, a_grid), (b, b_grid) = found
    a_grid, b_grid = (g.moved(state.tensors.dtype) for g in (a_grid, b_grid))
    operands, layout = _placed(state, (a, b), node.outputs[0])
    writer = state.writer
    zeros = {"a_zero": a_grid.zero, "b_zero": b_grid.zero}
    total = writer.op("MulInteger", *operands, domain=DOMAIN, **zeros)
    real = a_grid.scale * b_grid.scale / result.grid.scale
    made = requantized(writer, total, real, result)
    if isinstance(made, str):
        return made
    state.tensors.define(result.tensor, **{layout: made})
    return True


def rectifier(state: State) -> bool | str:
    """``PRelu`` with a slope per channel: the larger of ``x`` and ``slope * x``."""
    node = state.node
    slope = const(node.inputs[1]) if node.op_type == "PRelu" else None
    if slope is None or slope.size == 1:
        return False
    data, result = source(node.inputs[0]), destination(node.outputs[0], state.tensors.dtype)
    if data is None or result is None or not has_planes(data[0]):
        return False
    if slope.min() < 0 or slope.max() > 1 or slope.size != shape_of(data[0])[1]:
        return "slopes are not one per channel between 0 and 1"
    x, grid = data
    grid = grid.moved(state.tensors.dtype)
    writer, quads = state.writer, state.tensors.quads(x, state.writer)
    factor = grid.scale / result.grid.scale
    rank = len(shape_of(x))
    slopes = to_quads(slope.astype(np.float64).reshape(1, -1, *[1] * (rank - 2)))[0]
    sides = [requantized(writer, quads, f, result, grid.zero) for f in (factor, factor * slopes)]
    made = [side for side in sides if not isinstance(side, str)]
    if len(made) != len(sides):
        return "a factor has no fixed-point form"
    state.tensors.define(result.tensor, quads=writer.op("Max", *made))
    return True


def function(state: State) -> bool | str:
    """``QuantizeLinear`` of a function of one tensor: a clamp, or a table of 256 values."""
    node = state.node
    if not is_quantized(node, "QuantizeLinear") or node.outputs[0] in state.tensors:
        return False
    grid, x = grid_of(node), node.inputs[0]
    if grid is None or x is None:
        return False
    found = _function_of(x)
    if found is None:
        return False
    integers, source_grid, nodes = found
    dtype = state.tensors.dtype
    (operand,), layout = _placed(state, (integers,), node.outputs[0])
    kept = source_grid.moved(dtype)
    result = _clamps(node, nodes[1:], dtype)
    made: ir.Value | str
    if result is not None:
        made = _clamped(state, operand, kept, result)
    else:
        made = state.writer.op(
            "Lookup", operand, _table(nodes, kept, grid.moved(dtype)), domain=DOMAIN
        )
    if isinstance(made, str):
        return made
    state.tensors.define(node.outputs[0], **{layout: made})
    return True


def _clamps(node: ir.Node, nodes: Sequence[ir.Node], dtype: np.dtype[Any]) -> Destination | None:
    """The destination if nothing but clamps lies in front of ``node``."""
    bounds = (-np.inf, np.inf)
    for other in nodes:
        clamp = bounds_of(other)
        if clamp is None:
            return None
        bounds = clamped(bounds, clamp)
    return reached(node, bounds, dtype)


def _clamped(state: State, x: ir.Value, grid: Grid, result: Destination) -> ir.Value | str:
    """A tensor on another grid, or between other bounds."""
    limits = np.iinfo(grid.dtype)
    whole = (result.low, result.high) == (limits.min, limits.max)
    if grid == result.grid and whole:
        return x
    real = grid.scale / result.grid.scale
    return requantized(state.writer, x, real, result, grid.zero)


def _function_of(end: ir.Value) -> tuple[ir.Value, Grid, list[ir.Node]] | None:
    """The 8-bit tensor that a float is a function of, and the nodes from DequantizeLinear on."""
    found: dict[ir.Node, None] = {}
    start: tuple[ir.Value, Grid] | None = None
    first: ir.Node | None = None
    stack = [end]
    while stack:
        value = stack.pop()
        node = value.producer()
        if node is None or node in found:
            if node is None:
                return None
            continue
        dequantized = source(value)
        if dequantized is not None and const(dequantized[0]) is None:
            if start is not None and dequantized != start:
                return None
            start, first = dequantized, first or node
            found[node] = None
            continue
        if node.domain or node.op_type not in _FUNCTIONS or len(node.outputs) != 1:
            return None
        if shape_of(value) != shape_of(end):
            return None
        found[node] = None
        for operand in node.inputs:
            known = const(operand)
            if operand is None or (known is not None and known.size == 1):
                continue
            if known is not None:
                return None
            stack.append(operand)
    if start is None or first is None or shape_of(start[0]) != shape_of(end):
        return None
    graph = first.graph
    assert graph is not None
    inner = [n for n in graph if n in found and source(n.outputs[0]) is None]
    return start[0], start[1], [first, *inner]


def _table(nodes: Sequence[ir.Node], grid: Grid, result: Grid) -> Array:
    """What the nodes give for every value of a tensor, by ONNX Runtime's own operators."""
    limits = np.iinfo(grid.dtype)
    every = np.arange(limits.min, limits.max + 1).astype(grid.dtype)
    values: dict[ir.Value | None, Array] = {nodes[0].outputs[0]: grid.dequantized(every)}
    for node in nodes[1:]:
        inputs: list[Array | None] = []
        for operand in node.inputs:
            known = const(operand)
            if known is not None:
                inputs.append(known.reshape(()) if node.op_type != "PRelu" else known.reshape(1))
            elif operand is None:
                inputs.append(None)
            else:
                inputs.append(values.get(operand, values[nodes[0].outputs[0]]))
        found = evaluate(node, inputs)
        assert found is not None
        values[node.outputs[0]] = found[0]
    end = nodes[-1].outputs[0]
    return result.quantized(values[end])
