"""The element-wise operators behind an anchor, applied to vectors of its results.

A template computes its anchor under a *view* of the result: the shape collapsed
into groups of adjacent axes, e.g. ``(N, C, H * W)`` for a convolution. Every other
operand of the epilogue must be, per group, either full or all 1, so that its
element for a coordinate of the view is one multiply-add per group away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from effc.kernels.builder import Param, bind, splat, vload
from effc.kernels.elementwise_ops import evaluate, immediate, refusal, storage_dtype
from effc.kernels.lanes import concat
from effc.kernels.region import Op, Region, Value

__all__ = ["Epilogue", "group_strides"]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class _Operand:
    """An operand that is loaded: elements to step per group of the view (0: broadcast)."""

    value: Value
    index: int  # position among the buffers
    strides: tuple[int, ...]


class Epilogue:
    """The epilogue of a region under one view of the anchor's result.

    Args:
        region: Its ``epilogue`` operators are evaluated.
        result: Output value of the anchor, or of the first operator of the epilogue if the
            template computes that one too.
        view: ``result.shape`` collapsed into groups of adjacent axes.

    Attributes:
        view: The view.
        refusal: Why the epilogue cannot be applied under this view, or ``None``;
            the other attributes hold only without a refusal.
        params: Extra pointer parameters for the stage function, in order.
        args: The matching ``Stage.args``.
        weights: To be merged into ``Kernel.weights``.
        out_dtype: Element type that ``apply`` returns (bool is uint8).
        inplace: Pairs (operand, region output) that may share memory: read only
            at the lanes that are then written.
    """

    def __init__(self, region: Region, result: Value, view: tuple[int, ...]) -> None:
        self._ops = _behind(result, region)
        self._result = result
        self.view = view
        self._operands: dict[int, _Operand] = {}
        self.params: list[Param] = []
        self.args: tuple[str, ...] = ()
        self.weights: dict[str, np.ndarray] = {}
        self.out_dtype = storage_dtype(region.outputs[0].dtype)
        self.inplace: tuple[tuple[str, str], ...] = ()
        self.refusal = self._check(region) or self._collect()
        if self.refusal is None:
            self.inplace = self._shareable(region)

    def _check(self, region: Region) -> str | None:
        if len(region.outputs) != 1:
            return "more than one output"
        if prod(self.view) != self._result.type.size:
            return f"the view {self.view} does not cover {self._result.shape}"
        final = self._ops[-1].outputs[0] if self._ops else self._result
        if final is not region.outputs[0]:
            return "the last operator is not the output"
        if final.shape != self._result.shape:
            return f"the epilogue broadcasts {self._result.shape} to {final.shape}"
        return next((why for op in self._ops if (why := refusal(op)) is not None), None)

    def _collect(self) -> str | None:
        made = {id(op.outputs[0]) for op in self._ops} | {id(self._result)}
        for op in self._ops:
            for value in op.inputs[: 1 if op.op_type == "CastLike" else None]:
                if value is None or id(value) in made or id(value) in self._operands:
                    continue
                if immediate(value) is not None:
                    continue
                strides = group_strides(value.shape, self._result.shape, self.view)
                if strides is None:
                    return f"{value.shape} does not broadcast over groups of {self.view}"
                self._add(value, strides)
        return None

    def _add(self, value: Value, strides: tuple[int, ...]) -> None:
        index = len(self.params)
        dtype = storage_dtype(value.dtype)
        self._operands[id(value)] = _Operand(value, index, strides)
        self.params.append((f"e{index}", dtype, value.type.size))
        if value.const is None:
            self.args += (value.name,)
        else:
            self.args += (f"w:e{index}",)
            self.weights[f"e{index}"] = np.ascontiguousarray(value.const).astype(dtype, copy=False)

    def _shareable(self, region: Region) -> tuple[tuple[str, str], ...]:
        output = region.outputs[0]
        anchor = () if region.anchor is None else region.anchor.inputs
        return tuple(
            (operand.value.name, output.name)
            for operand in self._operands.values()
            if operand.value.const is None
            and operand.value.type == output.type
            and not any(operand.value is value for value in anchor)
        )

    @property
    def streamed(self) -> tuple[int, ...]:
        """Positions among the buffers of operands with an element for each of the result's."""
        strides = tuple(
            prod(self.view[i + 1 :]) if size > 1 else 0 for i, size in enumerate(self.view)
        )
        return tuple(o.index for o in self._operands.values() if o.strides == strides)

    def operand(self, number: int, coords: Sequence[Expr], buffers: Sequence[Any]) -> Expr:
        """One element of an operand of the first operator.

        Args:
            number: Which operand; not the one that the anchor computes.
            coords: One index per group of the view.
            buffers: The buffers of ``params``.
        """
        value = self._ops[0].inputs[number]
        assert value is not None
        known = immediate(value)
        if known is not None:
            return tirx.const(known, value.dtype)
        found = self._operands[id(value)]
        return buffers[found.index][_dot(coords, found.strides)]

    def apply(
        self, value: Expr, coords: Sequence[Expr], buffers: Sequence[Any], *, axis: int, lanes: int
    ) -> Expr:
        """Evaluate the epilogue on ``lanes`` results.

        Args:
            value: Vector (or scalar) of the anchor's results.
            coords: One index per group of the view, for lane 0.
            buffers: The buffers of ``params``.
            axis: Group along which lanes advance by one element. Along the last one a vector
                may hold several times the group's extent: it goes on in the group before.
            lanes: Lanes of ``value``.

        Returns:
            Vector (or scalar) of ``out_dtype``.
        """
        if not self._ops:
            return value

        def leaf(operand: Value) -> Expr:
            found = self._operands[id(operand)]
            offset = _dot(coords, found.strides)
            buffer = buffers[found.index]
            inner = self.view[axis]
            if axis == len(self.view) - 1 and lanes > inner:
                return _spanning(buffer, offset, found.strides[-2:], inner, lanes)
            if found.strides[axis] == 0:
                return splat(buffer[offset], lanes)
            return vload(buffer, offset, lanes, found.strides[axis])

        values = evaluate(self._ops, leaf, {id(self._result): value}, lanes)
        return values[id(self._ops[-1].outputs[0])]


