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
from effc.kernels.column_assembly import AssembledFilters, assembly_for
from effc.kernels.column_ending import Ending, ending_of
from effc.kernels.column_filters import Filters, TileFilters, finish_for
from effc.kernels.column_kinds import columns_for
from effc.kernels.column_order import Order, Quads, order_for, source_for
from effc.kernels.column_products import (
    LIST_OVERHEAD,
    AllProducts,
    KeptProducts,
    Products,
    lists_reach,
)
from effc.kernels.column_rows import gather_for
from effc.kernels.column_stage import ColumnStage
from effc.kernels.columns import TILE, Columns, is_narrow, unrolls
from effc.kernels.conv_problem import ConvProblem, problem_refusal, zero_as_read
from effc.kernels.conv_shape import ConvShape, layout_of
from effc.kernels.overlap import Shifts, all_planes, overlap, quad_bytes
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.sparsity import LEAST_ZEROS
from effc.kernels.template import Config, Kernel, Template
from effc.kernels.window import window_axes

__all__ = ["ColumnConv", "SparseColumnConv"]


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
        return [
            ({"unroll": unroll, "split": unroll > 1}, _predicted(region, target, unroll))
            for unroll in unrolls(target)
        ]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See :meth:`Template.build`."""
        op = region.anchor
        assert op is not None
        problem = ConvProblem.of(region, target)
        assert problem.bias is not None
        shape, split = problem.shape, bool(config["split"])
        order = _order(op, target)
        columns = _columns(order, target, int(config["unroll"]))
        weights = order.weights(problem.weight)
        filters: Filters
        if (found := _assembly(region, columns)) is not None:
            assembly, ending = found
            rows, result = self.rows(config), region.outputs[0].name
            filters = assembly(
                columns, shape, problem.bias, ending, result, not split, weights, rows
            )
            columns = filters.columns
        else:
            products = self.products(columns, weights, config)
            finish = finish_for(region, shape, target)
            filters = TileFilters(shape, columns, products, problem.bias, finish, rolled=not split)
        gather = gather_for(source_for(op, order), order, columns, zero_as_read(op), split=split)
        shifts = _shifts(region, shape) if target.serial else ()
        overlaps = overlap(region, operand(op, 0), shifts)
        return ColumnStage(shape, columns, gather, filters).kernel(region, problem.data, overlaps)

    def rows(self, config: Config) -> int | None:
        """Filters that share a list, if there are lists."""
        return None

    def products(self, columns: Columns, weights: np.ndarray, config: Config) -> Products:
        """What is added up; ``weights``: int8 ``[groups*cout, slots, 4]``."""
        return AllProducts(columns, columns.pack(weights))


class SparseColumnConv(ColumnConv):
    """The same with weights of which whole blocks are zero."""

    name: ClassVar[str] = "conv_columns_sparse"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See :meth:`Template.refuse`."""
        if reason := super().refuse(region, target):
            return reason
        op = region.ops[0]
        if op.zeros is None:
            return f"fewer than {LEAST_ZEROS:.0%} of the weights are zero"
        order = _order(op, target)
        blocks = isinstance(order, Quads) or order.channels % TILE == 0
        if order.shape.groups > 1 or not blocks:
            return "the convolution has groups, or too few channels for blocks of four"
        return lists_reach(_columns(order, target, 1))

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """See :meth:`Template.candidates`."""
        zeros = region.ops[0].zeros
        assert zeros is not None
        split = target.optimize != "size"
        unroll = 1 + split
        found: list[tuple[Config, float]] = [
            (
                {"unroll": unroll, "split": split, "rows": rows},
                _predicted(region, target, unroll, share),
            )
            for (rows, depth), share in zeros.units
            if depth == TILE and rows % TILE == 0
        ]
        return sorted(found, key=lambda item: (item[1], -int(item[0]["rows"])))

    def rows(self, config: Config) -> int | None:
        """See :meth:`ColumnConv.rows`."""
        return int(config["rows"])

    def products(self, columns: Columns, weights: np.ndarray, config: Config) -> Products:
        """See :meth:`ColumnConv.products`."""
        return KeptProducts(columns, weights, int(config["rows"]))


def _order(op: Op, target: Target) -> Order:
    """The order of slots; cores with the DSP extension read words at any address."""
    words = target.arch == "thumb" and target.has("dsp")
    return order_for(op, operand(op, 1).shape[1], words=words)


def _columns(order: Order, target: Target, unroll: int) -> Columns:
    positions = min(order.shape.positions, 2)
    return columns_for(target, order.slots, positions, whole=order.whole, unroll=unroll)


def _predicted(region: Region, target: Target, unroll: int, share: float | None = None) -> float:
    """Instructions of all products, see ``Columns.predicted``; the rest is the same for all."""
    order = _order(region.ops[0], target)
    shape, columns = order.shape, _columns(order, target, unroll)
    overhead = LIST_OVERHEAD if _assembly(region, columns) is None else 0
    tiles = -(-shape.positions // columns.positions) * shape.cout // columns.filters
    return shape.batch * shape.groups * tiles * columns.predicted(share, overhead)


def _assembly(region: Region, columns: Columns) -> tuple[type[AssembledFilters], Ending] | None:
    """All filters in assembly, and the epilogue, if there is assembly for it."""
    ending = ending_of(region, ConvShape.of(region.ops[0]))
    found = assembly_for(columns, ending) if ending is not None else None
    return None if ending is None or found is None else (found, ending)


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
