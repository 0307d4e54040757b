"""Packed sparse weights: values and offsets of the kept units, tile by tile.

A *tile* is ``rows`` filters that share one list of *entries*; an entry is one kernel position of
``depth`` adjacent input channels in which any of these filters has a non-zero. The kernel
walks a tile's entries and adds ``depth`` outer products for each:

    acc[i][...] += values[e][j][i] * X[offsets[e] + j*pitch ...]    for j in 0..depth

Tiles may have different numbers of entries; ``starts`` says where each begins. Where
``depth`` does not divide the input channels, the last block begins earlier and has zeros for the
channels that the block before it covers; the last tile has zeros for filters that do not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from effc.kernels.sparsity import occupied

__all__ = ["TILE_OVERHEAD", "SparseTiles", "cumulative", "cut_evenly", "pack_tiles"]


TILE_OVERHEAD = 4
"""Entries' worth of work that a tile costs beside its entries."""


@dataclass(frozen=True)
class SparseTiles:
    """Kept units of ``[groups, Cout, Cin, taps]`` weights.

    Attributes:
        values: ``[entries, depth, rows]`` of the weights' type.
        channels: First input channel of each entry, int32 ``[entries]``.
        taps: Kernel position of each entry, int32 ``[entries]``.
        starts: First entry of each tile and the end, int32 ``[groups*tiles + 1]``.
        groups: Convolution groups.
    """

    values: np.ndarray
    channels: np.ndarray
    taps: np.ndarray
    starts: np.ndarray
    groups: int

    @property
    def tiles(self) -> int:
        """Tiles per group."""
        return (self.starts.size - 1) // self.groups

    @cached_property
    def slots(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Per group, the distinct entries (channels, taps) and which of them each entry is."""
        found = []
        taps = int(self.taps.max(initial=0)) + 1
        for g in range(self.groups):
            part = slice(self.starts[g * self.tiles], self.starts[(g + 1) * self.tiles])
            codes = self.channels[part].astype(np.int64) * taps + self.taps[part]
            distinct, which = np.unique(codes, return_inverse=True)
            found.append((distinct // taps, distinct % taps, which.reshape(-1)))
        return found


def pack_tiles(filters: np.ndarray, rows: int, depth: int) -> SparseTiles:
    """Pack weights.

    Args:
        filters: ``[groups, Cout, Cin, taps]``, any element type.
        rows: Filters per tile.
        depth: Input channels per entry, at most Cin.
    """
    groups, cout, cin, taps = filters.shape
    found = occupied(filters != 0, (rows, depth))  # [groups, tiles, blocks, taps]
    tiles = found.shape[1]
    padded = np.zeros((groups, tiles * rows, cin, taps), filters.dtype)
    padded[:, :cout] = filters
    group, tile, block, tap = np.nonzero(found)
    first = np.minimum(block * depth, cin - depth)
    lane = first[:, None] + np.arange(depth)  # [entries, depth]
    row = tile[:, None] * rows + np.arange(rows)  # [entries, rows]
    values = padded[group[:, None, None], row[:, None, :], lane[:, :, None], tap[:, None, None]]
    values[lane < (block * depth)[:, None]] = 0  # covered by the block before
    counts = found.reshape(groups * tiles, -1).sum(axis=1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return SparseTiles(
        values, first.astype(np.int32), tap.astype(np.int32), starts.astype(np.int32), groups
    )


def cut_evenly(starts: np.ndarray, tiles: int, parts: int, overhead: int) -> list[int]:
    """Cut the tiles of every group at the same places, into parts of about equal work.

    Args:
        starts: As in ``SparseTiles``.
        tiles: Tiles per group.
        parts: How many.
        overhead: Work per tile beside its entries, in entries.

    Returns:
        First tile of each part and the end.
    """
    work = (np.diff(starts) + overhead).reshape(-1, tiles).sum(axis=0)
    total = np.concatenate([[0], np.cumsum(work)])
    goals = total[-1] * np.arange(1, parts) / parts
    inner = np.searchsorted(total, goals, side="left")
    return [0, *(int(i) for i in np.clip(inner, 0, tiles)), tiles]


def cumulative(work: np.ndarray) -> tuple[int, ...]:
    """Work of the units before each, and of all (``Stage.bounds``)."""
    return tuple(int(bound) for bound in np.concatenate([[0], np.cumsum(work)]))
