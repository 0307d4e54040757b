"""The kernel templates, and which of them can compute a region.

Order matters only where two templates predict the same cost. The fallback
through TVM comes last and is asked only when no other template accepts.
"""

from __future__ import annotations

from functools import cache

from effc.devices.target import Target
from effc.kernels.region import Region
from effc.kernels.template import Choice, Template
from effc.kernels.versions import ranked_target

__all__ = ["accepts", "accepts_fused", "choices", "refusals", "templates"]


@cache
def templates() -> tuple[Template, ...]:
    """All templates, the fallback last."""
    from effc.kernels.conv import DirectConv
    from effc.kernels.conv_columns import ColumnConv, SparseColumnConv
    from effc.kernels.conv_transpose import ConvTranspose
    from effc.kernels.depthwise import DepthwiseConv
    from effc.kernels.depthwise_bands import DepthwiseBands
    from effc.kernels.depthwise_integer import DepthwiseInteger
    from effc.kernels.elementwise import ElementwiseTemplate
    from effc.kernels.fallback import FallbackTemplate
    from effc.kernels.integer_products import PlainConvInteger, PlainMatMulInteger
    from effc.kernels.layout import LAYOUT_TEMPLATES
    from effc.kernels.lookup import LookupTemplate
    from effc.kernels.matmul import MatMulTemplate
    from effc.kernels.matmul_columns import ColumnMatMul, SparseColumnMatMul
    from effc.kernels.matmul_integer import MatMulInteger
    from effc.kernels.normalize import NORMALIZE_TEMPLATES
    from effc.kernels.pool import PoolTemplate
    from effc.kernels.pool_global import GlobalPoolTemplate
    from effc.kernels.pool_quads import QuadPool
    from effc.kernels.quads import FromQuadsTemplate, ToQuadsTemplate
    from effc.kernels.reduce import ReduceTemplate
    from effc.kernels.resize_quads import QuadResize
    from effc.kernels.rows_integer import LayerNormInteger, SoftmaxInteger
    from effc.kernels.softmax import SoftmaxTemplate
    from effc.kernels.sparse_conv import SparseConv
    from effc.kernels.sparse_matmul import SparseMatMul
    from effc.kernels.winograd import Winograd

    return (
        ElementwiseTemplate(),
        Winograd(),
        DirectConv(),
        SparseConv(),
        ColumnConv(),
        SparseColumnConv(),
        DepthwiseConv(),
        DepthwiseInteger(),
        DepthwiseBands(),
        ConvTranspose(),
        MatMulTemplate(),
        MatMulInteger(),
        ColumnMatMul(),
        SparseColumnMatMul(),
        SparseMatMul(),
        PoolTemplate(),
        GlobalPoolTemplate(),
        SoftmaxTemplate(),
        SoftmaxInteger(),
        LayerNormInteger(),
        ReduceTemplate(),
        *NORMALIZE_TEMPLATES,
        PlainConvInteger(),
        PlainMatMulInteger(),
        QuadPool(),
        QuadResize(),
        LookupTemplate(),
        ToQuadsTemplate(),
        FromQuadsTemplate(),
        *LAYOUT_TEMPLATES,
        FallbackTemplate(),
    )


def choices(region: Region, target: Target) -> list[Choice]:
    """Every way to compute a region, cheapest prediction first; empty if there is none."""
    *own, fallback = templates()
    found = _accepted(own, region, target)
    return found or _accepted([fallback], region, target)


def accepts_fused(region: Region, target: Target) -> bool:
    """Whether a template of ours (not the fallback) takes the region as one kernel."""
    return any(t.refuse(region, target) is None for t in templates()[:-1])


def accepts(region: Region, target: Target) -> bool:
    """Whether any template takes the region, the fallback included."""
    return any(t.refuse(region, target) is None for t in templates())


def refusals(region: Region, target: Target) -> dict[str, str]:
    """Why each template refuses the region, by template name."""
    found = {t.name: t.refuse(region, target) for t in templates()}
    return {name: why for name, why in found.items() if why is not None}


def _accepted(candidates: list[Template], region: Region, target: Target) -> list[Choice]:
    found = [
        Choice(t, config, cost)
        for t in candidates
        if t.refuse(region, target) is None
        for config, cost in t.candidates(region, ranked_target(t, region, target))
    ]
    return sorted(found, key=lambda choice: choice.cost)
