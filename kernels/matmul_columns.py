"""``MatMulInteger`` with a constant right operand on processors without wide vectors.

Rows of the left operand are the columns of ``columns``, one or two at a time, of single
elements (they may lie at any address); columns of the right operand are its filters, of which
blocks may be zero (``SparseColumnMatMul``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import Param, T, bind, local, loop, stage_func, vstore
from effc.kernels.column_kinds import columns_for
from effc.kernels.column_products import (
    LIST_OVERHEAD,
    AllProducts,
    KeptProducts,
    Products,
    lists_reach,
)
from effc.kernels.columns import SLOT, TILE, Columns, is_narrow, unrolls
from effc.kernels.epilogue import Epilogue
from effc.kernels.inline_assembly import importing
from effc.kernels.matmul_problem import Problem, problem_of
from effc.kernels.overlap import Shifts, ascending, overlap
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Op, Region, Value
from effc.kernels.sparsity import LEAST_ZEROS
from effc.kernels.template import Config, Kernel, Overlap, Stage, Template

__all__ = ["ColumnMatMul", "SparseColumnMatMul"]

Expr = Any  # tvm.tirx expressions have no useful static types


class ColumnMatMul(Template):
    """Matrix products and fully connected layers."""

    name: ClassVar[str] = "matmul_columns"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        if not is_narrow(target):
            return "the processor has wide vectors"
        op = region.anchor
        if op is None or (op.domain, op.op_type) != (DOMAIN, "MatMulInteger"):
            return "the anchor is not an integer matrix product"
        a, b = operand(op, 0), operand(op, 1)
        if a.const is not None or b.const is None:
            return "the left operand is constant, or the right one is not"
        if a.dtype != "int8" or b.dtype != "int8" or int(op.attrs.get("b_zero", 0)):
            return "an operand is not a signed one"
        if any(v is not None and v.const is None for v in op.inputs[2:]):
            return "the bias is computed at run time"
        if 0 in a.shape or 0 in b.shape:
            return "a tensor is empty"
        problem = problem_of(op, collapse=True)
        if problem.batch != 1 or problem.swapped:
            return "the right operand is a stack of matrices or a vector"
        return _epilogue(region, op, problem).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        return [({"unroll": u}, _predicted(region, target, u)) for u in unrolls(target)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.ops[0]
        p = problem_of(op, collapse=True)
        columns = _columns(p, target, int(config["unroll"]))
        weights, bias = _constants(op, p)
        products = self.products(columns, weights, config)
        plan = _Plan(
            p, columns, products, bias, _epilogue(region, op, p), target.vector_bits >= 128
        )
        shifts = _shifts(p, columns.positions, region.outputs[0]) if target.serial else ()
        return plan.kernel(region, overlap(region, operand(op, 0), shifts))

    def products(self, columns: Columns, weights: np.ndarray, config: Config) -> Products:
        """What is added up."""
        return AllProducts(columns, columns.pack(weights))


class SparseColumnMatMul(ColumnMatMul):
    """The same with a matrix of which whole blocks are zero."""

    name: ClassVar[str] = "matmul_columns_sparse"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        if reason := super().refuse(region, target):
            return reason
        if region.ops[0].zeros is None:
            return f"fewer than {LEAST_ZEROS:.0%} of the weights are zero"
        return lists_reach(_columns(problem_of(region.ops[0], collapse=True), target, 1))

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        zeros = region.ops[0].zeros
        assert zeros is not None
        unroll = 1 + (target.optimize != "size")
        found: list[tuple[Config, float]] = [
            ({"unroll": unroll, "rows": rows}, _predicted(region, target, unroll, share))
            for (rows, depth), share in zeros.units
            if depth == TILE and rows % TILE == 0
        ]
        return sorted(found, key=lambda item: (item[1], -int(item[0]["rows"])))

    def products(self, columns: Columns, weights: np.ndarray, config: Config) -> Products:
        """See :meth:`ColumnMatMul.products`."""
        return KeptProducts(columns, weights, int(config["rows"]))


def _columns(p: Problem, target: Target, unroll: int) -> Columns:
    return columns_for(target, -(-p.k // SLOT), min(p.m, 2), whole=False, unroll=unroll)


def _predicted(region: Region, target: Target, unroll: int, share: float | None = None) -> float:
    """Instructions of all products, see ``Columns.predicted``; the rest is the same for all."""
    p = problem_of(region.ops[0], collapse=True)
    columns = _columns(p, target, unroll)
    tiles = -(-p.m // columns.positions) * -(-p.n // TILE) * columns.positions
    return tiles * columns.predicted(share, LIST_OVERHEAD)


def _shifts(p: Problem, rows: int, result: Value) -> Shifts:
    """Where the result may lie over the left operand: a tile reads its rows before it writes."""
    first = np.arange(0, p.m, rows)
    row = result.type.nbytes // p.m
    last = np.minimum(first + rows, p.m) * row
    return ascending(np.minimum(first, p.m - 1) * p.k, last, (p.m * p.k, p.m * row))


def _epilogue(region: Region, op: Op, problem: Problem) -> Epilogue:
    return Epilogue(region, op.outputs[0], (problem.m, problem.n))


def _constants(op: Op, p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Weights int8 ``[filters, slots, 4]``, and where sums begin, int32 ``[filters]``."""
    matrix = operand(op, 1).const
    assert matrix is not None
    rows = matrix.reshape(p.k, p.n).T
    padded = np.pad(rows, [(0, -p.n % TILE), (0, -p.k % TILE)])
    total = -int(op.attrs.get("a_zero", 0)) * rows.sum(axis=1, dtype=np.int64)
    bias = op.inputs[2] if len(op.inputs) > 2 else None
    if bias is not None:
        assert bias.const is not None
        total = total + np.broadcast_to(bias.const.reshape(-1), (p.n,))
    folded = np.pad(total, (0, -p.n % TILE)).astype(np.uint32).view(np.int32)
    return padded.reshape(padded.shape[0], -1, 4), folded


