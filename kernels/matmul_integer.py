"""``MatMulInteger``: ``y[b, m, n] = bias[n] + sum_k (a[b, m, k] - a_zero) (b[b, k, n] - b_zero)``.

Steps of four k: quads of a row of A, broadcast, times vectors of quads of columns; or of eight k,
two rows times two columns (``effc.kernels.matmul_integer_steps``). B lies in panels
``[n / panel][k / 4][vector][lane][4]``, columns in blocks so that results narrow without a
permutation (``effc.kernels.fixed_point``). A constant B is packed at compile time; a computed one
by a stage of its own into a workspace, as int8 (128 is taken off unsigned bytes and their zero
point). If 4 does not divide K, the last quad overlaps the one before and B is 0 where both are, so
nothing is read past a row.

Zero points never meet the products:
``sum (a - s)(b - t) = sum ab - s * sum b - t * sum a + K * s * t``. Sums of columns are part of
the bias; sums of rows are made by another stage, if ``t`` is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.blocked_epilogue import BlockedEpilogue
from effc.kernels.builder import (
    Param,
    T,
    bind,
    local,
    loop,
    splat,
    stage_func,
    unravel,
    vload,
    vstore,
)
from effc.kernels.columns import NARROW, is_narrow
from effc.kernels.dot_product import has_dot4
from effc.kernels.lanes import uses_lanes
from effc.kernels.matmul_cost import streamed
from effc.kernels.matmul_integer_pack import Layout, Packing, packed_vector, packed_weights
from effc.kernels.matmul_integer_steps import PairSteps, QuadSteps, WordSteps
from effc.kernels.matmul_problem import Problem, problem_of
from effc.kernels.quad_arithmetic import Quads
from effc.kernels.quad_pairs import has_pairs
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.strips import reduce_strip
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["MatMulInteger"]

Expr = Any  # tvm.tirx expressions have no useful static types


class MatMulInteger(Template):
    """``MatMulInteger`` with a computed left and a constant or computed right operand."""

    name: ClassVar[str] = "matmul_integer"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or (op.domain, op.op_type) != (DOMAIN, "MatMulInteger"):
            return "the anchor is not an integer matrix product"
        if is_narrow(target):
            return NARROW
        a, b = op.inputs[0], op.inputs[1]
        assert a is not None
        assert b is not None
        if a.const is not None:
            return "the left operand is constant"
        if len(op.inputs) > 2 and op.inputs[2] is not None and op.inputs[2].const is None:
            return "the bias is computed at run time"
        if any(0 in v.shape for v in (a, b)):
            return "a tensor is empty"
        if min(len(a.shape), len(b.shape)) < 2 or a.shape[-1] < 4 or b.shape[-1] == 1:
            return "a row is too short for quads"
        views = [_epilogue(region, p, target, None).refusal for p in _problems(region)]
        return None if None in views else views[0]

    def features(self, region: Region) -> frozenset[str]:
        """See :meth:`Template.features`."""
        return Quads.features

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        problem = _problem(region, target)
        paired = _paired(region, problem, target)
        widest = max(target.vector_bits // 32, 4)
        found: list[tuple[Config, float]] = []
        for lanes in (16, 8, 4):
            if lanes > widest or (lanes > 4 and 2 * lanes >= problem.n):
                continue
            for rows in (1, 2, 3, 4, 5, 6, 7):
                for groups in (1, 2):
                    layout = Layout(problem.k, problem.n, lanes, groups, paired)
                    cost = _cost(problem, layout, target, rows)
                    if cost is not None:
                        config = {"lanes": lanes, "rows": rows, "groups": groups}
                        found.append((config, cost))
        return sorted(found, key=lambda item: item[1])[:8]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        problem = _problem(region, target)
        paired = _paired(region, problem, target)
        layout = Layout(problem.k, problem.n, int(config["lanes"]), int(config["groups"]), paired)
        epilogue = _epilogue(region, problem, target, layout)
        return _Builder(region, op, problem, target, layout, int(config["rows"]), epilogue).kernel()


class _Epilogue(BlockedEpilogue):
    """Multipliers per column, in the order of a panel's lanes."""

    def __init__(
        self, region: Region, problem: Problem, target: Target, layout: Layout | None
    ) -> None:
        self._layout = layout
        super().__init__(
            region, problem.view, target, lambda strides: not (strides[0] or strides[1])
        )

    def pack(self, multipliers: np.ndarray) -> np.ndarray:
        layout = self._layout
        if layout is None:
            return multipliers
        return packed_vector(np.broadcast_to(multipliers.reshape(-1), (layout.columns,)), layout)


