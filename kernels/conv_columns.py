"""Integer convolutions on processors without wide vectors, by columns (``columns``).

For one or two output positions at a time: gather their inputs, and take the products with all
filters, a tile of filters after the other. Sums begin with the folded bias
(``conv_problem``); the epilogue works on single values.

Scratch is the columns of one tile. Residual operands may share memory with the output: a tile
reads them before it writes, and where the last tile has a single position left it computes that
one twice and stores the same values. The input may lie below the output (``overlap``).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.column_filters import (
    AllInAssembly,
    AssembledFilters,
    Filters,
    KeptInAssembly,
    TileFilters,
    finish_for,
)
from effc.kernels.column_order import Order, Quads, order_for, source_for
from effc.kernels.column_products import AllProducts, KeptProducts, Products
from effc.kernels.column_rows import gather_for
from effc.kernels.column_stage import ColumnStage
from effc.kernels.columns import TILE, Columns, PairColumns, columns_for, is_narrow, unrolls
from effc.kernels.conv_problem import ConvProblem, problem_refusal, zero_as_read
from effc.kernels.conv_shape import ConvShape, layout_of
from effc.kernels.fixed_point import Scaling, sole_scaling
from effc.kernels.overlap import Shifts, all_planes, overlap, quad_bytes
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.sparsity import LEAST_ZEROS
from effc.kernels.template import Config, Kernel, Template
from effc.kernels.window import window_axes

__all__ = ["ColumnConv", "SparseColumnConv"]

Factors = tuple[np.ndarray, np.ndarray]
"""Biases and multipliers, int32, one of each per filter."""

_LISTED_STEP = 18 / 16
"""Instructions per product of a listed slot; one in a row of all of them needs 0.94."""
_LONGEST = 2047
"""Slots that a list can reach."""


class ColumnConv(Template):
    """``ConvInteger`` in groups of whole quads."""

    name: ClassVar[str] = "conv_columns"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        if not is_narrow(target):
            return "the processor has wide vectors"
        if region.anchor is None or region.anchor.domain != DOMAIN:
            return "the anchor is not an integer convolution"
        if reason := problem_refusal(region, target, plain=True):
            return reason
        data = region.anchor.inputs[0]
        assert data is not None
        if data.dtype != "int8" and layout_of(region.anchor) == "quads":
            return "activations are unsigned"
        return finish_for(region, ConvShape.of(region.anchor), target).epilogue.refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        assert region.anchor is not None
        macs = 4.0 * ConvShape.of(region.anchor).macs
        return [
            ({"unroll": unroll, "split": unroll > 1}, macs * (0.94 + 0.125 / unroll))
            for unroll in unrolls(target)
        ]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        problem = ConvProblem.of(region, target)
        assert problem.bias is not None
        shape = problem.shape
        unroll, split = int(config["unroll"]), bool(config["split"])
        order = _order(op, target, split)
        positions = self.positions(shape)
        columns = columns_for(target, order.slots, positions, whole=order.whole, unroll=unroll)
        filters: Filters
        scaling, multipliers = sole_scaling(region), _multipliers(region, shape)
        if (
            isinstance(columns, PairColumns)
            and positions == 2
            and scaling is not None
            and multipliers is not None
        ):
            factors = problem.bias, multipliers
            filters = self.assembled(problem, columns, order, (factors, scaling, not split), config)
            columns = filters.columns
        else:
            products = self.products(problem, columns, order, config)
            finish = finish_for(region, shape, target)
            filters = TileFilters(shape, columns, products, problem.bias, finish, rolled=not split)
        gather = gather_for(source_for(op, order), order, columns, zero_as_read(op), split=split)
        shifts = _shifts(region, shape) if target.serial else ()
        overlaps = overlap(region, operand(op, 0), shifts)
        return ColumnStage(shape, columns, gather, filters).kernel(region, problem.data, overlaps)

    def assembled(
        self,
        problem: ConvProblem,
        columns: PairColumns,
        order: Order,
        how: tuple[Factors, Scaling, bool],
        config: Config,
    ) -> AssembledFilters:
        """All filters in assembly; ``how``: with which epilogue, and whether they share code."""
        return AllInAssembly(columns, problem.shape, *how, order.weights(problem.weight))

    def positions(self, shape: ConvShape) -> int:
        """Positions of a tile."""
        return min(shape.positions, 2)

    def products(
        self, problem: ConvProblem, columns: Columns, order: Order, config: Config
    ) -> Products:
        """What is added up."""
        return AllProducts(columns, columns.pack(order.weights(problem.weight)))


class SparseColumnConv(ColumnConv):
    """The same with weights of which whole blocks are zero, on processors with ``PairColumns``."""

    name: ClassVar[str] = "conv_columns_sparse"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        if reason := super().refuse(region, target):
            return reason
        op = region.ops[0]
        if op.zeros is None:
            return f"fewer than {LEAST_ZEROS:.0%} of the weights are zero"
        order = _order(op, target, target.optimize != "size")
        columns = columns_for(target, order.slots, 2, whole=order.whole, unroll=1)
        if not isinstance(columns, PairColumns):
            return "lists are for the DSP extension"
        if not isinstance(order, Quads) or order.shape.groups > 1 or order.slots > _LONGEST:
            return "the convolution has groups, or too few or too many channels for a list"
        return None

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        op = region.ops[0]
        assert op.zeros is not None
        macs = 4.0 * ConvShape.of(op).macs
        split = target.optimize != "size"
        found: list[tuple[Config, float]] = [
            ({"unroll": 1 + split, "split": split, "rows": rows}, macs * share * _LISTED_STEP)
            for (rows, depth), share in op.zeros.units
            if depth == 4 and rows % 4 == 0
        ]
        return sorted(found, key=lambda item: (item[1], -int(item[0]["rows"])))

    def positions(self, shape: ConvShape) -> int:
        return 2

    def assembled(
        self,
        problem: ConvProblem,
        columns: PairColumns,
        order: Order,
        how: tuple[Factors, Scaling, bool],
        config: Config,
    ) -> AssembledFilters:
        rows = int(config["rows"])
        return KeptInAssembly(columns, problem.shape, *how, problem.weight, rows)

    def products(
        self, problem: ConvProblem, columns: Columns, order: Order, config: Config
    ) -> Products:
        assert isinstance(columns, PairColumns)
        rows, unroll = int(config["rows"]), int(config["unroll"])
        return KeptProducts(columns, problem.shape, problem.weight, rows, unroll)


def _order(op: Op, target: Target, split: bool) -> Order:
    """The order of slots; cores with the DSP extension read words at any address."""
    words = split and target.arch == "thumb" and target.has("dsp")
    return order_for(op, operand(op, 1).shape[1], words=words)


def _multipliers(region: Region, shape: ConvShape) -> np.ndarray | None:
    """Of a Requantize behind the convolution: int32, one per filter; ``None`` if they are more."""
    if not region.epilogue or len(region.epilogue[0].inputs) < 2:
        return None
    found = operand(region.epilogue[0], 1).const
    full = (shape.groups * shape.cout // TILE, *(1,) * len(shape.output), TILE)
    if found is None or np.broadcast_shapes(found.shape, full) != full:
        return None
    return np.ascontiguousarray(np.broadcast_to(found, full)).astype(np.int32).reshape(-1)


def _shifts(region: Region, shape: ConvShape) -> Shifts:
    """Where the result may lie over the input: the columns of positions are gathered before
    results of these positions are written."""
    op = region.ops[0]
    data, weight, result = operand(op, 0), operand(op, 1), region.outputs[0]
    if shape.batch > 1 or shape.groups > 1:
        return ()
    axes = window_axes(op, shape.input, weight.shape[2:], shape.output)
    planes, nbytes = (data.shape[1], quad_bytes(data))
    if layout_of(op) != "quads":
        last = layout_of(op) == "last"
        planes, nbytes = (1, weight.shape[1]) if last else (weight.shape[1], 1)
    return all_planes(axes, (planes, result.shape[1]), (nbytes, quad_bytes(result)))
