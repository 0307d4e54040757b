"""What all adapters need: operands, attributes, and their types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.errors import ModelError
from effc.passes.graph import Writer

__all__ = ["Adapter", "Operands", "attributes", "ints", "operand", "optional"]

Operands = Sequence[ir.Value | None]
Adapter = Callable[[Writer, ir.Node, Operands], Sequence[ir.Value | None]]


def operand(inputs: Operands, index: int, node: ir.Node) -> ir.Value:
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise ModelError(f"{node.op_type} lacks operand {index}", where=node.name)
    return value


def optional(inputs: Operands, index: int) -> ir.Value | None:
    return inputs[index] if index < len(inputs) else None


def attributes(node: ir.Node, *dropped: str) -> dict[str, Any]:
    return {name: a for name, a in node.attributes.items() if name not in dropped}


def ints(values: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)
