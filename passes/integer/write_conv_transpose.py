"""A quantized ConvTranspose as a convolution with a filter per phase of the stride.

Output ``o = s*q + r - pad`` sums ``x[q - t] * w[r + s*t]``: for each phase ``r`` that is a
convolution over ``x`` with ``ceil(k/s)`` taps per axis. One convolution computes the ``s*s``
phases as filters, and DepthToSpace interleaves them; Slice drops what lies in the padding. Clamps
behind it move in front of the interleaving, so that the convolution's result is quantized at
once. Exact.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, redirect, shape_of, single_user
from effc.passes.integer.grid import source, weights_of
from effc.passes.integer.rules import bounds_of
from effc.passes.make_pads_explicit import window

__all__ = ["WriteConvTranspose"]

Array = np.ndarray[Any, Any]


class WriteConvTranspose(RewritePass):
    """ConvTranspose of images by equal strides, one group, to Conv and DepthToSpace."""

    name: ClassVar[str] = "write_conv_transpose"
    ops: ClassVar[frozenset[str]] = frozenset({"ConvTranspose"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        x, weights = node.inputs[0], weights_of(node.inputs[1])
        if x is None or source(x) is None or weights is None:
            return False
        sizes, made = shape_of(x)[2:], shape_of(node.outputs[0])[2:]
        _, strides, dilations = window(node)
        if attribute(node, "group", 1) != 1 or max(dilations) > 1:
            return "it has groups or dilations"
        if len(sizes) != 2 or strides[0] != strides[1]:
            return "it is no image, or its strides differ"
        filters, stride = weights.values.shape[1], strides[0]
        if weights.scale.size not in (1, filters):
            return "weights are scaled along another axis than filters"
        bias = _bias(node, filters)
        if isinstance(bias, str):
            return bias
        phases = stride * stride
        taps = _phases(weights.values, stride)
        pads = attribute(node, "pads", [0] * 4)
        counts = [(o - 1 + p) // stride + 1 for o, p in zip(made, pads, strict=False)]
        after = [max(count - size, 0) for count, size in zip(counts, sizes, strict=True)]
        before = [t - 1 for t in taps.shape[2:]]
        scale = np.broadcast_to(weights.scale.reshape(-1), (filters,))
        writer = Writer(graph, node)
        narrow = taps.astype(np.int8 if _fits(taps) else np.int32)
        scales = np.tile(scale, phases).astype(np.float32)
        w = writer.op("DequantizeLinear", writer.const(narrow), scales, axis=0)
        operands = [x, w] if bias is None else [x, w, writer.const(np.tile(bias, phases))]
        y = writer.op("Conv", *operands, pads=[*before, *after])
        end = node.outputs[0]
        while (clamp := single_user(end)) is not None and bounds_of(clamp) is not None:
            attrs: dict[str, Any] = dict(clamp.attributes)
            y = writer.op(clamp.op_type, y, *clamp.inputs[1:], **attrs)
            end = clamp.outputs[0]
        if stride > 1:
            y = writer.op("DepthToSpace", y, blocksize=stride)
        first = np.array(pads[:2], np.int64)
        redirect(end, writer.op("Slice", y, first, first + made, np.array([2, 3], np.int64)))
        return True


def _fits(values: Array) -> bool:
    return bool(values.min(initial=0) >= -128 and values.max(initial=0) <= 127)


def _bias(node: ir.Node, filters: int) -> Array | str | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None
    known, quantized = const(value), weights_of(value)
    if known is None and quantized is None:
        return "the bias is not constant"
    real = quantized.real if quantized is not None else np.asarray(known)
    return np.broadcast_to(real.reshape(-1), (filters,)).astype(np.float32)


def _phases(values: Array, stride: int) -> Array:
    """``[Cin, Cout, *K]`` to filters ``[s * s * Cout, Cin, *ceil(K/s)]``, taps reversed."""
    depth, filters, *kernel = values.shape
    taps = [-(-k // stride) for k in kernel]
    found = np.zeros((stride, stride, filters, depth, *taps), values.dtype)
    for row in range(stride):
        for column in range(stride):
            part = values[:, :, row::stride, column::stride].swapaxes(0, 1)
            found[row, column, :, :, : part.shape[2], : part.shape[3]] = part
    return found[..., ::-1, ::-1].reshape(-1, depth, *taps)