def _dot(coords: Sequence[Expr], strides: Sequence[int]) -> Expr:
    terms = [c * s for c, s in zip(coords, strides, strict=True) if s]
    return sum(terms[1:], terms[0]) if terms else 0


def _behind(result: Value, region: Region) -> tuple[Op, ...]:
    """The operators of the epilogue behind ``result``."""
    ops = region.epilogue
    if ops and ops[0].outputs[0] is result:
        return ops[1:]
    return ops


def _spanning(buffer: Any, offset: Expr, strides: tuple[int, ...], inner: int, lanes: int) -> Expr:
    """``lanes`` elements along the last two groups, the last of extent ``inner``."""
    outer_step, step = strides
    times = lanes // inner
    if step and outer_step:
        return vload(buffer, offset, lanes)
    if step:
        return concat([bind(vload(buffer, offset, inner))] * times, range(lanes))
    if outer_step:
        whole = bind(vload(buffer, offset, times))
        order = [i for i in range(times) for _ in range(inner)]
        return concat([whole] * inner, order)
    return splat(buffer[offset], lanes)


def group_strides(
    shape: tuple[int, ...], full: tuple[int, ...], view: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Element strides of an operand per group of the view, 0 where it is broadcast."""
    if len(shape) > len(full):
        return None
    padded = (1,) * (len(full) - len(shape)) + shape
    axes = iter(zip(padded, full, strict=True))
    present: list[bool] = []
    for size in view:
        group: list[tuple[int, int]] = []
        while prod(extent for _, extent in group) < size:
            group.append(next(axes))
        if prod(extent for _, extent in group) != size:
            return None
        wide = [(own, extent) for own, extent in group if extent != 1]
        if all(own == extent for own, extent in wide):
            present.append(bool(wide))
        elif all(own == 1 for own, _ in wide):
            present.append(False)
        else:
            return None
    strides, step = [0] * len(view), 1
    for group_index in reversed(range(len(view))):
        if present[group_index]:
            strides[group_index] = step
            step *= view[group_index]
    return tuple(strides)
