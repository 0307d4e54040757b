"""Which operators are only another look at bytes that exist.

Tensors are dense and row-major, so a reshape changes nothing, and a slice is a
contiguous range whenever everything behind the first axis that still has more
than one element is kept whole. The same rule read backwards tells where the
operands of a concatenation lie in its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from effc.kernels.region import Op, Value

__all__ = ["VIEW_OPS", "concat_offsets", "view_offsets"]

VIEW_OPS = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Concat"}
)
"""Operators whose regions may vanish; they must come as regions of one operator."""

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


def view_offsets(op: Op) -> list[int] | None:
    """Byte offset of each output of ``op`` inside its first input.

    Returns:
        One offset per output, or ``None`` if the outputs are not contiguous
        ranges of the input's bytes (or the operator is no view at all).
    """
    source = op.inputs[0] if op.inputs else None
    if source is None:
        return None
    if op.op_type in _RESHAPES:
        return [0] if source.type.nbytes == op.outputs[0].type.nbytes else None
    if op.op_type == "Split":
        offsets = _ranges(source.shape, [v.shape for v in op.outputs], _axis(op, source))
    elif op.op_type == "Slice":
        offset = _slice_offset(op, source)
        offsets = None if offset is None else [offset]
    else:
        return None
    itemsize = np.dtype(source.dtype).itemsize
    return None if offsets is None else [offset * itemsize for offset in offsets]


def concat_offsets(op: Op) -> list[int] | None:
    """Byte offset of each operand of a ``Concat`` inside its result.

    Returns:
        ``None`` if the operands are interleaved in the result.
    """
    result = op.outputs[0]
    operands = [v for v in op.inputs if v is not None]
    if len(operands) != len(op.inputs):
        return None
    offsets = _ranges(result.shape, [v.shape for v in operands], _axis(op, result))
    itemsize = np.dtype(result.dtype).itemsize
    return None if offsets is None else [offset * itemsize for offset in offsets]


def _axis(op: Op, value: Value) -> int:
    return int(op.attrs.get("axis", 0)) % max(len(value.shape), 1)


def _ranges(whole: Sequence[int], pieces: Sequence[tuple[int, ...]], axis: int) -> list[int] | None:
    """First element of each piece when ``whole`` is cut along ``axis``."""
    if prod(whole[:axis]) != 1:
        return None
    offsets = [0]
    for piece in pieces:
        offsets.append(offsets[-1] + prod(piece))
    return offsets[:-1] if offsets[-1] == prod(whole) else None


def _slice_offset(op: Op, source: Value) -> int | None:
    """First element of a slice that is one contiguous range, else ``None``."""
    operands = [_constant(v) for v in op.inputs[1:]]
    if len(operands) < 2 or operands[0] is None or operands[1] is None:
        return None
    if any(v is not None and c is None for v, c in zip(op.inputs[1:], operands, strict=True)):
        return None
    starts = operands[0]
    axes = operands[2] if len(operands) > 2 and operands[2] else list(range(len(starts)))
    steps = operands[3] if len(operands) > 3 and operands[3] else [1] * len(starts)
    shape, result = source.shape, op.outputs[0].shape
    first = [0] * len(shape)
    step = [1] * len(shape)
    for start, axis, stride in zip(starts, axes, steps, strict=True):
        axis %= len(shape)
        begin = start + shape[axis] if start < 0 else start
        first[axis] = min(max(begin, 0), max(shape[axis] - 1, 0))
        step[axis] = stride
    if prod(result) == 0:
        return 0
    outer = next((i for i, n in enumerate(result) if n != 1), len(result))
    if any(result[i] != shape[i] for i in range(outer + 1, len(shape))):
        return None
    if any(result[i] > 1 and step[i] != 1 for i in range(len(shape))):
        return None
    return sum(first[i] * prod(shape[i + 1 :]) for i in range(len(shape)))


def _constant(value: Value | None) -> list[int] | None:
    """Elements of a constant operand; ``None`` if it is absent or not constant."""
    if value is None or value.const is None:
        return None
    return [int(v) for v in value.const.reshape(-1)]
