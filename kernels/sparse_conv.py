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
from effc.kernels.arithmetic import float_arithmetic, product_dtypes
from effc.kernels.conv import CopiedSource, conv_bias, conv_epilogue
from effc.kernels.conv_shape import ConvShape, conv_refusal, source_layout
from effc.kernels.region import Region
from effc.kernels.sparse_cost import sparse_candidates
from effc.kernels.sparse_pack import pack_tiles
from effc.kernels.sparse_positions import SparseConfig
from effc.kernels.sparse_product import SparseProduct
from effc.kernels.sparsity import LEAST_ZEROS, filters_of, similar_order
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["SparseConv"]


class SparseConv(Template):
    """Convolution of any geometry whose weights have zeros."""

    name: ClassVar[str] = "conv_sparse"

    def refuse(self, region: Region, target: Target) -> str | None:
        if reason := conv_refusal(region, product_dtypes(target)):
            return reason
        assert region.anchor is not None
        if region.anchor.zeros is None:
            return f"fewer than {LEAST_ZEROS:.0%} of the weights are zero"
        shape = ConvShape.of(region.anchor)
        if shape.cin == 1 and shape.groups > 1:
            return "a depthwise convolution reads its input once: zeros save nothing"
        return conv_epilogue(region, shape).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        assert region.anchor is not None
        assert region.anchor.zeros is not None
        shape = ConvShape.of(region.anchor)
        zeros = region.anchor.zeros
        return sparse_candidates(
            shape, source_layout(shape), zeros, float_arithmetic(region.anchor), target
        )

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        anchor = region.anchor
        assert anchor is not None
        data = anchor.inputs[0]
        filters = filters_of(anchor)
        assert data is not None
        assert filters is not None
        shape = ConvShape.of(anchor)
        source = source_layout(shape)
        epilogue = conv_epilogue(region, shape)
        knobs = SparseConfig.of(config)
        arithmetic = float_arithmetic(anchor)
        order = None
        if knobs.sort:
            order = similar_order(filters != 0, (knobs.rows, knobs.depth))
            filters = np.take_along_axis(filters, order[:, :, None, None], axis=1)
            order = (order + np.arange(shape.groups)[:, None] * shape.cout).reshape(-1)
        packed = pack_tiles(filters, knobs.rows, knobs.depth)
        bias = conv_bias(region, arithmetic, order)

        panel = (knobs.columns, knobs.lanes)
        copied = CopiedSource(shape, source, data.name, panel, arithmetic, target)
        stage = SparseProduct(
            shape, source, knobs, target, arithmetic, epilogue, bias is not None, copied.elements
        )
        weights: dict[str, np.ndarray] = stage.weights(packed)
        if order is not None:
            weights["order"] = order.astype(np.int32)
        if bias is not None:
            weights["bias"] = bias
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
        inplace = tuple(pair for pair in epilogue.inplace if pair[0] != data.name)
        return Kernel(
            (*copied.stages, product), weights | epilogue.weights, copied.workspaces, inplace
        )
