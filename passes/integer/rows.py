"""Softmax and LayerNormalization of 8-bit tensors along their last axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import attribute, const, shape_of
from effc.passes.integer.grid import Grid, source, weights_of
from effc.passes.integer.normalization import layer_norm_constants, softmax_constants
from effc.passes.integer.operators import DOMAIN
from effc.passes.integer.rules import Destination, State, destination

__all__ = ["normalization", "softmax_rule"]

Array = np.ndarray[Any, Any]


def _ends(state: State) -> tuple[ir.Value, Grid, Destination] | None:
    """The 8-bit tensor in front of the operator, its grid, and where the result goes."""
    found = source(state.node.inputs[0])
    result = destination(state.node.outputs[0], state.tensors.dtype)
    if found is None or result is None or const(found[0]) is not None:
        return None
    return found[0], found[1].moved(state.tensors.dtype), result


def _along_last(node: ir.Node, x: ir.Value) -> bool:
    rank = len(shape_of(x))
    return rank > 0 and int(attribute(node, "axis", -1)) % rank == rank - 1


def softmax_rule(state: State) -> bool | str:
    """``Softmax`` along the last axis."""
    node = state.node
    ends = _ends(state) if node.op_type == "Softmax" else None
    if ends is None:
        return False
    x, grid, result = ends
    if not _along_last(node, x):
        return "a softmax along another axis than the last"
    try:
        made = softmax_constants(shape_of(x)[-1], grid.scale, result.grid.scale)
    except ValueError as error:
        return str(error)
    constants = {"shift": made.shift, "multiplier": made.multiplier, "right": made.right}
    plain = state.tensors.plain(x, state.writer)
    attrs: dict[str, Any] = {**constants, **result.attributes, "domain": DOMAIN}
    y = state.writer.op("SoftmaxInteger", plain, made.table, **attrs)
    state.tensors.define(result.tensor, plain=y)
    return True


def normalization(state: State) -> bool | str:
    """``LayerNormalization`` along the last axis with constant scale and bias."""
    node = state.node
    ends = _ends(state) if node.op_type == "LayerNormalization" else None
    if ends is None:
        return False
    x, grid, result = ends
    if not _along_last(node, x):
        return "a layer normalization over more than the last axis"
    length = shape_of(x)[-1]
    gamma = _real(node.inputs[1])
    beta = _real(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(length)
    if gamma is None or beta is None:
        return "scale or bias of the normalization is computed"
    epsilon = float(attribute(node, "epsilon", 1e-5))
    full = [np.broadcast_to(v.reshape(-1), (length,)) for v in (gamma, beta)]
    try:
        made = layer_norm_constants(full[0], full[1], epsilon, grid.scale, result.grid.scale)
    except ValueError as error:
        return str(error)
    plain = state.tensors.plain(x, state.writer)
    constants = {"epsilon": made.epsilon, "right": made.right}
    attrs: dict[str, Any] = {**constants, **result.attributes, "domain": DOMAIN}
    y = state.writer.op("LayerNormInteger", plain, made.gamma, made.beta, **attrs)
    state.tensors.define(result.tensor, plain=y)
    return True


def _real(value: ir.Value | None) -> Array | None:
    """A constant, maybe dequantized."""
    if value is None:
        return None
    known = const(value)
    if known is not None:
        return known
    weights = weights_of(value)
    return None if weights is None else weights.values * weights.scale
