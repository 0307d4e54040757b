"""Fold BatchNormalization into the operator before it, or into Mul and Add.

    BN(y) = (y - mean) * s + beta,  s = scale / sqrt(var + eps)

Behind ``y = Conv(x, W, b)`` this is ``Conv(x, s*W, s*(b - mean) + beta)``, and
likewise for ConvTranspose and Gemm. Otherwise it is ``y*s + (beta - s*mean)``,
which later passes may fold further. The factors are computed in float64; the result
differs from the original by rounding only (a few units in the last place per term).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import RewritePass
from effc.passes.graph import Writer, attribute, const, dtype_of, redirect, shape_of, single_user
from effc.passes.scale_weights import scale_producer

__all__ = ["FoldBatchNorm"]


class FoldBatchNorm(RewritePass):
    """BatchNormalization into its producer's weights, or into Mul and Add."""

    name: ClassVar[str] = "fold_batch_norm"
    ops: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool | str:
        if attribute(node, "training_mode", 0):
            return "it is in training mode"
        statistics: list[np.ndarray[Any, Any]] = []
        for value in node.inputs[1:5]:
            array = const(value)
            if array is None:
                return f"{value.name if value else 'an operand'} is not constant"
            statistics.append(array.astype(np.float64))
        scale, beta, mean, var = statistics
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(var + attribute(node, "epsilon", 1e-5))
        if not np.isfinite(factor).all():
            return "its variance is not positive"
        offset = beta - factor * mean
        x, y = node.inputs[0], node.outputs[0]
        if x is None:
            return "it has no input"
        if single_user(x) is node and scale_producer(graph, x, factor, offset):
            redirect(y, x)
            return True
        writer = Writer(graph, node)
        dtype = dtype_of(x).numpy()
        rank = len(shape_of(x))
        column = (-1, *[1] * (rank - 2)) if rank > 1 else (-1,)
        scaled = writer.op("Mul", x, factor.astype(dtype).reshape(column))
        redirect(y, writer.op("Add", scaled, offset.astype(dtype).reshape(column)))
        return True
