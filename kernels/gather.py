"""Gather along one axis with indices known at run time or compile time.

``out[o, j, i] = data[o, indices[j], i]``. Negative indices count from the end; others
outside the axis are clamped, so that bad data cannot read outside the tensor.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, loop, stage_func, unravel, vload, vstore
from effc.kernels.region import Region, Value
from effc.kernels.strips import AxisView, axis_view, each_vector
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["GatherTemplate", "clamped_index"]

Expr = Any  # tvm.tirx expressions have no useful static types

_CHUNK = 256  # single elements that one parallel unit gathers


def clamped_index(index: Expr, size: int) -> Expr:
    """A valid int32 position on an axis of ``size`` from an ONNX index."""
    index = bind(vm.cast(index, "int32"))
    wrapped = tirx.Select(index < 0, index + size, index)
    return bind(tirx.Min(tirx.Max(wrapped, T.int32(0)), T.int32(size - 1)))


class GatherTemplate(Template):
    """Gather of runs of contiguous elements."""

    name: ClassVar[str] = "gather"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.ops[0]
        if len(region.ops) != 1 or op.op_type != "Gather" or op.domain:
            return "not a lone Gather"
        data, indices = op.inputs
        if data is None or indices is None or data.dtype == "object":
            return "no numbers"
        if not data.type.size or data.type.size >= 2**31:
            return f"data of shape {data.shape}"
        return None

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, 2.0 * region.outputs[0].type.size / target.lanes)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        data, indices = op.inputs
        assert data is not None
        assert indices is not None
        view = axis_view(data.shape, int(op.attrs.get("axis", 0)))
        itemsize = np.dtype(data.dtype).itemsize
        lanes = max(min(target.vector_bits // (8 * itemsize), 16), 1)
        dtype = f"uint{8 * itemsize}"
        params = [
            ("x", dtype, data.type.size),
            ("index", indices.dtype, indices.type.size),
            ("y", dtype, op.outputs[0].type.size),
        ]
        count = indices.type.size
        if view.inner == 1:
            body, units = _single(view, count)
        else:
            body, units = _runs(view, count, lanes)
        weights: dict[str, np.ndarray] = {}
        args = (_ref(data, "x", weights), _ref(indices, "index", weights), op.outputs[0].name)
        return Kernel((Stage(stage_func(params, body), args, units),), weights=weights)


def _ref(value: Value, name: str, weights: dict[str, np.ndarray]) -> str:
    if value.const is None:
        return value.name
    weights[name] = np.ascontiguousarray(value.const)
    return f"w:{name}"


def _runs(view: AxisView, count: int, lanes: int) -> tuple[Any, int]:
    def body(x: Any, index: Any, y: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as unit:
            outer, j = unravel(unit, (view.outer, count))
            position = clamped_index(index[j], view.length)
            source = bind((outer * view.length + position) * view.inner)
            target = bind(unit * view.inner)
            each_vector(
                view.inner,
                lanes,
                lambda i, w: vstore(y, target + i, vload(x, source + i, w), w),
            )

    return body, view.outer * count


def _single(view: AxisView, count: int) -> tuple[Any, int]:
    total = view.outer * count

    def body(x: Any, index: Any, y: Any, begin: Expr, end: Expr) -> None:
        stop = tirx.Min(end * _CHUNK, T.int32(total))
        with loop(begin * _CHUNK, stop) as element:
            outer, j = unravel(element, (view.outer, count))
            position = clamped_index(index[j], view.length)
            vstore(y, element, x[outer * view.length + position], 1)

    return body, -(-total // _CHUNK)
