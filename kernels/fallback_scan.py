"""Operators whose loops carry a dependence: scans, selections and scatters.

Each function takes the operator and returns its stage functions. All work on
flat buffers; a tensor of shape ``[outer, axis, inner]`` is the usual view of an
operator along one axis. Index operands are checked against the bounds where a
wrong one would write outside the tensor: such updates are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from effc.errors import UnsupportedError
from effc.kernels.builder import Param, T, bind, local, loop, stage_func
from effc.kernels.fallback_convert import Lowered, Piece
from effc.kernels.region import Op, Value

__all__ = ["SCANS"]

Expr = Any
Lowering = Callable[[Op], Lowered]


def _param(name: str, value: Value) -> Param:
    return name, value.dtype, value.type.size


def _operand(op: Op, index: int) -> Value:
    value = op.inputs[index] if index < len(op.inputs) else None
    if value is None:
        raise UnsupportedError(f"{op.op_type} lacks operand {index}")
    return value


def _split(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """(outer, axis, inner) sizes."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def _store(buffer: Any, index: Expr, value: Expr) -> None:
    T.buffer_store(buffer, value, [index])


def cumulative(op: Op) -> Lowered:
    """CumSum and CumProd; the axis is a constant, exclusive and reverse are attributes."""
    x, axis_value = _operand(op, 0), _operand(op, 1)
    if axis_value.const is None:
        raise UnsupportedError(f"{op.op_type} needs a constant axis")
    axis = int(np.asarray(axis_value.const).reshape(-1)[0]) % max(len(x.shape), 1)
    outer, size, inner = _split(x.shape, axis)
    exclusive, reverse = (bool(op.attrs.get(name, 0)) for name in ("exclusive", "reverse"))
    multiply = op.op_type == "CumProd"
    start = tirx.const(1 if multiply else 0, x.dtype)

    def body(source: Any, result: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as o, loop(size) as step:
            k = size - 1 - step if reverse else step
            back = 1 if reverse else -1
            with loop(inner) as i:
                at = bind((o * size + k) * inner + i)
                with T.If(step == 0):
                    with T.Then():
                        _store(result, at, start if exclusive else source[at])
                    with T.Else():
                        before = at + back * inner
                        value = source[before] if exclusive else source[at]
                        total = result[before]
                        _store(result, at, total * value if multiply else total + value)

    func = stage_func([_param("x", x), _param("y", op.outputs[0])], body)
    return Lowered([Piece(func, ("i0", "o0"), outer)])


def top_k(op: Op) -> Lowered:
    """The k best along an axis, in order; equal values by lower index.

    Each result is the best element after its predecessor in the total order
    (value, index), found by one pass: k passes and no memory.
    """
    x = _operand(op, 0)
    axis = int(op.attrs.get("axis", -1)) % max(len(x.shape), 1)
    outer, size, inner = _split(x.shape, axis)
    count = op.outputs[0].shape[axis]
    largest = bool(op.attrs.get("largest", 1))

    def body(source: Any, values: Any, indices: Any, begin: Expr, end: Expr) -> None:
        best, best_at, last_at = local(1, x.dtype), local(1, "int32"), local(1, "int32")
        last = local(1, x.dtype)
        with loop(begin, end) as unit:
            row = bind(tirx.indexdiv(unit, inner))
            column = bind(tirx.indexmod(unit, inner))
            _store(last_at, 0, tirx.const(-1, "int32"))
            with loop(count) as k:
                _store(best_at, 0, tirx.const(-1, "int32"))
                with loop(size) as j:
                    value = bind(source[(row * size + j) * inner + column])
                    after = tirx.any(
                        last_at[0] < 0,
                        value < last[0] if largest else value > last[0],
                        tirx.all(value == last[0], j > last_at[0]),
                    )
                    better = tirx.any(
                        best_at[0] < 0, value > best[0] if largest else value < best[0]
                    )
                    with T.If(tirx.all(after, better)), T.Then():
                        _store(best, 0, value)
                        _store(best_at, 0, j)
                with T.If(best_at[0] >= 0), T.Then():  # fails only for NaN: keep the last
                    _store(last, 0, best[0])
                    _store(last_at, 0, best_at[0])
                at = bind((row * count + k) * inner + column)
                _store(values, at, last[0])
                _store(indices, at, tirx.Cast("int64", tirx.max(last_at[0], 0)))

    outputs = op.outputs
    if len(outputs) != 2:
        raise UnsupportedError("TopK needs both results")
    func = stage_func(
        [_param("x", x), _param("values", outputs[0]), _param("indices", outputs[1])], body
    )
    return Lowered([Piece(func, ("i0", "o0", "o1"), outer * inner)])


def _copy(value: Value, source: str, result: str) -> Piece:
    def body(x: Any, y: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as i:
            _store(y, i, x[i])

    func = stage_func([_param("x", value), _param("y", value)], body)
    return Piece(func, (source, result), value.type.size)


def _reduce(kind: str, old: Expr, new: Expr) -> Expr:
    if kind == "add":
        return old + new
    if kind == "mul":
        return old * new
    if kind == "max":
        return tirx.max(old, new)
    if kind == "min":
        return tirx.min(old, new)
    return new


def scatter_elements(op: Op) -> Lowered:
    """``y = data; y[..., indices, ...] (op)= updates`` along one axis, in order of the indices."""
    data, indices, updates = (_operand(op, i) for i in range(3))
    rank = len(data.shape)
    axis = int(op.attrs.get("axis", 0)) % max(rank, 1)
    kind = str(op.attrs.get("reduction", "none"))
    size = data.shape[axis]

    def body(where: Any, new: Any, y: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as _, loop(updates.type.size) as i:
            raw = bind(tirx.Cast("int32", where[i]))
            index = bind(tirx.Select(raw < 0, raw + size, raw))
            rest, at, stride = i, tirx.const(0, "int32"), 1
            for d in reversed(range(rank)):
                part = tirx.indexmod(rest, indices.shape[d])
                at = at + (index if d == axis else part) * stride
                rest = tirx.indexdiv(rest, indices.shape[d])
                stride *= data.shape[d]
            at = bind(at)
            with T.If(tirx.all(index >= 0, index < size)), T.Then():
                _store(y, at, _reduce(kind, y[at], new[i]))

    func = stage_func(
        [_param("indices", indices), _param("updates", updates), _param("y", data)], body
    )
    return Lowered([_copy(data, "i0", "o0"), Piece(func, ("i1", "i2", "o0"))])


def scatter_nd(op: Op) -> Lowered:
    """``y = data; y[indices[..., :]] (op)= updates`` over trailing slices, in order."""
    data, indices, updates = (_operand(op, i) for i in range(3))
    depth = indices.shape[-1]
    rows = prod(indices.shape[:-1])
    width = prod(data.shape[depth:])
    kind = str(op.attrs.get("reduction", "none"))

    def body(where: Any, new: Any, y: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as _, loop(rows) as row:
            at: Expr = tirx.const(0, "int32")
            inside = []
            for d in range(depth):
                raw = bind(tirx.Cast("int32", where[row * depth + d]))
                index = bind(tirx.Select(raw < 0, raw + data.shape[d], raw))
                at = at * data.shape[d] + index
                inside += [index >= 0, index < data.shape[d]]
            base = bind(at * width)
            hit = tirx.all(*inside) if inside else tirx.const(True, "bool")
            with T.If(hit), T.Then(), loop(width) as i:
                value = new[row * width + i]
                _store(y, base + i, _reduce(kind, y[base + i], value))

    func = stage_func(
        [_param("indices", indices), _param("updates", updates), _param("y", data)], body
    )
    return Lowered([_copy(data, "i0", "o0"), Piece(func, ("i1", "i2", "o0"))])


def tensor_scatter(op: Op) -> Lowered:
    """A key/value cache with new steps written at a position per batch entry.

    ``mode`` "circular" wraps at the cache's length; otherwise steps beyond it are dropped.
    """
    cache, update = _operand(op, 0), _operand(op, 1)
    start = op.inputs[2] if len(op.inputs) > 2 else None
    axis = int(op.attrs.get("axis", -2)) % len(cache.shape)
    circular = op.attrs.get("mode", "linear") == "circular"
    batch, size, steps = cache.shape[0], cache.shape[axis], update.shape[axis]
    middle, inner = prod(cache.shape[1:axis]), prod(cache.shape[axis + 1 :])
    params = [_param("update", update), _param("y", cache)]
    args = ["i1", "o0"]
    if start is not None:
        params.insert(0, _param("start", start))
        args.insert(0, "i2")

    def body(*buffers: Any) -> None:
        new, y, begin, end = buffers[-4:]
        with loop(begin, end) as entry:
            base: Expr = tirx.const(0, "int32")
            if start is not None:
                base = bind(tirx.Cast("int32", buffers[0][entry]))
            with loop(middle) as row, loop(steps) as step:
                at = bind(tirx.floormod(base + step, size) if circular else base + step)
                with T.If(tirx.all(at >= 0, at < size)), T.Then(), loop(inner) as i:
                    plane = entry * middle + row
                    _store(
                        y, (plane * size + at) * inner + i, new[(plane * steps + step) * inner + i]
                    )

    piece = Piece(stage_func(params, body), tuple(args), batch)
    return Lowered([_copy(cache, "i0", "o0"), piece])


def max_unpool(op: Op) -> Lowered:
    """Zeros, then every value to the place that MaxPool's ``Indices`` names.

    Indices count in the shape that inverts the pooling; a larger ``output_shape``
    adds elements behind the last one of each axis.
    """
    x, indices = _operand(op, 0), _operand(op, 1)
    y = op.outputs[0]
    size = y.type.size
    kernel = [int(k) for k in op.attrs["kernel_shape"]]
    strides = [int(s) for s in op.attrs.get("strides") or [1] * len(kernel)]
    pads = [int(p) for p in op.attrs.get("pads") or [0] * 2 * len(kernel)]
    inverse = [*x.shape[:2]]
    for d, (k, stride) in enumerate(zip(kernel, strides, strict=True)):
        inverse.append((x.shape[2 + d] - 1) * stride + k - pads[d] - pads[d + len(kernel)])

    def clear(result: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as i:
            _store(result, i, tirx.const(0, y.dtype))

    def place(source: Any, where: Any, result: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as _, loop(x.type.size) as i:
            rest = bind(tirx.Cast("int32", where[i]))
            inside = [rest >= 0, rest < prod(inverse)]
            at, stride = tirx.const(0, "int32"), 1
            for have, want in zip(reversed(inverse), reversed(y.shape), strict=True):
                part = tirx.truncmod(rest, have)
                inside.append(part < want)
                at, rest, stride = at + part * stride, tirx.truncdiv(rest, have), stride * want
            with T.If(tirx.all(*inside)), T.Then():
                _store(result, at, source[i])

    return Lowered(
        [
            Piece(stage_func([_param("y", y)], clear), ("o0",), size),
            Piece(
                stage_func([_param("x", x), _param("indices", indices), _param("y", y)], place),
                ("i0", "i1", "o0"),
            ),
        ]
    )


def max_pool_indices(op: Op) -> Lowered:
    """MaxPool that also returns where each maximum lies in the whole flattened input.

    The first of equal values counts; ``storage_order`` 1 counts columns first.
    """
    x, y = _operand(op, 0), op.outputs[0]
    if len(op.outputs) != 2:
        raise UnsupportedError("MaxPool without indices has kernels of its own")
    space, result = x.shape[2:], y.shape[2:]
    rank = len(space)
    kernel = [int(k) for k in op.attrs["kernel_shape"]]
    strides = [int(v) for v in op.attrs.get("strides") or [1] * rank]
    dilations = [int(v) for v in op.attrs.get("dilations") or [1] * rank]
    pads = [int(v) for v in op.attrs.get("pads") or [0] * 2 * rank]
    if op.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("MaxPool with indices and automatic padding")
    order = list(reversed(range(rank)))  # innermost axis of the index first
    if op.attrs.get("storage_order", 0):
        order.reverse()

    def body(source: Any, values: Any, indices: Any, begin: Expr, end: Expr) -> None:
        best, best_at = local(1, x.dtype), local(1, "int32")
        with loop(begin, end) as plane, loop(prod(result)) as unit:
            at = _digits(unit, result)
            _store(best_at, 0, tirx.const(-1, "int32"))
            with loop(prod(kernel)) as tap:
                places = [
                    bind(at[d] * strides[d] - pads[d] + k * dilations[d])
                    for d, k in enumerate(_digits(tap, kernel))
                ]
                inside = tirx.all(
                    *(tirx.all(p >= 0, p < n) for p, n in zip(places, space, strict=True))
                )
                with T.If(inside), T.Then():
                    flat: Expr = plane
                    for d in range(rank):
                        flat = flat * space[d] + places[d]
                    value = bind(source[flat])
                    with T.If(tirx.any(best_at[0] < 0, value > best[0])), T.Then():
                        _store(best, 0, value)
                        index, stride = tirx.const(0, "int32"), 1
                        for d in order:
                            index, stride = index + places[d] * stride, stride * space[d]
                        _store(best_at, 0, plane * prod(space) + index)
            _store(values, plane * prod(result) + unit, best[0])
            _store(indices, plane * prod(result) + unit, tirx.Cast("int64", best_at[0]))

    func = stage_func([_param("x", x), _param("y", y), _param("indices", op.outputs[1])], body)
    return Lowered([Piece(func, ("i0", "o0", "o1"), prod(x.shape[:2]))])


def _digits(index: Expr, sizes: Sequence[int]) -> list[Expr]:
    """Coordinates of a row-major linear index."""
    digits: list[Expr] = []
    for size in reversed(sizes):
        digits.insert(0, bind(tirx.indexmod(index, size)))
        index = tirx.indexdiv(index, size)
    return digits


SCANS: dict[str, Lowering] = {
    "CumProd": cumulative,
    "CumSum": cumulative,
    "MaxPool": max_pool_indices,
    "MaxUnpool": max_unpool,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "TopK": top_k,
}
"""Operator -> stage functions."""
