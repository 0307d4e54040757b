"""The epilogue of integer sums in blocks: sums to bytes, then element-wise on bytes.

Results come as four int32 vectors in blocks (``effc.kernels.fixed_point``): lanes
``4b .. 4b+3`` of vector ``q`` are elements ``16b + 4q ..`` of a run along the last group of the
view. A leading ``Requantize`` is applied to them as they are, and what follows sees bytes in
order. Any other epilogue is applied to four elements at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from effc.devices.target import Target
from effc.kernels.builder import Param, bind, vstore
from effc.kernels.elementwise_ops import immediate
from effc.kernels.epilogue import Epilogue, group_strides
from effc.kernels.fixed_point import Scaling, requantize
from effc.kernels.integer_ops import BYTES
from effc.kernels.lanes import pick, store_partial
from effc.kernels.region import DOMAIN, Op, Region, Value

__all__ = ["BlockedEpilogue"]

Expr = Any  # tvm.tirx expressions have no useful static types
Strides = tuple[int, ...]


class BlockedEpilogue:
    """The epilogue of a region whose anchor gives int32.

    Args:
        region: Its ``epilogue`` operators are evaluated.
        view: The anchor's shape in groups, as of ``Epilogue``.
        target: Whose instructions to use.
        fits: Whether the template can supply constant multipliers with these strides.

    Attributes:
        refusal: Why it cannot be applied, or ``None``.
        params, args, weights, out_dtype, inplace: As of ``Epilogue``; the multipliers come last.
        strides: Element strides of the multipliers per group, if they are not a scalar.
    """

    def __init__(
        self, region: Region, view: tuple[int, ...], target: Target, fits: Callable[[Strides], bool]
    ) -> None:
        assert region.anchor is not None
        result = region.anchor.outputs[0]
        self.target = target
        self._first = _leading_requantize(region, view, fits)
        self.rest = Epilogue(
            region, result if self._first is None else self._first.outputs[0], view
        )
        self.refusal = self.rest.refusal
        self.params: list[Param] = [*self.rest.params]
        self.args = self.rest.args
        self.weights = dict(self.rest.weights)
        self.out_dtype = self.rest.out_dtype
        self.inplace = self.rest.inplace
        self.strides: Strides = ()
        if self._first is not None and self.scalar is None:
            self.strides = group_strides(self._multiplier.shape, result.shape, view) or ()
            self._pass(self.pack(np.ascontiguousarray(self._multiplier.const, np.int32)))

    def pack(self, multipliers: np.ndarray) -> np.ndarray:
        """The multipliers as the template wants to load them."""
        return multipliers

    def _pass(self, packed: np.ndarray) -> None:
        self.params.append(("multiplier", "int32", packed.size))
        self.args = (*self.args, "w:multiplier")
        self.weights["multiplier"] = packed

    @property
    def requantizes(self) -> bool:
        """Whether a ``Requantize`` comes first, so that ``store`` needs multipliers."""
        return self._first is not None

    @property
    def _multiplier(self) -> Value:
        assert self._first is not None
        value = self._first.inputs[1]
        assert value is not None
        return value

    @property
    def scalar(self) -> int | None:
        """The multiplier, if there is one for all and it may be written into code."""
        found = immediate(self._multiplier)
        return None if found is None else int(found)

    def store(
        self,
        buffers: tuple[Any, Sequence[Any]],
        start: Expr,
        coords: Callable[[int], Sequence[Expr]],
        values: Sequence[Expr],
        multipliers: Sequence[Expr],
        valid: int,
    ) -> None:
        """Store the first ``valid`` elements of four vectors.

        Args:
            buffers: The region's output, flat, and the buffers of ``params``.
            start: Offset of the first element.
            coords: Position in the view of element ``i`` of the run.
            values: Four vectors in blocks.
            multipliers: As ``values``; empty unless ``requantizes``.
            valid: Elements that exist.
        """
        y, operands = buffers
        rest, axis = self.rest, len(self.rest.view) - 1
        lanes = int(values[0].ty.dtype.lanes)
        valid = min(valid, 4 * lanes)

        def finish(piece: Expr, first: int, width: int) -> Expr:
            return rest.apply(piece, coords(first), operands, axis=axis, lanes=width)

        if self._first is None:
            for first in range(0, valid, 4):
                block, vector = divmod(first // 4, 4)
                four = pick(values[vector], list(range(4 * block, 4 * block + 4)), lanes)
                at = first

                def shifted(piece: Expr, offset: int, width: int, at: int = at) -> Expr:
                    return finish(piece, at + offset, width)

                store_partial(y, start + at, bind(four), min(valid - at, 4), 4, shifted)
            return
        self.store_bytes(buffers, start, coords, self.narrowed(values, multipliers), valid)

    @property
    def narrow_dtype(self) -> str:
        """Element type of the leading ``Requantize``."""
        assert self._first is not None
        return self._first.outputs[0].dtype

    def narrowed(self, values: Sequence[Expr], multipliers: Sequence[Expr]) -> Expr:
        """The leading ``Requantize`` of four vectors: bytes in blocks."""
        assert self._first is not None
        scaling = Scaling.of(self._first.attrs)
        return requantize(values, multipliers, scaling, self.narrow_dtype, self.target)

    def store_bytes(
        self,
        buffers: tuple[Any, Sequence[Any]],
        start: Expr,
        coords: Callable[[int], Sequence[Expr]],
        octets: Expr,
        valid: int,
    ) -> None:
        """Store results of the leading ``Requantize``, in order; else as ``store``."""
        y, operands = buffers
        rest, axis = self.rest, len(self.rest.view) - 1
        lanes = int(octets.ty.dtype.lanes)

        def finish(piece: Expr, first: int, width: int) -> Expr:
            return rest.apply(piece, coords(first), operands, axis=axis, lanes=width)

        if valid == lanes:
            vstore(y, start, finish(octets, 0, valid), valid)
        elif rest.params:
            store_partial(y, start, octets, valid, lanes, finish)
        else:
            store_partial(y, start, bind(finish(octets, 0, lanes)), valid, lanes)


def _leading_requantize(
    region: Region, view: tuple[int, ...], fits: Callable[[Strides], bool]
) -> Op | None:
    """The first operator behind the anchor, if it can be applied to sums in blocks."""
    assert region.anchor is not None
    result = region.anchor.outputs[0]
    if not region.epilogue or region.outputs[0] is result:
        return None
    first, *others = region.epilogue
    if (first.domain, first.op_type) != (DOMAIN, "Requantize") or first.inputs[0] is not result:
        return None
    if any(value is result for op in others for value in op.inputs):
        return None
    if first.outputs[0].dtype not in BYTES:
        return None
    multiplier = first.inputs[1]
    if multiplier is None or multiplier.const is None:
        return None
    strides = group_strides(multiplier.shape, result.shape, view)
    return first if strides is not None and fits(strides) else None
