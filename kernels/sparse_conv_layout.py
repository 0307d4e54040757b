"""How a sparse convolution is cut into units, and the data of its product stage.

See ``sparse_conv_product``.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from effc.devices.target import Target
from effc.errors import InternalError
from effc.kernels.conv_pack import panel_slack
from effc.kernels.conv_problem import ConvProblem
from effc.kernels.conv_shape import Source
from effc.kernels.sparse_pack import TILE_OVERHEAD, SparseTiles, cumulative, cut_evenly
from effc.kernels.sparse_positions import Positions, SparseConfig

__all__ = ["SparseLayout"]


class SparseLayout:
    """Sizes that the parts of the stage share, and its constants."""

    def __init__(
        self,
        problem: ConvProblem,
        source: Source,
        knobs: SparseConfig,
        target: Target,
        source_elements: int,
    ) -> None:
        shape, arithmetic, results = problem.shape, problem.arithmetic, problem.results
        self.shape, self.source, self.knobs, self.target = shape, source, knobs, target
        self.arithmetic, self.results = arithmetic, results
        self.has_bias, self.source_elements = problem.bias is not None, source_elements
        self.narrowest = arithmetic.narrowest(target)
        valid = knobs.rows % results.group == 0 and not (knobs.sort and results.group > 1)
        if not valid or (knobs.height == 0 and not knobs.pack and not source.flat):
            raise InternalError("invalid configuration", where="conv_sparse", got=knobs)
        self.positions = Positions.of(shape, source, knobs)
        self.padded = knobs.height > 0 and source.copied
        self.tiles = -(-shape.cout // knobs.rows)
        self.splits = min(knobs.splits, self.tiles)
        self.full_blocks, self.blocks, self.bands = 0, 1, 1
        if knobs.panels:
            self.full_blocks = -(-self.positions.full[1] // knobs.panels)
            self.blocks = self.full_blocks + (1 if self.positions.rest[1] else 0)
            self.bands = self.positions.full[0] + (1 if self.positions.rest[0] else 0)
        most_panels = knobs.panels or -(-self.positions.width // knobs.columns)
        self.units = shape.batch * shape.groups * self.splits * self.bands * self.blocks
        self.most_entries = self.tiles * -(-shape.cin // knobs.depth) * len(source.taps)
        most_slots = self.most_entries // self.tiles
        panel = most_slots * knobs.depth * knobs.columns * most_panels if knobs.pack else 0
        slack = panel_slack(shape, source, knobs.columns, knobs.lanes)[1] if knobs.pack else 0
        self.sums_at = -(-(panel + slack) // 16) * 16
        sums = knobs.rows * max(knobs.height, 1) * knobs.columns
        room = arithmetic.lanes(target) ** 2
        self.room_at = self.sums_at + sums
        self.wide_at = self.sums_at + (sums + room if knobs.along == "channel" else 0)
        self.widened = self.arithmetic.stored != self.arithmetic.dtype
        wide = most_slots * knobs.depth * knobs.rows if self.widened else 0
        self.scratch_elements = self.wide_at + wide

    def weights(self, packed: SparseTiles) -> dict[str, np.ndarray]:
        """The stage's constants by parameter name."""
        knobs, source = self.knobs, self.source
        taps = np.array(source.taps, np.int64)
        found = {"w": packed.values.reshape(-1), "starts": packed.starts}
        reach = packed.channels * np.int64(source.channel) + taps[packed.taps]
        if not knobs.pack:
            found["offsets"] = reach.astype(np.int32)
        else:
            which = [slots[2] for slots in packed.slots]
            found["offsets"] = (np.concatenate(which) * (knobs.depth * knobs.columns)).astype(
                np.int32
            )
            sources = [c * source.channel + taps[t] for c, t, _ in packed.slots]
            ends = np.cumsum([0, *(s.size for s in sources)]) + len(sources) + 1
            found["slots"] = np.concatenate([ends, *sources]).astype(np.int32)
        if self.splits > 1:
            found["cuts"] = np.array(self.cuts(packed), np.int32)
        return found

    def cuts(self, packed: SparseTiles) -> list[int]:
        """First tile of filters of each split, and the end."""
        return cut_evenly(packed.starts, self.tiles, self.splits, TILE_OVERHEAD)

    def bounds(self, packed: SparseTiles) -> tuple[int, ...] | None:
        """Cumulative work per unit; ``None`` if all units do the same."""
        if self.splits * self.shape.groups == 1:
            return None
        entries = (np.diff(packed.starts) + TILE_OVERHEAD).reshape(self.shape.groups, self.tiles)
        cuts = self.cuts(packed)
        parts = [entries[:, a:b].sum(axis=1) for a, b in pairwise(cuts)]
        of_image = np.stack(parts, axis=1).reshape(-1)  # [groups * splits]
        work = np.repeat(np.tile(of_image, self.shape.batch), self.bands * self.blocks)
        return cumulative(work)

    @property
    def scratch_bytes(self) -> int:
        return self.scratch_elements * self.arithmetic.nbytes
