"""Sparse matrix product: MatMul and Gemm by a constant matrix with zeros in it.

``y[p][f] = alpha * sum_k W[f][k] * x[p][k] + beta * bias``: the constant matrix is a set of
filters, its columns if it is the right-hand operand and its rows if it is the left-hand one,
applied at positions, the rows or columns of the other operand. As in ``sparse_conv``, ``k`` runs
over the list of channels that a tile of filters keeps (``sparse_pack``); any zeros will do.

Exact up to the order of f32 summation, at most ``2 * k * eps * sum |a * b|``; products
with zero weights are left out, so that infinities behind them do not become NaN.

Sources: block sparsity with vectors along filters (Gray et al., GPU Kernels for Block-Sparse
Weights, 2017); with vectors along positions, Elsen et al., Fast Sparse ConvNets, CVPR 2020.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.arithmetic import float_terms, product_dtypes
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import dtype_lanes
from effc.kernels.matmul_problem import problem_of
from effc.kernels.region import Region
from effc.kernels.sparse_matmul_cost import sparse_matmul_candidates
from effc.kernels.sparse_matmul_product import Roles, SparseMatMulConfig, SparseMatMulProduct
from effc.kernels.sparse_pack import pack_tiles
from effc.kernels.sparsity import LEAST_ZEROS
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["SparseMatMul"]


class SparseMatMul(Template):
    """``MatMul`` and ``Gemm`` whose constant matrix has zeros."""

    name: ClassVar[str] = "matmul_sparse"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or op.op_type not in ("MatMul", "Gemm"):
            return "the anchor is not a matrix product"
        if op.outputs[0].dtype not in product_dtypes(target):
            return f"sparse matrix products have no kernel for {op.outputs[0].dtype}"
        if any(v is not None and 0 in v.shape for v in (*op.inputs, op.outputs[0])):
            return "a tensor is empty"
        if op.zeros is None:
            return f"fewer than {LEAST_ZEROS:.0%} of the weights are zero"
        if _roles(region, collapse=False) is None:
            return "not exactly one operand is constant"
        views = [_epilogue(region, collapse).refusal for collapse in (True, False)]
        return None if None in views else views[0]

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        assert region.anchor is not None
        assert region.anchor.zeros is not None
        return sparse_matmul_candidates(_chosen(region)[0], region.anchor.zeros, target)

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        roles, epilogue = _chosen(region)
        knobs = SparseMatMulConfig.of(config)
        filters = roles.matrix[None, :, :, None]
        packed = pack_tiles(filters, knobs.rows, knobs.depth)
        assert region.anchor is not None
        terms = float_terms(region.anchor)
        stage = SparseMatMulProduct(roles, knobs, target, epilogue, terms)
        weights: dict[str, np.ndarray] = stage.weights(packed)
        args = [roles.data.name, *(f"w:{name}" for name in weights)]
        if (c := roles.problem.c) is not None:
            padded = roles.problem.pack_c(dtype_lanes(target, roles.problem.dtype))
            args.append(c.name if padded is None else "w:c")
            weights |= {} if padded is None else {"c": padded}
        args += [*epilogue.args, region.outputs[0].name]
        if stage.scratch_elements:
            args.append("scratch")
        product = Stage(
            stage.function(), tuple(args), stage.units, stage.scratch_bytes, stage.bounds(packed)
        )
        return Kernel((product,), weights | epilogue.weights, inplace=epilogue.inplace)


def _roles(region: Region, *, collapse: bool) -> Roles | None:
    assert region.anchor is not None
    return Roles.of(problem_of(region.anchor, collapse=collapse))


def _epilogue(region: Region, collapse: bool) -> Epilogue:
    assert region.anchor is not None
    view = problem_of(region.anchor, collapse=collapse).view
    return Epilogue(region, region.anchor.outputs[0], view)


def _chosen(region: Region) -> tuple[Roles, Epilogue]:
    """The form with the most positions that the epilogue allows."""
    collapse = _epilogue(region, True).refusal is None
    roles = _roles(region, collapse=collapse)
    assert roles is not None
    return roles, _epilogue(region, collapse)
