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

from effc.devices.target import Target
from effc.kernels.column_gather import Gather, column_weights, slots_of
from effc.kernels.column_products import AllProducts, KeptProducts, Products
from effc.kernels.column_stage import ColumnStage, finish_for
from effc.kernels.columns import Columns, PairColumns, columns_for, is_narrow, unrolls
from effc.kernels.conv_problem import ConvProblem, problem_refusal
from effc.kernels.conv_shape import ConvShape
from effc.kernels.overlap import Shifts, all_planes, overlap, quad_bytes
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Region
from effc.kernels.sparsity import LEAST_ZEROS
from effc.kernels.template import Config, Kernel, Template
from effc.kernels.window import window_axes

__all__ = ["ColumnConv", "SparseColumnConv"]

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
        if reason := problem_refusal(region, target):
            return reason
        data = region.anchor.inputs[0]
        assert data is not None
        if data.dtype != "int8":
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
        shape, channels = problem.shape, operand(op, 1).shape[1]
        slots, whole = slots_of(shape, channels)
        unroll = int(config["unroll"])
        positions = self.positions(shape)
        columns = columns_for(target, slots, positions, whole=whole, unroll=unroll)
        split = bool(config["split"])
        gather = Gather(shape, columns, channels, int(op.attrs["x_zero"]), split)
        products = self.products(problem, columns, channels, config)
        finish = finish_for(region, shape, target)
        assert problem.bias is not None
        stage = ColumnStage(shape, columns, products, gather, finish, rolled=not split)
        shifts = _shifts(region, shape) if target.serial else ()
        overlaps = overlap(region, operand(op, 0), shifts)
        return stage.kernel(region, problem.data, problem.bias, overlaps)

    def positions(self, shape: ConvShape) -> int:
        """Positions of a tile."""
        return min(shape.positions, 2)

    def products(
        self, problem: ConvProblem, columns: Columns, channels: int, config: Config
    ) -> Products:
        """What is added up."""
        weights = column_weights(problem.shape, problem.weight, channels)
        return AllProducts(columns, columns.pack(weights))


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
        shape, channels = ConvShape.of(op), operand(op, 1).shape[1]
        slots, whole = slots_of(shape, channels)
        if not isinstance(columns_for(target, slots, 2, whole=whole, unroll=1), PairColumns):
            return "lists are for the DSP extension"
        if not whole or shape.groups > 1 or slots > _LONGEST:
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

    def products(
        self, problem: ConvProblem, columns: Columns, channels: int, config: Config
    ) -> Products:
        assert isinstance(columns, PairColumns)
        rows, unroll = int(config["rows"]), int(config["unroll"])
        return KeptProducts(columns, problem.shape, problem.weight, rows, unroll)


def _shifts(region: Region, shape: ConvShape) -> Shifts:
    """Where the result may lie over the input: the columns of positions are gathered before
    results of these positions are written."""
    op = region.ops[0]
    data, weight, result = operand(op, 0), operand(op, 1), region.outputs[0]
    if shape.batch > 1 or shape.groups > 1:
        return ()
    axes = window_axes(op, shape.input, weight.shape[2:], shape.output)
    return all_planes(
        axes, (data.shape[1], result.shape[1]), (quad_bytes(data), quad_bytes(result))
    )
