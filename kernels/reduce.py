"""Reductions over any axes: sums, means, extremes, norms, and the position of an extreme.

The axes are merged into runs of kept and reduced ones. If the innermost run is
reduced, vectors run along it and collapse to a scalar; if it is kept, vectors run
across it and every lane is a reduction of its own. Sums are accumulated in blocks
(float16 in float32), so that the error grows with the number of blocks, not of elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, local, loop, stage_func, unravel, vload, vstore
from effc.kernels.elementwise_ops import larger, smaller, storage_dtype
from effc.kernels.epilogue import Epilogue
from effc.kernels.region import Op, Region
from effc.kernels.strips import blocks, reduce_steps, reduce_strip
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["ReduceTemplate"]

Expr = Any  # tvm.tirx expressions have no useful static types
Unary = Callable[[Expr], Expr]

_FLOATS = frozenset({"float16", "float32", "float64"})
_NUMBERS = _FLOATS | {"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}


@dataclass(frozen=True)
class _Rule:
    """How one reduction works: ``finish(combine(before(x), ...))``."""

    combine: Callable[[Expr, Expr], Expr]
    identity: Callable[[str], Expr]
    before: Unary | None = None
    finish: Unary | None = None
    dtypes: frozenset[str] = _NUMBERS
    wide: bool = True  # accumulate float16 in float32, 8- and 16-bit integers in int32


def _zero(dtype: str) -> Expr:
    return vm.scalar(0, dtype)


def _one(dtype: str) -> Expr:
    return vm.scalar(1, dtype)


def _lowest(dtype: str) -> Expr:
    return vm.scalar(-np.inf, dtype) if "float" in dtype else tirx.min_value(dtype)


def _highest(dtype: str) -> Expr:
    return vm.scalar(np.inf, dtype) if "float" in dtype else tirx.max_value(dtype)


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def _square(x: Expr) -> Expr:
    return bind(x) * x


def _magnitude(x: Expr) -> Expr:
    if vm.element_type(x).startswith("float"):
        return vm.absolute(x)
    x = bind(x)
    return x if vm.element_type(x).startswith("uint") else tirx.Max(x, vm.const(0, x) - x)


def _root(x: Expr) -> Expr:
    """Square root; of integers in float64, truncated."""
    if vm.element_type(x).startswith("float"):
        return vm.sqrt(x)
    return vm.cast(vm.sqrt(vm.cast(x, "float64")), vm.element_type(x))


_RULES: dict[str, _Rule] = {
    "ReduceL1": _Rule(_add, _zero, _magnitude),
    "ReduceL2": _Rule(_add, _zero, _square, _root),
    "ReduceLogSum": _Rule(_add, _zero, finish=vm.log, dtypes=_FLOATS),
    "ReduceLogSumExp": _Rule(_add, _zero, vm.exp, vm.log, dtypes=_FLOATS),
    "ReduceMax": _Rule(larger, _lowest, dtypes=_NUMBERS | {"bool"}, wide=False),
    "ReduceMean": _Rule(_add, _zero),
    "ReduceMin": _Rule(smaller, _highest, dtypes=_NUMBERS | {"bool"}, wide=False),
    "ReduceProd": _Rule(lambda a, b: a * b, _one),
    "ReduceSum": _Rule(_add, _zero),
    "ReduceSumSquare": _Rule(_add, _zero, _square),
}
_IDENTITY_ON_NOTHING = {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"}
_POSITIONS = {"ArgMax", "ArgMin"}


@dataclass(frozen=True)
class _Shape:
    """Merged axes with their element strides; empty lists stand for one element."""

    kept: tuple[tuple[int, int], ...]
    reduced: tuple[tuple[int, int], ...]

    @property
    def along(self) -> bool:
        """Whether vectors run along reduced elements."""
        return not self.kept or self.kept[-1][1] != 1

    @property
    def count(self) -> int:
        """Elements per result."""
        return prod(extent for extent, _ in self.reduced)


def _axes(op: Op) -> tuple[int, ...] | None:
    """Reduced axes, or ``None`` if they are not known."""
    data = op.inputs[0]
    assert data is not None
    rank = len(data.shape)
    if op.op_type in _POSITIONS:
        return (int(op.attrs.get("axis", 0)) % rank,)
    given = op.inputs[1] if len(op.inputs) > 1 else None
    if given is not None and given.const is None:
        return None
    axes = [] if given is None or given.const is None else [int(a) for a in given.const.reshape(-1)]
    if not axes and not op.attrs.get("noop_with_empty_axes", 0):
        return tuple(range(rank))
    return tuple(sorted(a % rank for a in axes))


def _shape(shape: Sequence[int], axes: Sequence[int], *, merge: bool = True) -> _Shape:
    """Axes of ``shape`` without those of size 1; neighbours merged (kept ones if ``merge``)."""
    kept: list[tuple[int, int]] = []
    reduced: list[tuple[int, int]] = []
    previous: list[tuple[int, int]] | None = None
    stride = 1
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:
            continue
        group = reduced if axis in axes else kept
        if group is previous and (merge or group is reduced):
            group[-1] = (group[-1][0] * shape[axis], group[-1][1])
        else:
            group.append((shape[axis], stride))
        previous = group
        stride *= shape[axis]
    return _Shape(tuple(reversed(kept)), tuple(reversed(reduced)))


class ReduceTemplate(Template):
    """All ONNX reductions with a fused epilogue."""

    name: ClassVar[str] = "reduce"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.anchor
        if op is None or op.domain or op.op_type not in (*_RULES, *_POSITIONS):
            return "not a reduction"
        assert op.inputs[0] is not None
        dtype = op.inputs[0].dtype
        allowed = _RULES[op.op_type].dtypes if op.op_type in _RULES else _NUMBERS
        if dtype not in allowed:
            return f"{op.op_type} on {dtype}"
        axes = _axes(op)
        if axes is None:
            return "the axes are not constant"
        if not axes and op.op_type not in _IDENTITY_ON_NOTHING:
            return "no axes"
        if 0 in op.inputs[0].shape:
            return "an empty tensor"
        return _epilogue(region)[1].refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, 2.0 * region.inputs[0].type.size / target.lanes)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.anchor
        assert op is not None
        assert op.inputs[0] is not None
        data = op.inputs[0]
        shape, epilogue = _epilogue(region)
        emitter = _Reduction(op, shape, epilogue, target.lanes)
        params = [
            ("x", storage_dtype(data.dtype), data.type.size),
            ("y", epilogue.out_dtype, region.outputs[0].type.size),
            *epilogue.params,
        ]
        stage = Stage(
            stage_func(params, emitter.emit),
            (data.name, region.outputs[0].name, *epilogue.args),
            emitter.units,
        )
        return Kernel((stage,), weights=epilogue.weights, inplace=epilogue.inplace)


def _epilogue(region: Region) -> tuple[_Shape, Epilogue]:
    """The coarsest view of the result that the epilogue's operands allow."""
    op = region.anchor
    assert op is not None
    assert op.inputs[0] is not None
    for merge in (True, False):
        shape = _shape(op.inputs[0].shape, _axes(op) or (), merge=merge)
        view = tuple(extent for extent, _ in shape.kept) or (1,)
        epilogue = Epilogue(region, op.outputs[0], view)
        if epilogue.refusal is None:
            break
    return shape, epilogue


