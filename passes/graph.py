"""Thin helpers over onnx-ir that every pass uses: constants, names, new nodes.

``Writer`` is how nodes are made: it names them, infers shape and dtype at once
(so that the graph stays fully typed) and folds operators whose inputs are all
constant.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.errors import UnsupportedError
from effc.passes.evaluate import evaluate
from effc.passes.infer import OPSET, infer, static_shape
from effc.passes.origin import forget_origin, stand_for

__all__ = [
    "OPSET",
    "Writer",
    "add_constant",
    "attribute",
    "const",
    "dtype_of",
    "fresh_name",
    "prune",
    "redirect",
    "shape_of",
    "single_user",
]

Array = np.ndarray[Any, Any]

FOLD_LIMIT = 256 << 20
"""Bytes of the largest constant that folding may create."""

FOLD_GROWTH = 16 << 20
"""Bytes by which one folded result may exceed its operands together."""

# Folding these would lose what they say (quantization), or is impossible.
_NEVER_FOLDED = frozenset(
    {
        "DequantizeLinear",
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    }
)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape; every value of an imported graph has one."""
    shape = static_shape(value)
    if shape is None:
        raise UnsupportedError("shape is not static", where=value.name, got=value.shape)
    return shape


def dtype_of(value: ir.Value) -> ir.DataType:
    """The element type; every value of an imported graph has one."""
    if value.dtype is None:
        raise UnsupportedError("element type is unknown", where=value.name)
    return value.dtype


def const(value: ir.Value | None) -> Array | None:
    """The value of a constant, or None."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's Python value (strings decoded), or ``default``."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.value


def fresh_name(graph: ir.Graph, base: str) -> str:
    """A value or node name that the graph does not use yet; it is then reserved."""
    taken: set[str] | None = graph.meta.get("effc.names")
    if taken is None:
        taken = {v.name for v in graph.inputs if v.name} | set(graph.initializers)
        for node in graph:
            taken.add(node.name or "")
            taken.update(v.name for v in node.outputs if v.name)
        graph.meta["effc.names"] = taken
    counts: dict[str, int] = graph.meta.setdefault("effc.counts", {})
    name = base
    while name in taken or not name:
        counts[base] = counts.get(base, 0) + 1
        name = f"{base}_{counts[base]}"
    taken.add(name)
    return name


def add_constant(graph: ir.Graph, array: Array, name: str = "const") -> ir.Value:
    """Add an initializer under a fresh name made from ``name``."""
    name = fresh_name(graph, name)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def single_user(value: ir.Value) -> ir.Node | None:
    """The only node that reads ``value``, or None (also when it is a graph output)."""
    uses = value.uses()
    if value.is_graph_output() or len(uses) != 1:
        return None
    return next(iter(uses)).node


def redirect(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of ``old`` read ``new``; graph outputs keep their names.

    ``old`` must have a producer. If it is a graph output, ``new`` takes over its
    name when it can; otherwise an Identity carries the output. ``new`` stands for what ``old``
    stood for (``effc.passes.origin``).
    """
    stand_for(new, old)
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return
    producer = old.producer()
    assert producer is not None
    graph = producer.graph
    assert isinstance(graph, ir.Graph)
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)
    movable = not (new.is_graph_input() or new.is_initializer() or new.is_graph_output())
    if movable:
        carrier = new
    else:
        node = ir.Node("", "Identity", [new], name=fresh_name(graph, f"{old.name}/identity"))
        node.outputs[0].shape, node.outputs[0].type = new.shape, new.type
        graph.insert_after(producer, node)
        carrier = node.outputs[0]
        stand_for(carrier, old)
    name = old.name
    old.name = fresh_name(graph, f"{name}/old")
    carrier.name = name
    for index, output in enumerate(list(graph.outputs)):
        if output is old:
            graph.outputs[index] = carrier


