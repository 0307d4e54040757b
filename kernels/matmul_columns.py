"""``MatMulInteger`` with a constant right operand on processors without wide vectors.

Rows of the left operand are the columns of ``columns``, one or two at a time, of single
elements (they may lie at any address); columns of the right operand are its filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import Param, T, bind, local, loop, stage_func
from effc.kernels.columns import TILE, Columns, columns_for, is_narrow, unrolls
from effc.kernels.epilogue import Epilogue
from effc.kernels.inline_assembly import importing
from effc.kernels.matmul_problem import Problem, problem_of
from effc.kernels.overlap import Shifts, ascending, overlap
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Op, Region, Value
from effc.kernels.template import Config, Kernel, Overlap, Stage, Template

__all__ = ["ColumnMatMul"]

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
        p = problem_of(region.ops[0], collapse=True)
        macs = float(p.m * p.n * p.k)
        return [({"unroll": unroll}, macs * (1.1 + 0.125 / unroll)) for unroll in unrolls(target)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.ops[0]
        p = problem_of(op, collapse=True)
        slots, positions = -(-p.k // TILE), min(p.m, 2)
        unroll = int(config["unroll"])
        columns = columns_for(target, slots, positions, whole=False, unroll=unroll)
        weights, bias = _constants(op, p)
        plan = _Plan(p, columns, _epilogue(region, op, p))
        shifts = _shifts(p, positions, region.outputs[0]) if target.serial else ()
        packed = {"w": columns.pack(weights), "bias": bias}
        return plan.kernel(region, packed, overlap(region, operand(op, 0), shifts))


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
    """Emits the stage."""

    problem: Problem
    columns: Columns
    epilogue: Epilogue

    def kernel(
        self, region: Region, weights: dict[str, np.ndarray], overlaps: tuple[Overlap, ...]
    ) -> Kernel:
        problem, epilogue = self.problem, self.epilogue
        dtype, elements = self.columns.buffer
        params: list[Param] = [
            ("a", "int8", problem.a.elements),
            ("w", self.columns.stored, weights["w"].size),
            ("bias", "int32", weights["bias"].size),
            *epilogue.params,
            ("y", epilogue.out_dtype, region.outputs[0].type.size),
            ("scratch", dtype, elements),
        ]
        tiles = -(-problem.m // self.columns.positions)

        def body(*arguments: Any) -> None:
            *buffers, begin, end = arguments
            with importing(self.columns.routines), loop(begin, end) as tile:
                self._tile(tile, buffers)

        args = (problem.a.name, "w:w", "w:bias", *epilogue.args, region.outputs[0].name, "scratch")
        nbytes = elements * np.dtype(dtype).itemsize
        stage = Stage(stage_func(params, body), args, tiles, nbytes)
        inplace = epilogue.inplace if problem.m % self.columns.positions == 0 else ()
        return Kernel((stage,), weights | epilogue.weights, {}, inplace, overlaps)

    def _tile(self, tile: Expr, buffers: list[Any]) -> None:
        problem, columns, n = self.problem, self.columns, self.problem.n
        a, w, bias, *operands, y, scratch = buffers
        rows = [bind(tile * columns.positions)]
        if columns.positions == 2:
            rows.append(bind(tirx.Min(rows[0] + 1, T.int32(problem.m - 1))))
        for p, row in enumerate(rows):
            with loop(problem.k) as k:
                columns.put(scratch, k, T.int32(p), bind(a[row * problem.k + k]))
            for k in range(problem.k, columns.slots * TILE):
                columns.put(scratch, T.int32(k), T.int32(p), tirx.const(0, "int8"))
        rest = (w, bias, operands, y, scratch)
        with loop(n // TILE) as number:
            self._columns(number, TILE, rows, rest)
        if n % TILE:
            self._columns(T.int32(n // TILE), n % TILE, rows, rest)

    def _columns(
        self, number: Expr, count: int, rows: list[Expr], buffers: tuple[Any, ...]
    ) -> None:
        """Columns from ``TILE * number`` on, of which ``count`` exist."""
        w, bias, operands, y, scratch = buffers
        columns, n = self.columns, self.problem.n
        positions = columns.positions
        sums = local(TILE * positions, "int32")
        for f in range(TILE):
            start = bind(bias[number * TILE + f])
            for p in range(positions):
                T.buffer_store(sums, start, [p * TILE + f])
        for part in range(positions):
            columns.multiply(
                sums, part * columns.filters, w, bind(number * positions + part), scratch
            )
        for p, row in enumerate(rows):
            for f in range(count):
                column = bind(number * TILE + f)
                value = self.epilogue.apply(
                    bind(sums[p * TILE + f]), [row, column], operands, axis=1, lanes=1
                )
                T.buffer_store(y, value, [row * n + column])
