"""From any valid model to one flat, static graph at ``OPSET``.

The model is executed abstractly: nodes are visited in order, knowing shape and
dtype of each operand, and the value of those that are constant. Each node is
converted to ``OPSET`` (``adapters``), folded if its operands are constant, and
otherwise appended to a new graph with its shapes inferred. With everything
static, one visit does opset conversion, constant folding, shape inference,
inlining of functions and resolution of ``If``/``Loop``/``Scan`` at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.errors import EffcError, ModelError, UnsupportedError
from effc.frontend.adapters import adapt
from effc.frontend.bind import TENSOR_LIMIT
from effc.frontend.control_flow import CONTROL_FLOW
from effc.frontend.functions import instantiate, schema_function
from effc.frontend.load import external_tensor
from effc.frontend.operands import check_operands
from effc.passes.graph import OPSET, Writer, fresh_name
from effc.passes.infer import static_shape
from effc.passes.origin import forget_origin, origin, stand_for

__all__ = ["Elaborator"]

NODE_LIMIT = 100_000
"""Nodes of the largest graph that unrolling and inlining may make."""

DEPTH_LIMIT = 32
"""Nesting of functions and control flow."""

Array = np.ndarray[Any, Any]
Operands = Sequence[ir.Value | None]


class _Unknown(Exception):
    """The node reads a value that could not be computed; reported where that happened."""


class Elaborator:
    """Builds the flat graph.

    Args:
        model: The deserialized model; it is not changed.
        shapes: Static shape of every run-time input.
        constants: Values of the inputs that become initializers.
        folder: Where external data lies.
    """

    def __init__(
        self,
        model: ir.Model,
        shapes: Mapping[str, tuple[int, ...]],
        constants: Mapping[str, Array],
        folder: Path | None,
    ) -> None:
        self.model = model
        self.folder = folder
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=model.graph.name)
        self._outputs = {v.name for v in model.graph.outputs if v.name}
        self.graph.meta["effc.names"] = set(self._outputs)
        self._env: dict[ir.Value, ir.Value | None] = {}
        self._unknown: set[ir.Value] = set()
        self._problems: list[tuple[str, EffcError]] = []
        self._depth = 0
        self._bind_inputs(shapes, constants)

    def _bind_inputs(
        self, shapes: Mapping[str, tuple[int, ...]], constants: Mapping[str, Array]
    ) -> None:
        for value in self.model.graph.inputs:
            name = value.name or ""
            if name in constants:
                self._env[value] = self.writer(name).const(constants[name], name)
            elif not value.is_initializer():
                new = ir.Value(name=name, shape=ir.Shape(shapes[name]), type=value.type)
                self.graph.meta["effc.names"].add(name)
                self.graph.inputs.append(new)
                self._env[value] = new

    def run(self) -> ir.Model:
        """Elaborate the model.

        Raises:
            ModelError: The model contradicts itself.
            UnsupportedError: All operators that cannot be handled, at once.
        """
        source = self.model.graph
        self.walk(source, source.opset_imports)
        if self._problems:
            raise _summary(self._problems)
        for output in source.outputs:
            self._bind_output(output)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses():
                del self.graph.initializers[name]
        return ir.Model(self.graph, ir_version=10, producer_name="effc")

    def _bind_output(self, output: ir.Value) -> None:
        """Make the new value an output under the model's name, by Identity where needed."""
        value = self.lookup(output)
        name = output.name or ""
        if value is None:
            raise ModelError("nothing produces this output", where=name)
        if value.is_graph_input() and value.name == name:
            raise UnsupportedError(
                "an input of the model is also its output",
                where=name,
                hint="remove it from the outputs: the caller has the value already",
            )
        if value.is_graph_input() or value.is_initializer() or value.is_graph_output():
            node = ir.Node("", "Identity", [value], name=fresh_name(self.graph, f"{name}/Identity"))
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            self.graph.append(node)
            value = node.outputs[0]
        value.name = name
        self.graph.outputs.append(value)

    def writer(self, name: str) -> Writer:
        """A writer that appends to the new graph."""
        return Writer(self.graph, name=name)

    def lookup(self, value: ir.Value | None) -> ir.Value | None:
        """The new graph's value for one of the model's; None for an absent operand."""
        if value is None:
            return None
        if value in self._unknown:
            raise _Unknown
        if value not in self._env:
            if value.const_value is None:
                raise ModelError("a node reads a value that nothing produces", where=value.name)
            self._env[value] = self._adopt(value.const_value, value.name or "const")
        return self._env[value]

    def bind(self, old: ir.Value, new: ir.Value | None) -> None:
        """Let one of the model's values stand for a value of the new graph."""
        self._env[old] = new
        self._unknown.discard(old)

    def _adopt(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """Add a constant of the model to the graph; its data is read here, once."""
        if tensor.dtype == ir.DataType.STRING:
            raise UnsupportedError("string tensors are not supported", where=name)
        if isinstance(tensor, ir.ExternalTensor):
            array = external_tensor(tensor, self.folder)
        else:
            try:
                array = tensor.numpy()
            except (AssertionError, TypeError, ValueError):
                raise ModelError(
                    "the tensor's data does not have the size its shape says",
                    where=name,
                    expected=f"{tensor.dtype.name}{[int(str(d)) for d in tensor.shape]}",
                ) from None
        _check_nan(array, name)
        name = fresh_name(self.graph, name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=ir.Tensor(array, dtype=tensor.dtype, name=name),
        )
        self.graph.register_initializer(value)
        return value

    def walk(self, nodes: Iterable[ir.Node], opsets: Mapping[str, int]) -> None:
        """Elaborate nodes in order into the environment."""
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise ModelError("functions or control flow are nested too deeply", got=self._depth)
        for node in nodes:
            outputs: Operands = ()
            try:
                outputs = self._node(node, opsets)
            except _Unknown:
                pass
            except UnsupportedError as error:
                self._problems.append((_label(node), error))
            for index, old in enumerate(node.outputs):
                if index < len(outputs):
                    self.bind(old, outputs[index])
                    self._remember(old, outputs[index])
                else:
                    self._unknown.add(old)
        self._depth -= 1

    def _remember(self, old: ir.Value, new: ir.Value | None) -> None:
        """Note which tensor of the model a new value is; names within bodies say nothing."""
        node = old.producer()
        own = node is not None and node.graph is self.model.graph
        if own and old.name and new is not None and origin(new) is None:
            stand_for(new, old)

    def _node(self, node: ir.Node, opsets: Mapping[str, int]) -> Operands:
        """Elaborate one node; returns the values of its outputs."""
        if len(self.graph) > NODE_LIMIT:
            raise ModelError("the flattened graph is too large", expected=f"<= {NODE_LIMIT} nodes")
        inputs = [self.lookup(v) for v in node.inputs]
        function = self.model.functions.get(node.op_identifier())
        if function is not None:
            return self.call(function, node, inputs)
        version = opsets.get(node.domain)
        if version is None:
            raise ModelError(f"no opset is imported for domain '{node.domain}'", where=_label(node))
        if not node.domain and node.op_type == "Constant":
            return [self._adopt(constant_tensor(node), node.outputs[0].name or _label(node))]
        if not node.domain and node.op_type in CONTROL_FLOW:
            return CONTROL_FLOW[node.op_type](self, node, inputs, opsets)
        if not node.domain:
            check_operands(node, inputs, version)
        outputs = adapt(self.writer(_label(node)), node, inputs, version)
        if outputs is None:
            body = schema_function(node, inputs, version)
            outputs = self._copy(node, inputs) if body is None else self.call(body, node, inputs)
        for out in outputs:
            _check_output(out, node)
        return outputs

    def _copy(self, node: ir.Node, inputs: Operands) -> Operands:
        """The same node in the new graph, folded if possible."""
        name = fresh_name(self.graph, node.name or _label(node))
        new = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            tuple(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=name,
        )
        for old, out in zip(node.outputs, new.outputs, strict=True):
            out.name = fresh_name(self.graph, old.name) if old.name else ""
            forget_origin(out)
        return self.writer(name).add(new)

    def call(self, function: ir.Function, node: ir.Node, inputs: Operands) -> Operands:
        """Inline a function for one call."""
        body = instantiate(function, node)
        for index, formal in enumerate(body.inputs):
            self.bind(formal, inputs[index] if index < len(inputs) else None)
        self.walk(body, body.opset_imports)
        return [self.lookup(v) for v in body.outputs]


def constant_tensor(node: ir.Node) -> ir.TensorProtocol:
    """The value of a Constant node in any of its spellings."""
    for name, attr in node.attributes.items():
        if name == "value":
            return attr.as_tensor()
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.array(attr.value, np.int64))
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.array(attr.value, np.float32))
    raise UnsupportedError(
        "this kind of constant is not supported", where=_label(node), got=", ".join(node.attributes)
    )


