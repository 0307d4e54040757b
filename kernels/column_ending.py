"""What assembly knows to do with sums of a convolution: a Requantize, and a residual behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effc.kernels.columns import TILE
from effc.kernels.conv_shape import ConvShape
from effc.kernels.fixed_point import Scaling, plain_scaling
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Op, Region, Value

__all__ = ["Ending", "Residual", "ending_of"]


@dataclass(frozen=True)
class Residual:
    """An AddRescaled of a computed tensor, which clamps to nothing but int8.

    Attributes:
        other: The tensor.
        own, factor: Multipliers of the requantized sums and of the tensor.
        offset, right, zero: See docs/QUANTIZATION.md.
    """

    other: Value
    own: int
    factor: int
    offset: int
    right: int
    zero: int


@dataclass(frozen=True)
class Ending:
    """A convolution's epilogue.

    Attributes:
        scaling: Of the Requantize.
        multipliers: int32, one per filter.
        residual: What is added, if anything is.
    """

    scaling: Scaling
    multipliers: np.ndarray
    residual: Residual | None


def ending_of(region: Region, shape: ConvShape) -> Ending | None:
    """The epilogue of a convolution, if it is no more than that."""
    if not region.epilogue:
        return None
    first, *rest = region.epilogue
    scaling, multipliers = plain_scaling(first), _multipliers(first, shape)
    if scaling is None or multipliers is None:
        return None
    if not rest:
        return Ending(scaling, multipliers, None)
    residual = _residual(rest[0], first.outputs[0]) if len(rest) == 1 else None
    return None if residual is None else Ending(scaling, multipliers, residual)


def _multipliers(op: Op, shape: ConvShape) -> np.ndarray | None:
    """Of a Requantize: int32, one per filter; ``None`` if they are more."""
    if len(op.inputs) < 2:
        return None
    found = operand(op, 1).const
    full = (shape.groups * shape.cout // TILE, *(1,) * len(shape.output), TILE)
    if found is None or np.broadcast_shapes(found.shape, full) != full:
        return None
    return np.ascontiguousarray(np.broadcast_to(found, full)).astype(np.int32).reshape(-1)


def _residual(op: Op, sums: Value) -> Residual | None:
    result = op.outputs[0]
    if (op.domain, op.op_type) != (DOMAIN, "AddRescaled") or result.dtype != "int8":
        return None
    numbers = {name: int(op.attrs[name]) for name in ("offset", "right", "zero", "low", "high")}
    factors = [int(op.attrs["a_multiplier"]), int(op.attrs["b_multiplier"])]
    operands = [operand(op, 0), operand(op, 1)]
    if operands[0] is not sums:
        operands.reverse()
        factors.reverse()
    other = operands[1]
    if other is sums or other.const is not None or other.shape != result.shape:
        return None
    if other.dtype != "int8" or (numbers.pop("low"), numbers.pop("high")) != (-128, 127):
        return None
    return Residual(other, *factors, **numbers)
