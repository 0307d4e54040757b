"""What the rules of integerization share: the graph's state, and where results go.

A rule looks at one operator between DequantizeLinear and QuantizeLinear, and writes it with
integer operators. It says True if it did, False if the operator is none of its own, or why
it stays in floating point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import Writer, const, shape_of, single_user
from effc.passes.integer.arithmetic import factors
from effc.passes.integer.grid import BYTES, INTEGERS, Grid, grid_of, is_quantized
from effc.passes.integer.operators import DOMAIN
from effc.passes.integer.tensors import Tensors

__all__ = [
    "Destination",
    "Rule",
    "State",
    "bounds_of",
    "clamped",
    "destination",
    "has_planes",
    "reached",
    "requantized",
]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class State:
    """A graph that is being rewritten.

    Attributes:
        graph: The graph.
        tensors: Its 8-bit tensors.
        node: The operator at hand; new nodes go in front of it.
    """

    graph: ir.Graph
    tensors: Tensors
    node: ir.Node

    @property
    def writer(self) -> Writer:
        """Adds nodes in front of the operator at hand."""
        return Writer(self.graph, self.node)


Rule = Callable[[State], "bool | str"]


@dataclass(frozen=True)
class Destination:
    """The 8-bit or 16-bit tensor that an operator's float result becomes.

    Attributes:
        tensor: Output of the QuantizeLinear.
        grid: Its grid; of 8 bits as the type of activations.
        low, high: Bounds, which stand for the clamps on the way.
    """

    tensor: ir.Value
    grid: Grid
    low: int
    high: int

    @property
    def attributes(self) -> dict[str, int]:
        """``zero``, ``low``, ``high`` and ``to`` of the operator that gives it."""
        to = int(ir.DataType.from_numpy(self.grid.dtype))
        return {"zero": self.grid.zero, "low": self.low, "high": self.high, "to": to}


def bounds_of(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of Relu and of Clip with constants, else None."""
    if node.domain:
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    found = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        known = const(value)
        if value is not None and known is None:
            return None
        found.append(default if known is None else float(known.reshape(())))
    return found[0], found[1]


def destination(value: ir.Value, dtype: np.dtype[Any], *, wide: bool = False) -> Destination | None:
    """Where a float goes if nothing but clamps lies between it and one QuantizeLinear.

    Args:
        value: The float.
        dtype: Type of 8-bit activations.
        wide: Whether 16 bits will do.
    """
    low, high = -np.inf, np.inf
    while (user := single_user(value)) is not None and user.inputs[0] is value:
        if is_quantized(user, "QuantizeLinear"):
            return reached(user, (low, high), dtype, wide=wide)
        clamp = bounds_of(user)
        if clamp is None:
            return None
        low, high = clamped((low, high), clamp)
        value = user.outputs[0]
    return None


def clamped(bounds: tuple[float, float], clamp: tuple[float, float]) -> tuple[float, float]:
    """Bounds of what is clamped once more."""
    low, high = (min(max(v, clamp[0]), clamp[1]) for v in bounds)
    return low, high


def reached(
    node: ir.Node, bounds: tuple[float, float], dtype: np.dtype[Any], *, wide: bool = False
) -> Destination | None:
    """The destination that a QuantizeLinear behind a clamp to ``bounds`` is."""
    grid = grid_of(node, INTEGERS if wide else BYTES)
    if grid is None:
        return None
    if grid.dtype.itemsize == 1:
        grid = grid.moved(dtype)
    limits = np.iinfo(grid.dtype)
    low = limits.min if bounds[0] == -np.inf else int(grid.quantized(bounds[0]))
    high = limits.max if bounds[1] == np.inf else int(grid.quantized(bounds[1]))
    return Destination(node.outputs[0], grid, low, high)


def requantized(
    writer: Writer, x: ir.Value, real: Array | float, result: Destination, x_zero: int = 0
) -> ir.Value | str:
    """``x`` (integers) times ``real`` as the destination wants it.

    Args:
        writer: Where to.
        x: int32 or 8 bits.
        real: Factors, shaped to broadcast to ``x``.
        result: Zero point, bounds and type.
        x_zero: Zero point of ``x``.
    """
    try:
        found = factors(real)
    except ValueError as error:
        return str(error)
    return writer.op(
        "Requantize",
        x,
        found.multiplier,
        domain=DOMAIN,
        x_zero=x_zero,
        left=found.left,
        right=found.right,
        **result.attributes,
    )


def has_planes(value: ir.Value) -> bool:
    """Whether a tensor has channels and positions, so that it can lie in quads."""
    return len(shape_of(value)) >= 3
