"""Which nodes can be pruned, and their weights as ``[Cout, Cin / groups, *kernel]``.

Conv of any kernel, Gemm, and MatMul by a constant; the filters come first, whatever the operator's
own layout. Kept dense unless a recipe names them:

* the *first* layers, which read a model input through element-wise and layout operators only
  (few weights, and all that follows depends on them),
* the *output* layers, whose result reaches a model output without another layer with weights
  in between,
* *depthwise* convolutions (few weights; every zero removes a ninth of a channel's filter).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from effc.passes.graph import add_constant, attribute, const, shape_of, single_user

__all__ = ["Layer", "Role", "find_layers", "from_first_change"]

Array = np.ndarray[Any, Any]
Role = Literal["inner", "first", "output", "depthwise"]

_OPS = frozenset({"Conv", "Gemm", "MatMul"})

_PREPARATION = """
Identity Cast Reshape Flatten Squeeze Unsqueeze Transpose Concat Split Slice Pad Gather
DepthToSpace SpaceToDepth Add Sub Mul Div Neg Abs Relu LeakyRelu PRelu Clip Sigmoid Tanh
HardSigmoid HardSwish Softplus Softsign Elu Selu Mish Gelu Exp Log Sqrt Pow Erf Min Max
BatchNormalization QuantizeLinear DequantizeLinear
"""
"""Element-wise and layout operators: behind a model input they only prepare it."""

_TRANSPARENT = frozenset(_PREPARATION.split())


@dataclass(frozen=True, eq=False)
class Layer:
    """A node with weights that can be pruned.

    Attributes:
        name: The node's name.
        node: Conv, Gemm or MatMul.
        shape: ``(Cout, Cin / groups, *kernel)``, without a kernel for Gemm and MatMul.
        groups: Convolution groups.
        role: Why it is dense by default; ``inner`` if it is not.
    """

    name: str
    node: ir.Node
    shape: tuple[int, ...]
    groups: int
    role: Role

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial sizes of the kernel, ``()`` for Gemm and MatMul."""
        return self.shape[2:]

    @property
    def reads(self) -> str:
        """Name of the value that it reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value.name or ""

    @property
    def makes(self) -> str:
        """Name of its result."""
        return self.node.outputs[0].name or ""

    @property
    def _turned(self) -> bool:
        """Whether the operator keeps its weights as ``[Cin, Cout]``."""
        return self.node.op_type == "MatMul" or (
            self.node.op_type == "Gemm" and not attribute(self.node, "transB", 0)
        )

    def weight(self) -> Array:
        """The weights in :attr:`shape`, as they are in the model."""
        array = const(self.node.inputs[1])
        assert array is not None
        return array.T if self._turned else array

    def stored(self, weight: Array) -> Array:
        """Weights of :attr:`shape` as the operator keeps them, in its dtype."""
        value = self.node.inputs[1]
        assert value is not None
        assert value.dtype is not None
        return self.stored_like(weight).astype(value.dtype.numpy(), copy=False)

    def stored_like(self, weight: Array) -> Array:
        """The same in the dtype of ``weight``."""
        return np.ascontiguousarray(weight.T if self._turned else weight)

    def set_weight(self, weight: Array) -> None:
        """Give the node other weights of :attr:`shape`; the dtype stays."""
        old = self.node.inputs[1]
        graph = self.node.graph
        assert old is not None
        assert isinstance(graph, ir.Graph)
        self.node.replace_input_with(
            1, add_constant(graph, self.stored(weight), old.name or "weight")
        )
        _drop_unused(graph, old)

    def bias(self) -> Array | None:
        """What is added to each output channel, float64 ``[Cout]``; zeros if nothing is.

        None if it cannot be changed: it is computed, or differs from row to row. A MatMul's is the
        constant of the Add that alone reads its result.
        """
        node, index = self._bias_place()
        if node is None:
            return None
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            return np.zeros(self.shape[0])
        array = const(value)
        if array is None or array.size not in (1, self.shape[0]):
            return None
        if array.size != max(array.shape[-1:], default=1):
            return None
        return np.broadcast_to(array.astype(np.float64).reshape(-1) * self._beta, self.shape[:1])

    def set_bias(self, bias: Array) -> None:
        """Add another constant ``[Cout]``; only where :meth:`bias` is not None."""
        node, index = self._bias_place()
        graph, weight = self.node.graph, self.node.inputs[1]
        assert node is not None
        assert isinstance(graph, ir.Graph)
        assert weight is not None
        assert weight.dtype is not None
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        array = (bias / self._beta).astype(weight.dtype.numpy())
        node.replace_input_with(index, add_constant(graph, array, f"{self.name}/bias"))
        if old is not None:
            _drop_unused(graph, old)

    def stored_bias(self, bias: Array) -> dict[str, Array]:
        """Another bias ``[Cout]`` as the operator keeps it, by the name of the constant it has."""
        node, index = self._bias_place()
        assert node is not None
        old = node.inputs[index]
        array = const(old)
        assert old is not None
        assert array is not None
        spread = np.broadcast_to(bias / self._beta, np.broadcast_shapes(array.shape, bias.shape))
        kept = spread.astype(array.dtype)
        return {old.name or "": kept.reshape(array.shape) if kept.size == array.size else kept}

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that hold the weights and, if it can be changed, the bias."""
        place = self._bias_place()[0]
        return (self.node,) if place in (None, self.node) else (self.node, place)

    @property
    def _beta(self) -> float:
        return float(attribute(self.node, "beta", 1.0)) if self.node.op_type == "Gemm" else 1.0

    def _bias_place(self) -> tuple[ir.Node | None, int]:
        """The node whose input is the bias, and which input."""
        if self.node.op_type != "MatMul":
            return self.node, 2
        add = single_user(self.node.outputs[0])
        if add is None or add.domain or add.op_type != "Add":
            return None, 0
        return add, 1 if add.inputs[0] is self.node.outputs[0] else 0


