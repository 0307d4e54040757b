"""Sparse convolution: an implicit matrix product over the kept units of the weights.

``Y[co][s] = bias[co] + sum_k W[co][k] * X[k][s]`` as in ``conv``, but ``k`` runs over a list of
the kernel positions and input channels that a tile of filters keeps (``sparse_pack``). Any zeros
will do: unstructured ones are tiles of one filter, block-punched ones tiles of as many filters
as share a mask; filters that need nearly the same inputs may first be sorted together. The
register tile reads the activations where they are (a padded copy split into stride phases, or the
input itself), at the flat offset of each entry, or from a panel packed in ``scratch`` that holds
only what some filter needs.

``space`` tiles have vectors along positions and broadcast weights; ``channel`` tiles have vectors
along filters and broadcast activations, which wastes no lanes on short rows.

Exact up to the order of f32 summation; products with zero weights are left out, so that
infinities behind them do not become NaN.

Sources: block-punched pruning and its compiler (Cai et al., YOLObile, AAAI 2021); sparse kernels
with the activation's rows contiguous (Elsen et al., Fast Sparse ConvNets, CVPR 2020).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.columns import NARROW, is_narrow
from effc.kernels.conv import CopiedSource
from effc.kernels.conv_problem import ConvProblem, arithmetic_of, problem_refusal
from effc.kernels.conv_shape import ConvShape, source_layout
from effc.kernels.region import DOMAIN, Region
from effc.kernels.sparse_conv_cost import sparse_candidates
from effc.kernels.sparse_conv_product import SparseProduct
from effc.kernels.sparse_pack import pack_tiles
from effc.kernels.sparse_positions import SparseConfig
from effc.kernels.sparsity import LEAST_ZEROS, similar_order
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["SparseConv"]


class SparseConv(Template):
    """Convolution of any geometry whose weights have zeros."""

    name: ClassVar[str] = "conv_sparse"

    def refuse(self, region: Region, target: Target) -> str | None:
        if reason := problem_refusal(region, target):
            return reason
        assert region.anchor is not None
        if region.anchor.domain == DOMAIN and is_narrow(target):
            return NARROW
        if region.anchor.zeros is None:
            return f"fewer than {LEAST_ZEROS:.0%} of the weights are zero"
        shape = ConvShape.of(region.anchor)
        if shape.cin == 1 and shape.groups > 1:
            return "a depthwise convolution reads its input once: zeros save nothing"
        if not sparse_candidates(
            shape, source_layout(shape), region.anchor.zeros, arithmetic_of(region.anchor), target
        ):
            return "no kernel computes blocks of this shape"
        return None

    def features(self, region: Region) -> frozenset[str]:
        assert region.anchor is not None
        return arithmetic_of(region.anchor).features

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        anchor = region.anchor
        assert anchor is not None
        assert anchor.zeros is not None
        shape = ConvShape.of(anchor)
        source = source_layout(shape)
        return sparse_candidates(shape, source, anchor.zeros, arithmetic_of(anchor), target)

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        problem = ConvProblem.of(region, target)
        shape, results = problem.shape, problem.results
        source = source_layout(shape)
        knobs = SparseConfig.of(config)
        filters = problem.weight.reshape(shape.groups, shape.cout, shape.cin, -1)
        bias, order = problem.bias, None
        if knobs.sort:
            order = similar_order(filters != 0, (knobs.rows, knobs.depth))
            filters = np.take_along_axis(filters, order[:, :, None, None], axis=1)
            order = (order + np.arange(shape.groups)[:, None] * shape.cout).reshape(-1)
        packed = pack_tiles(filters, knobs.rows, knobs.depth)

        panel = (knobs.columns, knobs.lanes)
        copied = CopiedSource(shape, source, problem.data, panel, problem.arithmetic, target)
        stage = SparseProduct(problem, source, knobs, target, copied.elements)
        weights: dict[str, np.ndarray] = stage.weights(packed)
        if order is not None:
            weights["order"] = order.astype(np.int32)
        if bias is not None:
            weights["bias"] = bias if order is None else np.ascontiguousarray(bias[..., order])
        epilogue = results.epilogue
        args = [copied.ref, *(f"w:{name}" for name in weights), *epilogue.args]
        args.append(region.outputs[0].name)
        if stage.scratch_elements:
            args.append("scratch")
        product = Stage(
            stage.function(),
            tuple(args),
            stage.units,
            stage.scratch_bytes,
            stage.bounds(packed),
        )
        inplace = tuple(pair for pair in epilogue.inplace if pair[0] != problem.data)
        return Kernel(
            (*copied.stages, product), weights | epilogue.weights, copied.workspaces, inplace
        )
