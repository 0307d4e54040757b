"""Types of the integer operators (domain ``effc``, docs/QUANTIZATION.md).

In: shapes and NumPy dtypes of a node's operands, its attributes. Out: shape and dtype of
its result. Attributes beyond the document's: ``to`` is the ONNX element type (INT8, UINT8) of what
``Requantize`` (also INT16 and UINT16), ``AddRescaled``, ``TakeByte``, ``SoftmaxInteger`` and
``LayerNormInteger`` give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

__all__ = ["DOMAIN", "WEIGHT_BITS", "TensorType", "pool_extent", "result_type"]

DOMAIN = "effc"

WEIGHT_BITS = 11
"""Of the weights of ``ResizeLinear`` along one axis."""

TensorType = tuple[tuple[int, ...], np.dtype[Any]]
Operands = Sequence[TensorType | None]
Attrs = Mapping[str, Any]

_INT32 = np.dtype(np.int32)


def pool_extent(size: int, reach: int, stride: int, before: int, after: int, ceil: bool) -> int:
    """Windows along one axis; with ``ceil`` none starts in the padding behind the tensor."""
    span = size + before + after - reach
    count = (-(-span // stride) if ceil else span // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= size + before else count


def _spatial(
    sizes: Sequence[int], kernel: Sequence[int], attrs: Attrs, ceil: bool = False
) -> tuple[int, ...]:
    rank = len(sizes)
    strides = attrs.get("strides") or (1,) * rank
    dilations = attrs.get("dilations") or (1,) * rank
    pads = attrs.get("pads") or (0,) * (2 * rank)
    found = tuple(
        pool_extent(size, (k - 1) * d + 1, s, pads[i], pads[rank + i], ceil)
        for i, (size, k, d, s) in enumerate(zip(sizes, kernel, dilations, strides, strict=True))
    )
    if min(found, default=1) < 1:
        raise ValueError(f"window {tuple(kernel)} does not fit {tuple(sizes)}")
    return found


def _present(operands: Operands, index: int) -> TensorType:
    found = operands[index] if index < len(operands) else None
    if found is None:
        raise ValueError(f"operand {index} is missing")
    return found


def _quads(operand: TensorType) -> tuple[int, ...]:
    shape = operand[0]
    if len(shape) < 3 or shape[-1] != 4:
        raise ValueError(f"{shape} is not in quads")
    return shape


def _to_quads(operands: Operands, attrs: Attrs) -> TensorType:
    shape, dtype = _present(operands, 0)
    batch, channels, *sizes = (shape[0], shape[-1], *shape[1:-1]) if attrs.get("last") else shape
    return (batch, -(-channels // 4), *sizes, 4), dtype


def _from_quads(operands: Operands, attrs: Attrs) -> TensorType:
    x = _present(operands, 0)
    batch, quads, *sizes, _ = _quads(x)
    channels = int(attrs["channels"])
    if -(-channels // 4) != quads:
        raise ValueError(f"{channels} channels do not fill {quads} quads")
    return (batch, channels, *sizes), x[1]


def _conv(operands: Operands, attrs: Attrs) -> TensorType:
    layout = attrs.get("layout", "quads")
    if layout == "quads":
        batch, quads, *sizes, _ = _quads(_present(operands, 0))
    else:
        (batch, quads, *sizes, _), _ = _to_quads(operands, {"last": layout == "last"})
    (filters, depth, *kernel), dtype = _present(operands, 1)
    if dtype != np.int8:
        raise ValueError(f"weights are {dtype}")
    if not 4 * (quads - 1) < depth * int(attrs.get("group", 1)) <= 4 * quads:
        raise ValueError(f"{depth} input channels per filter do not fit {quads} quads")
    return (batch, -(-filters // 4), *_spatial(sizes, kernel, attrs), 4), _INT32


def _matmul(operands: Operands, attrs: Attrs) -> TensorType:
    a, b = _present(operands, 0)[0], _present(operands, 1)[0]
    if a[-1] != b[-2]:
        raise ValueError(f"{a} and {b} do not multiply")
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]), _INT32


def _pool(operands: Operands, attrs: Attrs) -> tuple[int, ...]:
    batch, quads, *sizes, _ = _quads(_present(operands, 0))
    ceil = bool(attrs.get("ceil_mode", 0))
    return (batch, quads, *_spatial(sizes, attrs["kernel_shape"], attrs, ceil), 4)


def _resize(operands: Operands, attrs: Attrs) -> TensorType:
    batch, quads, *sizes, _ = _quads(_present(operands, 0))
    tables = [_present(operands, i)[0] for i in range(1, len(operands))]
    if len(tables) != 2 * len(sizes) or len(sizes) > 2:
        raise ValueError(f"{len(tables)} tables for {len(sizes)} axes")
    return (batch, quads, *(table[0] for table in tables[::2]), 4), _INT32


def _broadcast(operands: Operands) -> tuple[int, ...]:
    return np.broadcast_shapes(*(o[0] for o in operands if o is not None))


def _flipped(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.uint8 if dtype == np.int8 else np.int8)


def _target(attrs: Attrs, most: int = 1) -> np.dtype[Any]:
    """Type ``to``, of at most ``most`` bytes."""
    dtype: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(attrs["to"])))
    if dtype not in (np.int8, np.uint8, np.int16, np.uint16) or dtype.itemsize > most:
        raise ValueError(f"to {dtype}")
    return dtype


def _byte(operands: Operands, attrs: Attrs) -> TensorType:
    shape, dtype = _present(operands, 0)
    if dtype not in (np.int16, np.uint16):
        raise ValueError(f"bytes of {dtype}")
    return shape, _target(attrs)


_TYPES: dict[str, Callable[[Operands, Attrs], TensorType]] = {
    "AddRescaled": lambda o, a: (_broadcast(o), _target(a)),
    "ConvInteger": _conv,
    "FlipSign": lambda o, a: (_present(o, 0)[0], _flipped(_present(o, 0)[1])),
    "FromQuads": _from_quads,
    "LayerNormInteger": lambda o, a: (_present(o, 0)[0], _target(a)),
    "Lookup": lambda o, a: (_present(o, 0)[0], _present(o, 1)[1]),
    "MatMulInteger": _matmul,
    "MaxPool8": lambda o, a: (_pool(o, a), _present(o, 0)[1]),
    "MulInteger": lambda o, a: (_broadcast(o), _INT32),
    "JoinBytes": lambda o, a: (_broadcast(o), _INT32),
    "Requantize": lambda o, a: (_broadcast(o), _target(a, most=2)),
    "SoftmaxInteger": lambda o, a: (_present(o, 0)[0], _target(a)),
    "ResizeLinear": _resize,
    "SumPool": lambda o, a: (_pool(o, a), _INT32),
    "TakeByte": _byte,
    "ToQuads": _to_quads,
}


def result_type(op_type: str, operands: Operands, attrs: Attrs) -> TensorType:
    """Shape and dtype of an integer operator's result.

    Raises:
        ValueError: The operands do not fit.
        KeyError: There is no such operator, or a required attribute is missing.
    """
    return _TYPES[op_type](operands, attrs)
