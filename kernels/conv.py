"""Direct convolution: an implicit matrix product over panels of output positions.

``Y[co][s] = bias[co] + sum_k W[co][k] * X[k][s]`` per batch and group, where ``k``
runs over (input channel, kernel tap) and ``s`` over flattened output positions.
A unit of work takes a block of positions, packs its columns of ``X`` into
``scratch`` (see ``conv_pack``) and runs the register tile over all channel tiles.
Input that is not contiguous (kernel above 1, stride, padding) is first copied once,
padded and split into stride phases, by a stage of its own.

``space`` tiles keep vectors along positions and broadcast weights; ``channel`` tiles
keep vectors along output channels and broadcast activations, which wastes no
lanes where there are few positions; their result is transposed through scratch.

Integer convolutions run the same way over quads of channels (``conv_problem``), exactly; others are
exact up to the order of summation. With Arm's i8mm quads are multiplied in pairs (``quad_pairs``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.arithmetic import Arithmetic
from effc.kernels.columns import NARROW, is_narrow
from effc.kernels.conv_cost import direct_candidates
from effc.kernels.conv_layout import ProductConfig
from effc.kernels.conv_pack import copy_stage, pack_weights, panel_slack
from effc.kernels.conv_problem import ConvProblem, arithmetic_of, problem_refusal
from effc.kernels.conv_product import Product
from effc.kernels.conv_shape import ConvShape, Source, source_layout
from effc.kernels.overlap import Shifts, overlap, plane_multiples
from effc.kernels.quad_pairs import pack_pairs, paired
from effc.kernels.region import DOMAIN, Op, Region, Value
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["CopiedSource", "DirectConv"]


class CopiedSource:
    """What a product kernel reads: the input itself, or a padded copy and the stage that makes it.

    Args:
        shape, source: The convolution, and the layout that its kernel reads.
        data: Name of the input.
        panel: Columns and lanes of the panels that are packed from the source.
        arithmetic: Type of the elements, and what padding consists of.
        target: Whose vectors copy.

    Attributes:
        ref: Stage argument of the source.
        elements: Its size, with what panels may touch behind it.
        stages, workspaces: Of the kernel; empty if the input is read in place.
    """

    def __init__(
        self,
        shape: ConvShape,
        source: Source,
        data: str,
        panel: tuple[int, int],
        arithmetic: Arithmetic,
        target: Target,
    ) -> None:
        channels = shape.batch * shape.groups * shape.cin
        self.ref, self.elements = data, channels * source.channel
        self.stages: tuple[Stage, ...] = ()
        self.workspaces: dict[str, int] = {}
        if source.copied:
            self.ref = "t:source"
            self.elements += panel_slack(shape, source, *panel)[0]
            copy = copy_stage(shape, source, arithmetic, target, self.elements)
            self.stages = (Stage(copy, (data, self.ref), channels),)
            self.workspaces = {"source": self.elements * arithmetic.nbytes}


class DirectConv(Template):
    """Convolution of any geometry as an implicit matrix product."""

    name: ClassVar[str] = "conv_direct"

    def refuse(self, region: Region, target: Target) -> str | None:
        if region.anchor is not None and region.anchor.domain == DOMAIN and is_narrow(target):
            return NARROW
        return problem_refusal(region, target)

    def features(self, region: Region) -> frozenset[str]:
        assert region.anchor is not None
        return arithmetic_of(region.anchor).features

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        assert region.anchor is not None
        shape = ConvShape.of(region.anchor)
        arithmetic = _arithmetic(region.anchor, shape, target)
        return direct_candidates(shape, source_layout(shape), arithmetic, target)

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        problem = ConvProblem.of(region, target)
        shape, epilogue = problem.shape, problem.results.epilogue
        assert region.anchor is not None
        data = region.anchor.inputs[0]
        assert data is not None
        problem = replace(problem, arithmetic=_arithmetic(region.anchor, shape, target))
        source = source_layout(shape)
        knobs = ProductConfig.of(config)

        pack = pack_weights if problem.arithmetic.steps == 1 else pack_pairs
        weights = {"w": pack(problem.weight, shape.groups, knobs.channels)}
        if len(source.taps) > 1:
            weights["taps"] = np.array(source.taps, np.int32)
        if problem.bias is not None:
            weights["bias"] = problem.bias
        panel = (knobs.columns, knobs.lanes)
        copied = CopiedSource(shape, source, problem.data, panel, problem.arithmetic, target)
        product = Product(problem, source, knobs, target, copied.elements)
        args = [copied.ref, *(f"w:{name}" for name in weights), *epilogue.args]
        args += [region.outputs[0].name, "scratch"]
        stage = Stage(product.function(), tuple(args), product.units, product.scratch_bytes)
        inplace = tuple(pair for pair in epilogue.inplace if pair[0] != problem.data)
        return Kernel(
            (*copied.stages, stage),
            weights | epilogue.weights,
            copied.workspaces,
            inplace,
            overlap(region, data, _shifts(product, data, region.outputs[0])),
        )


def _shifts(product: Product, data: Value, result: Value) -> Shifts:
    """Where a 1x1 convolution may write over its input: a unit packs all channels of its
    positions before it writes them."""
    shape = product.shape
    alone = product.splits == product.passes == shape.groups == shape.batch == 1
    if product.source.copied or not product.knobs.pack or not alone:
        return ()
    planes = (data.shape[1], result.shape[1])
    plane, other = data.type.nbytes // planes[0], result.type.nbytes // planes[1]
    return plane_multiples(plane, *planes) if plane == other else ()


def _arithmetic(op: Op, shape: ConvShape, target: Target) -> Arithmetic:
    """Arithmetic of a convolution without zeros to skip."""
    return paired(arithmetic_of(op), shape.reduction, shape.positions, target)
