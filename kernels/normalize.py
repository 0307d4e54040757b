"""Normalizations: layer, RMS, instance, group, batch, mean-variance, Lp and local response.

The first six write ``(x - mean) * inv * scale + bias`` with ``inv = 1 / sqrt(var + eps)``.
Their statistics go over *groups*: ``segments`` runs of contiguous elements, one stride
apart. Mean and variance take two passes (no cancellation); sums are blocked
(``effc.kernels.strips``); float16 computes in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import bind, local, loop, splat, stage_func, unravel, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.normalize_axis import LocalResponseTemplate, LpNormalizeTemplate
from effc.kernels.region import Op, Region, Value
from effc.kernels.strips import each_vector, reduce_strip
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["NORMALIZE_TEMPLATES", "BatchNormTemplate", "NormalizeTemplate"]

Expr = Any  # tvm.tirx expressions have no useful static types

_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class _Plan:
    """How one operator groups its input.

    Attributes:
        view: Input shape merged to ``(a, b, length)``; ``length`` elements are contiguous.
        units: Groups; unit ``u`` has segments ``place(u, s)``.
        segments: Runs of ``length`` elements per group.
        along_first: Whether segments step along ``a`` (then ``u`` counts ``b``); else a
            unit is ``(a, g)`` and its segments are ``b = g * segments + s``.
        centered: Whether the mean is subtracted.
        epsilon: Added to the variance.
        scale, bias: Affine operands.
        affine: ``element`` (one per element of a run), ``b``, ``group`` (one per ``g``) or ``""``.
        ratio: Normalizes by ``std + eps`` instead of ``sqrt(var + eps)``.
    """

    view: tuple[int, int, int]
    units: int
    segments: int
    along_first: bool
    centered: bool
    epsilon: float
    scale: Value | None
    bias: Value | None
    affine: str
    ratio: bool = False


def _optional(op: Op, index: int) -> Value | None:
    return op.inputs[index] if len(op.inputs) > index else None


def _layer(op: Op, shape: tuple[int, ...]) -> _Plan | str:
    axis = int(op.attrs.get("axis", -1)) % len(shape)
    rows, length = prod(shape[:axis]), prod(shape[axis:])
    for value in (_optional(op, 1), _optional(op, 2)):
        if value is not None and value.type.size != length:
            return f"scale of shape {value.shape} for {shape[axis:]}"
    return _Plan(
        (rows, 1, length), rows, 1, False, op.op_type == "LayerNormalization",
        float(op.attrs.get("epsilon", 1e-5)), _optional(op, 1), _optional(op, 2), "element",
    )  # fmt: skip


def _channels(op: Op, shape: tuple[int, ...]) -> _Plan | str:
    batch, channels, length = shape[0], shape[1], prod(shape[2:])
    groups = int(op.attrs.get("num_groups", channels))
    if channels % groups:
        return f"{channels} channels in {groups} groups"
    scale, bias = op.inputs[1], op.inputs[2]
    assert scale is not None
    per_group = scale.type.size == groups != channels
    return _Plan(
        (batch, channels, length), batch * groups, channels // groups, False, True,
        float(op.attrs.get("epsilon", 1e-5)), scale, bias, "group" if per_group else "b",
    )  # fmt: skip


def _mean_variance(op: Op, shape: tuple[int, ...]) -> _Plan | str:
    axes = sorted(int(a) % len(shape) for a in op.attrs.get("axes", (0, 2, 3)))
    inner = tuple(range(2, len(shape)))
    epsilon = 1e-9
    if tuple(axes) == (0, *inner):
        view = (shape[0], shape[1], prod(shape[2:]))
        return _Plan(view, shape[1], shape[0], True, True, epsilon, None, None, "", True)
    first = axes[0]
    if axes == list(range(first, len(shape))):
        rows, length = prod(shape[:first]), prod(shape[first:])
        return _Plan((rows, 1, length), rows, 1, False, True, epsilon, None, None, "", True)
    return f"statistics over axes {axes}"


_PLANNERS = {
    "GroupNormalization": _channels,
    "InstanceNormalization": _channels,
    "LayerNormalization": _layer,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _layer,
    "SimplifiedLayerNormalization": _layer,
}


class NormalizeTemplate(Template):
    """Normalizations by statistics of the input itself."""

    name: ClassVar[str] = "normalize"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.anchor
        if op is None or op.domain or op.op_type not in _PLANNERS:
            return "not a normalization"
        data = op.inputs[0]
        assert data is not None
        if data.dtype not in _FLOATS or 0 in data.shape:
            return f"{op.op_type} on {data.dtype}{data.shape}"
        if any(v is not None and v.dtype != data.dtype for v in op.inputs):
            return "operands of different types"
        plan = _PLANNERS[op.op_type](op, data.shape)
        if isinstance(plan, str):
            return plan
        if op.outputs[0] not in region.outputs and len(region.ops) == 1:
            return "only the statistics are asked for"
        return _epilogue(region, plan).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, 6.0 * region.outputs[0].type.size / target.lanes)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.anchor
        assert op is not None
        data = op.inputs[0]
        assert data is not None
        plan = _PLANNERS[op.op_type](op, data.shape)
        assert not isinstance(plan, str)
        epilogue = _epilogue(region, plan)
        affine = [v for v in (plan.scale, plan.bias) if v is not None]
        statistics = [v for v in op.outputs[1:] if v in region.outputs]
        centered = [plan.centered and v is op.outputs[1] for v in statistics]
        emitter = _Groups(plan, epilogue, data.dtype, target.lanes, centered)
        result = op.outputs[0] if len(region.ops) == 1 else region.outputs[0]
        stage = Stage(
            stage_func(
                [
                    ("x", data.dtype, data.type.size),
                    ("y", epilogue.out_dtype, data.type.size),
                    *((f"s{i}", v.dtype, v.type.size) for i, v in enumerate(statistics)),
                    *((f"a{i}", v.dtype, v.type.size) for i, v in enumerate(affine)),
                    *epilogue.params,
                ],
                emitter.emit,
            ),
            (
                data.name,
                result.name,
                *(v.name for v in statistics),
                *_refs(affine),
                *epilogue.args,
            ),
            plan.units,
        )
        pairs = epilogue.inplace
        if data.type == result.type and data.name not in epilogue.args:
            pairs += ((data.name, result.name),)
        return Kernel((stage,), weights={**_weights(affine), **epilogue.weights}, inplace=pairs)


def _epilogue(region: Region, plan: _Plan) -> Epilogue:
    """The epilogue; a lone operator may also put out its statistics."""
    op = region.ops[0]
    if len(region.ops) == 1:
        region = Region(region.name, region.ops, region.anchor, region.inputs, op.outputs[:1])
    return Epilogue(region, op.outputs[0], plan.view)


def _refs(values: Sequence[Value]) -> tuple[str, ...]:
    return tuple(v.name if v.const is None else f"w:a{i}" for i, v in enumerate(values))


def _weights(values: Sequence[Value]) -> dict[str, np.ndarray]:
    return {
        f"a{i}": np.ascontiguousarray(v.const) for i, v in enumerate(values) if v.const is not None
    }


class _Groups:
    """Emits the stage function; a unit is one group."""

    def __init__(
        self, plan: _Plan, epilogue: Epilogue, dtype: str, lanes: int, statistics: Sequence[bool]
    ) -> None:
        self.plan = plan
        self.statistics = statistics  # outputs beside the result: mean (True) or inverse
        self.epilogue = epilogue
        self.result = dtype
        self.dtype = "float32" if dtype == "float16" else dtype
        self.lanes = lanes

    def emit(self, x: Any, y: Any, *rest: Any) -> None:
        """Body of the stage function."""
        *extra, begin, end = rest
        plan = self.plan
        statistics = [extra.pop(0) for _ in self.statistics]
        scale = extra.pop(0) if plan.scale is not None else None
        bias = extra.pop(0) if plan.bias is not None else None
        count = plan.segments * plan.view[2]
        with loop(begin, end) as unit:
            mean = tirx.const(0.0, self.dtype)
            if plan.centered:
                total = self._sum(x, unit, lambda v: v)
                mean = bind(total * tirx.const(1.0 / count, self.dtype))
            squares = self._sum(x, unit, lambda v: self._square(v, mean))
            variance = squares * tirx.const(1.0 / count, self.dtype)
            epsilon = tirx.const(plan.epsilon, self.dtype)
            if plan.ratio:
                inverse = bind(vm.reciprocal(vm.sqrt(variance) + epsilon))
            else:
                inverse = bind(vm.reciprocal(vm.sqrt(variance + epsilon)))
            for buffer, is_mean in zip(statistics, self.statistics, strict=True):
                vstore(buffer, unit, mean if is_mean else inverse, 1)
            with loop(plan.segments) as segment:
                self._write(x, y, extra, (scale, bias), unit, segment, mean, inverse)

    def _square(self, value: Expr, mean: Expr) -> Expr:
        value = bind(value - splat(mean, vm.lanes_of(value)) if self.plan.centered else value)
        return value * value

    def _place(self, unit: Expr, segment: Expr) -> tuple[Expr, Expr, Expr]:
        """Coordinates ``a`` and ``b`` of a segment, and its group ``g``."""
        plan = self.plan
        if plan.along_first:
            return segment, unit, unit
        groups = plan.view[1] // plan.segments
        first, group = unravel(unit, (plan.view[0], groups))
        return first, group * plan.segments + segment, group

    def _base(self, unit: Expr, segment: Expr) -> Expr:
        first, second, _ = self._place(unit, segment)
        return bind((first * self.plan.view[1] + second) * self.plan.view[2])

    def _sum(self, x: Any, unit: Expr, term: Any) -> Expr:
        total = local(1, self.dtype)
        total_at = tirx.const(0, "int32")
        vstore(total, total_at, tirx.const(0.0, self.dtype), 1)
        with loop(self.plan.segments) as segment:
            base = self._base(unit, segment)
            part = reduce_strip(
                self.plan.view[2],
                self.lanes,
                lambda i, w: term(bind(vm.cast(vload(x, base + i, w), self.dtype))),
                lambda a, b: a + b,
                tirx.const(0.0, self.dtype),
                self.dtype,
            )
            vstore(total, total_at, total[total_at] + part, 1)
        return bind(total[total_at])

    def _write(
        self, x: Any, y: Any, extra: Sequence[Any], affine: tuple[Any, Any], unit: Expr,
        segment: Expr, mean: Expr, inverse: Expr,
    ) -> None:  # fmt: skip
        first, second, group = self._place(unit, segment)
        base = self._base(unit, segment)
        scale, bias = affine
        index = {"b": second, "group": group}.get(self.plan.affine)
        if index is not None:
            inverse = bind(inverse * vm.cast(scale[index], self.dtype))
            bias_value = bind(vm.cast(bias[index], self.dtype))

        def body(i: Expr, width: int) -> None:
            value = vm.cast(vload(x, base + i, width), self.dtype)
            value = (value - splat(mean, width)) * splat(inverse, width)
            if index is not None:
                value = value + splat(bias_value, width)
            elif scale is not None:
                value = value * vm.cast(vload(scale, i, width), self.dtype)
                if bias is not None:
                    value = value + vm.cast(vload(bias, i, width), self.dtype)
            value = bind(vm.cast(value, self.result))
            coords = (first, second, i)
            result = self.epilogue.apply(value, coords, extra, axis=2, lanes=width)
            vstore(y, base + i, result, width)

        each_vector(self.plan.view[2], self.lanes, body)


class BatchNormTemplate(Template):
    """Batch normalization with given statistics, where it could not be folded."""

    name: ClassVar[str] = "batchnorm"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.anchor
        if op is None or op.domain or op.op_type != "BatchNormalization":
            return "not a batch normalization"
        if op.attrs.get("training_mode", 0) or len(op.outputs) != 1:
            return "training"
        if any(v is None or v.dtype not in _FLOATS for v in op.inputs):
            return "not floating point"
        return Epilogue(region, op.outputs[0], _batch_view(op)).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, 2.0 * region.outputs[0].type.size / target.lanes)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.anchor
        assert op is not None
        data, *affine = (v for v in op.inputs if v is not None)
        view = _batch_view(op)
        epilogue = Epilogue(region, op.outputs[0], view)
        wide = "float64" if data.dtype == "float64" else "float32"
        epsilon = float(op.attrs.get("epsilon", 1e-5))

        def emit(x: Any, y: Any, scale: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> None:
            *extra, begin, end = rest
            with loop(begin, end) as unit:
                batch, channel = unravel(unit, view[:2])
                deviation = vm.sqrt(vm.cast(var[channel], wide) + tirx.const(epsilon, wide))
                factor = bind(vm.cast(scale[channel], wide) / deviation)
                offset = vm.cast(bias[channel], wide) - vm.cast(mean[channel], wide) * factor
                offset = bind(offset)
                base = bind(unit * view[2])

                def body(i: Expr, width: int) -> None:
                    value = vm.cast(vload(x, base + i, width), wide) * splat(factor, width)
                    value = bind(vm.cast(value + splat(offset, width), data.dtype))
                    result = epilogue.apply(value, (batch, channel, i), extra, axis=2, lanes=width)
                    vstore(y, base + i, result, width)

                each_vector(view[2], target.lanes, body)

        params = [
            ("x", data.dtype, data.type.size),
            ("y", epilogue.out_dtype, data.type.size),
            *((f"a{i}", v.dtype, v.type.size) for i, v in enumerate(affine)),
            *epilogue.params,
        ]
        args = (data.name, region.outputs[0].name, *_refs(affine), *epilogue.args)
        pairs = epilogue.inplace
        if data.type == region.outputs[0].type:
            pairs += ((data.name, region.outputs[0].name),)
        return Kernel(
            (Stage(stage_func(params, emit), args, view[0] * view[1]),),
            weights={**_weights(affine), **epilogue.weights},
            inplace=pairs,
        )


def _batch_view(op: Op) -> tuple[int, int, int]:
    assert op.inputs[0] is not None
    shape = op.inputs[0].shape
    return (shape[0], shape[1] if len(shape) > 1 else 1, prod(shape[2:]))


NORMALIZE_TEMPLATES: tuple[Template, ...] = (
    NormalizeTemplate(),
    BatchNormTemplate(),
    LpNormalizeTemplate(),
    LocalResponseTemplate(),
)
