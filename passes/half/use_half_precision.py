"""Float32 operators become float16 where a kernel computes them, with casts at the borders.

Weights and activations become float16 (IEEE 754 binary16: 11 bits, largest 65504), model
inputs and outputs stay as they are. A node is converted if ``accepts`` takes it; it stays
float32 if

- the caller says so (``keep``),
- one of its tensors was seen too large (``ranges``), or a constant is: what could overflow has to
  stay ``HEADROOM`` below the largest number,
- a constant factor or summand would lose its value (nonzero below 2^-14),
- it belongs to a part of the graph between float32 nodes without a product: casts alone would cost
  more.

The bias of a product stays a float32 constant behind a cast: kernels add it as it is.

``StoreHalfWeights`` is for targets that only convert: float16 constants behind a cast to float32
are the weights of products, and nothing else changes.

Not preserved: every value is rounded to 11 bits, a relative error of at most 2^-11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import networkx as nx
import numpy as np
import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.graph import add_constant, const, fresh_name

__all__ = [
    "EXACT_INPUTS",
    "HEADROOM",
    "LARGEST",
    "PRODUCTS",
    "TERMS",
    "StoreHalfWeights",
    "UseHalfPrecision",
]

LARGEST = 65504.0
"""Largest float16."""

HEADROOM = 2.0
"""How far values seen on samples have to stay below it: other inputs may be larger."""

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""What makes half precision worth its casts."""

TERMS = "effc.terms"
"""Metadata of a product's node: how many products are added up in float16 at most."""

_SMALLEST = 2.0**-14  # smallest normal float16
EXACT_INPUTS = {"Resize": (2,)}
"""Operands that ONNX wants in float32 whatever the type of the others."""

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


@dataclass
class UseHalfPrecision(Pass):
    """See the module's docstring.

    Attributes:
        accepts: Why a node has no float16 kernel, or None if it has.
        ranges: Largest absolute value seen, by value name.
        keep: Why a node stays float32, by node name.
    """

    name: ClassVar[str] = "use_half_precision"
    accepts: Callable[[ir.Node], str | None]
    ranges: Mapping[str, float] = field(default_factory=dict)
    keep: Mapping[str, str] = field(default_factory=dict)

    def call(self, model: ir.Model, log: Log) -> None:
        chosen, log.refused[:] = self.choose(model.graph)
        log.applied[:] = [node.name or node.op_type for node in chosen]
        _Conversion(model.graph, chosen).run()

    def choose(self, graph: ir.Graph) -> tuple[list[ir.Node], list[tuple[str, str]]]:
        """Nodes that become float16, and (node name, why) of those that do not."""
        refused = {id(node): self._refusal(node) for node in graph}
        worth = _worth([node for node in graph if refused[id(node)] is None])
        chosen, others = [], []
        for node in graph:
            why = refused[id(node)]
            if why is None and id(node) in worth:
                chosen.append(node)
            elif why:
                others.append((node.name or node.op_type, why))
        return chosen, others

    def _refusal(self, node: ir.Node) -> str | None:
        """Why a node stays as it is; empty if it has no float32 tensor at all."""
        if not any(_is_float(v) for v in (*_halved(node), *node.outputs)):
            return ""
        if (why := self.keep.get(node.name or "")) is not None:
            return why
        for value in _halved(node):
            if (why := _bad_constant(node, value)) is not None:
                return why
        for operand in (*node.inputs, *node.outputs):
            name = "" if operand is None else operand.name or ""
            largest = self.ranges.get(name, 0.0)
            if not largest * HEADROOM <= LARGEST:
                return f"{name} reaches {largest:.4g}; float16 ends at {LARGEST:.0f}"
        return self.accepts(node)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == _FLOAT


def _halved(node: ir.Node) -> Iterable[ir.Value]:
    """The float32 operands that become float16 if the node does."""
    exact = EXACT_INPUTS.get(node.op_type, ())
    return [
        v for i, v in enumerate(node.inputs) if v is not None and _is_float(v) and i not in exact
    ]


def _bad_constant(node: ir.Node, value: ir.Value) -> str | None:
    array = const(value)
    if array is None or not array.size:
        return None
    sizes = np.abs(array[np.isfinite(array)])
    if sizes.size and float(sizes.max()) > LARGEST:
        return f"the constant {value.name} reaches {float(sizes.max()):.4g}"
    if node.op_type not in PRODUCTS and np.any((sizes > 0) & (sizes < _SMALLEST)):
        return f"the constant {value.name} is too small for float16"
    return None


def _worth(nodes: list[ir.Node]) -> set[int]:
    """Nodes connected, by float32 values, with a product of tensors."""
    graph = nx.Graph()
    known = {id(node) for node in nodes}
    for node in nodes:
        graph.add_node(id(node))
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if _is_float(value) and producer is not None and id(producer) in known:
                graph.add_edge(id(producer), id(node))
    products = {id(node) for node in nodes if node.op_type in PRODUCTS}
    return {n for part in nx.connected_components(graph) if part & products for n in part}


