"""Depthwise ``ConvInteger`` on processors without wide vectors, in place where it can.

A unit is one quad of channels of one image. Bands of its input rows are copied with their padding
into scratch, a band's last rows are moved to the beginning of the next one, and output rows
are written only when the input rows that they may overwrite have been copied. So input and
output share memory if they have equally large planes.

Kernels of up to 3x3 go by pairs of 16 bits on Cortex-M with the DSP extension
(``depthwise_pairs``); with steps of two columns they are read where they lie
(``depthwise_in_place``). All others go by quads (``depthwise_quads``).
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.builder import Param, stage_func
from effc.kernels.columns import is_narrow
from effc.kernels.depthwise_band import Code, Method
from effc.kernels.depthwise_in_place import BytesInPlace
from effc.kernels.depthwise_integer import Shape, depthwise_refusal, folded_bias, shape_of
from effc.kernels.depthwise_pairs import PairRows
from effc.kernels.depthwise_quads import QuadLanes
from effc.kernels.epilogue import Epilogue
from effc.kernels.fixed_point import sole_scaling
from effc.kernels.inline_assembly import importing
from effc.kernels.overlap import overlap, quad_bytes
from effc.kernels.region import Op, Region
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["DepthwiseBands"]


class DepthwiseBands(Template):
    """``ConvInteger`` with ``group == Cin == Cout`` on [N, C4, W, 4] or [N, C4, H, W, 4]."""

    name: ClassVar[str] = "depthwise_bands"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        if not is_narrow(target):
            return "the processor has wide vectors"
        if reason := depthwise_refusal(region):
            return reason
        op = region.anchor
        assert op is not None
        assert op.inputs[0] is not None
        if op.inputs[0].dtype != "int8":
            return "activations are unsigned"
        return _epilogue(region, op).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        op = region.ops[0]
        weight = op.inputs[1]
        assert weight is not None
        return [({}, 2.0 * op.outputs[0].type.size * prod(weight.shape[2:]))]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.ops[0]
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        assert weight.const is not None
        shape = shape_of(op)
        zero = int(op.attrs.get("x_zero", 0))
        method = _method(shape, zero, region, target)
        epilogue = _epilogue(region, op)
        weights = {"w": method.pack(weight.const), "b": folded_bias(op), **epilogue.weights}
        dtype, elements = method.buffer
        params: list[Param] = [
            ("x", method.source, data.type.size // method.per_source),
            ("w", "int8", weights["w"].size),
            ("b", "int32", weights["b"].size),
            *epilogue.params,
            ("y", epilogue.out_dtype, op.outputs[0].type.size),
            ("scratch", dtype, elements),
        ]
        args = (data.name, "w:w", "w:b", *epilogue.args, region.outputs[0].name, "scratch")

        def body(x: Any, w: Any, b: Any, *more: Any) -> None:
            *operands, y, scratch, begin, end = more
            code = Code(epilogue, x, w, b, operands, y, scratch, zero)
            with importing(method.routines):
                method.emit(code, begin, end)

        nbytes = elements * np.dtype(dtype).itemsize
        stage = Stage(stage_func(params, body), args, shape.batch * shape.quads, nbytes)
        shifts = method.shifts(quad_bytes(region.outputs[0]), target.serial)
        overlaps = overlap(region, data, shifts)
        return Kernel((stage,), weights, {}, epilogue.inplace, overlaps)


def _epilogue(region: Region, op: Op) -> Epilogue:
    batch, quads, *sizes, _ = op.outputs[0].shape
    return Epilogue(region, op.outputs[0], (batch, quads, prod(sizes), 4))


def _method(shape: Shape, zero: int, region: Region, target: Target) -> Method:
    """The way that suits the processor and the kernel."""
    y, x = shape.y, shape.x
    thumb = target.arch == "thumb" and target.has("dsp") and not target.has("mve")
    small = y.kernel <= 3 and x.kernel <= 3 and y.dilation == x.dilation == 1
    if not thumb or not small or x.stride > 2 or y.size * x.size == 1:
        return QuadLanes(shape)
    scaling = sole_scaling(region)
    if x.stride == 2 and scaling is not None:
        in_place = BytesInPlace(shape, scaling, zero, target.optimize != "size")
        if in_place.near:
            return in_place
    pairs = PairRows(shape, scaling)
    return pairs if pairs.near else QuadLanes(shape)
