"""The integer operators in NumPy: small and slow, the judge of every kernel.

``execute`` computes one operator of domain ``effc`` (docs/QUANTIZATION.md), ``run`` a whole
model, whose other operators go through ``effc.passes.evaluate``. Integer products are
summed in float64, which is exact for the sums that int32 can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view

from effc.passes.evaluate import evaluate
from effc.passes.integer.arithmetic import add_rescaled, requantize
from effc.passes.integer.normalization import layer_norm, softmax
from effc.passes.integer.operators import DOMAIN, WEIGHT_BITS, result_type

__all__ = ["execute", "from_quads", "run", "to_quads"]

Array = np.ndarray[Any, Any]
Attrs = Mapping[str, Any]
Inputs = Sequence[Any]


def to_quads(x: Array, fill: int = 0) -> Array:
    """``[N, C, *S]`` to ``[N, ceil(C/4), *S, 4]``; missing channels hold ``fill``."""
    batch, channels, *sizes = x.shape
    padding = [(0, 0), (0, -channels % 4), *[(0, 0)] * len(sizes)]
    whole = np.pad(x, padding, constant_values=fill).reshape(batch, -1, 4, *sizes)
    return np.ascontiguousarray(np.moveaxis(whole, 2, -1))


def from_quads(x: Array, channels: int) -> Array:
    """The way back."""
    batch, quads, *sizes, _ = x.shape
    whole = np.moveaxis(x, -1, 2).reshape(batch, quads * 4, *sizes)
    return np.ascontiguousarray(whole[:, :channels])


def _windows(x: Array, kernel: Sequence[int], attrs: Attrs, out: Sequence[int]) -> Array:
    """``[N, C, *out, *kernel]`` of ``[N, C, *S]``; what lies outside is 0."""
    rank = len(kernel)
    strides = attrs.get("strides") or (1,) * rank
    dilations = attrs.get("dilations") or (1,) * rank
    pads = attrs.get("pads") or (0,) * (2 * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    spans = [(o - 1) * s + r for o, s, r in zip(out, strides, reach, strict=True)]
    padding = [(p, max(s - p - n, 0)) for p, s, n in zip(pads, spans, x.shape[2:], strict=False)]
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    windows = sliding_window_view(padded, reach, tuple(range(2, 2 + rank)))
    index = [slice(0, (o - 1) * s + 1, s) for o, s in zip(out, strides, strict=True)]
    taps = [slice(None, None, d) for d in dilations]
    return windows[(slice(None), slice(None), *index, *taps)]


def _conv(inputs: Inputs, attrs: Attrs) -> Array:
    x, w, bias = (*inputs, None)[:3]
    group, filters, depth = int(attrs.get("group", 1)), w.shape[0], w.shape[1]
    out = _shape("ConvInteger", inputs, attrs)[2:-1]
    layout = attrs.get("layout", "quads")
    plain = from_quads(x, depth * group) if layout == "quads" else x
    plain = np.moveaxis(plain, -1, 1) if layout == "last" else plain
    centred = plain.astype(np.float64) - attrs.get("x_zero", 0)
    windows = _windows(centred, w.shape[2:], attrs, out)
    batch, rank = x.shape[0], len(out)
    windows = windows.reshape(batch, group, depth, *out, *w.shape[2:])
    parts = w.reshape(group, filters // group, *w.shape[1:]).astype(np.float64)
    taps = list(range(3 + rank, 3 + 2 * rank))
    sums = [
        np.tensordot(
            windows[:, g], parts[g], ([1, *(t - 1 for t in taps)], [1, *range(2, 2 + rank)])
        )
        for g in range(group)
    ]
    total = np.moveaxis(np.concatenate(sums, -1), -1, 1)
    if bias is not None:
        total = total + bias.astype(np.float64).reshape(-1, *[1] * rank)
    return to_quads(_int32(total))


def _int32(total: Array) -> Array:
    if np.abs(total).max(initial=0) >= 2**31:
        raise OverflowError("an accumulator leaves int32")
    return np.asarray(total).astype(np.int32)


def _matmul(inputs: Inputs, attrs: Attrs) -> Array:
    a, b, bias = (*inputs, None)[:3]
    total = np.matmul(
        a.astype(np.float64) - attrs.get("a_zero", 0), b.astype(np.float64) - attrs.get("b_zero", 0)
    )
    return _int32(total if bias is None else total + bias)


def _sum_pool(inputs: Inputs, attrs: Attrs) -> Array:
    x = _planes(inputs[0]).astype(np.int64) - attrs.get("x_zero", 0)
    kernel, out = attrs["kernel_shape"], _shape("SumPool", inputs, attrs)[2:-1]
    total = _windows(x, kernel, attrs, out).sum(tuple(range(-len(kernel), 0)))
    return to_quads(_int32(total))


def _max_pool(inputs: Inputs, attrs: Attrs) -> Array:
    lowest = np.iinfo(inputs[0].dtype).min
    x = _planes(inputs[0]).astype(np.int64) - lowest  # outside counts as the lowest value
    kernel, out = attrs["kernel_shape"], _shape("MaxPool8", inputs, attrs)[2:-1]
    largest = _windows(x, kernel, attrs, out).max(tuple(range(-len(kernel), 0)))
    return to_quads((largest + lowest).astype(inputs[0].dtype))


def _resize_linear(inputs: Inputs, attrs: Attrs) -> Array:
    x, *tables = inputs
    total = x.astype(np.int64) - attrs.get("x_zero", 0)
    for axis, (first, weight) in enumerate(zip(tables[::2], tables[1::2], strict=True), start=2):
        second = np.minimum(first + 1, x.shape[axis] - 1)
        weights = weight.astype(np.int64).reshape(-1, *[1] * (x.ndim - axis - 1))
        a, b = (np.take(total, index, axis) for index in (first, second))
        total = a * (2**WEIGHT_BITS - weights) + b * weights
    return _int32(total)


def _planes(x: Array) -> Array:
    return from_quads(x, 4 * x.shape[1])


def _shape(op_type: str, inputs: Inputs, attrs: Attrs) -> tuple[int, ...]:
    types = [None if x is None else (x.shape, x.dtype) for x in inputs]
    return result_type(op_type, types, attrs)[0]


def _lookup(inputs: Inputs, attrs: Attrs) -> Array:
    x, table = inputs
    return np.asarray(table[x.astype(np.int64) - np.iinfo(x.dtype).min])


def _named(attrs: Attrs, *names: str) -> dict[str, int]:
    return {name: int(attrs[name]) for name in names if name in attrs}


def _requantize(inputs: Inputs, attrs: Attrs) -> Array:
    named = _named(attrs, "x_zero", "left", "right", "zero", "low", "high")
    return requantize(inputs[0], inputs[1], **named)


def _add(inputs: Inputs, attrs: Attrs) -> Array:
    constants = ("a_multiplier", "b_multiplier", "offset", "right", "zero", "low", "high")
    return add_rescaled(inputs[0], inputs[1], **_named(attrs, *constants))


def _softmax(inputs: Inputs, attrs: Attrs) -> Array:
    constants = ("shift", "multiplier", "right", "zero", "low", "high")
    return softmax(inputs[0], inputs[1], **_named(attrs, *constants))


def _layer_norm(inputs: Inputs, attrs: Attrs) -> Array:
    constants = ("epsilon", "right", "zero", "low", "high")
    return layer_norm(inputs[0], inputs[1], inputs[2], **_named(attrs, *constants))


def _mul(inputs: Inputs, attrs: Attrs) -> Array:
    a, b = (x.astype(np.int32) for x in inputs)
    return np.asarray((a - attrs.get("a_zero", 0)) * (b - attrs.get("b_zero", 0)))


def _take_byte(inputs: Inputs, attrs: Attrs) -> Array:
    x = inputs[0].astype(np.int32)
    whole = x - np.iinfo(inputs[0].dtype).min
    byte = (whole >> 8 * int(attrs["index"])) & 255
    return np.asarray(byte if int(attrs["to"]) == ir.DataType.UINT8 else byte - 128)


def _join_bytes(inputs: Inputs, attrs: Attrs) -> Array:
    high, low = (x.astype(np.int64) for x in inputs)
    shift = int(attrs["shift"])
    return _int32((high << 8 - shift) + ((low + (1 << shift >> 1)) >> shift))


_OPERATORS: dict[str, Callable[[Inputs, Attrs], Array]] = {
    "AddRescaled": _add,
    "ConvInteger": _conv,
    "FlipSign": lambda i, a: i[0].astype(np.int32) + (128 if i[0].dtype == np.int8 else -128),
    "FromQuads": lambda i, a: from_quads(i[0], int(a["channels"])),
    "JoinBytes": _join_bytes,
    "LayerNormInteger": _layer_norm,
    "Lookup": _lookup,
    "MatMulInteger": _matmul,
    "MaxPool8": _max_pool,
    "MulInteger": _mul,
    "Requantize": _requantize,
    "SoftmaxInteger": _softmax,
    "ResizeLinear": _resize_linear,
    "SumPool": _sum_pool,
    "TakeByte": _take_byte,
    "ToQuads": lambda i, a: to_quads(
        np.moveaxis(i[0], -1, 1) if a.get("last") else i[0], int(a.get("fill", 0))
    ),
}


def execute(op_type: str, inputs: Inputs, attrs: Attrs) -> Array:
    """Result of one integer operator.

    Args:
        op_type: Of domain ``effc``.
        inputs: One array per operand, None where an optional one is absent.
        attrs: As in the graph.

    Raises:
        ValueError: The operands do not fit.
        OverflowError: An accumulator leaves int32.
    """
    types = [None if x is None else (x.shape, x.dtype) for x in inputs]
    shape, dtype = result_type(op_type, types, attrs)
    result = np.asarray(_OPERATORS[op_type](inputs, attrs))
    assert result.shape == shape
    return result.astype(dtype)


def run(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every tensor that a model computes, by name.

    Args:
        model: Static-shaped, with operators of the default domain and of ``effc``.
        feeds: Inputs by name.
    """
    found: dict[str, Array] = dict(feeds)
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            found[name] = value.const_value.numpy()
    for node in model.graph:
        inputs = [None if v is None else found[v.name or ""] for v in node.inputs]
        results: Sequence[Array] | None
        if node.domain == DOMAIN:
            attrs = {name: attr.value for name, attr in node.attributes.items()}
            results = [execute(node.op_type, inputs, attrs)]
        else:
            results = evaluate(node, inputs)
        if results is None:
            raise ValueError(f"{node.op_type} cannot be evaluated")
        found.update(
            (v.name, result) for v, result in zip(node.outputs, results, strict=True) if v.name
        )
    return found
