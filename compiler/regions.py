"""Group the nodes of a graph into regions: one anchor and its epilogue each.

In: an ``onnx_ir.Model`` with static shapes (see docs/ARCHITECTURE.md, "The graph").
Out: regions in execution order; every node is in exactly one of them.

A region grows from its first operator over element-wise consumers as long as
exactly one value leaves it. Single-exit groups are safe: edges between regions
start at exits only, so the graph of regions has a cycle only if the graph of
nodes has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_ir as ir

from effc.errors import InternalError
from effc.kernels.region import DOMAIN, Op, Region, TensorType, Value
from effc.passes.half.use_half_precision import PRODUCTS, TERMS
from effc.passes.origin import origin
from effc.views import VIEW_OPS

__all__ = ["MAX_FUSED_OPS", "Graph", "attribute_of", "partition"]

MAX_FUSED_OPS = 32
"""Longest region: keeps functions small and the search for one linear."""

Accepts = Callable[[Region], bool]


@dataclass(frozen=True)
class Graph:
    """A model as regions.

    Attributes:
        inputs: Runtime inputs in the model's order.
        outputs: Outputs in the model's order, each produced by a region.
        regions: In a valid execution order.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    regions: tuple[Region, ...]


def partition(model: ir.Model, elementwise: Iterable[str], accepts: Accepts) -> Graph:
    """Group a model's nodes into regions.

    Args:
        model: Static-shaped model.
        elementwise: Operator types that an epilogue can hold.
        accepts: Whether some kernel can compute a region with more than one
            operator; refused groups are tried again with fewer operators.

    Returns:
        The graph of regions. Regions of a single operator are not checked.
    """
    inputs, outputs, ops = _convert(model)
    grouper = _Grouper(ops, outputs, frozenset(elementwise), accepts)
    return Graph(inputs, outputs, _in_order(grouper.regions()))


def _convert(model: ir.Model) -> tuple[tuple[Value, ...], tuple[Value, ...], list[Op]]:
    """Inputs, outputs and operators in topological order as our own types."""
    graph = model.graph
    values: dict[int, Value] = {}

    def convert(value: ir.Value | None) -> Value | None:
        if value is None:
            return None
        if id(value) not in values:
            const = value.const_value.numpy() if value.const_value is not None else None
            kind = _type_of(value, const)
            values[id(value)] = Value(value.name or "", kind, const, origin(value))
        return values[id(value)]

    inputs = tuple(_present(convert(v)) for v in graph.inputs if not v.is_initializer())
    ops = []
    stored = _stored_constants(graph)
    for node in graph:
        if id(node.outputs[0]) in stored:
            continue
        attrs = {name: attribute_of(attr) for name, attr in node.attributes.items()}
        if TERMS in node.metadata_props:
            attrs["terms"] = int(node.metadata_props[TERMS])
        op_inputs = tuple(convert(stored.get(id(v), v)) for v in node.inputs)
        op_outputs = tuple(_present(convert(v)) for v in node.outputs if v.name or v.uses())
        ops.append(Op(node.op_type, op_inputs, op_outputs, attrs, node.name or "", node.domain))
    outputs = _separate([_present(convert(v)) for v in graph.outputs], ops)
    return inputs, outputs, ops


def _stored_constants(graph: ir.Graph) -> dict[int, ir.Value]:
    """The constant behind each cast of one that only products read, by id of the cast's result.

    So a product's weights and bias keep the type in which they are stored: its kernel widens
    float16 weights, and adds a float32 bias as it is.
    """
    found = {}
    for node in graph:
        source = node.inputs[0] if node.op_type == "Cast" and not node.domain else None
        if source is None or source.const_value is None or node.outputs[0].is_graph_output():
            continue
        uses = node.outputs[0].uses()
        if uses and all(user.op_type in PRODUCTS and index > 0 for user, index in uses):
            found[id(node.outputs[0])] = source
    return found


def _separate(outputs: list[Value], ops: list[Op]) -> tuple[Value, ...]:
    """Give every model output an operator of its own that produces it.

    An output that is a model input, a constant or listed twice gets an
    ``Identity``; storage makes that a copy.
    """
    produced = {id(v) for op in ops for v in op.outputs}
    result: list[Value] = []
    seen: set[int] = set()
    for index, value in enumerate(outputs):
        if id(value) in produced and id(value) not in seen:
            seen.add(id(value))
            result.append(value)
            continue
        copy = Value(f"{value.name}__output{index}", value.type, origin=value.origin)
        ops.append(Op("Identity", (value,), (copy,), {}, copy.name))
        result.append(copy)
    return tuple(result)


def _present(value: Value | None) -> Value:
    if value is None:
        raise InternalError("a required tensor is missing from the graph")
    return value


def _type_of(value: ir.Value, const: np.ndarray | None) -> TensorType:
    if const is not None:
        return TensorType(tuple(const.shape), const.dtype.name)
    if value.dtype is None or value.shape is None or not value.shape.is_static():
        raise InternalError(
            "a tensor reached code generation without a static shape",
            where=value.name,
            got=f"{value.dtype} {value.shape}",
        )
    return TensorType(tuple(int(d) for d in value.shape), value.dtype.numpy().name)  # type: ignore[arg-type]


