"""Quantized graphs into integer operators (docs/QUANTIZATION.md).

In: any imported model. Out: the same model with everything between DequantizeLinear and
QuantizeLinear that has an integer form in operators of domain ``effc``; 8-bit tensors have
the type that the target multiplies. The rest stays as it was, and is later written with
floats (``expand_quantized``): other element types, scales that are not constant, operators
without an integer form.

Results are within one step of ONNX Runtime's per operator: rounding of halves, and factors
of 31 bits instead of float32.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import Log, Pass, PassReport
from effc.passes.graph import Writer, prune, redirect
from effc.passes.integer.dynamic import integer_product
from effc.passes.integer.elementwise import addition, function, multiplication, rectifier
from effc.passes.integer.grid import grid_of, is_quantized
from effc.passes.integer.keep_quads import keep_quads
from effc.passes.integer.movement import depth_to_space, movement
from effc.passes.integer.normal_form import NORMAL_FORM
from effc.passes.integer.operators import DOMAIN
from effc.passes.integer.pools import average, maximum
from effc.passes.integer.products import convolution, product
from effc.passes.integer.read_plain_inputs import ReadPlainInputs
from effc.passes.integer.resizing import interpolation
from effc.passes.integer.rows import normalization, softmax_rule
from effc.passes.integer.rules import Rule, State
from effc.passes.integer.tensors import Tensors
from effc.passes.integer.write_conv_transpose import WriteConvTranspose
from effc.passes.make_pads_explicit import MakePadsExplicit
from effc.passes.sink_transposes import SinkTransposes

__all__ = ["Integerize", "integerize"]

RULES: tuple[Rule, ...] = (
    convolution,
    product,
    integer_product,
    addition,
    multiplication,
    rectifier,
    softmax_rule,
    normalization,
    average,
    maximum,
    interpolation,
    depth_to_space,
    movement,
    function,
)
"""Asked in order; a node belongs to the first that does not say False."""

ROUND_LIMIT = 100


class Integerize(Pass):
    """Quantized operators in the normal form to integer operators.

    Args:
        dtype: Type of 8-bit activations, see ``Target.activation_dtype``.
    """

    name: ClassVar[str] = "integerize"

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def call(self, model: ir.Model, log: Log) -> None:
        graph = model.graph
        tensors = Tensors(self.dtype)
        for node in list(graph):
            if node.domain:
                continue
            for rule in RULES:
                outcome = rule(State(graph, tensors, node))
                if isinstance(outcome, str):
                    log.refused.append((node.name or node.op_type, outcome))
                elif outcome:
                    log.applied.append(node.name or node.op_type)
                if outcome:
                    break
        if log.applied:
            graph.opset_imports[DOMAIN] = 1
            _connect(graph, tensors)
            log.applied += keep_quads(graph)
            _remove_dead(graph)
            graph.sort()


def _connect(graph: ir.Graph, tensors: Tensors) -> None:
    """Let what still reads tensors of the old graph read their replacements."""
    live = _still_read(graph, tensors)
    for node in list(graph):
        for old in node.outputs:
            if old in live:
                _replace(graph, tensors, old, live[old])


def _still_read(graph: ir.Graph, tensors: Tensors) -> dict[ir.Value, list[ir.Node]]:
    """Replaced tensors that live nodes of the old graph (or its outputs) read, and which."""
    found: dict[ir.Value, list[ir.Node]] = {}
    seen: set[ir.Value] = set()
    stack: list[tuple[ir.Value, ir.Node | None]] = [(v, None) for v in graph.outputs]
    while stack:
        value, reader = stack.pop()
        if value in tensors:
            readers = found.setdefault(value, [])
            if reader is not None and reader not in readers:
                readers.append(reader)
            if value not in seen:
                stack += [(form, None) for form in tensors.forms(value)]
            seen.add(value)
            continue
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is not None:
            stack += [(v, node) for v in node.inputs if v is not None]
    return found


def _replace(graph: ir.Graph, tensors: Tensors, old: ir.Value, readers: list[ir.Node]) -> None:
    """Dequantize from our form; give the others the tensor as it was."""
    producer = old.producer()
    assert producer is not None
    others = old.is_graph_output()
    for node in readers:
        grid = grid_of(node) if is_quantized(node, "DequantizeLinear") else None
        if grid is None:
            others = True
            continue
        writer = Writer(graph, node)
        grid = grid.moved(tensors.dtype)
        scale, zero = np.array(grid.scale, np.float32), np.array(grid.zero, grid.dtype)
        x = tensors.plain(old, writer)
        redirect(node.outputs[0], writer.op("DequantizeLinear", x, scale, zero))
    if others:
        redirect(old, tensors.original(old, Writer(graph, producer)))


def _remove_dead(graph: ir.Graph) -> None:
    for node in list(reversed(list(graph))):
        if node.graph is graph:
            prune(graph, node)


def integerize(
    model: ir.Model, dtype: str, *, plain: bool = False
) -> tuple[ir.Model, list[PassReport]]:
    """Rewrite a model's quantized operators, if it has any.

    Args:
        model: As ``import_model`` gives it; changed in place.
        dtype: Type of 8-bit activations.
        plain: Whether kernels read the first tensors as the model has them.

    Returns:
        The model, and a report per pass.
    """
    if not any(_is_quantized(node) for node in model.graph):
        return model, []
    prepare: tuple[Pass, ...] = (MakePadsExplicit(), SinkTransposes(), WriteConvTranspose())
    steps: tuple[Pass, ...] = (*prepare, *NORMAL_FORM)
    reports = {p.name: PassReport(p.name) for p in steps}
    for step in prepare * 2:  # a pass that sinks transposes past one operator may free another
        reports[step.name].applied += step.run(model).applied
    for _ in range(ROUND_LIMIT):
        modified = False
        for step in NORMAL_FORM:
            result = step.run(model)
            reports[step.name].applied += result.applied
            reports[step.name].refused = list(result.refused)
            modified |= result.modified
        if not modified:
            break
    found = []
    for last in (Integerize(dtype), *((ReadPlainInputs(),) if plain else ())):
        done = last.run(model)
        found.append(PassReport(last.name, list(done.applied), list(done.refused)))
    return model, [*reports.values(), *found]


def _is_quantized(node: ir.Node) -> bool:
    return node.op_type.startswith(("QLinear", "QuantizeLinear", "DequantizeLinear")) or (
        not node.domain and node.op_type in ("ConvInteger", "MatMulInteger")
    )
