"""Quantized operands of products as bytes.

An 8-bit tensor is one byte per element, a 16-bit tensor two:
``x - zero = sum over i of 256^i * (byte[i] - zeros[i])``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.integer.grid import INTEGERS, source

__all__ = ["Operand", "operand_of", "shift_of"]

_LIMIT = 2**31
_REACH = 255  # largest distance of a byte to its zero point


@dataclass(frozen=True)
class Operand:
    """A tensor behind DequantizeLinear.

    Attributes:
        tensor: The tensor.
        scale: Its scale.
        zeros: Zero point of every byte as the type of activations, the low one first.
    """

    tensor: ir.Value
    scale: float
    zeros: tuple[int, ...]


def operand_of(value: ir.Value | None, dtype: np.dtype[Any]) -> Operand | None:
    """What a float is dequantized from, else None.

    Args:
        value: The float.
        dtype: Type of 8-bit activations.
    """
    found = source(value, INTEGERS)
    if found is None:
        return None
    tensor, grid = found
    if grid.dtype.itemsize == 1:
        return Operand(tensor, grid.scale, (grid.moved(dtype).zero,))
    whole = grid.zero - np.iinfo(grid.dtype).min
    low = np.iinfo(dtype).min
    return Operand(tensor, grid.scale, ((whole & 255) + low, (whole >> 8) + low))


def shift_of(weights: int, bias: int) -> int:
    """The least ``shift`` of JoinBytes with which nothing can leave int32.

    Args:
        weights: Largest sum of the magnitudes of a filter's weights.
        bias: Largest magnitude of a bias, which is part of the low byte's sums.
    """
    sums = weights * _REACH
    for shift in range(9):
        whole = (sums << 8 - shift) + (sums + bias >> shift) + 1
        if max(whole, sums + bias + 128) < _LIMIT:  # 128: what low sums are rounded with
            return shift
    raise ValueError("the sums may leave int32")
