"""How the right operand of an integer matrix product lies in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import T, bind, local, loop, splat, stage_func, unravel, vload, vstore
from effc.kernels.fixed_point import blocked
from effc.kernels.lanes import load_partial
from effc.kernels.quad_arithmetic import Quads
from effc.kernels.shuffles import zip_quads

__all__ = ["Layout", "Packing", "packed_vector", "packed_weights"]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class Layout:
    """Panels of ``4 * groups`` vectors of ``lanes`` columns.

    Attributes:
        k, columns: Extents of the matrix.
        lanes, groups: See above.
        paired: Whether each vector's quads of two steps lie as two squares of two columns and two
            quads (lanes are 4).
    """

    k: int
    columns: int
    lanes: int
    groups: int
    paired: bool = False

    @property
    def panel(self) -> int:
        """Columns of a panel."""
        return 4 * self.groups * self.lanes

    @property
    def panels(self) -> int:
        return -(-self.columns // self.panel)

    @property
    def padded(self) -> int:
        """Columns of all panels."""
        return self.panels * self.panel

    @property
    def steps(self) -> int:
        """Quads of k, the last of which may overlap the one before; pairs have an even number."""
        quads = -(-self.k // 4)
        return quads + quads % 2 if self.paired else quads

    @property
    def quads(self) -> int:
        """32-bit elements of one packed matrix."""
        return self.steps * self.padded

    def rows_of(self, quad: int) -> list[int | None]:
        """The four rows of a quad; ``None`` where it overlaps the one before or is none."""
        if 4 * quad >= self.k:
            return [None] * 4
        if 4 * quad + 4 <= self.k:
            return list(range(4 * quad, 4 * quad + 4))
        return [row if row >= 4 * quad else None for row in range(self.k - 4, self.k)]

    def each_panel(self, panel: Expr) -> Iterator[tuple[AbstractContextManager[Any], int]]:
        """Branches for full panels and for the last one: contexts, and columns of the panel."""
        rest = self.columns % self.panel
        if not rest:
            yield ExitStack(), self.panel
        elif self.panels == 1:
            yield ExitStack(), rest
        else:
            for inner, columns in ((True, self.panel), (False, rest)):
                branch = ExitStack()
                last = self.panels - 1
                branch.enter_context(T.If(panel < last if inner else panel == last))
                branch.enter_context(T.Then())
                yield branch, columns


def _order(layout: Layout) -> np.ndarray:
    """Column of every lane of a panel."""
    return np.concatenate(
        [
            group * 4 * layout.lanes + np.argsort(blocked(4, layout.lanes), kind="stable")
            for group in range(layout.groups)
        ]
    )


def packed_vector(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Values per column ``[..., n]`` in the order of lanes, zeros behind the last; int32, flat."""
    flat = values.reshape(-1, layout.columns)
    padded = np.zeros((len(flat), layout.padded), np.int32)
    padded[:, : layout.columns] = flat
    tiled = padded.reshape(len(flat), layout.panels, layout.panel)[:, :, _order(layout)]
    return np.ascontiguousarray(tiled).reshape(-1)


