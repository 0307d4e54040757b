"""The inner loops of an integer matrix product: sums of a register tile over k.

``QuadSteps`` multiplies the quads of a row, broadcast, by vectors of quads of columns.

``PairSteps`` has a matrix multiply instruction (Armv8.6 FEAT_I8MM): ``smmla`` adds the products of
two rows and two columns over eight k to four sums. Two quads of k are such eight; within the
reduction, rows ``2i`` and ``2i + 1`` of the tile are kept as the 2x2 squares that the instruction
wants, and half as many instructions do. A tile with an odd number of rows has an idle one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import T, bind, loop, vload, vstore
from effc.kernels.lanes import pick, uses_lanes
from effc.kernels.matmul_integer_pack import Layout
from effc.kernels.quad_arithmetic import Quads
from effc.kernels.quad_pairs import as_bytes, multiply_add_squares, to_squares

__all__ = ["PairSteps", "QuadSteps"]

Expr = Any  # tvm.tirx expressions have no useful static types

_UNROLL = 4  # quads per iteration of the loop: one register of A on Arm


@dataclass(frozen=True)
class QuadSteps:
    """Step by step of four k.

    Attributes:
        layout: Of the packed matrix.
        arithmetic, target: Of the products.
        a, b: Left operand, bytes; packed right one.
    """

    layout: Layout
    arithmetic: Quads
    target: Target
    a: Any
    b: Any

    def rows(self, wanted: int) -> int:
        """Rows of sums that a tile of ``wanted`` rows needs."""
        return wanted

    def emit(self, sums: Any, lines: list[Expr], base: Expr, vectors: int) -> None:
        """Add the products of a tile.

        Args:
            sums: int32 ``[row][vector][lane]``.
            lines: Where the tile's rows begin in A.
            base: Where its panel begins in B.
            vectors: Of the panel that are computed.
        """
        k = self.layout.k
        trips, left = divmod(k // 4, _UNROLL)
        if trips:
            with loop(trips) as trip:
                self._steps(sums, lines, bind(trip * _UNROLL), _UNROLL, base, vectors)
        done = trips * _UNROLL
        for quad in range(done, done + left):
            self._steps(sums, lines, quad, 1, base, vectors)
        if k % 4:
            shifted = [line + (k % 4 - 4) for line in lines]
            self._steps(sums, shifted, k // 4, 1, base, vectors)

    def _steps(
        self, sums: Any, lines: list[Expr], quad: Expr, count: int, base: Expr, vectors: int
    ) -> None:
        """Add the products of ``count`` quads."""
        lanes = self.layout.lanes
        scalars = [self._quads(line + quad * 4, count) for line in lines]
        for u in range(count):
            at = base + (quad + u) * self.layout.panel
            for v in range(vectors):
                w = bind(vload(self.b, at + v * lanes, lanes))
                for i in range(len(lines)):
                    where = (i * vectors + v) * lanes
                    acc = bind(vload(sums, where, lanes))
                    total = self.arithmetic.multiply_add(
                        acc, scalars[i][u], w, lanes, self.target, swapped=True
                    )
                    vstore(sums, where, total, lanes)

    def _quads(self, at: Expr, count: int) -> list[Expr]:
        """Neighbouring quads of A from byte ``at`` on."""
        if uses_lanes(self.target) and count == 4:
            four = bind(T.reinterpret("int32x4", vload(self.a, at, 16)))
            return [pick(four, [u], 4) for u in range(4)]
        return [bind(T.reinterpret("int32", vload(self.a, at + 4 * u, 4))) for u in range(count)]


@dataclass(frozen=True)
class PairSteps(QuadSteps):
    """Two steps at once, by ``smmla``; see ``Layout.paired``."""

    def rows(self, wanted: int) -> int:
        return wanted + wanted % 2

    def emit(self, sums: Any, lines: list[Expr], base: Expr, vectors: int) -> None:
        k, step = self.layout.k, 2 * self.layout.panel
        lines = [*lines, lines[-1]] if len(lines) % 2 else lines
        self._turn(sums, len(lines), vectors)
        blocks = k // 16
        if blocks:
            with loop(blocks) as block:
                wide = [bind(T.reinterpret("int32x4", self._load(n + block * 16))) for n in lines]
                at = bind(base + block * (2 * step))
                pairs = [to_squares(*wide[i : i + 2]) for i in range(0, len(wide), 2)]
                for half in (0, 1):
                    self._pair(sums, [p[half] for p in pairs], at + half * step, vectors)
        offsets = [4 * quad for quad in range(4 * blocks, k // 4)]
        offsets += [k - 4] if k % 4 else []
        for number in range(0, len(offsets), 2):
            two = (offsets[number : number + 2] * 2)[:2]  # B has zeros for a step that is missing
            quads = [[self._quads(line + offset, 1)[0] for offset in two] for line in lines]
            operands = [
                bind(tirx.Shuffle([*quads[i], *quads[i + 1]], list(range(4))))
                for i in range(0, len(quads), 2)
            ]
            self._pair(sums, operands, base + (2 * blocks + number // 2) * step, vectors)
        self._turn(sums, len(lines), vectors)

    def _load(self, at: Expr) -> Expr:
        return vload(self.a, at, 16)

    def _pair(self, sums: Any, rows: list[Expr], at: Expr, vectors: int) -> None:
        """Add the products over eight k: ``rows`` are two rows of A each."""
        factors = [as_bytes(row) for row in rows]
        for v in range(vectors):
            for half in (0, 1):
                columns = as_bytes(bind(vload(self.b, at + v * 8 + half * 4, 4)))
                for i, factor in enumerate(factors):
                    where = ((2 * i + half) * vectors + v) * 4
                    acc = bind(vload(sums, where, 4))
                    vstore(sums, where, multiply_add_squares(acc, factor, columns), 4)

    def _turn(self, sums: Any, rows: int, vectors: int) -> None:
        """Two rows of four columns to two squares of two rows and columns, or back."""
        for i in range(0, rows, 2):
            for v in range(vectors):
                places = [((i + j) * vectors + v) * 4 for j in (0, 1)]
                values = [bind(vload(sums, place, 4)) for place in places]
                for place, value in zip(places, to_squares(*values), strict=True):
                    vstore(sums, place, value, 4)