def attribute_of(attr: ir.Attr) -> object:
    if attr.type == ir.AttributeType.TENSOR:
        return attr.as_tensor().numpy()
    if attr.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return tuple(attr.value)
    return attr.value


class _Grouper:
    """Assigns every operator to a region, later anchors first.

    Going backwards lets the last branch of a residual sum take the addition, so
    that the other branches are complete when it runs.
    """

    def __init__(
        self,
        ops: list[Op],
        outputs: tuple[Value, ...],
        elementwise: frozenset[str],
        accepts: Accepts,
    ) -> None:
        self.ops = ops
        self.elementwise = elementwise - VIEW_OPS
        self.accepts = accepts
        self.position = {id(op): i for i, op in enumerate(ops)}
        self.producer = {id(v): op for op in ops for v in op.outputs}
        self.consumers: dict[int, list[Op]] = {}
        for op in ops:
            for value in {id(v): v for v in op.inputs if v is not None}.values():
                self.consumers.setdefault(id(value), []).append(op)
        self.kept = {id(v) for v in outputs}  # model outputs are always stored
        self.ancestors = self._ancestors()
        self.taken: set[int] = set()

    def _ancestors(self) -> list[int]:
        """Bit set of ancestor positions, the operator itself included."""
        found: list[int] = []
        for i, op in enumerate(self.ops):
            bits = 1 << i
            for value in op.inputs:
                if value is not None and id(value) in self.producer:
                    bits |= found[self.position[id(self.producer[id(value)])]]
            found.append(bits)
        return found

    def regions(self) -> list[Region]:
        groups: list[list[Op]] = []
        for op in reversed(self.ops):
            if id(op) not in self.taken and not self._is_elementwise(op):
                groups.append(self._claim(op))
        for op in self.ops:
            if id(op) not in self.taken:
                groups.append(self._claim(op))
        groups.sort(key=lambda group: self.position[id(group[0])])
        return [self._region(i, group) for i, group in enumerate(groups)]

    def _is_elementwise(self, op: Op) -> bool:
        return op.op_type in self.elementwise and op.domain in ("", DOMAIN)

    def _claim(self, first: Op) -> list[Op]:
        """The largest accepted single-exit group that starts with ``first``."""
        for group in reversed(self._single_exits(first)):
            if len(group) == 1 or self.accepts(self._region(0, group)):
                self.taken.update(id(op) for op in group)
                return group
        raise InternalError("no group for an operator", where=first.name)

    def _single_exits(self, first: Op) -> list[list[Op]]:
        """Prefixes of the growth from ``first`` that one value leaves, smallest first."""
        found = [[first]]
        if len(first.outputs) != 1 or first.op_type in VIEW_OPS:
            return found
        shape = first.outputs[0].shape
        group = [first]
        members = {id(first)}
        bits = 1 << self.position[id(first)]
        for op in self.ops[self.position[id(first)] + 1 :]:
            if len(group) == MAX_FUSED_OPS:
                break
            if not self._joins(op, members, bits, shape):
                continue
            group.append(op)
            members.add(id(op))
            bits |= 1 << self.position[id(op)]
            if len(self._exits(group, members)) == 1:
                found.append(list(group))
        return found

    def _joins(self, op: Op, members: set[int], bits: int, shape: tuple[int, ...]) -> bool:
        """Whether an element-wise consumer can join without making a cycle."""
        if id(op) in self.taken or not self._is_elementwise(op):
            return False
        if len(op.outputs) != 1 or op.outputs[0].shape != shape:
            return False
        inside = False
        for value in op.inputs:
            producer = self.producer.get(id(value)) if value is not None else None
            if producer is None:
                continue
            if id(producer) in members:
                inside = True
            elif self.ancestors[self.position[id(producer)]] & bits:
                return False
        return inside

    def _exits(self, group: list[Op], members: set[int]) -> list[Value]:
        return [
            value
            for op in group
            for value in op.outputs
            if id(value) in self.kept
            or any(id(user) not in members for user in self.consumers.get(id(value), []))
        ]

    def _region(self, index: int, group: list[Op]) -> Region:
        members = {id(op) for op in group}
        inputs: dict[int, Value] = {}
        for op in group:
            for value in op.inputs:
                if value is None or value.const is not None:
                    continue
                if id(self.producer.get(id(value))) not in members:
                    inputs.setdefault(id(value), value)
        outputs = self._exits(group, members) or list(group[-1].outputs)
        if len(group) == 1:  # unread outputs of a multi-output operator are written all the same
            outputs = list(group[0].outputs)
        label = re.sub(r"\W", "_", group[0].op_type).lower()
        anchor = None if self._is_elementwise(group[0]) else group[0]
        return Region(
            f"k{index:03d}_{label}", tuple(group), anchor, tuple(inputs.values()), tuple(outputs)
        )


def _in_order(regions: list[Region]) -> tuple[Region, ...]:
    """Regions sorted so that producers come first, otherwise in the given order."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(regions)))
    producer = {id(v): i for i, region in enumerate(regions) for v in region.outputs}
    for i, region in enumerate(regions):
        graph.add_edges_from((producer[id(v)], i) for v in region.inputs if id(v) in producer)
    order = nx.lexicographical_topological_sort(graph)
    return tuple(regions[i] for i in order)
