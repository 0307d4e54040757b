"""Scales and zero points: reading (De)QuantizeLinear nodes and constant operands.

A ``Grid`` says what the integers of a tensor mean: ``scale * (q - zero)``. Whole tensors only
(activations); ``Weights`` holds constants, whose scale may differ along one axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import attribute, const, dtype_of

__all__ = [
    "BYTES",
    "INTEGERS",
    "WORDS",
    "Grid",
    "Weights",
    "grid_of",
    "is_quantized",
    "source",
    "weights_of",
]

Array = np.ndarray[Any, Any]

Types = frozenset[ir.DataType]

BYTES: Types = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
WORDS: Types = frozenset({ir.DataType.INT16, ir.DataType.UINT16})
INTEGERS: Types = BYTES | WORDS
_NARROW = BYTES | {ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT32}


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of a tensor of type ``dtype``, 8 or 16 bits."""

    scale: float
    zero: int
    dtype: np.dtype[Any]

    def shift(self, dtype: np.dtype[Any]) -> int:
        """What is added to every integer when the tensor is kept as ``dtype``."""
        if dtype == self.dtype:
            return 0
        return 128 if dtype == np.uint8 else -128

    def moved(self, dtype: np.dtype[Any]) -> Grid:
        """The same 8-bit tensor kept as ``dtype``."""
        return Grid(self.scale, self.zero + self.shift(dtype), dtype)

    def quantized(self, x: Array | float) -> Array:
        """QuantizeLinear in float32."""
        limits = np.iinfo(self.dtype)
        q = np.rint(np.asarray(x, np.float32) / np.float32(self.scale)) + self.zero
        return np.asarray(np.clip(q, limits.min, limits.max).astype(self.dtype))

    def dequantized(self, q: Array) -> Array:
        """DequantizeLinear in float32."""
        centred = q.astype(np.float32) - np.float32(self.zero)
        return np.asarray(centred * np.float32(self.scale))


@dataclass(frozen=True)
class Weights:
    """A constant ``scale * values``.

    Attributes:
        values: Integers less their zero point, int32.
        scale: float64, shaped to broadcast to ``values``.
    """

    values: Array
    scale: Array

    @property
    def real(self) -> Array:
        """float64."""
        return np.asarray(self.values * self.scale)


def is_quantized(node: ir.Node | None, op_type: str) -> bool:
    """Whether ``node`` is a standard (De)QuantizeLinear."""
    return node is not None and not node.domain and node.op_type == op_type


def grid_of(node: ir.Node, types: Types = BYTES) -> Grid | None:
    """The grid of a (De)QuantizeLinear between float32 and a tensor of ``types``, else None."""
    scale = node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    value, offset = const(scale), const(zero)
    integer = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    if integer is None or integer.dtype not in types or attribute(node, "block_size", 0):
        return None
    if scale is None or dtype_of(scale) != ir.DataType.FLOAT or value is None or value.size != 1:
        return None
    if zero is not None and (offset is None or offset.size != 1):
        return None
    real = float(value.reshape(()))
    if not np.isfinite(real) or real <= 0:
        return None
    return Grid(
        real, 0 if offset is None else int(offset.reshape(())), np.dtype(integer.dtype.numpy())
    )


def source(value: ir.Value | None, types: Types = BYTES) -> tuple[ir.Value, Grid] | None:
    """The tensor of ``types`` that a float is dequantized from, and its grid."""
    node = None if value is None else value.producer()
    if node is None or not is_quantized(node, "DequantizeLinear"):
        return None
    grid, integer = grid_of(node, types), node.inputs[0]
    return None if grid is None or integer is None else (integer, grid)


def weights_of(value: ir.Value | None) -> Weights | None:
    """A constant behind DequantizeLinear, else None."""
    node = None if value is None else value.producer()
    if node is None or not is_quantized(node, "DequantizeLinear"):
        return None
    integer, scale, zero = (const(v) for v in (*node.inputs, None)[:3])
    if integer is None or scale is None or scale.ndim > 1 or attribute(node, "block_size", 0):
        return None
    if node.inputs[0] is None or dtype_of(node.inputs[0]) not in _NARROW:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and zero is None:
        return None
    axis = attribute(node, "axis", 1)
    values = integer.astype(np.int64)
    if zero is not None:
        values = values - _along(zero.astype(np.int64), values.ndim, axis)
    return Weights(values, _along(scale.astype(np.float64), values.ndim, axis))


def _along(parameters: Array, rank: int, axis: int) -> Array:
    """Parameters per element of an axis, shaped to broadcast; a single one as a scalar."""
    if parameters.size == 1:
        return parameters.reshape(())
    shape = [1] * rank
    shape[axis % rank] = -1
    return parameters.reshape(shape)