class Writer:
    """Adds nodes to a graph, in front of an existing node or at its end.

    Args:
        graph: The graph to extend.
        before: New nodes go in front of this one; None appends.
        name: Base of the names of new nodes and constants.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node | None = None, name: str = "") -> None:
        self.graph = graph
        self.before = before
        self.name = name or (before.name if before is not None else "") or "node"

    def const(self, array: Array, name: str | None = None) -> ir.Value:
        """An initializer holding ``array``."""
        return add_constant(self.graph, np.asarray(array), name or f"{self.name}/const")

    def op(
        self, op_type: str, *inputs: ir.Value | Array | None, domain: str = "", **attrs: Any
    ) -> ir.Value:
        """Add a single-output node; arrays become initializers. Returns its output."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attrs)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | Array | None,
        outputs: int,
        domain: str = "",
        **attrs: Any,
    ) -> tuple[ir.Value, ...]:
        """Add a node with ``outputs`` outputs. Returns them.

        Raises:
            ModelError: The operands do not fit the operator.
            UnsupportedError: An output would not have a static shape.
        """
        values = [self.const(v) if isinstance(v, np.ndarray) else v for v in inputs]
        node = ir.Node(
            domain,
            op_type,
            values,
            attributes=_attributes(attrs),
            num_outputs=outputs,
            name=fresh_name(self.graph, f"{self.name}/{op_type}"),
        )
        return self.add(node)

    def add(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Add a detached node: infer its outputs, fold it if its inputs are constant."""
        infer(node)
        for index, out in enumerate(node.outputs):
            if out.name is None:
                base = node.name or self.name
                out.name = fresh_name(self.graph, base if index == 0 else f"{base}_{index}")
                forget_origin(out)
        folded = fold(self.graph, node)
        if folded is not None:
            for position in range(len(node.inputs)):
                node.replace_input_with(position, None)
            return folded
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)
        return tuple(node.outputs)


def _attributes(attrs: dict[str, Any]) -> list[ir.Attr]:
    """Python values to attributes; an empty list or tuple is a list of integers."""
    made = []
    for name, value in attrs.items():
        if isinstance(value, ir.Attr):
            made.append(value)
        elif isinstance(value, list | tuple) and not value:
            made.append(ir.AttrInt64s(name, ()))
        elif value is not None:
            made.extend(ir.convenience.convert_attributes({name: value}))
    return made


def _bytes(value: ir.Value) -> int:
    dtype = value.dtype
    return prod(shape_of(value)) * max(int(dtype.itemsize), 1) if dtype is not None else 0


def fold(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, ...] | None:
    """Constants equal to the node's outputs, or None if it cannot be folded.

    A node folds if its inputs are constant or empty (or its outputs empty, or it only
    asks for a shape) and the result is not absurdly larger than its operands.
    The node itself is left as it is.
    """
    if node.domain or node.op_type in _NEVER_FOLDED:
        return None
    if any(static_shape(v) is None or v.dtype is None for v in node.outputs):
        return _fold_unknown(graph, node)
    sizes = [prod(shape_of(v)) for v in node.outputs]
    if not any(sizes) and all(v.dtype != ir.DataType.STRING for v in node.outputs):
        arrays = [np.zeros(shape_of(v), dtype_of(v).numpy()) for v in node.outputs]
        return tuple(_constants(graph, node, arrays))
    if node.op_type in ("Shape", "Size") and node.inputs[0] is not None:
        shape = shape_of(node.inputs[0])
        if node.op_type == "Size":
            return tuple(_constants(graph, node, [np.array(prod(shape), np.int64)]))
        part = shape[attribute(node, "start", 0) : attribute(node, "end")]
        return tuple(_constants(graph, node, [np.array(part, np.int64)]))
    if any(v is not None and _known(v) is None for v in node.inputs):
        return None
    made = sum(_bytes(v) for v in node.outputs)
    read = sum(_bytes(v) for v in node.inputs if v is not None)
    if made > FOLD_LIMIT or made > read + FOLD_GROWTH:
        return None
    arrays_or_none = evaluate(node, [None if v is None else _known(v) for v in node.inputs])
    if arrays_or_none is None:
        return None
    return tuple(_constants(graph, node, arrays_or_none))


def _known(value: ir.Value) -> Array | None:
    """A constant's value; a tensor without elements is known as well."""
    if value.const_value is None and 0 in shape_of(value):
        return np.zeros(shape_of(value), dtype_of(value).numpy())
    return const(value)


def _fold_unknown(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, ...] | None:
    """Fold a node whose output shape depends on its (constant) input values."""
    values = [v for v in node.inputs if v is not None]
    if any(v.const_value is None for v in values) or sum(map(_bytes, values)) > FOLD_GROWTH:
        return None
    if node.op_type not in ("NonZero", "Unique", "Compress", "NonMaxSuppression", "Range"):
        return None
    arrays = evaluate(node, [const(v) for v in node.inputs])
    return None if arrays is None else tuple(_constants(graph, node, arrays))


def _constants(graph: ir.Graph, node: ir.Node, arrays: Iterable[Array]) -> Iterable[ir.Value]:
    for out, array in zip(node.outputs, arrays, strict=True):
        yield add_constant(graph, array, out.name or node.name or "const")


def prune(graph: ir.Graph, node: ir.Node) -> int:
    """Remove a node whose results nobody reads, and then its producers likewise.

    Returns:
        The number of nodes removed.
    """
    removed = 0
    stack = [node]
    while stack:
        current = stack.pop()
        if current.graph is not graph:
            continue
        if any(v.uses() or v.is_graph_output() for v in current.outputs):
            continue
        sources = [v for v in current.inputs if v is not None]
        graph.remove(current, safe=True)
        removed += 1
        for value in sources:
            producer = value.producer()
            if producer is not None:
                stack.append(producer)
            elif value.is_initializer() and not value.uses() and not value.is_graph_output():
                graph.initializers.pop(value.name or "", None)
    return removed