class _Reduction:
    """Emits the stage function of one reduction."""

    def __init__(self, op: Op, shape: _Shape, epilogue: Epilogue, lanes: int) -> None:
        assert op.inputs[0] is not None
        self.op = op
        self.shape = shape
        self.epilogue = epilogue
        self.lanes = lanes
        self.source = storage_dtype(op.inputs[0].dtype)
        self.result = storage_dtype(op.outputs[0].dtype)
        rule = _RULES.get(op.op_type)
        narrow = rule is None or not rule.wide
        self.dtype = _accumulator(self.source, narrow)

    @property
    def units(self) -> int:
        """Parallel units: results, or vectors of results."""
        kept = [extent for extent, _ in self.shape.kept]
        if self.shape.along:
            return prod(kept)
        return prod(kept[:-1]) * -(-kept[-1] // self.lanes)

    def emit(self, x: Any, y: Any, *rest: Any) -> None:
        """Body of the stage function."""
        *extra, begin, end = rest
        kept = [extent for extent, _ in self.shape.kept]
        with loop(begin, end) as unit:
            if self.shape.along:
                coords = unravel(unit, kept) if kept else [T.int32(0)]
                base = self._base(coords)
                self._store(y, extra, coords, self._reduce(x, base, 1), 1)
                return
            per_row = -(-kept[-1] // self.lanes)
            *outer, block = unravel(unit, (*kept[:-1], per_row))

            def column(offset: Expr, width: int) -> None:
                coords = [*outer, offset]
                self._store(y, extra, coords, self._reduce(x, self._base(coords), width), width)

            blocks(kept[-1], self.lanes, block, column)

    def _base(self, coords: Sequence[Expr]) -> Expr:
        terms = [c * s for c, (_, s) in zip(coords, self.shape.kept, strict=False)]
        return bind(sum(terms[1:], terms[0])) if terms else T.int32(0)

    def _store(
        self, y: Any, extra: Sequence[Any], coords: Sequence[Expr], value: Expr, width: int
    ) -> None:
        offset: Expr = coords[0]
        for coord, (extent, _) in zip(coords[1:], self.shape.kept[1:], strict=True):
            offset = offset * extent + coord
        value = bind(vm.cast(value, self.result))
        axis = len(coords) - 1
        vstore(y, offset, self.epilogue.apply(value, coords, extra, axis=axis, lanes=width), width)

    def _reduce(self, x: Any, base: Expr, width: int) -> Expr:
        """The result for ``width`` neighbouring kept elements at ``base``."""
        if self.op.op_type in _POSITIONS:
            return self._position(x, base, width)
        if self.op.op_type == "ReduceLogSumExp":
            top = bind(self._fold(x, base, width, _RULES["ReduceMax"], None))
            infinite = tirx.EQ(vm.absolute(top), vm.const(np.inf, top))
            shift = bind(vm.select(infinite, vm.const(0.0, top), top))
            total = self._fold(x, base, width, _RULES["ReduceLogSumExp"], shift)
            return vm.log(total) + shift
        rule = _RULES[self.op.op_type]
        value = self._fold(x, base, width, rule, None)
        if self.op.op_type == "ReduceMean":
            return self._mean(value)
        return value if rule.finish is None else rule.finish(value)

    def _mean(self, total: Expr) -> Expr:
        if self.dtype.startswith("float"):
            return total * vm.const(1.0 / self.shape.count, total)
        return tirx.truncdiv(total, vm.const(self.shape.count, total))

    def _load(self, x: Any, offset: Expr, width: int, rule: _Rule, shift: Expr | None) -> Expr:
        value = vm.cast(vload(x, offset, width), self.dtype)
        if shift is not None:
            value = value - (T.Broadcast(shift, width) if width > vm.lanes_of(shift) else shift)
        return value if rule.before is None else rule.before(value)

    def _fold(self, x: Any, base: Expr, width: int, rule: _Rule, shift: Expr | None) -> Expr:
        """Combine over all reduced axes, for ``width`` results at once."""
        identity = rule.identity(self.dtype)
        groups = list(self.shape.reduced)
        along = self.shape.along and bool(groups) and groups[-1][1] == 1
        inner = groups.pop() if groups else (1, 1)
        total = local(width, self.dtype)
        vstore(total, 0, _spread(identity, width), width)

        def innermost(offset: Expr) -> None:
            extent, stride = inner
            if along:
                part = reduce_strip(
                    extent,
                    self.lanes,
                    lambda i, w: self._load(x, offset + i, w, rule, shift),
                    rule.combine,
                    identity,
                    self.dtype,
                )
            else:
                part = reduce_steps(
                    extent,
                    width,
                    lambda k: self._load(x, offset + k * stride, width, rule, shift),
                    rule.combine,
                    identity,
                    self.dtype,
                )
            vstore(total, 0, rule.combine(vload(total, 0, width), bind(part)), width)

        _nest(groups, base, innermost)
        return vload(total, 0, width)

    def _position(self, x: Any, base: Expr, width: int) -> Expr:
        """Index of the extreme along the one reduced axis."""
        extent, stride = self.shape.reduced[0] if self.shape.reduced else (1, 1)
        best, index = local(width, self.dtype), local(width, "int32")
        vstore(best, 0, self._element(x, base, width), width)
        vstore(index, 0, _spread(T.int32(0), width), width)
        last = bool(self.op.attrs.get("select_last_index", 0))
        larger_wins = self.op.op_type == "ArgMax"
        with loop(T.int32(1), T.int32(extent)) as k:
            value = bind(self._element(x, base + k * stride, width))
            old = vload(best, 0, width)
            compare = {
                (True, False): tirx.GT,
                (True, True): tirx.GE,
                (False, False): tirx.LT,
                (False, True): tirx.LE,
            }[larger_wins, last]
            better = compare(value, old)
            where = vm.select(better, _spread(k, width), vload(index, 0, width))
            vstore(index, 0, where, width)
            vstore(best, 0, vm.select(better, value, old), width)
        return vload(index, 0, width)

    def _element(self, x: Any, offset: Expr, width: int) -> Expr:
        return vm.cast(vload(x, offset, width), self.dtype)


def _accumulator(source: str, narrow: bool) -> str:
    if source == "float16":
        return "float32"
    if narrow or source not in ("int8", "uint8", "int16", "uint16"):
        return source
    return "int32"


def _spread(value: Expr, width: int) -> Expr:
    return value if width == 1 else T.Broadcast(value, width)


def _nest(groups: Sequence[tuple[int, int]], base: Expr, body: Callable[[Expr], None]) -> None:
    """Loops over the outer reduced axes."""
    if not groups:
        body(base)
        return
    extent, stride = groups[0]
    with loop(extent) as i:
        _nest(groups[1:], bind(base + i * stride), body)
