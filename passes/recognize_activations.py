"""Replace spelled-out activation functions by the ONNX operator that computes them.

A cone of element-wise operators with scalar constants over one tensor is a
function of one variable. It is evaluated (float64) on a fixed grid and compared with the
known activations, so that every spelling is found: ``x*clip(x+3,0,6)/6``, the
four common orders of GELU, ``x*tanh(log(1+exp(x)))``, ... Cones are tried from
the largest down. Swish has no operator at this opset and stays ``x*Sigmoid(x)``.

Tolerance: spellings agree with the operator to 1e-7 + 1e-6 of the result
(constants such as sqrt(2) are rounded to float32 by exporters); overflow of a
spelled-out ``exp`` is not preserved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, redirect, shape_of

__all__ = ["RecognizeActivations"]

Array = np.ndarray[Any, Any]
_TOLERANCE = 1e-6
_CONE_LIMIT = 12
_GRID = np.concatenate([np.linspace(-12, 12, 481) + 0.0137, [-30.0, 30.0, -3.0, 3.0, 1e-3]])


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(0.0, x))


def _gelu_tanh(x: Array) -> Array:
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)))


def _clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.asarray(np.minimum(x, high))


_COMPUTE: dict[str, Callable[..., Array]] = {
    "Abs": np.abs, "Add": np.add, "Clip": _clip, "Div": np.divide, "Erf": _erf,
    "Exp": np.exp, "HardSigmoid": lambda a, b, x: np.clip(a * x + b, 0, 1),
    "Log": np.log, "Max": np.maximum, "Min": np.minimum, "Mul": np.multiply,
    "Neg": np.negative, "Pow": np.power, "Reciprocal": np.reciprocal,
    "Relu": lambda x: np.maximum(x, 0), "Sigmoid": _sigmoid, "Softplus": _softplus,
    "Sqrt": np.sqrt, "Sub": np.subtract, "Tanh": np.tanh,
}  # fmt: skip


@dataclass(frozen=True)
class _Known:
    """An activation: its function and how ONNX writes it."""

    op_type: str
    function: Callable[[Array], Array]
    attrs: dict[str, Any] = field(default_factory=dict)


_KNOWN = (
    _Known("HardSwish", lambda x: x * np.clip(x + 3, 0, 6) / 6),
    _Known("HardSigmoid", lambda x: np.clip(x + 3, 0, 6) / 6, {"alpha": 1 / 6, "beta": 0.5}),
    _Known("Mish", lambda x: x * np.tanh(_softplus(x))),
    _Known("Gelu", lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2)))),
    _Known("Gelu", _gelu_tanh, {"approximate": "tanh"}),
    _Known("Sigmoid", _sigmoid),
    _Known("Softplus", _softplus),
    _Known("Softsign", lambda x: x / (1 + np.abs(x))),
    _Known("Tanh", np.tanh),
    _Known("Relu", lambda x: np.maximum(x, 0)),
)


class RecognizeActivations(RewritePass):
    """Spelled-out activations to operators."""

    name: ClassVar[str] = "recognize_activations"
    ops: ClassVar[frozenset[str]] = frozenset(_COMPUTE)

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        out = node.outputs[0]
        if out.dtype != ir.DataType.FLOAT:
            return False
        for leaf, nodes in reversed(_cones(node)):
            if len(nodes) < 2 or shape_of(leaf) != shape_of(out):
                continue
            with np.errstate(all="ignore"):
                known = _match(_evaluate(out, {leaf: _GRID}))
            if known is not None:
                redirect(out, Writer(graph, node).op(known.op_type, leaf, **known.attrs))
                return True
        return False


def _match(values: Array) -> _Known | None:
    """The activation whose values on the grid these are."""
    for known in _KNOWN:
        expected = known.function(_GRID)
        error = np.abs(values - expected)
        if np.all(error <= _TOLERANCE * (0.1 + np.abs(expected))):
            return known
    return None


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    array = const(value)
    if array is None or array.dtype.kind not in "fiu":
        return None
    return float(array.reshape(-1)[0])


def _cones(root: ir.Node) -> list[tuple[ir.Value, set[ir.Node]]]:
    """Cones behind ``root`` that depend on one tensor, from the smallest: (tensor, nodes)."""
    found: list[tuple[ir.Value, set[ir.Node]]] = []
    nodes = {root}
    while len(nodes) <= _CONE_LIMIT:
        leaves = {
            value: None
            for node in nodes
            for value in node.inputs
            if value is not None and _scalar(value) is None and value.producer() not in nodes
        }
        if len(leaves) == 1:
            found.append((next(iter(leaves)), set(nodes)))
        grown = {p for v in leaves if (p := _inner_producer(v, nodes)) is not None}
        if not grown:
            break
        nodes |= grown
    return found


def _inner_producer(value: ir.Value, nodes: set[ir.Node]) -> ir.Node | None:
    """The producer, if it is element-wise and nothing outside the cone reads its result."""
    producer = value.producer()
    if producer is None or producer.op_type not in _COMPUTE or producer.domain:
        return None
    if value.is_graph_output() or any(use.node not in nodes for use in value.uses()):
        return None
    return producer


def _evaluate(value: ir.Value | None, known: dict[ir.Value, Array]) -> Array:
    """A value of the cone on the grid; ``known`` holds the leaf and what was computed."""
    scalar = _scalar(value)
    if scalar is not None:
        return np.array(scalar)
    assert value is not None
    if value not in known:
        node = value.producer()
        assert node is not None
        operands = [None if v is None else _evaluate(v, known) for v in node.inputs]
        if node.op_type == "HardSigmoid":
            alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
            operands = [np.asarray(alpha), np.asarray(beta), *operands]
        known[value] = np.asarray(_COMPUTE[node.op_type](*operands), np.float64)
    return known[value]
