"""The epilogue of an anchor that gives int32 quads ``[N, C4, *S, 4]`` in blocks.

Lanes ``4b .. 4b+3`` of vector ``q`` are the channels of position ``4b + q``; multipliers
are the same for all positions, four per quad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx

from effc.devices.target import Target
from effc.kernels.blocked_epilogue import BlockedEpilogue
from effc.kernels.builder import bind, splat, vload
from effc.kernels.lanes import repeated
from effc.kernels.region import Region

__all__ = ["QuadEpilogue", "QuadOutput"]

Expr = Any  # tvm.tirx expressions have no useful static types


class QuadEpilogue(BlockedEpilogue):
    """``BlockedEpilogue`` under the view ``(N, C4, positions, 4)``."""

    def __init__(self, region: Region, target: Target) -> None:
        assert region.anchor is not None
        batch, quads, *space, _ = region.anchor.outputs[0].shape
        view = (batch, quads, prod(space), 4)
        super().__init__(region, view, target, lambda strides: not strides[2])

    def output(self, y: Any, operands: Sequence[Any], n: Expr, quad: Expr) -> QuadOutput:
        """Where results of quad ``quad`` of batch item ``n`` go.

        Args:
            y: Flat buffer of the region's output.
            operands: Buffers of ``params``.
            n, quad: Position of the plane.
        """
        if not self.requantizes:
            return QuadOutput(self, y, operands, n, quad, None)
        if self.scalar is not None:
            four = splat(tirx.const(self.scalar, "int32"), 4)
        else:
            at = n * self.strides[0] + quad * self.strides[1]
            buffer = operands[-1]
            four = vload(buffer, at, 4) if self.strides[3] else splat(buffer[at], 4)
        return QuadOutput(self, y, operands, n, quad, bind(four))


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
        _, quads, plane, _ = self.epilogue.rest.view
        start = bind(((self.n * quads + self.quad) * plane + position) * 4)
        blocks = int(values[0].ty.dtype.lanes) // 4
        multipliers: list[Expr] = []
        if self.multipliers is not None:
            four = self.multipliers
            multipliers = [four if blocks == 1 else repeated(four, blocks)] * 4

        def coords(first: int) -> Sequence[Expr]:
            return (self.n, self.quad, position + first // 4, 0)

        buffers = (self.buffer, self.operands)
        self.epilogue.store(buffers, start, coords, values, multipliers, 4 * valid)
