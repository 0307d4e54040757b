"""The epilogue of an integer anchor on quads: sums to bytes, then element-wise on bytes.

Results come as four int32 vectors in blocks (``effc.kernels.fixed_point``): lanes
``4b .. 4b+3`` of vector ``q`` are the channels of position ``4b + q``. A ``Requantize`` with
factors per channel is applied to them as they are, and what follows sees bytes in order. Any
other epilogue is applied to the four channels of one position at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import Param, bind, splat, vload, vstore
from effc.kernels.elementwise_ops import immediate
from effc.kernels.epilogue import Epilogue, group_strides
from effc.kernels.fixed_point import Scaling, requantize
from effc.kernels.lanes import pick, repeated, store_partial
from effc.kernels.region import DOMAIN, Op, Region, Value

__all__ = ["QuadEpilogue", "QuadOutput"]

Expr = Any  # tvm.tirx expressions have no useful static types


class QuadEpilogue:
    """The epilogue of a region whose anchor gives int32 quads [N, C4, *S, 4].

    Attributes:
        refusal: Why it cannot be applied, or ``None``.
        params, args, weights, out_dtype, inplace: As of ``Epilogue``.
    """

    def __init__(self, region: Region, target: Target) -> None:
        assert region.anchor is not None
        result = region.anchor.outputs[0]
        batch, quads, *space, _ = result.shape
        view = (batch, quads, prod(space), 4)
        self.target = target
        self._requantize = _leading_requantize(region, view)
        self.rest = Epilogue(
            region,
            result if self._requantize is None else self._requantize.outputs[0],
            view,
        )
        self.refusal = self.rest.refusal
        self.params: list[Param] = [*self.rest.params]
        self.args = self.rest.args
        self.weights = dict(self.rest.weights)
        self.out_dtype = self.rest.out_dtype
        self.inplace = self.rest.inplace
        self._strides = (0, 0, 0, 0)
        if self._requantize is not None and immediate(self._multiplier) is None:
            found = group_strides(self._multiplier.shape, result.shape, view)
            assert found is not None
            assert self._multiplier.const is not None
            self._strides = (found[0], found[1], 0, found[3])
            self.params.append(("multiplier", "int32", self._multiplier.type.size))
            self.args = (*self.args, "w:multiplier")
            self.weights["multiplier"] = np.ascontiguousarray(self._multiplier.const, np.int32)

    @property
    def _multiplier(self) -> Value:
        assert self._requantize is not None
        value = self._requantize.inputs[1]
        assert value is not None
        return value

    def output(self, y: Any, operands: Sequence[Any], n: Expr, quad: Expr) -> QuadOutput:
        """Where results of quad ``quad`` of batch item ``n`` go.

        Args:
            y: Flat buffer of the region's output.
            operands: Buffers of ``params``.
            n, quad: Position of the plane.
        """
        if self._requantize is None:
            return QuadOutput(self, y, operands, n, quad, None)
        scalar = immediate(self._multiplier)
        if scalar is not None:
            four = splat(tirx.const(int(scalar), "int32"), 4)
        else:
            at = n * self._strides[0] + quad * self._strides[1]
            buffer = operands[-1]
            four = vload(buffer, at, 4) if self._strides[3] else splat(buffer[at], 4)
        return QuadOutput(self, y, operands, n, quad, bind(four))

    def bytes_of(self, values: Sequence[Expr], four: Expr) -> Expr:
        """``values`` requantized with the multipliers of the four channels."""
        assert self._requantize is not None
        op = self._requantize
        blocks = int(values[0].ty.dtype.lanes) // 4
        multiplier = four if blocks == 1 else repeated(four, blocks)
        dtype = op.outputs[0].dtype
        return requantize(values, [multiplier] * 4, Scaling.of(op.attrs), dtype, self.target)

    @property
    def requantizes(self) -> bool:
        """Whether results are narrowed to bytes four vectors at a time."""
        return self._requantize is not None


@dataclass(frozen=True)
class QuadOutput:
    """Stores the results of one quad of channels; see ``QuadEpilogue.output``."""

    epilogue: QuadEpilogue
    buffer: Any
    operands: Sequence[Any]
    n: Expr
    quad: Expr
    multipliers: Expr | None

    def store(self, position: Expr, values: Sequence[Expr], valid: int) -> None:
        """Store the first ``valid`` positions of four vectors, the first one at ``position``."""
        rest = self.epilogue.rest
        _, quads, plane, _ = rest.view
        start = bind(((self.n * quads + self.quad) * plane + position) * 4)

        def finish(piece: Expr, first: int, width: int) -> Expr:
            coords = (self.n, self.quad, position + first // 4, 0)
            return rest.apply(piece, coords, self.operands, axis=3, lanes=width)

        lanes = int(values[0].ty.dtype.lanes)
        if self.multipliers is None:
            for at in range(min(valid, lanes)):
                block = list(range(at // 4 * 4, at // 4 * 4 + 4))
                four = bind(pick(values[at % 4], block, lanes))
                vstore(self.buffer, start + 4 * at, finish(four, 4 * at, 4), 4)
            return
        octets = self.epilogue.bytes_of(values, self.multipliers)
        if rest.params:
            store_partial(self.buffer, start, octets, 4 * valid, 4 * lanes, finish)
        else:
            whole = bind(finish(octets, 0, 4 * lanes))
            store_partial(self.buffer, start, whole, 4 * valid, 4 * lanes)


def _leading_requantize(region: Region, view: tuple[int, ...]) -> Op | None:
    """The first operator behind the anchor, if it can be applied to vectors of positions."""
    assert region.anchor is not None
    result = region.anchor.outputs[0]
    if not region.epilogue or region.outputs[0] is result:
        return None
    first, *others = region.epilogue
    if first.op_type != "Requantize" or first.domain != DOMAIN or first.inputs[0] is not result:
        return None
    if any(value is result for op in others for value in op.inputs):
        return None
    multiplier = first.inputs[1]
    if multiplier is None or multiplier.const is None:
        return None
    strides = group_strides(multiplier.shape, result.shape, view)
    return None if strides is None or strides[2] else first
