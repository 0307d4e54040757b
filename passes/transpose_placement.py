"""Where transposes should stand: a minimum cut.

Given a permutation p, every operator that transposes can pass (``transpose_rules``)
may work on its operands as they are (label 0) or as they were before a
transpose by p (label 1). A value whose producer and reader have different labels must be
transposed in between, which costs its bytes; the transposes that exist now are
free where they are no longer needed. All labels that cost least are found at once as
a minimum s-t cut (s = label 0), so that branches which reconverge (``x * sigmoid(x)``) and
values with several readers are weighed correctly.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import onnx_ir as ir

from effc.passes.graph import dtype_of, shape_of
from effc.passes.transpose_rules import (
    ELEMENTWISE,
    Perm,
    data_operands,
    inverse,
    passes,
    result_perm,
    transposed,
)

__all__ = ["choose"]

_SCALE = 8
"""Weight of one byte; ties are decided by smaller weights."""

_CALL = 4096
"""Bytes that one more transpose is worth, however small."""

_KEEP = 1
"""Cost of rewriting an operator at all."""

_FUSE = 2
"""Cost of leaving an element-wise operator behind a transpose: it cannot be fused with what
computes the transpose's operand."""


def choose(graph: ir.Graph, perm: Perm) -> set[ir.Node]:
    """Operators that should work on operands before a transpose by ``perm``.

    Returns:
        An empty set if no labelling beats leaving everything as it is.
    """
    forward, members = _region(graph, perm)
    if not members:
        return set()
    network = _Network(perm, members)
    for node in members:
        network.add("s", node, _KEEP)
        if node in forward and node.op_type in ELEMENTWISE and _all_behind(node, perm, forward):
            network.add(node, "t", _FUSE)
        outer = result_perm(node, perm)
        if outer != perm and outer != tuple(range(len(outer))):
            network.add("s", node, _SCALE * (_bytes(node.outputs[0]) + _CALL))
    values = {v: None for n in members for v in (*data_operands(n), *n.outputs)}
    for value in values:
        if value.const_value is None:
            network.add_value(value)
    cost, labelled = network.cut()
    return labelled if cost < network.unchanged() else set()


def _all_behind(node: ir.Node, perm: Perm, forward: set[ir.Node]) -> bool:
    """Whether all operands come through transposes: otherwise moving one only swaps places."""
    for value in data_operands(node):
        found = transposed(value)
        behind = (found is not None and found[1] == perm) or value.producer() in forward
        if not behind and value.const_value is None and prod(shape_of(value)) > 1:
            return False
    return True


def _bytes(value: ir.Value) -> int:
    return prod(shape_of(value)) * max(int(dtype_of(value).itemsize), 1)


def _undoes(node: ir.Node, perm: Perm) -> bool:
    found = transposed(node.outputs[0]) if node.op_type == "Transpose" else None
    return found is not None and found[1] == inverse(perm)


def _region(graph: ir.Graph, perm: Perm) -> tuple[set[ir.Node], list[ir.Node]]:
    """(operators behind transposes by ``perm``, all operators connected to them), in order."""
    able: list[ir.Node] = []
    allowed: set[ir.Node] = set()
    for node in graph:
        if node.op_type == "Transpose" or not passes(node, perm):
            continue
        if perm == inverse(perm) and any(
            (found := transposed(v)) is not None and found[0].producer() in allowed
            for v in data_operands(node)
        ):
            continue  # here label 0 behind the transpose would be label 1 in front of it
        able.append(node)
        allowed.add(node)
    forward: set[ir.Node] = set()
    for node in able:
        for value in data_operands(node):
            found = transposed(value)
            if (found is not None and found[1] == perm) or value.producer() in forward:
                forward.add(node)
    seen = set(forward)
    stack = list(forward)
    while stack:
        node = stack.pop()
        near = [v.producer() for v in data_operands(node)]
        near += [use.node for v in node.outputs for use in v.uses()]
        for other in near:
            if other is not None and other in allowed and other not in seen:
                seen.add(other)
                stack.append(other)
    return forward, [n for n in able if n in seen]


class _Network:
    """The flow network; an edge a -> b costs its capacity if a has label 0 and b label 1."""

    def __init__(self, perm: Perm, members: Iterable[ir.Node]) -> None:
        import networkx as nx  # slow to import, and most models have no transposes to move

        self.perm = perm
        self.members = set(members)
        self.graph = nx.DiGraph()
        self.graph.add_nodes_from(("s", "t"))

    def add(self, source: Any, target: Any, capacity: int | None) -> None:
        """Add capacity to an edge; None is infinite."""
        if capacity is None:
            self.graph.add_edge(source, target)
        elif not self.graph.has_edge(source, target):
            self.graph.add_edge(source, target, capacity=capacity)
        elif "capacity" in self.graph[source][target]:
            self.graph[source][target]["capacity"] += capacity

    def add_value(self, value: ir.Value) -> None:
        """The costs of transposing one value between its producer and readers."""
        readers = [use.node for use in value.uses()]
        inside = {
            n for n in readers if n in self.members and any(v is value for v in data_operands(n))
        }
        undone = any(_undoes(n, self.perm) for n in readers)
        others = value.is_graph_output() or any(
            n not in inside and not _undoes(n, self.perm) for n in readers
        )
        cost = _SCALE * (_bytes(value) + _CALL)
        found = transposed(value)
        producer = value.producer()
        if found is not None and found[1] == self.perm:
            if not others:
                self._if_any_keeps(inside, "t", cost, ("free", value))
        elif producer in self.members:
            assert producer is not None
            if result_perm(producer, self.perm) != self.perm:
                return  # its axes are gone; what it costs is charged to the operator
            self._if_any_moves(producer, inside | ({"t"} if undone else set()), cost, ("up", value))
            keeps = inside | ({"s"} if others else set())
            self._if_any_keeps(keeps, producer, cost, ("down", value))
        elif not undone:
            self._if_any_moves("s", inside, cost, ("new", value))

    def _if_any_moves(self, producer: Any, readers: Iterable[Any], cost: int, name: Any) -> None:
        """Costs once if the producer has label 0 and any reader label 1."""
        self.add(producer, name, cost)
        for reader in readers:
            self.add(name, reader, None)

    def _if_any_keeps(self, readers: Iterable[Any], producer: Any, cost: int, name: Any) -> None:
        """Costs once if the producer has label 1 and any reader label 0."""
        self.add(name, producer, cost)
        for reader in readers:
            self.add(reader, name, None)

    def unchanged(self) -> int:
        """The cost of label 0 everywhere."""
        ones = self._forced_ones()
        return sum(
            data["capacity"]
            for a, b, data in self.graph.edges(data=True)
            if "capacity" in data and a not in ones and b in ones
        )

    def _forced_ones(self) -> set[Any]:
        """Nodes with label 1 when all operators have label 0: t and what leads only there."""
        ones = {"t"}
        for name in self.graph.nodes:
            forced = isinstance(name, tuple) and name[0] in ("up", "new")
            if forced and "t" in self.graph[name]:
                ones.add(name)
        return ones

    def cut(self) -> tuple[int, set[ir.Node]]:
        """(least cost, operators with label 1)."""
        import networkx as nx

        cost, (_, ones) = nx.minimum_cut(self.graph, "s", "t")
        return int(cost), {n for n in ones if isinstance(n, ir.Node)}
