"""Scale and shift of a linear operator's result, moved into its weights.

Shared by the passes that fold BatchNormalization, Mul and Add behind Conv,
ConvTranspose and Gemm:  ``s * (W x + b) + t  =  (s W) x + (s b + t)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import add_constant, attribute, const, shape_of
from effc.passes.origin import forget_origin

__all__ = ["output_channels", "scale_producer"]

Array = np.ndarray[Any, Any]


def output_channels(node: ir.Node) -> int | None:
    """Channels of the result of Conv, ConvTranspose or Gemm; None for other operators."""
    if node.op_type in ("Conv", "ConvTranspose") or node.op_type == "Gemm":
        return shape_of(node.outputs[0])[1]
    return None


def _scaled(node: ir.Node, weight: Array, factor: Array) -> Array:
    """The weight with each output channel multiplied by its factor."""
    if node.op_type == "Conv":
        column = factor.reshape(-1, *[1] * (weight.ndim - 1))
    elif node.op_type == "ConvTranspose":
        # Weight [Cin, Cout / group, ...]; channel g * (Cout/group) + j belongs to the
        # rows Cin/group * g ... of W[:, j].
        group = attribute(node, "group", 1)
        rows = np.repeat(factor.reshape(group, -1), weight.shape[0] // group, axis=0)
        column = rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
    elif attribute(node, "transB", 0):
        column = factor.reshape(-1, 1)
    else:
        column = factor
    dtype = weight.dtype
    with np.errstate(over="ignore"):  # the original overflows as well
        if dtype == np.float32:  # float64 products would need a copy of twice the size
            return np.multiply(weight, column.astype(np.float32), dtype=np.float32)
        return (weight.astype(np.float64) * column).astype(dtype)


def scale_producer(graph: ir.Graph, value: ir.Value, factor: Array | None, offset: Array) -> bool:
    """Let the producer of ``value`` compute ``factor * value + offset`` per channel.

    The caller makes sure that nothing else reads ``value``.

    Args:
        graph: The graph.
        value: The result of a linear operator.
        factor: One per output channel, float64; None means 1.
        offset: One per output channel, float64.

    Returns:
        Whether it was done; not if the producer is of another kind or its
        weights are not constant.
    """
    node = value.producer()
    channels = None if node is None else output_channels(node)
    if node is None or channels is None or len(offset) != channels:
        return False
    weight = const(node.inputs[1])
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = const(bias_value)
    if weight is None or weight.dtype.kind != "f" or (bias_value is not None and bias is None):
        return False
    gemm = node.op_type == "Gemm"
    if gemm and bias is not None and not _is_row(bias, channels):
        return False
    beta = attribute(node, "beta", 1.0) if gemm else 1.0
    old = (
        np.zeros(channels)
        if bias is None
        else beta * np.broadcast_to(bias.astype(np.float64).reshape(-1), channels)
    )
    scale = np.ones(channels) if factor is None else factor
    if gemm and bias is None:
        beta = 1.0
    base = node.name or node.op_type
    if factor is not None:
        weight_value = add_constant(graph, _scaled(node, weight, factor), f"{base}/weight")
        _replace(graph, node, 1, weight_value)
    new = ((scale * old + offset) / beta).astype(weight.dtype)
    _replace(graph, node, 2, add_constant(graph, new, f"{base}/bias"))
    forget_origin(value)
    return True


def _is_row(bias: Array, channels: int) -> bool:
    """Whether a Gemm's C is the same for every row."""
    return bias.size == 1 or (bias.size == channels and bias.shape[-1] == channels)


def _replace(graph: ir.Graph, node: ir.Node, index: int, value: ir.Value) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    node.replace_input_with(index, value)
    if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
        graph.initializers.pop(old.name or "", None)