@dataclass(frozen=True)
class _Plan:
    """Emits the stage; ``vectors``: whether the processor computes four results at a time."""

    problem: Problem
    columns: Columns
    products: Products
    bias: np.ndarray
    epilogue: Epilogue
    vectors: bool

    def kernel(self, region: Region, overlaps: tuple[Overlap, ...]) -> Kernel:
        problem, epilogue = self.problem, self.epilogue
        weights = {"bias": self.bias, **self.products.weights}
        dtype, elements = self.columns.buffer
        params: list[Param] = [
            ("a", "int8", problem.a.elements),
            *((name, str(array.dtype), array.size) for name, array in weights.items()),
            *epilogue.params,
            ("y", epilogue.out_dtype, region.outputs[0].type.size),
            ("scratch", dtype, elements),
        ]
        tiles = -(-problem.m // self.columns.positions)

        def body(*arguments: Any) -> None:
            *buffers, begin, end = arguments
            with importing(self.products.routines), loop(begin, end) as tile:
                self._tile(tile, buffers)

        names = [f"w:{name}" for name in weights]
        args = (problem.a.name, *names, *epilogue.args, region.outputs[0].name, "scratch")
        nbytes = elements * np.dtype(dtype).itemsize
        stage = Stage(stage_func(params, body), args, tiles, nbytes)
        inplace = epilogue.inplace if problem.m % self.columns.positions == 0 else ()
        return Kernel((stage,), weights | epilogue.weights, {}, inplace, overlaps)

    def _tile(self, tile: Expr, buffers: list[Any]) -> None:
        problem, columns, n = self.problem, self.columns, self.problem.n
        a, *others, y, scratch = buffers
        rows = [bind(tile * columns.positions)]
        if columns.positions == 2:
            rows.append(bind(tirx.Min(rows[0] + 1, T.int32(problem.m - 1))))
        for p, row in enumerate(rows):
            with loop(problem.k) as k:
                columns.put(scratch, k, T.int32(p), bind(a[row * problem.k + k]))
            for k in range(problem.k, columns.slots * SLOT):
                columns.put(scratch, T.int32(k), T.int32(p), tirx.const(0, "int8"))
        count = len(self.products.weights)
        bias, constants, operands = others[0], others[1 : 1 + count], others[1 + count :]
        rest = (bias, constants, operands, y, scratch)

        def quad(index: Expr, number: Expr, shared: list[Expr]) -> None:
            self._filters(index, number, shared, TILE, rows, rest)

        whole, ragged = divmod(n, TILE)
        self.products.each_quad(T.int32(0), whole, constants, quad)
        if ragged:
            block, number = divmod(whole, self.products.quads)
            shared = self.products.begin(T.int32(block), constants)
            self._filters(T.int32(whole), T.int32(number), shared, ragged, rows, rest)

    def _filters(
        self,
        quad: Expr,
        number: Expr,
        shared: list[Expr],
        count: int,
        rows: list[Expr],
        buffers: tuple[Any, ...],
    ) -> None:
        """A quad of columns, of which ``count`` exist; see ``Products.each_quad``."""
        bias, constants, operands, y, scratch = buffers
        columns, n = self.columns, self.problem.n
        positions = columns.positions
        sums = local(TILE * positions, "int32")
        for f in range(TILE):
            start = bind(bias[quad * TILE + f])
            for p in range(positions):
                T.buffer_store(sums, start, [p * TILE + f])
        for part in range(positions):
            tile = bind(number * positions + part)
            first = part * columns.filters
            self.products.multiply(sums, first, tile, shared, constants, scratch)
        lanes = TILE if self.vectors and count == TILE else 1
        for p, row in enumerate(rows):
            for f in range(0, count, lanes):
                column = bind(quad * TILE + f)
                found = [bind(sums[p * TILE + f + i]) for i in range(lanes)]
                given = found[0] if lanes == 1 else bind(tirx.Shuffle(found, list(range(lanes))))
                value = self.epilogue.apply(given, [row, column], operands, axis=1, lanes=lanes)
                vstore(y, row * n + column, value, lanes)
