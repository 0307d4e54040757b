"""Operators that TVM's importer lacks or gets wrong, as tensor expressions.

Each function takes the operator and one placeholder per operand (None where
absent) and returns one tensor per result; TVM makes loop nests of them. Index
arithmetic follows the ONNX operator specifications. Shapes come from the
operator's declared results, so that operands which only say a shape are never
read at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import te, tirx

from effc.devices.target import Target
from effc.errors import UnsupportedError
from effc.kernels.fallback_convert import Call, Lowered, lower_calls
from effc.kernels.region import Op

__all__ = ["DEFINITIONS", "lower_definition"]

Tensor = Any
Expr = Any
Definition = Callable[[Op, Sequence[Any]], list[Any]]


def lower_definition(define: Definition, op: Op, target: Target) -> Lowered:
    """Lower an operator by its tensor expression.

    Raises:
        UnsupportedError: The definition does not cover these attributes.
    """
    operands = [
        None if value is None else te.placeholder(value.shape, value.dtype, name=f"i{index}")
        for index, value in enumerate(op.inputs)
    ]
    results = define(op, operands)
    for result, value in zip(results, op.outputs, strict=True):
        found = tuple(int(dim) for dim in result.shape)
        if found != value.shape or result.dtype != value.dtype:
            raise UnsupportedError(
                "the definition has another type", expected=value.type, got=(found, result.dtype)
            )
    # Unread operands must not become parameters: a PrimFunc's buffers are all bound.
    params = [tensor for tensor in operands if tensor is not None]
    names = [f"i{index}" for index, tensor in enumerate(operands) if tensor is not None]
    try:
        func = te.create_prim_func([*params, *results])
    except tvm.TVMError as error:
        raise UnsupportedError("TVM refuses the definition", got=str(error)[-200:]) from error
    outputs = [f"o{index}" for index in range(len(results))]
    return lower_calls([Call(func, (*names, *outputs))], {}, target)


def _axis(op: Op, rank: int, default: int = 0) -> int:
    axis = int(op.attrs.get("axis", default))
    return axis + rank if axis < 0 else axis


def _at(tensor: Tensor, index: Sequence[Expr]) -> Expr:
    return tensor[tuple(index)] if index else tensor[()]


def _int32(value: Expr) -> Expr:
    return tirx.Cast("int32", value)


def one_hot(op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Rows of the identity, scaled to (off, on); negative indices count from the end."""
    indices, _, values = inputs
    shape = op.outputs[0].shape
    axis = _axis(op, len(shape), -1)
    depth = shape[axis]

    def element(*at: Expr) -> Expr:
        index = _int32(_at(indices, [*at[:axis], *at[axis + 1 :]]))
        hit = tirx.any(at[axis] == index, at[axis] == index + depth)
        return tirx.Select(hit, values[1], values[0])

    return [te.compute(shape, element, name="one_hot")]


