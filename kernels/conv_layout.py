"""Knobs of the direct convolution, and how they cut its product stage into units and passes.

See ``conv_product``.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.devices.target import Target
from effc.errors import InternalError
from effc.kernels.conv_pack import panel_slack
from effc.kernels.conv_problem import ConvProblem
from effc.kernels.conv_shape import Source
from effc.kernels.quad_pairs import whole_pairs
from effc.kernels.template import Config

__all__ = ["ProductConfig", "ProductLayout", "reads_in_place"]


@dataclass(frozen=True)
class ProductConfig:
    """Knobs of the product stage.

    Attributes:
        along: ``space`` or ``channel``: what the vectors run along.
        lanes: Elements of one vector.
        channels: Output channels of a register tile.
        columns: Output positions of a register tile.
        pack: Pack panels into scratch; otherwise the tile reads a flat source in place.
        panels: Panels of ``columns`` positions per unit.
        block: Input channels per pass over the reduction; sums wait in scratch between
            passes. A divisor of ``cin``; ``cin`` means one pass.
        splits: Units that share a block of positions, each with some channel tiles.
        unroll: Reduction steps per loop iteration.
    """

    along: str
    lanes: int
    channels: int
    columns: int
    pack: bool
    panels: int
    block: int
    splits: int
    unroll: int

    @staticmethod
    def of(config: Config) -> ProductConfig:
        return ProductConfig(**dict(config))  # type: ignore[arg-type]


def reads_in_place(source: Source) -> bool:
    """Whether a register tile can read the source without packing (``pack``)."""
    return source.flat and len(source.taps) == 1


class ProductLayout:
    """Sizes that the parts of the stage share."""

    def __init__(
        self,
        problem: ConvProblem,
        source: Source,
        knobs: ProductConfig,
        target: Target,
        source_elements: int,
    ) -> None:
        shape, results = problem.shape, problem.results
        valid = shape.cin % knobs.block == 0 and knobs.channels % results.group == 0
        if problem.arithmetic.steps > 1:
            valid = valid and knobs.along == "space" and whole_pairs(shape, source, knobs.block)
        if not valid or not (knobs.pack or reads_in_place(source)):
            raise InternalError("invalid configuration", where="conv_direct", got=knobs)
        self.shape, self.source, self.knobs, self.target = shape, source, knobs, target
        self.arithmetic, self.results = problem.arithmetic, results
        self.has_bias, self.source_elements = problem.bias is not None, source_elements
        self.narrowest = problem.arithmetic.narrowest(target)
        taps = len(source.taps)
        self.depth = knobs.block * taps  # reduction steps of one pass
        self.passes = shape.cin // knobs.block
        self.weight_steps = -(-shape.reduction // self.arithmetic.steps) * self.arithmetic.steps
        self.full_panels, self.rest_columns = divmod(shape.positions, knobs.columns)
        self.full_tiles, self.rest_channels = divmod(shape.cout, knobs.channels)
        self.full_blocks = -(-self.full_panels // knobs.panels)
        self.blocks = self.full_blocks + (1 if self.rest_columns else 0)
        tiles = self.full_tiles + (1 if self.rest_channels else 0)
        self.tiles_per_split = -(-tiles // min(knobs.splits, tiles))
        self.splits = -(-tiles // self.tiles_per_split)
        self.units = shape.batch * shape.groups * self.splits * self.blocks
        # Sums wait in scratch where they need several passes or a transposition.
        self.spilled = self.passes > 1 or knobs.along == "channel"
        panel_room = self.depth * knobs.columns * knobs.panels if knobs.pack else 0
        slack = panel_slack(shape, source, knobs.columns, knobs.lanes)[1] if knobs.pack else 0
        self.sums_at = -(-(panel_room + slack) // 16) * 16
        self.sums = 0
        if self.spilled:
            columns = self.pitch(knobs.columns)
            self.sums = self.tiles_per_split * knobs.channels * columns * knobs.panels
        room = knobs.lanes**2 if knobs.along == "channel" else 0
        self.wide_at = self.sums_at + self.sums + room
        self.widened = self.arithmetic.stored != self.arithmetic.dtype
        wide = self.depth * knobs.channels if self.widened else 0
        self.scratch_elements = self.wide_at + wide

    @property
    def reads_taps(self) -> bool:
        """Whether the stage takes the flat offsets of the kernel taps as ``int32`` data."""
        return len(self.source.taps) > 1

    @property
    def scratch_bytes(self) -> int:
        return self.scratch_elements * self.arithmetic.nbytes

    def pitch(self, columns: int) -> int:
        """Sums of one channel of a tile: whole vectors."""
        return -(-columns // self.narrowest) * self.narrowest
