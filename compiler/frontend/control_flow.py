"""``If``, ``Loop`` and ``Scan`` whose course is known at compile time, made flat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from effc.errors import ModelError, UnsupportedError
from effc.passes.graph import attribute, const, shape_of

if TYPE_CHECKING:
    from effc.frontend.elaborate import Elaborator

__all__ = ["CONTROL_FLOW"]

Operands = Sequence[ir.Value | None]
Opsets = Mapping[str, int]

TRIP_LIMIT = 1024
"""Iterations of the longest loop that is unrolled."""


def _body(owner: Elaborator, graph: ir.Graph, inputs: Operands, opsets: Opsets) -> Operands:
    """Elaborate a subgraph once."""
    if len(graph.inputs) != len(inputs):
        raise ModelError(
            "the subgraph has the wrong number of inputs",
            where=graph.name,
            expected=len(inputs),
            got=len(graph.inputs),
        )
    for formal, actual in zip(graph.inputs, inputs, strict=True):
        owner.bind(formal, actual)
    owner.walk(graph, opsets)
    return [owner.lookup(v) for v in graph.outputs]


def _flag(value: ir.Value | None, what: str) -> bool:
    array = const(value)
    if array is None:
        raise UnsupportedError(
            f"{what} is computed at run time",
            where=value.name if value else None,
            hint="if it depends on a model input, bind that input to a constant",
        )
    return bool(array.reshape(-1)[0])


def _resolve_if(owner: Elaborator, node: ir.Node, inputs: Operands, opsets: Opsets) -> Operands:
    """The branch that a constant condition takes."""
    taken = _flag(inputs[0], "the condition of If")
    branch = node.attributes["then_branch" if taken else "else_branch"].as_graph()
    return _body(owner, branch, (), opsets)


def _unroll_loop(owner: Elaborator, node: ir.Node, inputs: Operands, opsets: Opsets) -> Operands:
    """A Loop with constant trip count or a condition that stays constant."""
    body = node.attributes["body"].as_graph()
    trips = None
    if inputs[0] is not None:
        count = const(inputs[0])
        if count is None:
            raise UnsupportedError(
                "the trip count of Loop is computed at run time",
                where=inputs[0].name,
                hint="if it depends on a model input, bind that input to a constant",
            )
        trips = int(count.reshape(-1)[0])
    going = True if len(inputs) < 2 or inputs[1] is None else _flag(inputs[1], "Loop's condition")
    carried = list(inputs[2:])
    scans: list[list[ir.Value]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    writer = owner.writer(node.name or "Loop")
    step = 0
    while going and (trips is None or step < trips):
        if step >= TRIP_LIMIT:
            raise UnsupportedError(
                "Loop runs too long to be unrolled",
                expected=f"<= {TRIP_LIMIT} iterations",
                got=trips if trips is not None else "no trip count",
            )
        first = [writer.const(np.array(step, np.int64)), writer.const(np.array(True))]
        results = _body(owner, body, first + carried, opsets)
        carried = list(results[1 : 1 + len(carried)])
        for found, value in zip(scans, results[1 + len(carried) :], strict=True):
            if value is not None:
                found.append(writer.op("Unsqueeze", value, np.array([0], np.int64)))
        step += 1
        if trips is None or step < trips:
            going = _flag(results[0], "Loop's condition")
    if not step and scans:
        raise UnsupportedError("Loop with scan outputs runs zero times", where=node.name)
    stacked = [
        values[0] if len(values) == 1 else writer.op("Concat", *values, axis=0) for values in scans
    ]
    return carried + stacked


def _unroll_scan(owner: Elaborator, node: ir.Node, inputs: Operands, opsets: Opsets) -> Operands:
    """Scan (since opset 9) over axes whose length is static."""
    if opsets[""] < 9:
        raise UnsupportedError("Scan of opset 8 is not supported", where=node.name)
    body = node.attributes["body"].as_graph()
    scanned = int(node.attributes["num_scan_inputs"].as_int())
    if not 0 < scanned <= len(inputs):
        raise ModelError("num_scan_inputs does not fit the inputs", where=node.name, got=scanned)
    states = list(inputs[: len(inputs) - scanned])
    sources = list(inputs[len(inputs) - scanned :])
    count = len(body.outputs) - len(states)
    in_axes = attribute(node, "scan_input_axes", (0,) * scanned)
    in_reversed = attribute(node, "scan_input_directions", (0,) * scanned)
    out_axes = attribute(node, "scan_output_axes", (0,) * count)
    out_reversed = attribute(node, "scan_output_directions", (0,) * count)
    if any(v is None for v in sources) or not sources:
        raise ModelError("Scan lacks an input", where=node.name)
    lengths = {shape_of(v)[a] for v, a in zip(sources, in_axes, strict=True) if v is not None}
    if len(lengths) != 1:
        raise ModelError("Scan's inputs have different lengths", where=node.name, got=lengths)
    (length,) = lengths
    if not 1 <= length <= TRIP_LIMIT:
        raise UnsupportedError(
            "Scan has a length that is not unrolled",
            where=node.name,
            expected=f"1..{TRIP_LIMIT}",
            got=length,
        )
    writer = owner.writer(node.name or "Scan")
    outputs: list[list[ir.Value]] = [[] for _ in range(count)]
    for step in range(length):
        rows: list[ir.Value | None] = []
        for source, axis, back in zip(sources, in_axes, in_reversed, strict=True):
            index = np.array(length - 1 - step if back else step, np.int64)
            rows.append(writer.op("Gather", source, index, axis=int(axis)))
        results = _body(owner, body, states + rows, opsets)
        states = list(results[: len(states)])
        for found, value in zip(outputs, results[len(states) :], strict=True):
            found.append(_present(value))
    stacked: list[ir.Value] = []
    for values, axis, back in zip(outputs, out_axes, out_reversed, strict=True):
        where = np.array([axis], np.int64)
        parts = [writer.op("Unsqueeze", v, where) for v in (values[::-1] if back else values)]
        stacked.append(writer.op("Concat", *parts, axis=int(axis)))
    return states + stacked


def _present(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ModelError("a subgraph's output is missing")
    return value


CONTROL_FLOW: dict[str, Callable[[Any, ir.Node, Operands, Opsets], Operands]] = {
    "If": _resolve_if,
    "Loop": _unroll_loop,
    "Scan": _unroll_scan,
}