def reverse_sequence(op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Reverse the first ``sequence_lens[b]`` steps of every batch entry."""
    x, lengths = inputs
    batch = int(op.attrs.get("batch_axis", 1))
    time = int(op.attrs.get("time_axis", 0))

    def element(*at: Expr) -> Expr:
        length = _int32(lengths[at[batch]])
        source = tirx.Select(at[time] < length, length - 1 - at[time], at[time])
        return _at(x, [source if i == time else a for i, a in enumerate(at)])

    return [te.compute(op.outputs[0].shape, element, name="reverse")]


def col2im(op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Sum overlapping blocks back into an image (any number of spatial axes)."""
    columns, _, block = inputs
    del block
    block_value = op.inputs[2]
    if block_value is None or block_value.const is None:
        raise UnsupportedError("Col2Im needs a constant block_shape")
    block_shape = [int(v) for v in block_value.const]
    out = op.outputs[0].shape
    rank = len(block_shape)
    strides = _ints(op, "strides", [1] * rank)
    dilations = _ints(op, "dilations", [1] * rank)
    pads = _ints(op, "pads", [0] * 2 * rank)
    counts = []
    for d, size in enumerate(out[2:]):
        span = dilations[d] * (block_shape[d] - 1) + 1
        counts.append((size + pads[d] + pads[d + rank] - span) // strides[d] + 1)
    axes = [te.reduce_axis((0, size), name=f"k{d}") for d, size in enumerate(block_shape)]

    def element(n: Expr, c: Expr, *at: Expr) -> Expr:
        row, column = c, tirx.const(0, "int32")
        inside = []
        for d in range(rank):
            offset = at[d] + pads[d] - axes[d] * dilations[d]
            step = tirx.truncdiv(offset, strides[d])
            inside += [offset >= 0, tirx.truncmod(offset, strides[d]) == 0, step < counts[d]]
            row = row * block_shape[d] + axes[d]
            column = column * counts[d] + step
        value = tirx.if_then_else(tirx.all(*inside), columns[n, row, column], _zero(columns))
        return te.sum(value, axis=axes)

    return [te.compute(out, element, name="col2im")]


def deform_conv(op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Convolution whose taps are moved by ``offset`` and sampled bilinearly (2-D)."""
    x, weight, offset, bias, mask = [*inputs, None, None][:5]
    if len(x.shape) != 4:
        raise UnsupportedError("DeformConv is supported for images only")
    batch, channels, height, width = op.inputs[0].shape  # type: ignore[union-attr]
    filters, depth, kh, kw = op.inputs[1].shape  # type: ignore[union-attr]
    del batch, channels
    group = int(op.attrs.get("group", 1))
    offset_group = int(op.attrs.get("offset_group", 1))
    strides, dilations = _ints(op, "strides", [1, 1]), _ints(op, "dilations", [1, 1])
    pads = _ints(op, "pads", [0] * 4)
    shape = op.outputs[0].shape
    per_offset = int(x.shape[1]) // offset_group
    columns_shape = (shape[0], int(x.shape[1]), kh, kw, shape[2], shape[3])

    def sample(n: Expr, c: Expr, i: Expr, j: Expr, oy: Expr, ox: Expr) -> Expr:
        at = tirx.floordiv(c, per_offset)
        tap = (at * kh + i) * kw + j
        y = offset[n, tap * 2, oy, ox] + (oy * strides[0] - pads[0] + i * dilations[0])
        z = offset[n, tap * 2 + 1, oy, ox] + (ox * strides[1] - pads[1] + j * dilations[1])
        value = _bilinear(lambda a, b: x[n, c, a, b], y, z, height, width, x.dtype)
        return value if mask is None else value * mask[n, tap, oy, ox]

    columns = te.compute(columns_shape, sample, name="columns")
    c = te.reduce_axis((0, depth), name="c")
    i, j = te.reduce_axis((0, kh), name="i"), te.reduce_axis((0, kw), name="j")
    per_group = filters // group

    def convolve(n: Expr, m: Expr, oy: Expr, ox: Expr) -> Expr:
        channel = tirx.floordiv(m, per_group) * depth + c
        return te.sum(columns[n, channel, i, j, oy, ox] * weight[m, c, i, j], axis=[c, i, j])

    y = te.compute(shape, convolve, name="convolve")
    if bias is not None:
        plain = y
        y = te.compute(shape, lambda n, m, a, b: plain[n, m, a, b] + bias[m], name="shift")
    return [y]


def _bilinear(
    read: Callable[[Expr, Expr], Expr], y: Expr, x: Expr, height: int, width: int, dtype: str
) -> Expr:
    """Bilinear sample with zeros outside the image."""
    y0, x0 = te.floor(y), te.floor(x)
    total: Expr = tirx.const(0, dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = _int32(y0) + dy, _int32(x0) + dx
            inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
            value = tirx.if_then_else(inside, read(row, column), tirx.const(0, dtype))
            weight_y = y - y0 if dy else 1 - (y - y0)
            weight_x = x - x0 if dx else 1 - (x - x0)
            total = total + value * weight_y * weight_x
    return total


def copy(op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The first operand, in the result's shape and type."""
    x = inputs[0]
    flat = _flat(x)
    out = op.outputs[0]

    def element(*at: Expr) -> Expr:
        return flat(_linear(at, out.shape)).astype(out.dtype)

    return [te.compute(out.shape, element, name="copy")]


def gather_nd(op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
    """``data[batch..., indices[batch..., rest, :], ...]``."""
    data, indices = inputs
    batch = int(op.attrs.get("batch_dims", 0))
    rank = len(indices.shape) - 1
    depth = int(indices.shape[-1])

    def element(*at: Expr) -> Expr:
        where = [*at[:rank]]
        picked = []
        for k in range(depth):
            size = data.shape[batch + k]
            index = _int32(indices[(*where, k)])
            picked.append(tirx.Select(index < 0, index + size, index))
        return _at(data, [*at[:batch], *picked, *at[rank:]])

    return [te.compute(op.outputs[0].shape, element, name="gather_nd")]


def bit_shift(op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Shift; by a negative amount or the type's width or more, all bits leave."""
    x, amount = inputs
    out = op.outputs[0]
    bits = tirx.const(8 * _itemsize(out.dtype), out.dtype)
    left = op.attrs.get("direction") == "LEFT"

    def element(*at: Expr) -> Expr:
        a, n = (_broadcast(t, at) for t in (x, amount))
        inside = tirx.all(n >= 0, n < bits)
        safe = tirx.Select(inside, n, tirx.const(0, out.dtype))
        shifted = tirx.shift_left(a, safe) if left else tirx.shift_right(a, safe)
        unsigned = out.dtype.startswith("u")
        empty = tirx.const(0, out.dtype) if left or unsigned else tirx.shift_right(a, bits - 1)
        return tirx.Select(inside, shifted.astype(out.dtype), empty.astype(out.dtype))

    return [te.compute(out.shape, element, name="shift")]


def reduce_extreme(op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
    """ReduceMax and ReduceMin, starting from an infinity where the type has one."""
    x, rank = inputs[0], len(inputs[0].shape)
    given = op.inputs[1] if len(op.inputs) > 1 else None
    known = None if given is None else given.const
    if given is not None and known is None:
        raise UnsupportedError(f"{op.op_type} needs constant axes")
    reduced = set() if known is None else {int(a) % rank for a in known}
    if not reduced and not op.attrs.get("noop_with_empty_axes", 0):
        reduced = set(range(rank))
    largest = op.op_type == "ReduceMax"
    if x.dtype == "bool":
        raise UnsupportedError(f"{op.op_type} of bool")
    worst = tirx.min_value if largest else tirx.max_value
    sign = "-inf" if largest else "inf"

    def identity(dtype: str) -> Expr:
        return tirx.const(float(sign), dtype) if "float" in dtype else worst(dtype)

    choose = tirx.max if largest else tirx.min
    best = te.comm_reducer(lambda a, b: choose(a, b), identity, name="extreme")
    axes = {d: te.reduce_axis((0, int(x.shape[d])), name=f"r{d}") for d in sorted(reduced)}
    keep = bool(op.attrs.get("keepdims", 1))

    def element(*at: Expr) -> Expr:
        rest = iter(at)
        index = []
        for d in range(rank):
            own = next(rest) if keep or d not in axes else None
            index.append(axes.get(d, own))
        return best(_at(x, index), axis=list(axes.values())) if axes else _at(x, index)

    return [te.compute(op.outputs[0].shape, element, name="extreme")]


def bit_cast(op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The same bits as another type of the same width."""
    x, out = inputs[0], op.outputs[0]

    def element(*at: Expr) -> Expr:
        if "bool" in (x.dtype, out.dtype):  # a byte that is 0 or 1
            return _at(x, at).astype(out.dtype)
        return tirx.reinterpret(out.dtype, _at(x, at))

    return [te.compute(out.shape, element, name="bits")]


def _broadcast(tensor: Tensor, at: Sequence[Expr]) -> Expr:
    tail = list(at[len(at) - len(tensor.shape) :])
    index = [
        tirx.const(0, "int32") if int(dim) == 1 else i
        for dim, i in zip(tensor.shape, tail, strict=True)
    ]
    return _at(tensor, index)


def _itemsize(dtype: str) -> int:
    return int(tvm.DataType(dtype).bits) // 8


def _flat(tensor: Tensor) -> Callable[[Expr], Expr]:
    """Read a tensor by row-major linear index."""
    dims = [int(d) for d in tensor.shape]

    def read(index: Expr) -> Expr:
        at: list[Expr] = []
        for dim in reversed(dims):
            at.insert(0, tirx.indexmod(index, dim))
            index = tirx.indexdiv(index, dim)
        return _at(tensor, at)

    return read


def _linear(at: Sequence[Expr], shape: Sequence[int]) -> Expr:
    index: Expr = tirx.const(0, "int32")
    for i, dim in zip(at, shape, strict=True):
        index = index * dim + i
    return index


def _zero(tensor: Tensor) -> Expr:
    return tirx.const(0, tensor.dtype)


def _ints(op: Op, name: str, default: list[int]) -> list[int]:
    return [int(v) for v in op.attrs.get(name) or default]


DEFINITIONS: dict[str, Definition] = {
    "BitCast": bit_cast,
    "BitShift": bit_shift,
    "Col2Im": col2im,
    "DeformConv": deform_conv,
    "GatherND": gather_nd,
    "Identity": copy,
    "OneHot": one_hot,
    "ReduceMax": reduce_extreme,
    "ReduceMin": reduce_extreme,
    "ReverseSequence": reverse_sequence,
}
"""Operator -> tensor expression."""
