"""Checks on one node whose operands are known, where ONNX's shape inference is too trusting.

What passes here would otherwise read outside of its operands, or take forever: a kernel that
is larger than any tensor, groups that do not divide the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx
import onnx_ir as ir

from effc.errors import ModelError
from effc.frontend.bind import TENSOR_LIMIT

__all__ = ["check_operands"]

_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_LARGEST_WINDOW = 1 << 16
"""Channels that a local response normalization may span."""

Shape = tuple[int, ...]


def check_operands(node: ir.Node, inputs: Sequence[ir.Value | None], version: int) -> None:
    """Check a node of ONNX's own domain.

    Args:
        node: The node.
        inputs: Its operands in the new graph.
        version: Its opset.

    Raises:
        ModelError: An attribute or a shape makes no sense.
    """
    _check_types(node, inputs, version)
    first, *others = [_shape(value) for value in inputs] or [None]
    if first is None:
        return
    op = node.op_type
    second = others[0] if others else None
    if op in ("Conv", "ConvTranspose") and second is not None and len(first) == len(second) > 2:
        _check_convolution(node, first, second, op == "ConvTranspose")
    elif op in _POOLS and len(first) > 2:
        window = _ints(node, "kernel_shape", len(first) - 2, 1)
        _check_padded(node, first, window)
    elif op == "LRN":
        size = _int(node, "size", 1)
        _require(1 <= size <= _LARGEST_WINDOW, node, f"size from 1 to {_LARGEST_WINDOW}", size)
    elif op in ("DepthToSpace", "SpaceToDepth") and len(first) == 4:
        block = max(_int(node, "blocksize", 1), 1)
        deep = op == "DepthToSpace"
        fits = first[1] % block**2 == 0 if deep else all(d % block == 0 for d in first[2:])
        _require(fits, node, f"dimensions that blocks of {block} divide", first)
    elif op in ("Softmax", "LogSoftmax", "Hardmax"):
        axis, end = _int(node, "axis", -1), len(first) + (version < 13)
        _require(-len(first) <= axis < end, node, "an axis of the operand", axis)


def _check_types(node: ir.Node, inputs: Sequence[ir.Value | None], version: int) -> None:
    """Operands of which ONNX demands one type have one type."""
    try:
        formal = onnx.defs.get_schema(node.op_type, version, "").inputs
    except onnx.defs.SchemaError:  # an operator of ONNX Runtime, or unknown: not judged here
        return
    types: dict[str, ir.DataType] = {}
    for index, value in enumerate(inputs):
        parameter = formal[min(index, len(formal) - 1)] if formal else None
        if parameter is None or not parameter.is_homogeneous:
            continue
        if value is None or value.dtype is None:
            continue
        expected = types.setdefault(parameter.type_str, value.dtype)
        _require(value.dtype == expected, node, f"operands of type {expected.name}", value.dtype)


def _check_convolution(node: ir.Node, data: Shape, weight: Shape, transposed: bool) -> None:
    group = _int(node, "group", 1)
    _require(group >= 1, node, "at least one group", group)
    outputs, channels = weight[0], weight[1] * group
    if transposed:
        outputs, channels = weight[1] * group, weight[0]
    _require(
        data[1] == channels and outputs % group == 0,
        node,
        f"a weight for {data[1]} channels in {group} group(s)",
        weight,
    )
    kernel = _ints(node, "kernel_shape", len(data) - 2, 0)
    _require(
        not any(kernel) or kernel == weight[2:], node, f"kernel_shape {list(weight[2:])}", kernel
    )
    if transposed:
        strides = _ints(node, "strides", len(kernel), 1)
        reach = _reach(node, weight[2:])
        whole = [(d - 1) * s + r for d, s, r in zip(data[2:], strides, reach, strict=True)]
        _check_size(node, (data[0], outputs, *whole))
    else:
        _check_padded(node, data, weight[2:])


def _check_padded(node: ir.Node, data: Shape, window: Shape) -> None:
    """The padded operand, or the window where it reaches further, must be a sensible tensor."""
    rank = len(window)
    pads = _ints(node, "pads", 2 * rank, 0)
    padded = [d + a + b for d, a, b in zip(data[2:], pads[:rank], pads[rank:], strict=True)]
    reach = _reach(node, window)
    _check_size(node, (*data[:2], *(max(p, r) for p, r in zip(padded, reach, strict=True))))


def _reach(node: ir.Node, window: Shape) -> list[int]:
    dilations = _ints(node, "dilations", len(window), 1)
    return [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]


def _check_size(node: ir.Node, shape: Shape) -> None:
    if prod(shape) > TENSOR_LIMIT:
        raise ModelError(
            "kernel, dilation or padding is absurdly large",
            where=f"{node.op_type} {node.name}",
            expected=f"<= {TENSOR_LIMIT} padded elements",
            got=shape,
        )


def _require(fits: bool, node: ir.Node, expected: str, got: object) -> None:
    if not fits:
        raise ModelError(
            f"{node.op_type} does not fit its operands",
            where=node.name or node.outputs[0].name,
            expected=expected,
            got=got,
        )


def _shape(value: ir.Value | None) -> Shape | None:
    if value is None or value.shape is None:
        return None
    return tuple(d for d in value.shape if isinstance(d, int))


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def _ints(node: ir.Node, name: str, count: int, default: int) -> Shape:
    """An attribute with one number per axis; shape inference refuses another length."""
    attribute = node.attributes.get(name)
    values = () if attribute is None else tuple(map(int, attribute.as_ints()))
    return values if len(values) == count else (default,) * count