def find_layers(model: ir.Model) -> tuple[list[Layer], list[tuple[str, str]]]:
    """All layers with weights, in the order of the graph.

    Args:
        model: As ``effc.frontend.import_model`` gives it, simplified or not.

    Returns:
        The layers, and (node name, why) of nodes whose weights cannot be pruned.
    """
    graph = model.graph
    nodes = [n for n in graph if not n.domain and n.op_type in _OPS]
    first = _reached_from_inputs(graph)
    last = _reaching_outputs(graph)
    layers: list[Layer] = []
    refused: list[tuple[str, str]] = []
    for node in nodes:
        why = _refusal(node)
        if why is not None:
            refused.append((node.name or node.op_type, why))
            continue
        layers.append(_layer(node, first, last))
    return layers, refused


def from_first_change(dense: ir.Model, model: ir.Model) -> list[Layer]:
    """Layers from the first one on whose weights differ."""
    old = {layer.name: layer for layer in find_layers(dense)[0]}
    layers = find_layers(model)[0]
    for index, layer in enumerate(layers):
        if not np.array_equal(old[layer.name].weight(), layer.weight()):
            return layers[index:]
    return []


def _layer(node: ir.Node, first: set[int], last: set[int]) -> Layer:
    weight = node.inputs[1]
    assert weight is not None
    shape = shape_of(weight)
    groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0)):
        shape = shape[::-1]
    role: Role = "inner"
    if id(node) in last:
        role = "output"
    elif id(node) in first:
        role = "first"
    elif groups > 1 and shape[1] == 1:
        role = "depthwise"
    return Layer(node.name or "", node, shape, groups, role)


def _refusal(node: ir.Node) -> str | None:
    """Why the weights of a node cannot be pruned."""
    weight = node.inputs[1]
    array = const(weight)
    if weight is None or array is None:
        return "its weights are not constant"
    if array.dtype.kind != "f":
        return f"its weights are {array.dtype}, not floating point"
    if node.op_type == "MatMul" and array.ndim != 2:
        return f"its weights have {array.ndim} dimensions, not 2"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "it transposes its input"
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its padding is not explicit"
    if len(weight.uses()) > 1 or weight.is_graph_output():
        return "other nodes read its weights as well"
    return None


def _reached_from_inputs(graph: ir.Graph) -> set[int]:
    """Nodes with weights that read a model input through transparent nodes."""
    plain = {id(v) for v in graph.inputs}
    found: set[int] = set()
    for node in graph:
        if not any(v is not None and id(v) in plain for v in node.inputs):
            continue
        if node.op_type in _OPS and const(node.inputs[1]) is not None:
            found.add(id(node))
        elif not node.domain and node.op_type in _TRANSPARENT:
            plain.update(id(v) for v in node.outputs)
    return found


def _reaching_outputs(graph: ir.Graph) -> set[int]:
    """Nodes with weights whose results reach a model output past no other such node."""
    open_values = {id(v) for v in graph.outputs}
    found: set[int] = set()
    for node in reversed(list(graph)):
        if not any(id(v) in open_values for v in node.outputs):
            continue
        if node.op_type in _OPS | {"ConvTranspose"} and const(node.inputs[1]) is not None:
            found.add(id(node))
        else:
            open_values.update(id(v) for v in _operands(node))
    return found


def _operands(node: ir.Node) -> Iterable[ir.Value]:
    return (v for v in node.inputs if v is not None)


def _drop_unused(graph: ir.Graph, value: ir.Value) -> None:
    if value.is_initializer() and not value.uses() and not value.is_graph_output():
        graph.initializers.pop(value.name or "", None)
