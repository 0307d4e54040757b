"""Transposed convolution by sub-pixel phases.

Output ``y`` receives input ``i`` through tap ``k`` when ``y + pad == i * stride +
k * dilation``. Outputs with the same ``y % stride`` (a phase) use the same few taps,
at fixed shifts of the input; so a transposed convolution with stride ``s`` is
``s`` (times ``s``) small dense convolutions whose results interleave. Nothing is
scattered and no product with an inserted zero is computed.

Stage 1 pads the input planes into a workspace. In stage 2 a parallel unit is
the output rows of one input row position for a tile of output channels; a
register tile holds ``rows`` channels x column phases x ``vectors``, the weights
are packed in the order of use, and the phases are interleaved by shuffles, so
that all stores are contiguous.

Results differ from ONNX Runtime's by the rounding of reordered sums.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import Param, bind, loop, stage_func
from effc.kernels.conv_transpose_product import TransposeProduct
from effc.kernels.conv_transpose_shape import (
    TransposeShape,
    pack,
    padded_plane,
    sequence,
    shape_of,
)
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import uses_lanes
from effc.kernels.plane import Plane
from effc.kernels.region import Region
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["ConvTranspose"]

Expr = Any

_MAX_TAPS = 400  # unrolled taps of one row of phases


class ConvTranspose(Template):
    """``ConvTranspose`` on [N, C, W] or [N, C, H, W], float32, constant weights."""

    name: ClassVar[str] = "conv_transpose"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or op.op_type != "ConvTranspose":
            return "the anchor is not a transposed convolution"
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        if data.dtype != "float32":
            return f"transposed convolution kernels are float32, not {data.dtype}"
        if weight.dtype != "float32":
            return "the weights are not float32"
        if len(data.shape) not in (3, 4):
            return "transposed convolution kernels have one or two spatial axes"
        if weight.const is None:
            return "the weights are not constant"
        if 0 in data.shape or 0 in op.outputs[0].shape:
            return "the tensor is empty"
        shape = shape_of(op)
        if shape.x.stride > 8:
            return "the column stride is too large to interleave"
        if max(len(shape.y.taps(f)) for f in range(shape.y.stride)) * shape.x.kernel > _MAX_TAPS:
            return "the kernel is too large to unroll"
        return Epilogue(region, op.outputs[0], shape.view).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        assert region.anchor is not None
        shape = shape_of(region.anchor)
        widths = [target.lanes]
        while widths[-1] > 4 and shape.x.count < widths[-1]:
            widths.append(widths[-1] // 2)
        found: list[tuple[Config, float]] = []
        for lanes in widths[-2:]:
            for rows in range(1, 13):
                for vectors in (1, 2, 3, 4):
                    cost = _cost(shape, target, lanes, rows, vectors)
                    if cost is not None:
                        config = {"lanes": lanes, "rows": rows, "vectors": vectors}
                        found.append((config, cost))
        return sorted(found, key=lambda item: item[1])[:12]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        shape = shape_of(op)
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        assert weight.const is not None
        bias = op.inputs[2] if len(op.inputs) > 2 else None
        epilogue = Epilogue(region, op.outputs[0], shape.view)
        lanes, rows = int(config["lanes"]), int(config["rows"])
        plane = padded_plane(shape, lanes)
        images = shape.batch * shape.groups * shape.cin
        weights = dict(epilogue.weights)
        weights["w"] = pack(shape, np.asarray(weight.const), rows)
        params: list[Param] = [
            ("x", "float32", images * plane.elements),
            ("w", "float32", weights["w"].size),
        ]
        args = ["t:padded", "w:w"]
        if bias is not None:
            params.append(("b", "float32", bias.type.size))
            args.append(bias.name if bias.const is None else "w:b")
            if bias.const is not None:
                weights["b"] = bias.const
        own = len(params)
        params += epilogue.params
        params.append(("y", epilogue.out_dtype, op.outputs[0].type.size))
        code = TransposeProduct(shape, plane, epilogue, target, rows, int(config["vectors"]))

        def body(*arguments: Any) -> None:
            *buffers, y, begin, end = arguments
            code.emit(buffers[:own], buffers[own:], y, begin, end)

        pad = Stage(_pad_stage(plane, data.type.size, images), (data.name, "t:padded"), images)
        product = Stage(
            stage_func(params, body), (*args, *epilogue.args, region.outputs[0].name), code.units
        )
        workspaces = {"padded": images * plane.elements * 4}
        return Kernel((pad, product), weights, workspaces, epilogue.inplace)


def _pad_stage(plane: Plane, elements: int, images: int) -> tirx.PrimFunc:
    """Copy every input plane into the workspace, with its padding."""
    zero = tirx.const(0, "float32")

    def body(x: Any, padded: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as image:
            start = bind(image * (plane.y.size * plane.x.size))
            base = bind(image * plane.elements)
            plane.clear(padded, base, zero)
            plane.copy(x, start, -plane.y.before, padded, base, zero, lambda v: v)

    params = [("x", "float32", elements), ("padded", "float32", images * plane.elements)]
    return stage_func(params, body)


def _cost(
    shape: TransposeShape, target: Target, lanes: int, rows: int, vectors: int
) -> float | None:
    """Rough cycles, or ``None`` for a configuration that makes no sense."""
    x = shape.x
    if shape.cout % rows:
        return None
    per_row = -(-x.out // (lanes * x.stride))
    if vectors > per_row:
        return None
    taps = [len(sequence(shape, phase)) for phase in range(shape.y.stride)]
    live = rows * x.stride * vectors + vectors + 1 + rows // 4
    unrolled = max(taps) * rows * vectors
    if (live > target.registers("float32") or unrolled > 600) and rows * vectors > 1:
        return None
    tiles = -(-per_row // vectors)
    used = per_row * shape.cin
    simd = uses_lanes(target)
    cost = 0.0
    for count in taps:
        inputs = min(count, len(range(shape.y.window.kernel * shape.x.window.kernel)))
        scalars = count * rows * (0.25 if simd else 1.0) * tiles * shape.cin
        multiply = count * rows * used
        loads = inputs * used
        # Fewer than eight independent sums wait for each other.
        wait = max(1.0, 8.0 / (rows * x.stride * vectors)) if count else 1.0
        cost += max(multiply * 0.5 * wait, (scalars + loads) * 0.5) + 0.1 * (scalars + loads)
        cost += tiles * rows * x.stride * vectors * 3 + 20
    units = shape.batch * shape.groups * (shape.cout // rows) * shape.y.count
    return cost * units