class _Conversion:
    """Gives the chosen nodes float16 operands and results."""

    def __init__(self, graph: ir.Graph, chosen: list[ir.Node]) -> None:
        self.graph = graph
        self.chosen = chosen
        self.halves: dict[int, ir.Value] = {}  # float16 value by id of the float32 one

    def run(self) -> None:
        members = {id(node) for node in self.chosen}
        for node in self.chosen:
            wanted = {id(v) for v in _halved(node)}
            for index, value in enumerate(node.inputs):
                if value is not None and id(value) in wanted:
                    bias = node.op_type in PRODUCTS and index > 1 and const(value) is not None
                    half = self._cast(value, _HALF) if bias else self._half(value)
                    node.replace_input_with(index, half)
            if node.op_type == "Cast" and _is_float(node.outputs[0]):
                node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
            for output in node.outputs:
                if _is_float(output):
                    self._split(node, output, members)
        for value in list(self.graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                self.graph.initializers.pop(value.name or "", None)

    def _half(self, value: ir.Value) -> ir.Value:
        if id(value) not in self.halves:
            array = const(value)
            if array is not None:
                self.halves[id(value)] = add_constant(
                    self.graph, array.astype(np.float16), f"{value.name}/half"
                )
            else:
                self.halves[id(value)] = self._cast(value, _HALF)
        return self.halves[id(value)]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return _add_cast(self.graph, value, dtype)

    def _split(self, node: ir.Node, output: ir.Value, members: set[int]) -> None:
        """Let ``output`` be float16; who needs float32 reads a cast of it that keeps its name."""
        others = [
            (user, index)
            for user, index in output.uses()
            if id(user) not in members or not _reads_half(user, index)
        ]
        is_output = output.is_graph_output()
        output.type = ir.TensorType(_HALF)
        self.halves[id(output)] = output
        if not others and not is_output:
            return
        name = output.name
        output.name = fresh_name(self.graph, f"{name}/half")
        wide = self._cast(output, _FLOAT)
        for user, index in others:
            user.replace_input_with(index, wide)
        if is_output:
            wide.name = name
            for index, value in enumerate(list(self.graph.outputs)):
                if value is output:
                    self.graph.outputs[index] = wide


def _add_cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The value as another type, computed behind its producer or first of all."""
    name = fresh_name(graph, f"{value.name}/{'half' if dtype == _HALF else 'float'}")
    node = ir.Node(
        "",
        "Cast",
        [value],
        attributes=[ir.AttrInt64("to", int(dtype))],
        name=fresh_name(graph, f"{name}/Cast"),
    )
    node.outputs[0].name = name
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(next(iter(graph)), node)
    return node.outputs[0]


def _reads_half(node: ir.Node, index: int) -> bool:
    return index not in EXACT_INPUTS.get(node.op_type, ())


@dataclass
class StoreHalfWeights(Pass):
    """Constant weights of products become float16 constants behind a cast to float32.

    Attributes:
        accepts: Why no kernel reads a node's weights as float16, or None.
        keep: Why weights stay float32, by node name.
    """

    name: ClassVar[str] = "store_half_weights"
    accepts: Callable[[ir.Node], str | None]
    keep: Mapping[str, str] = field(default_factory=dict)

    def choose(self, graph: ir.Graph) -> tuple[list[ir.Node], list[tuple[str, str]]]:
        """Nodes whose weights become float16, and (node name, why) of those that do not."""
        chosen, others = [], []
        for node in graph:
            found = _weights(node)
            if found is None:
                continue
            why = self.keep.get(node.name or "") or _bad_constant(node, found[1])
            if (why := why or self.accepts(node)) is None:
                chosen.append(node)
            else:
                others.append((node.name or node.op_type, why))
        return chosen, others

    def call(self, model: ir.Model, log: Log) -> None:
        chosen, log.refused[:] = self.choose(model.graph)
        for node in chosen:
            found = _weights(node)
            assert found is not None
            index, value = found
            array = const(value)
            assert array is not None
            half = add_constant(model.graph, array.astype(np.float16), f"{value.name}/half")
            node.replace_input_with(index, _add_cast(model.graph, half, _FLOAT))
            if not value.uses() and not value.is_graph_output():
                model.graph.initializers.pop(value.name or "", None)
            log.applied.append(node.name or node.op_type)


def _weights(node: ir.Node) -> tuple[int, ir.Value] | None:
    """The only constant operand of a product, and which it is."""
    if node.op_type not in PRODUCTS or node.domain:
        return None
    found = [(i, v) for i, v in enumerate(node.inputs[:2]) if const(v) is not None]
    if len(found) != 1 or not _is_float(found[0][1]):
        return None
    index, value = found[0]
    return None if value is None else (index, value)
