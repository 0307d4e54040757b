"""Softmax and LogSoftmax along any axis, one pass each for maximum, sum and result.

``softmax(x) = exp(x - m) / sum(exp(x - m))`` with ``m = max(x)`` along the axis. If the
axis is the innermost, vectors run along it; otherwise they run across it and every lane
is a softmax of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import bind, loop, splat, stage_func, unravel, vload, vstore
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

__all__ = ["SoftmaxTemplate"]

Expr = Any  # tvm.tirx expressions have no useful static types

_FLOATS = ("float16", "float32", "float64")


class SoftmaxTemplate(Template):
    """Softmax and LogSoftmax with a fused epilogue."""

    name: ClassVar[str] = "softmax"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        anchor = region.anchor
        if anchor is None or anchor.op_type not in ("Softmax", "LogSoftmax") or anchor.domain:
            return "not a softmax"
        if anchor.outputs[0].dtype not in _FLOATS:
            return f"softmax on {anchor.outputs[0].dtype}"
        return _epilogue(region).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, 12.0 * region.outputs[0].type.size / target.lanes)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        assert region.anchor is not None
        epilogue = _epilogue(region)
        view = _view(region)
        source = region.anchor.inputs[0]
        assert source is not None
        emitter = _Softmax(region, view, epilogue, target.lanes)
        params = [
            ("x", source.dtype, source.type.size),
            ("y", epilogue.out_dtype, source.type.size),
            *epilogue.params,
        ]
        units = view.outer * (1 if view.inner == 1 else -(-view.inner // target.lanes))
        args = (source.name, region.outputs[0].name, *epilogue.args)
        same = source.type == region.outputs[0].type and source.name not in epilogue.args
        return Kernel(
            (Stage(stage_func(params, emitter.emit), args, units),),
            weights=epilogue.weights,
            inplace=((source.name, region.outputs[0].name),) if same else (),
        )


def _view(region: Region) -> AxisView:
    assert region.anchor is not None
    return axis_view(region.anchor.outputs[0].shape, int(region.anchor.attrs.get("axis", -1)))


def _epilogue(region: Region) -> Epilogue:
    assert region.anchor is not None
    view = _view(region)
    return Epilogue(region, region.anchor.outputs[0], (view.outer, view.length, view.inner))


class _Softmax:
    """Emits the stage function; every unit is a row, or a vector of columns."""

    def __init__(self, region: Region, view: AxisView, epilogue: Epilogue, lanes: int) -> None:
        assert region.anchor is not None
        dtype = region.anchor.outputs[0].dtype
        self.log = region.anchor.op_type == "LogSoftmax"
        self.view = view
        self.epilogue = epilogue
        self.lanes = lanes
        self.result_dtype = dtype
        self.dtype = "float32" if dtype == "float16" else dtype
        # The exponentials wait in the output for their sum, if they fit there.
        self.keep = not self.log and epilogue.out_dtype == self.dtype

    def emit(self, x: Any, y: Any, *rest: Any) -> None:
        """Body of the stage function."""
        *extra, begin, end = rest
        view = self.view
        with loop(begin, end) as unit:
            if view.inner == 1:
                self._row(x, y, extra, unit)
                return
            per_row = -(-view.inner // self.lanes)
            outer, block = unravel(unit, (view.outer, per_row))
            blocks(
                view.inner,
                self.lanes,
                block,
                lambda column, width: self._columns(x, y, extra, outer, column, width),
            )

    def _load(self, x: Any, offset: Expr, width: int) -> Expr:
        return vm.cast(vload(x, offset, width), self.dtype)

    def _row(self, x: Any, y: Any, extra: Sequence[Any], row: Expr) -> None:
        length, lanes = self.view.length, self.lanes
        base = bind(row * length)
        lowest = tirx.min_value(self.dtype)
        top = reduce_strip(
            length, lanes, lambda i, w: self._load(x, base + i, w), _larger, lowest, self.dtype
        )

        def exponential(i: Expr, width: int) -> Expr:
            value = bind(vm.exp_nonpositive(self._load(x, base + i, width) - splat(top, width)))
            if self.keep:
                vstore(y, base + i, value, width)
            return value

        zero = tirx.const(0.0, self.dtype)
        total = reduce_strip(length, lanes, exponential, _add, zero, self.dtype)
        scale = bind(self._scale(top, total))
        self._finish(
            lambda body: each_vector(length, lanes, body),
            lambda i, w: self._load(y if self.keep else x, base + i, w),
            lambda i, w, value: self._store(y, extra, base + i, (row, i, 0), value, w, 1),
            (top, scale),
        )

    def _columns(
        self, x: Any, y: Any, extra: Sequence[Any], outer: Expr, column: Expr, width: int
    ) -> None:
        length, inner = self.view.length, self.view.inner
        base = bind(outer * (length * inner) + column)
        lowest = tirx.min_value(self.dtype)
        top = bind(
            reduce_steps(
                length,
                width,
                lambda k: self._load(x, base + k * inner, width),
                _larger,
                lowest,
                self.dtype,
            )
        )

        def exponential(k: Expr) -> Expr:
            value = bind(vm.exp_nonpositive(self._load(x, base + k * inner, width) - top))
            if self.keep:
                vstore(y, base + k * inner, value, width)
            return value

        zero = tirx.const(0.0, self.dtype)
        total = bind(reduce_steps(length, width, exponential, _add, zero, self.dtype))
        scale = bind(self._scale(top, total))

        def each(body: Callable[[Expr, int], None]) -> None:
            with loop(length) as k:
                body(k, width)

        self._finish(
            each,
            lambda k, w: self._load(y if self.keep else x, base + k * inner, w),
            lambda k, w, value: self._store(
                y, extra, base + k * inner, (outer, k, column), value, w, 2
            ),
            (top, scale),
        )

    def _scale(self, top: Expr, total: Expr) -> Expr:
        return top + vm.log(total) if self.log else vm.reciprocal(total)

    def _finish(
        self,
        each: Callable[[Callable[[Expr, int], None]], None],
        load: Callable[[Expr, int], Expr],
        store: Callable[[Expr, int, Expr], None],
        state: tuple[Expr, Expr],
    ) -> None:
        top, scale = state

        def body(i: Expr, width: int) -> None:
            across = vm.lanes_of(scale) > 1
            factor = scale if across else splat(scale, width)
            value = load(i, width)
            if self.log:
                store(i, width, value - factor)
            elif self.keep:
                store(i, width, value * factor)
            else:
                low = top if across else splat(top, width)
                store(i, width, vm.exp_nonpositive(value - low) * factor)

        each(body)

    def _store(
        self, y: Any, extra: Sequence[Any], offset: Expr, coords: Sequence[Expr], value: Expr,
        width: int, axis: int,
    ) -> None:  # fmt: skip
        value = bind(vm.cast(value, self.result_dtype))
        result = self.epilogue.apply(value, coords, extra, axis=axis, lanes=width)
        vstore(y, offset, result, width)


def _larger(a: Expr, b: Expr) -> Expr:
    return vm.maximum(b, a)


def _add(a: Expr, b: Expr) -> Expr:
    return a + b
