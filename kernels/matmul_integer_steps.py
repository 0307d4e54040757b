"""The inner loops of an integer matrix product: sums of a register tile over k.

``QuadSteps`` multiplies the quads of a row, broadcast, by vectors of quads of columns.

``WordSteps`` is for Arm without dot products: bytes of two quads are multiplied to 16 bits, which
hold the sum of two products if no weight is -128; neighbours are added to sums of 32 bits
(``sadalp``), of which there are two per column until the end. That is half of what it takes to add
up each quad at once.

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
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, local, loop, splat, vload, vstore
from effc.kernels.lanes import pick, uses_lanes
from effc.kernels.matmul_integer_pack import Layout
from effc.kernels.quad_arithmetic import Quads
from effc.kernels.quad_pairs import as_bytes, multiply_add_squares, to_squares

__all__ = ["PairSteps", "QuadSteps"]

Expr = Any  # tvm.tirx expressions have no useful static types

_UNROLL = 4  # quads per iteration of the loop: one register of A on Arm
_WORD_ROWS, _WORD_VECTORS = 2, 4  # whose 16 sums and 4 factors are in registers


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
class WordSteps(QuadSteps):
    """Arm without dot products, signed bytes, no -128 in B."""

    def emit(self, sums: Any, lines: list[Expr], base: Expr, vectors: int) -> None:
        """As the base class's, by parts whose sums fit the registers."""
        for row in range(0, len(lines), _WORD_ROWS):
            for first in range(0, vectors, _WORD_VECTORS):
                chosen = range(first, min(first + _WORD_VECTORS, vectors))
                self._part(sums, lines[row : row + _WORD_ROWS], row, base, chosen, vectors)

    def _part(
        self, sums: Any, lines: list[Expr], row: int, base: Expr, chosen: range, vectors: int
    ) -> None:
        """Rows from ``row`` on, and some vectors of columns."""
        k, count = self.layout.k, len(chosen) * len(lines)
        halves = local(8 * count, "int32")
        for place in range(2 * count):
            vstore(halves, 4 * place, splat(tirx.const(0, "int32"), 4), 4)
        trips = k // 8
        if trips:
            with loop(trips) as trip:
                at = [bind(line + trip * 8) for line in lines]
                panel = bind(base + trip * (2 * self.layout.panel))
                self._add(halves, [[x, x + 4] for x in at], panel, chosen)
        offsets = [8 * trips] if k // 4 % 2 else []
        offsets += [k - 4] if k % 4 else []
        if offsets:
            panel = base + 2 * trips * self.layout.panel
            self._add(halves, [[line + o for o in offsets] for line in lines], panel, chosen)
        for i in range(len(lines)):
            for n, v in enumerate(chosen):
                place = 8 * (i * len(chosen) + n)
                both = [bind(vload(halves, place + 4 * h, 4)) for h in (0, 1)]
                total = T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp.v4i32", *both)
                where = ((row + i) * vectors + v) * 4
                vstore(sums, where, bind(vload(sums, where, 4)) + bind(total), 4)

    def _add(self, halves: Any, places: list[list[Expr]], panel: Expr, chosen: range) -> None:
        """Add products of one or two quads: ``places`` of A's bytes, by row."""
        rows = [[self._words(self._quads(at, 1)[0]) for at in quads] for quads in places]
        for n, v in enumerate(chosen):
            weights = [
                as_bytes(vload(self.b, at + v * 4, 4))
                for at in (panel, panel + self.layout.panel)[: len(rows[0])]
            ]
            for i, row in enumerate(rows):
                for half in (0, 1):
                    lanes = range(8 * half, 8 * half + 8)
                    products = [
                        vm.cast(pick(w, lanes, 16), "int16") * x
                        for w, x in zip(weights, row, strict=True)
                    ]
                    words = bind(products[0] if len(products) == 1 else products[0] + products[1])
                    pairs = T.call_llvm_pure_intrin(
                        "int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", words
                    )
                    where = 8 * (i * len(chosen) + n) + 4 * half
                    vstore(halves, where, bind(vload(halves, where, 4)) + pairs, 4)

    def _words(self, quad: Expr) -> Expr:
        """A quad twice, as 16 bits."""
        return bind(vm.cast(T.reinterpret("int8x8", splat(quad, 2)), "int16"))


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