def packed_weights(weight: np.ndarray, layout: Layout) -> np.ndarray:
    """int8 ``[matrices, k, n]`` as int32 ``[matrix][panel][quad][lane]``, flat; see ``Layout``."""
    quads = np.zeros((len(weight), layout.steps, 4, layout.padded), np.int8)
    for quad in range(layout.steps):
        for i, row in enumerate(layout.rows_of(quad)):
            if row is not None:
                quads[:, quad, i, : layout.columns] = weight[:, row]
    split = quads.reshape(len(weight), layout.steps, 4, layout.panels, layout.panel)
    ordered = split[..., _order(layout)].transpose(0, 3, 1, 4, 2)
    packed = np.ascontiguousarray(ordered).view(np.int32).reshape(-1)
    if not layout.paired:
        return packed
    squares = packed.reshape(-1, 2, layout.panel // 4, 2, 2)  # step, vector, two and two columns
    return np.ascontiguousarray(squares.transpose(0, 2, 3, 4, 1)).reshape(-1)


@dataclass(frozen=True)
class Packing:
    """The stage that packs a computed matrix and makes the bias of its columns.

    Attributes:
        matrices: How many there are.
        signed: Whether they are ``int8``; 128 is taken off ``uint8``.
        a_zero, b_zero: Zero points, ``b_zero`` of what is packed.
    """

    layout: Layout
    arithmetic: Quads
    target: Target
    matrices: int
    signed: bool
    a_zero: int
    b_zero: int

    def func(self, dtype: str) -> Any:
        """``(b, bias, packed, c)``; a unit is a panel."""
        layout = self.layout
        size = self.matrices * layout.k * layout.columns
        params = [
            ("b", dtype, size),
            ("bias", "int32", layout.padded),
            ("packed", "int32", self.matrices * layout.quads),
            ("c", "int32", self.matrices * layout.padded),
        ]

        def body(b: Any, bias: Any, packed: Any, c: Any, begin: Expr, end: Expr) -> None:
            with loop(begin, end) as unit:
                matrix, panel = unravel(unit, (self.matrices, layout.panels))
                for present, columns in layout.each_panel(panel):
                    with present:
                        self._panel(b, bias, packed, c, matrix, panel, columns)

        return stage_func(params, body)

    def _panel(
        self, b: Any, bias: Any, packed: Any, c: Any, matrix: Expr, panel: Expr, columns: int
    ) -> None:
        layout, lanes = self.layout, self.layout.lanes
        source = bind(matrix * (layout.k * layout.columns) + panel * layout.panel)
        target = bind((matrix * layout.panels + panel) * (layout.steps * layout.panel))
        vectors = 4 * layout.groups
        sums = local(vectors * lanes, "int32")
        for v in range(vectors):
            vstore(sums, v * lanes, splat(tirx.const(0, "int32"), lanes), lanes)
        whole = layout.k // 4
        if whole:
            with loop(whole) as quad:
                at = bind(source + quad * (4 * layout.columns))
                rows = [at + i * layout.columns for i in range(4)]
                self._quad(b, rows, packed, bind(target + quad * layout.panel), sums, columns)
        if whole < layout.steps:
            last = [
                None if row is None else source + row * layout.columns
                for row in layout.rows_of(whole)
            ]
            self._quad(b, last, packed, target + whole * layout.panel, sums, columns)
        place = bind(panel * layout.panel)
        constant = tirx.const(layout.k * self.a_zero * self.b_zero, "int32")
        factor = splat(tirx.const(self.a_zero, "int32"), lanes)
        for v in range(vectors):
            fixed = vload(bias, place + v * lanes, lanes) + splat(constant, lanes)
            value = fixed - bind(vload(sums, v * lanes, lanes)) * factor
            vstore(c, matrix * layout.padded + place + v * lanes, value, lanes)

    def _quad(
        self, b: Any, rows: list[Any], packed: Any, target: Expr, sums: Any, columns: int
    ) -> None:
        """Four rows (``None``: zeros) as quads of columns; adds them to the sums."""
        layout, lanes = self.layout, self.layout.lanes
        ones = tirx.const(0x01010101, "int32")
        for group in range(layout.groups):
            first = group * 4 * lanes
            vectors = [self._row(b, row, first, columns) for row in rows]
            for q, octets in enumerate(zip_quads(vectors)):
                where = first + q * lanes
                quads = bind(T.reinterpret(f"int32x{lanes}", octets))
                vstore(packed, target + where, quads, lanes)
                acc = bind(vload(sums, where, lanes))
                total = self.arithmetic.multiply_add(
                    acc, ones, quads, lanes, self.target, swapped=True
                )
                vstore(sums, where, total, lanes)

    def _row(self, b: Any, row: Any, first: int, columns: int) -> Expr:
        """Bytes of a group of columns of one row, signed."""
        size = 4 * self.layout.lanes
        valid = min(columns - first, size)
        dtype = str(b.dtype)
        if row is None or valid <= 0:
            return bind(splat(tirx.const(0, "int8"), size))
        fill = tirx.const(0 if self.signed else 128, dtype)
        loaded = bind(load_partial(b, bind(row + first), valid, size, fill))
        if self.signed:
            return loaded
        flipped = tirx.bitwise_xor(loaded, splat(tirx.const(128, dtype), size))
        return bind(T.reinterpret(f"int8x{size}", flipped))
