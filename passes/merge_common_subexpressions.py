"""Compute equal things once.

Two nodes with the same operator, attributes and operands become one; small
constants of equal bytes become one first, so that equal shapes and scalars
count as equal operands. Exact.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.graph import const, prune, redirect

__all__ = ["MergeCommonSubexpressions"]

_SMALL = 1024
"""Bytes of the largest constant that is compared by value."""

_IMPURE = frozenset(
    {
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Identity",
    }
)


class MergeCommonSubexpressions(Pass):
    """Common subexpression elimination."""

    name: ClassVar[str] = "merge_common_subexpressions"

    def call(self, model: ir.Model, log: Log) -> None:
        graph = model.graph
        _merge_constants(graph)
        seen: dict[Hashable, ir.Node] = {}
        for node in graph:
            if node.graph is not graph or node.op_type in _IMPURE:
                continue
            key = _key(node)
            first = seen.setdefault(key, node)
            if first is node or len(first.outputs) != len(node.outputs):
                continue
            if any(v.is_graph_output() for v in node.outputs):
                log.refused.append((node.name or "", "its result is an output of the model"))
                continue
            for old, new in zip(node.outputs, first.outputs, strict=True):
                redirect(old, new)
            log.applied.append(node.name or node.op_type)
            prune(graph, node)


def _merge_constants(graph: ir.Graph) -> None:
    seen: dict[Hashable, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes > _SMALL or value.is_graph_output():
            continue
        array = const(value)
        assert array is not None
        key = (tensor.dtype, tuple(array.shape), array.tobytes())
        first = seen.setdefault(key, value)
        if first is not value:
            value.replace_all_uses_with(first)
            del graph.initializers[name]


def _key(node: ir.Node) -> Hashable:
    attrs = tuple(sorted((name, _comparable(attr)) for name, attr in node.attributes.items()))
    present = tuple(bool(v.name) for v in node.outputs)
    return (node.domain, node.op_type, tuple(id(v) for v in node.inputs), attrs, present)


def _comparable(attr: ir.Attr) -> str:
    if attr.type == ir.AttributeType.TENSOR:
        tensor = attr.as_tensor()
        return f"{tensor.dtype}{tuple(tensor.shape)}{tensor.tobytes().hex()}"
    return repr(attr.value)
