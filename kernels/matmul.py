"""Matrix products: MatMul (batched, broadcasting) and Gemm, one packed or plain operand each.

``C[b, m, n] = alpha * sum_k A[b, m, k] * B[b, k, n] + beta * bias``. Vectors run along
n, scalars of A are broadcast. A constant B is packed at compile time into panels
``[n / panel][k][panel]``, padded with zeros; a constant A into tiles
``[m / rows][k][rows]``. Runtime operands are read where they are; only a ragged
or transposed panel of a runtime B is first copied to scratch, because vectors may
not read past a tensor. A matrix times a vector is computed transposed, so that
vectors run along the longer side.

Sums are split over registers: results differ from ONNX Runtime's by rounding,
at most ``2 * k * eps * sum |a * b|``; integers wrap as in ONNX.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.arithmetic import float_terms, product_dtypes
from effc.kernels.builder import Param, stage_func
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import dtype_lanes
from effc.kernels.matmul_cost import matmul_cost
from effc.kernels.matmul_operands import Store
from effc.kernels.matmul_problem import Factor, Problem, problem_of
from effc.kernels.matmul_product import MatMulProduct, Tiling
from effc.kernels.region import Region
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["MatMulTemplate"]

_DTYPES = ("float32", "float64", "int32", "int64", "uint32", "uint64")


class MatMulTemplate(Template):
    """``MatMul`` and ``Gemm``, any shapes, constant or runtime operands."""

    name: ClassVar[str] = "matmul"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or op.op_type not in ("MatMul", "Gemm"):
            return "the anchor is not a matrix product"
        result = op.outputs[0]
        if result.dtype not in (*_DTYPES, *product_dtypes(target)):
            return f"matrix products have no kernel for {result.dtype}"
        if any(v is not None and 0 in v.shape for v in (*op.inputs, result)):
            return "a tensor is empty"
        if result.dtype[0] != "f" and any(
            not float(op.attrs.get(name, 1.0)).is_integer() for name in ("alpha", "beta")
        ):
            return "an integer product is scaled by a fraction"
        views = [Epilogue(region, result, p.view).refusal for p in _problems(region)]
        return None if None in views else views[0]

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        problem = _problem(region)
        lanes = dtype_lanes(target, problem.dtype)
        widths = [lanes]
        while widths[-1] > 4 and problem.n <= widths[-1] // 2:
            widths.append(widths[-1] // 2)
        if lanes > 8 and target.arch == "x86_64" and widths == [lanes]:
            widths.append(lanes // 2)
        found: list[tuple[Config, float]] = []
        for width in widths:
            for rows in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14):
                for vectors in (1, 2, 3, 4, 6, 8):
                    for chains in (1, 2, 4):
                        cost = matmul_cost(problem, target, width, rows, vectors, chains)
                        if cost is None:
                            continue
                        config = {
                            "lanes": width, "rows": rows, "vectors": vectors, "chains": chains,
                        }  # fmt: skip
                        found.append((config, cost))
        return sorted(found, key=lambda item: item[1])[:14]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        problem = _problem(region)
        epilogue = Epilogue(region, op.outputs[0], problem.view)
        tile = Tiling(
            problem,
            target,
            int(config["lanes"]),
            int(config["rows"]),
            int(config["vectors"]),
            int(config["chains"]),
        )
        weights = dict(epilogue.weights)
        params: list[Param] = []
        args: list[str] = []
        packed = {
            "a": None if problem.a.const is None else problem.pack_a(tile.rows),
            "b": None if problem.b.const is None else problem.pack_b(tile.panel),
            "c": problem.pack_c(tile.lanes),
        }
        for name, factor in (("a", problem.a), ("b", problem.b), ("c", problem.c)):
            if factor is None:
                continue
            constant = packed[name]
            if constant is not None:
                weights[name] = constant
            size = factor.elements if constant is None else constant.size
            params.append((name, _stored(problem, factor), size))
            args.append(factor.name if constant is None else f"w:{name}")
        own = len(params)
        params += epilogue.params
        params.append(("y", epilogue.out_dtype, op.outputs[0].type.size))
        if tile.scratch:
            params.append(("scratch", problem.dtype, tile.scratch))

        def body(*arguments: Any) -> None:
            *buffers, begin, end = arguments
            scratch = buffers.pop() if tile.scratch else None
            y = buffers.pop()
            store = Store(problem, epilogue, y, buffers[own:], buffers[2] if own > 2 else None)
            code = MatMulProduct(tile, buffers[0], buffers[1], scratch, store, float_terms(op))
            code.emit(begin, end)

        stage = Stage(
            stage_func(params, body),
            (
                *args,
                *epilogue.args,
                region.outputs[0].name,
                *(("scratch",) if tile.scratch else ()),
            ),
            tile.units,
            tile.scratch * np.dtype(problem.dtype).itemsize,
        )
        return Kernel((stage,), weights, inplace=epilogue.inplace)


def _stored(problem: Problem, factor: Factor) -> str:
    """Element type of an operand in memory."""
    if factor.const is not None:
        return str(factor.const.dtype)
    return problem.dtype


def _problems(region: Region) -> list[Problem]:
    assert region.anchor is not None
    return [problem_of(region.anchor, collapse=True), problem_of(region.anchor, collapse=False)]


def _problem(region: Region) -> Problem:
    """The form with the largest m that the epilogue allows."""
    assert region.anchor is not None
    result = region.anchor.outputs[0]
    return next(p for p in _problems(region) if Epilogue(region, result, p.view).refusal is None)
