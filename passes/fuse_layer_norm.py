"""LayerNormalization spelled out in primitive operators becomes the operator.

    d = x - mean(x);   y = d / sqrt(mean(d*d) + eps);   y * gamma + beta

with the means over the last axes (``ReduceMean`` keeping them), the square
written as Pow, Mul or by a second subtraction, and the division as Div, or Mul by
Reciprocal or Pow(-0.5). A constant Mul and Add behind it over exactly these axes become
its scale and bias. Differs by rounding only.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, dtype_of, redirect, shape_of, single_user
from effc.passes.replace import replace_node

__all__ = ["FuseLayerNorm"]


class FuseLayerNorm(RewritePass):
    """Layer normalization."""

    name: ClassVar[str] = "fuse_layer_norm"
    ops: ClassVar[frozenset[str]] = frozenset({"Div", "Mul", "Add"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        return _absorb_affine(graph, node) or _fuse(graph, node)


def _producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in op_types and not node.domain else None


def _scalar(value: ir.Value | None) -> float | None:
    array = const(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _deviation(node: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """(d, the Sqrt or Pow node of the variance) if the node computes d / sqrt(...)."""
    left, right = node.inputs
    if left is None or right is None:
        return None
    if node.op_type == "Div":
        root = _producer(right, "Sqrt", "Pow")
        return None if root is None else (left, root)
    for d, inverse in ((left, right), (right, left)):
        reciprocal = _producer(inverse, "Reciprocal", "Div")
        if reciprocal is not None:
            divisor = reciprocal.inputs[-1]
            if reciprocal.op_type == "Div" and _scalar(reciprocal.inputs[0]) != 1.0:
                continue
            root = _producer(divisor, "Sqrt")
            if root is not None:
                return d, root
        power = _producer(inverse, "Pow")
        if power is not None and _scalar(power.inputs[1]) == -0.5:
            return d, power
    return None


def _mean(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(x, first axis) if ``value`` is the mean of x over its last axes, which are kept."""
    node = _producer(value, "ReduceMean")
    if node is None or not attribute(node, "keepdims", 1) or len(node.inputs) < 2:
        return None
    x, axes = node.inputs[0], const(node.inputs[1])
    if x is None or axes is None or not axes.size:
        return None
    rank = len(shape_of(x))
    wanted = sorted(int(a) % rank for a in axes)
    return (x, wanted[0]) if wanted == list(range(wanted[0], rank)) else None


def _centred(value: ir.Value | None, x: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(x, axis) if ``value`` is x - mean(x)."""
    node = _producer(value, "Sub")
    found = None if node is None else _mean(node.inputs[1])
    if node is None or found is None or node.inputs[0] is not found[0]:
        return None
    return found if x is None or found[0] is x else None


def _square(value: ir.Value | None) -> ir.Value | None:
    """t if ``value`` is t*t."""
    power = _producer(value, "Pow")
    if power is not None:
        return power.inputs[0] if _scalar(power.inputs[1]) == 2.0 else None
    product = _producer(value, "Mul")
    if product is not None and product.inputs[0] is product.inputs[1]:
        return product.inputs[0]
    return None


def _fuse(graph: ir.Graph, node: ir.Node) -> bool | str:
    if node.op_type not in ("Div", "Mul"):
        return False
    found = _deviation(node)
    if found is None:
        return False
    d, root = found
    if root.op_type == "Pow" and abs(_scalar(root.inputs[1]) or 0.0) != 0.5:
        return False
    shifted = _producer(root.inputs[0], "Add")
    if shifted is None:
        return False
    for variance, constant in (shifted.inputs, tuple(reversed(shifted.inputs))):
        epsilon = _scalar(constant)
        averaged = _mean(variance)
        squared = None if averaged is None else _square(averaged[0])
        centre = _centred(d, None)
        if epsilon is None or averaged is None or squared is None or centre is None:
            continue
        x, axis = centre
        if _centred(squared, x) != centre or averaged[1] != axis:
            return "mean and variance are taken over different axes or tensors"
        ones = np.ones(shape_of(x)[axis:], dtype_of(x).numpy())
        y = Writer(graph, node).op("LayerNormalization", x, ones, axis=axis, epsilon=epsilon)
        redirect(node.outputs[0], y)
        return True
    return False


def _absorb_affine(graph: ir.Graph, node: ir.Node) -> bool | str:
    """A constant Mul or Add behind LayerNormalization into its scale and bias."""
    if node.op_type == "Div":
        return False
    for value, other in (node.inputs, tuple(reversed(node.inputs))):
        norm, array = _producer(value, "LayerNormalization"), const(other)
        if norm is None or array is None or value is None:
            continue
        axis = attribute(norm, "axis", -1) % len(shape_of(value))
        scale, bias = _affine(norm)
        full = _over_axes(array, shape_of(value)[axis:])
        if full is None or scale is None or single_user(value) is not node or len(norm.outputs) > 1:
            return False
        if node.op_type == "Mul":
            scale, bias = scale * full, None if bias is None else bias * full
        else:
            bias = full if bias is None else bias + full
        writer = Writer(graph, norm)
        operands = [norm.inputs[0], writer.const(scale.astype(array.dtype), f"{norm.name}/scale")]
        if bias is not None:
            operands.append(writer.const(bias.astype(array.dtype), f"{norm.name}/bias"))
        redirect(node.outputs[0], value)
        return replace_node(writer, norm, operands)
    return False


def _affine(norm: ir.Node) -> tuple[np.ndarray[Any, Any] | None, np.ndarray[Any, Any] | None]:
    scale = const(norm.inputs[1])
    bias_value = norm.inputs[2] if len(norm.inputs) > 2 else None
    bias = const(bias_value)
    if bias_value is not None and bias is None:
        return None, None
    return scale, bias


def _over_axes(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
    """A constant that varies over the normalized axes only, in their shape."""
    lead = array.shape[: max(array.ndim - len(shape), 0)]
    if any(d != 1 for d in lead) or array.dtype.kind != "f":
        return None
    inner = array.reshape(array.shape[len(lead) :])
    try:
        return np.ascontiguousarray(np.broadcast_to(inner, shape))
    except ValueError:
        return None
