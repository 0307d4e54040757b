"""Pooling over whole planes: GlobalAveragePool, GlobalMaxPool, GlobalLpPool (p = 1, 2).

Also windows that cover their input exactly (``AveragePool`` 7x7 on 7x7). A
parallel unit is one plane: contiguous elements, reduced into several vectors
that are then combined lane by lane, of float16 in float32. Sums are reordered: results differ from
ONNX Runtime's by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import Param, bind, local, loop, splat, stage_func, unravel, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import dtype_lanes, load_partial, reduce_lanes
from effc.kernels.plane import PlaneOutput
from effc.kernels.pool import POOL_DTYPES, Reduction, computed_in, reduction_of
from effc.kernels.region import Op, Region
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["GlobalPoolTemplate"]

Expr = Any


class GlobalPoolTemplate(Template):
    """Pooling of [N, C, ...] to [N, C, 1...]."""

    name: ClassVar[str] = "pool_global"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or not op.op_type.endswith("Pool"):
            return "the anchor is not a pooling operator"
        data = op.inputs[0]
        assert data is not None
        if len(op.outputs) > 1 or not _covers_plane(op):
            return "the window does not cover the plane exactly"
        kind = op.op_type.removeprefix("Global")
        if data.dtype not in POOL_DTYPES.get(kind, ()):
            return f"{op.op_type} kernels do not take {data.dtype}"
        if reduction_of(op, data.dtype) is None:
            return f"the norm p={op.attrs.get('p')} has no kernel"
        if 0 in data.shape:
            return "the tensor is empty"
        return Epilogue(region, op.outputs[0], (*data.shape[:2], 1)).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        assert region.anchor is not None
        data = region.anchor.inputs[0]
        assert data is not None
        lanes = dtype_lanes(target, computed_in(region.anchor, data.dtype))
        plane = prod(data.shape[2:])
        while lanes > 4 and plane < lanes:
            lanes //= 2
        vectors = plane // lanes
        chains = [c for c in (1, 2, 4, 8) if c <= max(vectors, 1)]
        found = [
            (
                {"lanes": lanes, "chains": c},
                (vectors * (0.5 + 3.5 / min(c, 7)) + 3.0 * c + 20) * prod(data.shape[:2]),
            )
            for c in chains
        ]
        return sorted(found, key=lambda item: item[1])

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        data = op.inputs[0]
        assert data is not None
        dtype, images, plane = computed_in(op, data.dtype), data.shape[:2], prod(data.shape[2:])
        reduction = reduction_of(op, dtype)
        assert reduction is not None
        epilogue = Epilogue(region, op.outputs[0], (*images, 1))
        total = _Plane(reduction, dtype, plane, int(config["lanes"]), int(config["chains"]))
        average = op.op_type.endswith("AveragePool")
        params: list[Param] = [("x", data.dtype, data.type.size), *epilogue.params]
        params.append(("y", epilogue.out_dtype, op.outputs[0].type.size))

        def body(x: Any, *arguments: Any) -> None:
            *operands, y, begin, end = arguments
            with loop(begin, end) as image:
                n, channel = unravel(image, images)
                value = reduction.finish(total.emit(x, bind(image * plane)))
                if average:
                    value = value * tirx.const(1.0 / plane, dtype)
                store = PlaneOutput(epilogue, y, operands, 1, n, channel, image)
                store.store(tirx.const(0, "int32"), vm.cast(value, data.dtype), 1, 1)

        stage = Stage(
            stage_func(params, body),
            (data.name, *epilogue.args, region.outputs[0].name),
            prod(images),
        )
        return Kernel((stage,), epilogue.weights, inplace=epilogue.inplace)


@dataclass(frozen=True)
class _Plane:
    """Reduces ``size`` contiguous elements with ``chains`` vectors of partial results."""

    reduction: Reduction
    dtype: str
    size: int
    lanes: int
    chains: int

    def emit(self, x: Any, start: Expr) -> Expr:
        """The reduction of the elements from ``start`` on, a scalar."""
        lanes, step = self.lanes, self.lanes * self.chains
        sums = local(step, self.dtype)
        for chain in range(self.chains):
            vstore(sums, chain * lanes, splat(self.reduction.fill, lanes), lanes)

        def add(chain: int, value: Expr) -> None:
            before = vload(sums, chain * lanes, lanes)
            joined = self.reduction.combine(before, self.reduction.convert(value))
            vstore(sums, chain * lanes, joined, lanes)

        full = self.size // step
        with loop(full) as i:
            for chain in range(self.chains):
                add(chain, vload(x, start + i * step + chain * lanes, lanes))
        for chain, offset in enumerate(range(full * step, self.size, lanes)):
            valid = min(lanes, self.size - offset)
            fill = vm.cast(self.reduction.fill, str(x.dtype))
            add(chain, load_partial(x, start + offset, valid, lanes, fill))
        total = vload(sums, 0, lanes)
        for chain in range(1, self.chains):
            total = bind(self.reduction.combine(total, vload(sums, chain * lanes, lanes)))
        combine: Callable[[Expr, Expr], Expr] = self.reduction.combine
        return bind(reduce_lanes(total, lanes, combine))


def _covers_plane(op: Op) -> bool:
    """Whether every output is the reduction of its whole input plane."""
    if op.op_type.startswith("Global"):
        return True
    data = op.inputs[0]
    assert data is not None
    return (
        tuple(op.attrs.get("kernel_shape", ())) == data.shape[2:]
        and not any(op.attrs.get("pads") or ())
        and all(d == 1 for d in op.attrs.get("dilations") or ())
        and all(size == 1 for size in op.outputs[0].shape[2:])
    )
