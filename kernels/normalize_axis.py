"""Normalizations by neighbours along one axis: LpNormalization and LRN."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, local, loop, splat, stage_func, unravel, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.region import Region
from effc.kernels.strips import (
    AxisView,
    axis_view,
    blocks,
    each_vector,
    reduce_steps,
    reduce_strip,
)
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["LocalResponseTemplate", "LpNormalizeTemplate"]

Expr = Any  # tvm.tirx expressions have no useful static types


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


class _AxisTemplate(Template):
    """Common frame: one float input, one output, a view around the operator's axis."""

    op_type: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")

    @abstractmethod
    def view(self, region: Region) -> AxisView:
        """The view around the axis."""

    @abstractmethod
    def emit(self, region: Region, view: AxisView, lanes: int, epilogue: Epilogue) -> Any:
        """Body of the stage function, and the number of its units."""

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.anchor
        if op is None or op.domain or op.op_type != self.op_type:
            return f"not {self.op_type}"
        assert op.inputs[0] is not None
        if op.inputs[0].dtype not in self.dtypes or 0 in op.inputs[0].shape:
            return f"{op.op_type} on {op.inputs[0].dtype}{op.inputs[0].shape}"
        return self._epilogue(region).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, 8.0 * region.outputs[0].type.size / target.lanes)]

    def _epilogue(self, region: Region) -> Epilogue:
        assert region.anchor is not None
        view = self.view(region)
        return Epilogue(region, region.anchor.outputs[0], (view.outer, view.length, view.inner))

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        assert region.anchor is not None
        data = region.anchor.inputs[0]
        assert data is not None
        epilogue = self._epilogue(region)
        body, units = self.emit(region, self.view(region), target.lanes, epilogue)
        params = [
            ("x", data.dtype, data.type.size),
            ("y", epilogue.out_dtype, data.type.size),
            *epilogue.params,
        ]
        args = (data.name, region.outputs[0].name, *epilogue.args)
        stage = Stage(stage_func(params, body), args, units)
        return Kernel((stage,), weights=epilogue.weights, inplace=epilogue.inplace)


