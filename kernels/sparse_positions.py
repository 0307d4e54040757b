"""Knobs of the sparse convolution, and how they cut output positions into register tiles."""

from __future__ import annotations

from dataclasses import dataclass

from effc.kernels.conv_shape import ConvShape, Source
from effc.kernels.register_tile import split_widths
from effc.kernels.template import Config

__all__ = ["Positions", "SparseConfig", "row_widths"]


@dataclass(frozen=True)
class SparseConfig:
    """Knobs of the product stage.

    Attributes:
        along: ``space`` or ``channel``: what the vectors run along.
        lanes: Elements of one vector.
        rows: Filters of a tile.
        depth: Input channels of an entry.
        height: Output rows of a register tile; 0 if its positions are one run.
        columns: Output positions of one row of a register tile.
        pack: Pack the panel that a unit reads into scratch first.
        panels: Register tiles, side by side, in a block of positions; 0: all positions.
        splits: Units that share a block of positions, each with some tiles of filters.
        unroll: Entries per loop iteration.
        fetch: Prefetch what the next block reads, and what a tile will write.
        sort: Filters are in the order of ``sparsity.similar_order``.
    """

    along: str
    lanes: int
    rows: int
    depth: int
    height: int
    columns: int
    pack: bool
    panels: int
    splits: int
    unroll: int
    fetch: bool
    sort: bool

    @staticmethod
    def of(config: Config) -> SparseConfig:
        return SparseConfig(**dict(config))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Positions:
    """Output positions of one channel as rows in the source, and their cut into tiles.

    Attributes:
        height, width: Output rows and positions per row; one row if they are a single run.
        pitch: Source elements from one row to the next.
        tile: Rows and columns of a full register tile.
    """

    height: int
    width: int
    pitch: int
    tile: tuple[int, int]

    @staticmethod
    def of(shape: ConvShape, source: Source, knobs: SparseConfig) -> Positions:
        if knobs.height == 0:
            return Positions(1, shape.positions, 0, (1, knobs.columns))
        rows = shape.output[0] if len(shape.output) == 2 else 1
        return Positions(rows, shape.output[-1], source.extent[-1], (knobs.height, knobs.columns))

    @property
    def full(self) -> tuple[int, int]:
        """Full tiles along each axis."""
        return self.height // self.tile[0], self.width // self.tile[1]

    @property
    def rest(self) -> tuple[int, int]:
        """Rows and columns left over."""
        return self.height % self.tile[0], self.width % self.tile[1]

    def runs(self, rows: int, columns: int) -> tuple[tuple[int, int], ...]:
        """Runs of ``rows`` x ``columns`` elements in the source, see ``Operand``."""
        return tuple((i * self.pitch, columns) for i in range(rows))


def row_widths(columns: int, lanes: int, padded: bool, narrowest: int = 1) -> tuple[int, ...]:
    """Vectors that cover a row of a register tile; ``padded``: the last one may run over."""
    if not padded or columns % lanes == 0:
        return split_widths(columns, lanes, narrowest)
    rest = max(1 << (columns % lanes - 1).bit_length(), narrowest)
    return (*split_widths(columns - columns % lanes, lanes), rest)
