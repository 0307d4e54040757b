"""How a sparse matrix product is cut into units, and the data of its product stage.

See ``sparse_matmul_product``.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from effc.devices.target import Target
from effc.errors import InternalError
from effc.kernels.arithmetic import FLOAT32, Arithmetic, Float16
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import dtype_lanes
from effc.kernels.sparse_matmul_problem import Roles, SparseMatMulConfig
from effc.kernels.sparse_pack import TILE_OVERHEAD, SparseTiles, cumulative, cut_evenly
from effc.kernels.sparse_positions import row_widths

__all__ = ["SparseMatMulLayout"]


class SparseMatMulLayout:
    """Sizes that the parts of the stage share, and its constants."""

    def __init__(
        self,
        roles: Roles,
        knobs: SparseMatMulConfig,
        target: Target,
        epilogue: Epilogue,
        terms: int,
    ) -> None:
        self.roles, self.knobs, self.target, self.epilogue = roles, knobs, target, epilogue
        self.dtype, self.stored, self.terms = roles.problem.dtype, str(roles.matrix.dtype), terms
        self.arithmetic: Arithmetic = Float16(terms) if self.dtype == "float16" else FLOAT32
        full = dtype_lanes(target, self.dtype)
        self.space = knobs.along == "space"
        readable = knobs.pack or roles.position == 1 if self.space else not roles.on_rows
        if not readable:
            raise InternalError("invalid configuration", where="matmul_sparse", got=knobs)
        self.tiles = -(-roles.filters // knobs.rows)
        self.collected = self.space and not roles.on_rows
        self.group = max(1, full // knobs.rows) if self.collected else 1
        self.groups = -(-self.tiles // self.group)
        self.splits = min(knobs.splits, self.groups)
        self.full, self.rest = divmod(roles.positions, knobs.columns)
        self.full_blocks, self.blocks = 0, 1
        if knobs.panels:
            self.full_blocks = -(-self.full // knobs.panels)
            self.blocks = self.full_blocks + (1 if self.rest else 0)
        self.units = roles.problem.batch * self.splits * self.blocks
        self.entries = self.tiles * -(-roles.channels // knobs.depth)
        self.pitch = sum(row_widths(knobs.columns, knobs.lanes, True))
        self.panel_size = roles.channels * self.pitch
        panels = (knobs.panels or self.full + (1 if self.rest else 0)) if knobs.pack else 0
        sums = self.group * knobs.rows * self.pitch if self.collected else 0
        self.sums_at = panels * self.panel_size
        self.room_at = self.sums_at + sums
        self.scratch_elements = self.room_at + (full**2 if self.collected else 0)

    def weights(self, packed: SparseTiles) -> dict[str, np.ndarray]:
        """The stage's constants by parameter name."""
        step = self.pitch if self.knobs.pack else self.roles.channel
        found = {
            "w": packed.values.reshape(-1),
            "starts": packed.starts,
            "offsets": (packed.channels * np.int64(step)).astype(np.int32),
        }
        if self.splits > 1:
            found["cuts"] = np.array(self._cuts(packed), np.int32)
        return found

    def _group_starts(self, packed: SparseTiles) -> np.ndarray:
        """First entry of each group of tiles, and the end."""
        ends = np.minimum(np.arange(self.groups + 1) * self.group, self.tiles)
        return packed.starts[ends]

    def _cuts(self, packed: SparseTiles) -> list[int]:
        """First group of tiles of each split, and the end."""
        overhead = TILE_OVERHEAD * self.group
        return cut_evenly(self._group_starts(packed), self.groups, self.splits, overhead)

    def bounds(self, packed: SparseTiles) -> tuple[int, ...] | None:
        """Cumulative work per unit; ``None`` if all units do the same."""
        if self.splits == 1 and self.blocks == 1:
            return None
        entries = np.diff(self._group_starts(packed)) + TILE_OVERHEAD * self.group
        of_split = np.array([entries[a:b].sum() for a, b in pairwise(self._cuts(packed))])
        positions = [self.roles.positions]
        if self.knobs.panels:
            size = self.knobs.panels * self.knobs.columns
            whole = self.full * self.knobs.columns
            positions = [min(size, whole - i * size) for i in range(self.full_blocks)]
            positions += [self.rest] if self.rest else []
        work = np.tile(np.outer(of_split, positions).reshape(-1), self.roles.problem.batch)
        return cumulative(work)

    @property
    def scratch_bytes(self) -> int:
        return self.scratch_elements * np.dtype(self.dtype).itemsize
