"""Sparse matrix product: MatMul, Gemm and MatMulInteger by a constant matrix with zeros in it.

``y[p][f] = alpha * sum_k W[f][k] * x[p][k] + beta * bias``: the constant matrix is a set of
filters, its columns if it is the right-hand operand and its rows if it is the left-hand one,
applied at positions, the rows or columns of the other operand. As in ``sparse_conv``, ``k`` runs
over the list of channels that a tile of filters keeps (``sparse_pack``); any zeros will do.

Exact up to the order of f32 summation, at most ``2 * k * eps * sum |a * b|``; products
with zero weights are left out, so that infinities behind them do not become NaN.

``MatMulInteger`` is the same with quads of four bytes as channels (``quad_arithmetic``): lists are
of quads, accumulators begin at 0, and the bias less ``a_zero * sum w`` is added to sums. It gives
the reference's bits.

Sources: block sparsity with vectors along filters (Gray et al., GPU Kernels for Block-Sparse
Weights, 2017); with vectors along positions, Elsen et al., Fast Sparse ConvNets, CVPR 2020.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.arithmetic import product_dtypes
from effc.kernels.columns import NARROW, is_narrow
from effc.kernels.epilogue import Epilogue
from effc.kernels.matmul_problem import problem_of
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.sparse_matmul_cost import sparse_matmul_candidates
from effc.kernels.sparse_matmul_product import SparseMatMulProduct
from effc.kernels.sparse_matmul_results import (
    ByteResults,
    QuadMultipliers,
    Results,
    SumResults,
)
from effc.kernels.sparse_matmul_roles import Roles, SparseMatMulConfig
from effc.kernels.sparse_pack import pack_tiles
from effc.kernels.sparsity import LEAST_ZEROS
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["SparseMatMul"]


class SparseMatMul(Template):
    """``MatMul``, ``Gemm`` and ``MatMulInteger`` whose constant matrix has zeros."""

    name: ClassVar[str] = "matmul_sparse"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        op = region.anchor
        if op is None or op.op_type not in ("MatMul", "Gemm", "MatMulInteger"):
            return "the anchor is not a matrix product"
        if op.domain == DOMAIN and (reason := _integer_refusal(op, target)):
            return reason
        if op.domain != DOMAIN and op.outputs[0].dtype not in product_dtypes(target):
            return f"sparse matrix products have no kernel for {op.outputs[0].dtype}"
        if any(v is not None and 0 in v.shape for v in (*op.inputs, op.outputs[0])):
            return "a tensor is empty"
        if op.zeros is None:
            return f"fewer than {LEAST_ZEROS:.0%} of the weights are zero"
        if Roles.of(op, collapse=False) is None:
            return "not exactly one operand is constant"
        views = [_epilogue(region, collapse).refusal for collapse in (True, False)]
        if None not in views:
            return views[0]
        if not self.candidates(region, target):
            return "no kernel computes blocks of this shape"
        return None

    def features(self, region: Region) -> frozenset[str]:
        """See :meth:`Template.features`."""
        return _chosen(region)[0].arithmetic.features

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        assert region.anchor is not None
        assert region.anchor.zeros is not None
        return sparse_matmul_candidates(_chosen(region)[0], region.anchor.zeros, target)

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        roles, collapse = _chosen(region)
        knobs = SparseMatMulConfig.of(config)
        packed = pack_tiles(roles.matrix[None, :, :, None], knobs.rows, knobs.depth)
        results = _results(region, roles, collapse, knobs, target)
        stage = SparseMatMulProduct(roles, knobs, target, results)
        weights: dict[str, np.ndarray] = stage.weights(packed)
        args = [roles.data.name, *(f"w:{name}" for name in weights), *results.args]
        args.append(region.outputs[0].name)
        if stage.scratch_elements:
            args.append("scratch")
        product = Stage(
            stage.function(), tuple(args), stage.units, stage.scratch_bytes, stage.bounds(packed)
        )
        return Kernel((product,), weights | results.weights, inplace=results.inplace)


def _integer_refusal(op: Op, target: Target) -> str | None:
    if is_narrow(target):
        return NARROW
    a, b = op.inputs[0], op.inputs[1]
    assert a is not None
    assert b is not None
    if a.const is not None or b.const is None or b.dtype != "int8" or op.attrs.get("b_zero", 0):
        return "the right operand is not a constant of int8 with zero point 0"
    if len(op.inputs) > 2 and op.inputs[2] is not None and op.inputs[2].const is None:
        return "the bias is computed at run time"
    if min(len(a.shape), len(b.shape)) < 2 or a.shape[-1] < 4 or b.shape[-1] == 1:
        return "a row is too short for quads"
    return None


def _epilogue(region: Region, collapse: bool) -> Epilogue:
    assert region.anchor is not None
    view = problem_of(region.anchor, collapse=collapse).view
    return Epilogue(region, region.anchor.outputs[0], view)


def _chosen(region: Region) -> tuple[Roles, bool]:
    """The form with the most positions that the epilogue allows; whether batches are rows."""
    assert region.anchor is not None
    collapse = _epilogue(region, True).refusal is None
    roles = Roles.of(region.anchor, collapse=collapse)
    assert roles is not None
    return roles, collapse


def _results(
    region: Region, roles: Roles, collapse: bool, knobs: SparseMatMulConfig, target: Target
) -> Results:
    """Bytes wait in scratch where they can, otherwise sums."""
    if region.anchor is not None and region.anchor.domain == DOMAIN and knobs.along == "space":
        blocked = QuadMultipliers(region, roles.problem, target)
        if blocked.requantizes and blocked.refusal is None:
            return ByteResults(roles.problem, blocked, target)
    slack = roles.arithmetic.lanes(target)
    return SumResults(roles.problem, _epilogue(region, collapse), slack)