class LpNormalizeTemplate(_AxisTemplate):
    """``x / ||x||_p`` along an axis, ``p`` 1 or 2; 0 where the norm is 0."""

    name: ClassVar[str] = "lpnormalize"
    op_type: ClassVar[str] = "LpNormalization"

    def view(self, region: Region) -> AxisView:
        """See ``_AxisTemplate.view``."""
        assert region.anchor is not None
        return axis_view(region.anchor.outputs[0].shape, int(region.anchor.attrs.get("axis", -1)))

    def emit(self, region: Region, view: AxisView, lanes: int, epilogue: Epilogue) -> Any:
        """See ``_AxisTemplate.emit``."""
        assert region.anchor is not None
        dtype = region.anchor.outputs[0].dtype
        square = int(region.anchor.attrs.get("p", 2)) == 2
        zero = tirx.const(0.0, dtype)

        def term(value: Expr) -> Expr:
            value = bind(value)
            return value * value if square else vm.absolute(value)

        def divided(value: Expr, total: Expr, width: int) -> Expr:
            norm = splat(total, width) if vm.lanes_of(total) < width else total
            return vm.select(norm > vm.const(0.0, value), value / norm, vm.const(0.0, value))

        def row(x: Any, y: Any, extra: Any, unit: Expr) -> None:
            base = bind(unit * view.length)
            total = reduce_strip(
                view.length, lanes, lambda i, w: term(vload(x, base + i, w)), _add, zero, dtype
            )
            total = bind(vm.sqrt(total) if square else total)

            def body(i: Expr, width: int) -> None:
                value = bind(divided(vload(x, base + i, width), total, width))
                done = epilogue.apply(value, (unit, i, 0), extra, axis=1, lanes=width)
                vstore(y, base + i, done, width)

            each_vector(view.length, lanes, body)

        def columns(x: Any, y: Any, extra: Any, outer: Expr, column: Expr, width: int) -> None:
            base = bind(outer * (view.length * view.inner) + column)
            total = reduce_steps(
                view.length,
                width,
                lambda k: term(vload(x, base + k * view.inner, width)),
                _add,
                zero,
                dtype,
            )
            total = bind(vm.sqrt(total) if square else total)
            with loop(view.length) as k:
                at = bind(base + k * view.inner)
                value = bind(divided(vload(x, at, width), total, width))
                done = epilogue.apply(value, (outer, k, column), extra, axis=2, lanes=width)
                vstore(y, at, done, width)

        per_row = -(-view.inner // lanes)

        def emit(x: Any, y: Any, *rest: Any) -> None:
            *extra, begin, end = rest
            with loop(begin, end) as unit:
                if view.inner == 1:
                    row(x, y, extra, unit)
                    return
                outer, block = unravel(unit, (view.outer, per_row))
                blocks(view.inner, lanes, block, lambda c, w: columns(x, y, extra, outer, c, w))

        return emit, view.outer * (1 if view.inner == 1 else per_row)


class LocalResponseTemplate(_AxisTemplate):
    """``x / (bias + alpha / size * sum of squares of near channels) ** beta``."""

    name: ClassVar[str] = "lrn"
    op_type: ClassVar[str] = "LRN"
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def view(self, region: Region) -> AxisView:
        """See ``_AxisTemplate.view``."""
        assert region.anchor is not None
        return axis_view(region.anchor.outputs[0].shape, 1)

    def emit(self, region: Region, view: AxisView, lanes: int, epilogue: Epilogue) -> Any:
        """See ``_AxisTemplate.emit``."""
        assert region.anchor is not None
        attrs = region.anchor.attrs
        size = int(attrs["size"])
        alpha, beta = float(attrs.get("alpha", 1e-4)), float(attrs.get("beta", 0.75))
        bias = float(attrs.get("bias", 1.0))
        before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
        per_row = -(-view.inner // lanes)

        def vector(x: Any, y: Any, extra: Any, where: tuple[Expr, Expr], i: Expr, w: int) -> None:
            outer, channel = where
            plane = bind(outer * (view.length * view.inner) + i)
            total = local(w, "float32")
            vstore(total, 0, splat(tirx.const(0.0, "float32"), w), w)
            first = bind(tirx.Max(channel - before, T.int32(0)))
            last = bind(tirx.Min(channel + (after + 1), T.int32(view.length)))
            with loop(first, last) as near:
                value = bind(vload(x, plane + near * view.inner, w))
                vstore(total, 0, vload(total, 0, w) + value * value, w)
            at = bind(plane + channel * view.inner)
            summed = vload(total, 0, w)
            base = bind(vm.const(bias, summed) + vm.const(alpha / size, summed) * summed)
            value = bind(vload(x, at, w) / _power(base, beta))
            done = epilogue.apply(value, (outer, channel, i), extra, axis=2, lanes=w)
            vstore(y, at, done, w)

        def emit(x: Any, y: Any, *rest: Any) -> None:
            *extra, begin, end = rest
            with loop(begin, end) as unit:
                outer, channel, block = unravel(unit, (view.outer, view.length, per_row))
                blocks(
                    view.inner,
                    lanes,
                    block,
                    lambda i, w: vector(x, y, extra, (outer, channel), i, w),
                )

        return emit, view.outer * view.length * per_row


def _power(base: Expr, beta: float) -> Expr:
    """``base ** beta`` for positive ``base``; square roots for the usual exponents."""
    if beta == 0.75:
        root = bind(vm.sqrt(base))
        return root * vm.sqrt(root)
    if beta == 0.5:
        return vm.sqrt(base)
    return base if beta == 1.0 else vm.pow(base, vm.const(beta, base))
