"""A convolution as the product kernels see it: geometry, elements, weights, results.

``Conv`` in single precision is one over NCHW; ``ConvInteger`` is the same over quads: ``ceil(C/4)``
input channels of 32-bit elements, padding that consists of the zero point's quad, and

    bias + sum w * (x - x_zero)  =  (bias - x_zero * sum w)  +  sum w * x

so that accumulators begin with the folded bias (modulo 2^32, as all sums).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effc.devices.target import Target
from effc.kernels.arithmetic import Arithmetic, Float16, float_arithmetic, product_dtypes
from effc.kernels.conv_shape import ConvShape, conv_refusal, layout_of
from effc.kernels.epilogue import Epilogue
from effc.kernels.half_sums import split_bias
from effc.kernels.quad_arithmetic import Quads, quads_of_weights
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.results import PlainResults, QuadResults, Results

__all__ = ["ConvProblem", "conv_bias", "conv_epilogue", "problem_refusal", "zero_as_read"]


@dataclass(frozen=True)
class ConvProblem:
    """What a product kernel computes.

    Attributes:
        shape: Geometry; channels count elements, ``cout`` filters.
        arithmetic: Of the elements.
        data: Name of the input.
        weight: Elements ``[groups*cout, cin, *kernel]``.
        bias: ``[groups*cout]`` of the accumulators' type (of float16 two, ``split_bias``), or
            ``None``.
        results: Where sums go.
    """

    shape: ConvShape
    arithmetic: Arithmetic
    data: str
    weight: np.ndarray
    bias: np.ndarray | None
    results: Results

    @staticmethod
    def of(region: Region, target: Target) -> ConvProblem:
        """The problem of a region that ``problem_refusal`` lets pass."""
        op = region.anchor
        assert op is not None
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        assert weight.const is not None
        shape = ConvShape.of(op)
        if op.domain != DOMAIN:
            arithmetic, bias = arithmetic_of(op), conv_bias(region)
            if bias is not None and isinstance(arithmetic, Float16):
                bias = split_bias(bias)
            results = PlainResults(region, shape)
            return ConvProblem(shape, arithmetic, data.name, weight.const, bias, results)
        quads = quads_of_weights(weight.const, shape.groups)
        integers = QuadResults(region, shape, target)
        bias = _folded_bias(op, shape)
        return ConvProblem(shape, arithmetic_of(op), data.name, quads, bias, integers)


def arithmetic_of(op: Op) -> Arithmetic:
    """Arithmetic of a convolution."""
    if op.domain != DOMAIN:
        return float_arithmetic(op)
    data = op.inputs[0]
    assert data is not None
    return Quads(int(op.attrs.get("x_zero", 0)), data.dtype == "int8", op.narrow)


def problem_refusal(region: Region, target: Target, *, plain: bool = False) -> str | None:
    """Why a region is no convolution for the product kernels, or ``None``.

    Args:
        plain: Whether the input of an 8-bit one need not be quads.
    """
    if reason := conv_refusal(region, product_dtypes(target), plain=plain):
        return reason
    assert region.anchor is not None
    shape = ConvShape.of(region.anchor)
    if region.anchor.domain != DOMAIN:
        return PlainResults(region, shape).epilogue.refusal
    return QuadResults(region, shape, target).epilogue.refusal


def conv_epilogue(region: Region, shape: ConvShape) -> Epilogue:
    """The epilogue of a convolution under the view (batch, channels, positions)."""
    return PlainResults(region, shape).epilogue


def conv_bias(region: Region) -> np.ndarray | None:
    """The bias as float32 ``[groups*cout]``, or ``None``."""
    assert region.anchor is not None
    inputs = region.anchor.inputs
    if len(inputs) < 3 or inputs[2] is None:
        return None
    assert inputs[2].const is not None
    return np.ascontiguousarray(inputs[2].const, dtype=np.float32).reshape(-1)


def zero_as_read(op: Op) -> int:
    """The zero point of an 8-bit input; one that is not in quads is read as int8."""
    data, zero = op.inputs[0], int(op.attrs.get("x_zero", 0))
    assert data is not None
    return zero - 128 if layout_of(op) != "quads" and data.dtype == "uint8" else zero


def _folded_bias(op: Op, shape: ConvShape) -> np.ndarray:
    """int32 ``[groups*cout]``: where the sums of ``w * x`` begin."""
    weight = op.inputs[1]
    assert weight is not None
    assert weight.const is not None
    filters = weight.shape[0]
    total = -zero_as_read(op) * weight.const.reshape(filters, -1).sum(1, np.int64)
    bias = op.inputs[2] if len(op.inputs) > 2 else None
    if bias is not None:
        assert bias.const is not None
        total = total + bias.const.reshape(-1)
    missing = shape.groups * shape.cout - filters
    return np.pad(total, (0, missing)).astype(np.uint32).view(np.int32)
