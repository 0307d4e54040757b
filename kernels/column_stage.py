"""The stage of an integer convolution by columns, see ``conv_columns``: positions of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.kernels.builder import Param, T, bind, loop, stage_func
from effc.kernels.column_filters import Filters
from effc.kernels.column_gather import Gather, Walk
from effc.kernels.columns import Columns
from effc.kernels.conv_shape import ConvShape
from effc.kernels.inline_assembly import importing
from effc.kernels.region import Region
from effc.kernels.template import Kernel, Overlap, Stage

__all__ = ["ColumnStage"]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class ColumnStage:
    """Emits the stage.

    Attributes:
        shape: Of the convolution, in quads.
        columns, gather: How inputs are brought together.
        filters: What is done with them.
    """

    shape: ConvShape
    columns: Columns
    gather: Gather
    filters: Filters

    def kernel(self, region: Region, data: str, overlaps: tuple[Overlap, ...]) -> Kernel:
        """The kernel.

        Args:
            data: Name of the input.
            overlaps: See ``Kernel``.
        """
        shape, filters = self.shape, self.filters
        weights = self.gather.weights | filters.weights
        dtype, elements = self.columns.buffer
        params: list[Param] = [
            ("x", *self.gather.source.param),
            *((name, str(array.dtype), array.size) for name, array in weights.items()),
            *filters.operands,
            ("y", filters.out_dtype, region.outputs[0].type.size),
            ("scratch", dtype, elements),
        ]

        def body(*arguments: Any) -> None:
            *buffers, begin, end = arguments
            with importing([*filters.routines, *self.gather.routines]), loop(begin, end) as image:
                self._image(image, buffers)

        names = [f"w:{name}" for name in weights]
        args = [data, *names, *filters.args, region.outputs[0].name, "scratch"]
        nbytes = elements * np.dtype(dtype).itemsize
        stage = Stage(stage_func(params, body), tuple(args), shape.batch, nbytes)
        inplace = tuple(pair for pair in filters.inplace if pair[0] != data)
        return Kernel((stage,), weights | filters.more_weights, {}, inplace, overlaps)

    def _image(self, image: Expr, buffers: list[Any]) -> None:
        if self.shape.groups == 1:
            self._group(image, T.int32(0), buffers)
            return
        with loop(self.shape.groups) as group:
            self._group(image, group, buffers)

    def _group(self, image: Expr, group: Expr, buffers: list[Any]) -> None:
        shape, positions = self.shape, self.columns.positions
        x, *others, y, scratch = buffers
        count = len(self.gather.weights)
        tables, others = others[:count], others[count:]
        base = bind(self.gather.source.base(image, group))
        walk = Walk(shape)
        with loop(-(-shape.positions // positions)) as tile:
            with loop(positions) as column:
                self.gather.emit(x, tables, scratch, base, walk, column)
                walk.step()
            first = bind(tile * positions)
            places = [first]
            if positions == 2:
                last = first + 1
                if shape.positions % 2:
                    last = tirx.Min(last, T.int32(shape.positions - 1))
                places.append(bind(last))
            self.filters.emit(image, group, places, others, y, scratch)