def _epilogue(region: Region, problem: Problem, target: Target, layout: Layout | None) -> _Epilogue:
    return _Epilogue(region, problem, target, layout)


def _problems(region: Region) -> list[Problem]:
    assert region.anchor is not None
    return [problem_of(region.anchor, collapse=collapse) for collapse in (True, False)]


def _problem(region: Region, target: Target) -> Problem:
    """The form with the largest m that the epilogue allows."""
    return next(p for p in _problems(region) if _epilogue(region, p, target, None).refusal is None)


@dataclass(frozen=True)
class _Builder:
    """Puts the stages together."""

    region: Region
    op: Op
    problem: Problem
    target: Target
    layout: Layout
    rows: int
    epilogue: _Epilogue

    def kernel(self) -> Kernel:
        problem, layout, epilogue = self.problem, self.layout, self.epilogue
        a, b = self.op.inputs[0], self.op.inputs[1]
        assert a is not None
        assert b is not None
        signed_b = b.dtype == "int8"
        a_zero = int(self.op.attrs.get("a_zero", 0))
        b_zero = int(self.op.attrs.get("b_zero", 0)) - (0 if signed_b else 128)
        bias = self._bias()
        matrices = b.type.size // (problem.k * problem.n)
        stages: list[Stage] = []
        weights = dict(epilogue.weights)
        workspaces: dict[str, int] = {}
        refs: tuple[str, ...]
        arithmetic = Quads(a_zero, a.dtype == "int8")
        if b.const is not None:
            values = b.const.reshape(-1, problem.k, problem.n).astype(np.int64)
            values = values - (0 if signed_b else 128)
            weights["b"] = packed_weights(values.astype(np.int8), layout)
            folded = bias - a_zero * values.sum(axis=1) + problem.k * a_zero * b_zero
            weights["c"] = packed_vector(folded, layout)
            refs = ("w:b", "w:c")
        else:
            packing = Packing(layout, arithmetic, self.target, matrices, signed_b, a_zero, b_zero)
            weights["bias"] = packed_vector(bias, layout)
            workspaces |= {"b": 4 * matrices * layout.quads, "c": 4 * matrices * layout.padded}
            stages.append(
                Stage(
                    packing.func(b.dtype),
                    (b.name, "w:bias", "t:b", "t:c"),
                    matrices * layout.panels,
                )
            )
            refs = ("t:b", "t:c")
        if b_zero:
            workspaces["r"] = 4 * (a.type.size // problem.k)
            func = _row_sums(a.dtype, a.type.size // problem.k, problem.k, -b_zero, self.target)
            stages.append(Stage(func, (a.name, "t:r"), a.type.size // problem.k))
            refs = (*refs, "t:r")
        stages.append(self._product(a.dtype, (a.name, *refs), matrices, arithmetic, b_zero != 0))
        return Kernel(tuple(stages), weights, workspaces, inplace=epilogue.inplace)

    def _bias(self) -> np.ndarray:
        value = self.op.inputs[2] if len(self.op.inputs) > 2 else None
        if value is None:
            return np.zeros(self.problem.n, np.int64)
        assert value.const is not None
        return np.broadcast_to(value.const.reshape(-1), (self.problem.n,)).astype(np.int64)

    def _product(
        self, dtype: str, refs: tuple[str, ...], matrices: int, arithmetic: Quads, row_sums: bool
    ) -> Stage:
        problem, layout, epilogue = self.problem, self.layout, self.epilogue
        params: list[Param] = [
            ("a", dtype, problem.a.elements),
            ("b", "int32", matrices * layout.quads),
            ("c", "int32", matrices * layout.padded),
        ]
        if row_sums:
            params.append(("r", "int32", problem.a.elements // problem.k))
        own = len(params)
        params += epilogue.params
        params.append(("y", epilogue.out_dtype, self.region.outputs[0].type.size))

        def body(*arguments: Any) -> None:
            *buffers, y, begin, end = arguments
            rows = buffers[3] if row_sums else None
            steps = self._steps(arithmetic)(layout, arithmetic, self.target, *buffers[:2])
            code = _Code(self, steps, buffers[2], rows)
            code.emit((y, buffers[own:]), begin, end)

        args = (*refs, *epilogue.args, self.region.outputs[0].name)
        return Stage(stage_func(params, body), args, self.units)

    def _steps(self, arithmetic: Quads) -> type[QuadSteps]:
        if self.layout.paired:
            return PairSteps
        plain = self.target.arch == "aarch64" and not has_dot4(self.target, "int8", 4)
        return WordSteps if plain and arithmetic.signed and self.op.narrow else QuadSteps

    @property
    def row_tiles(self) -> int:
        return -(-self.problem.m // self.rows)

    @property
    def row_groups(self) -> int:
        """Parallel parts of the rows: enough units for a few threads."""
        return min(self.row_tiles, -(-24 // (self.problem.batch * self.layout.panels)))

    @property
    def units(self) -> int:
        return self.problem.batch * self.layout.panels * self.row_groups


@dataclass(frozen=True)
class _Code:
    """Emits the product."""

    plan: _Builder
    steps: QuadSteps
    c: Any
    row_sums: Any

    def emit(self, buffers: tuple[Any, Sequence[Any]], begin: Expr, end: Expr) -> None:
        plan, problem, layout = self.plan, self.plan.problem, self.plan.layout
        with loop(begin, end) as unit:
            batch, panel, group = unravel(unit, (problem.batch, layout.panels, plan.row_groups))
            first = bind(tirx.truncdiv(group * plan.row_tiles, plan.row_groups))
            last = bind(tirx.truncdiv((group + 1) * plan.row_tiles, plan.row_groups))
            for present, columns in layout.each_panel(panel):
                with present:
                    self._panel(buffers, batch, panel, (first, last), columns)

    def _panel(
        self,
        buffers: tuple[Any, Sequence[Any]],
        batch: Expr,
        panel: Expr,
        tiles: tuple[Expr, Expr],
        columns: int,
    ) -> None:
        """Row tiles of a panel with ``columns`` columns."""
        plan, problem = self.plan, self.plan.problem
        size = problem.k * problem.n
        offset = problem.batch_offset(problem.b, batch)
        matrix = bind(offset if problem.b.const is not None else tirx.truncdiv(offset, size))
        a = bind(problem.batch_offset(problem.a, batch))
        tile = _Tile(self, buffers, batch, panel, matrix, a, columns)
        whole, rest = divmod(problem.m, plan.rows)
        first, last = tiles
        if whole:
            with loop(first, tirx.min(last, whole) if rest else last) as t:
                tile.emit(bind(t * plan.rows), plan.rows)
        if rest:
            with T.If(last > whole), T.Then():
                tile.emit(tirx.const(whole * plan.rows, "int32"), rest)


@dataclass(frozen=True)
class _Tile:
    """Register tiles of one panel."""

    code: _Code
    buffers: tuple[Any, Sequence[Any]]
    batch: Expr
    panel: Expr
    matrix: Expr
    a: Expr
    columns: int

    def emit(self, m: Expr, rows: int) -> None:
        """Rows ``m .. m + rows - 1``."""
        plan = self.code.plan
        problem, layout, lanes = plan.problem, plan.layout, plan.layout.lanes
        vectors = 4 * -(-self.columns // (4 * lanes))
        own = self.code.steps.rows(rows)
        sums = local(own * vectors * lanes, "int32")
        place = bind(self.panel * layout.panel)
        start = bind(self.matrix * layout.padded + place)
        added = [self._row_term(m + i) for i in range(rows)]
        for v in range(vectors):
            bias = bind(vload(self.code.c, start + v * lanes, lanes))
            for i in range(own):
                term = added[min(i, rows - 1)]
                value = bias if term is None else bias + splat(term, lanes)
                vstore(sums, (i * vectors + v) * lanes, value, lanes)
        base = bind((self.matrix * layout.panels + self.panel) * (layout.steps * layout.panel))
        lines = [bind(self.a + (m + i) * problem.k) for i in range(rows)]
        self.code.steps.emit(sums, lines, base, vectors)
        multipliers = [self._multiplier(place, v) for v in range(vectors)]
        for i in range(rows):
            row = bind(m + i)
            for group in range(vectors // 4):
                column = bind(place + group * 4 * lanes)
                four = range(4 * group, 4 * group + 4)

                def coords(first: int, row: Expr = row, column: Expr = column) -> Sequence[Expr]:
                    return (self.batch, row, column + first)

                plan.epilogue.store(
                    self.buffers,
                    bind((self.batch * problem.m + row) * problem.n + column),
                    coords,
                    [bind(vload(sums, (i * vectors + v) * lanes, lanes)) for v in four],
                    [multipliers[v] for v in four] if plan.epilogue.requantizes else [],
                    self.columns - group * 4 * lanes,
                )

    def _row_term(self, m: Expr) -> Expr | None:
        rows, problem = self.code.row_sums, self.code.plan.problem
        return None if rows is None else bind(rows[tirx.truncdiv(self.a, problem.k) + m])

    def _multiplier(self, place: Expr, vector: int) -> Expr | None:
        epilogue, lanes = self.code.plan.epilogue, self.code.plan.layout.lanes
        if not epilogue.requantizes:
            return None
        if epilogue.scalar is not None:
            return bind(splat(tirx.const(epilogue.scalar, "int32"), lanes))
        return bind(vload(self.buffers[1][-1], place + vector * lanes, lanes))


def _row_sums(dtype: str, rows: int, k: int, factor: int, target: Target) -> Any:
    """Stage function: ``r[row] = factor * sum of row``."""

    def body(a: Any, r: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as row:
            total = reduce_strip(
                k,
                max(target.vector_bits // 32, 1),
                lambda at, width: vm.cast(vload(a, row * k + at, width), "int32"),
                lambda x, y: x + y,
                tirx.const(0, "int32"),
                "int32",
            )
            vstore(r, row, total * tirx.const(factor, "int32"), 1)

    return stage_func([("a", dtype, rows * k), ("r", "int32", rows)], body)


def _paired(region: Region, problem: Problem, target: Target) -> bool:
    """Whether two rows and columns are multiplied at once; a computed matrix is not packed so."""
    a, b = operand(region.ops[0], 0), operand(region.ops[0], 1)
    signed = Quads(0, a.dtype == "int8")
    return has_pairs(signed, target) and b.const is not None and problem.m > 1 and problem.k > 7


def _cost(problem: Problem, layout: Layout, target: Target, rows: int) -> float | None:
    """Cycles as of ``sparse_matmul_cost``, or ``None`` for a configuration without sense."""
    lanes, groups = layout.lanes, layout.groups
    vectors = 4 * groups
    own = rows + rows % 2 if layout.paired else rows
    if rows > problem.m or (groups > 1 and 4 * lanes >= problem.n):
        return None
    operands = own + 2 if layout.paired else 5
    if own * vectors + operands > target.vector_registers and rows * groups > 1:
        return None
    rate = 2.0 if lanes == 16 else 1.0
    products = own * vectors * (0.5 if layout.paired else 1.0)
    per_quad = products * rate + 0.5 * (vectors * rate + own) + 1.0
    per_quad = max(per_quad, 2.0)
    tile = layout.steps * per_quad + rows * vectors * 9 * rate + 20
    used = -(-problem.n // (4 * lanes)) / groups
    whole, rest = divmod(problem.m, rows)
    row_tiles = whole + (0.3 + 0.7 * rest / rows if rest else 0)
    pace = 0.55 if uses_lanes(target) else 0.45  # measured beside sparse products
    return streamed(
        pace * problem.batch * tile * used * row_tiles, 4.0 * layout.quads, problem.batch, target
    )