def _label(node: ir.Node) -> str:
    if node.name:
        return node.name
    first = next((v.name for v in node.outputs if v.name), "")
    return f"{node.op_type}_{first}" if first else node.op_type


def _check_nan(array: Array, name: str) -> None:
    """NaN in a tensor is an error; a single NaN may be meant (a fill value)."""
    if array.dtype not in (np.float32, np.float64) or array.size < 2:
        return
    with np.errstate(all="ignore"):
        suspicious = not np.isfinite(array.sum())
    if suspicious and np.isnan(array).any():
        raise ModelError(
            "the tensor holds NaN",
            where=name,
            got=f"{int(np.isnan(array).sum())} NaN values",
            hint="the training diverged or the file is damaged; no result could be right",
        )


def _check_output(out: ir.Value | None, node: ir.Node) -> None:
    """Raise unless a value is a numeric tensor of static, sensible shape."""
    if out is None or not out.name:
        return
    if not isinstance(out.type, ir.TensorType):
        raise UnsupportedError(f"{node.op_type} yields no tensor", got=str(out.type))
    if out.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED) or out.dtype is None:
        raise UnsupportedError(f"{node.op_type} yields no numeric tensor", got=str(out.type))
    shape = static_shape(out)
    if shape is None:
        raise UnsupportedError(
            f"the result's shape of {node.op_type} depends on run-time data", got=str(out.shape)
        )
    if any(d < 0 for d in shape):
        raise ModelError("negative dimension", where=f"{node.op_type} {out.name}", got=shape)
    if prod(shape) * max(int(out.dtype.itemsize), 1) > TENSOR_LIMIT:
        raise ModelError(
            "the tensor is too large",
            where=f"{node.op_type} {out.name}",
            expected=f"<= {TENSOR_LIMIT} bytes",
            got=shape,
        )


def _summary(problems: Sequence[tuple[str, EffcError]]) -> UnsupportedError:
    """One error for all problems."""
    if len(problems) == 1:
        label, only = problems[0]
        return UnsupportedError(
            only.what,
            where=only.where or label,
            expected=only.expected,
            got=only.got,
            hint=only.hint,
        )
    shown = [
        f"{label}: {error.what}" + (f" ({error.got})" if error.got is not None else "")
        for label, error in problems
    ]
    return UnsupportedError(
        f"{len(problems)} operators are not supported",
        where=", ".join(label for label, _ in problems[:4]) + (" ..." if len(problems) > 4 else ""),
        got="\n    " + "\n    ".join(shown),
    )
