"""Configurations of the sparse matrix product and their predicted cost, see ``sparse_cost``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import ceil

from effc.devices.target import Target
from effc.kernels.conv_cost import tile_cycles, tile_fits, uses_lanes
from effc.kernels.register_tile import Tile, split_widths
from effc.kernels.sparse_matmul_product import Roles, SparseMatMulConfig
from effc.kernels.sparse_product import row_widths
from effc.kernels.sparsity import Structure
from effc.kernels.template import Config

__all__ = ["sparse_matmul_candidates"]

LIMIT = 24  # candidates offered to the tuner
_UNITS = 8  # parallel units worth having
_SUMS = 8  # accumulators that hide the latency of a multiply-add
_Tiling = tuple[str, int, bool]  # along, columns, pack


def sparse_matmul_candidates(
    roles: Roles, zeros: Structure, target: Target
) -> list[tuple[Config, float]]:
    """Configurations with predicted cycles, best first."""
    found: dict[SparseMatMulConfig, float] = {}
    for (rows, depth), share in zeros.units:
        if depth > roles.channels or (rows > roles.filters and rows > 1):
            continue
        for knobs in _configurations(roles, rows, depth, target):
            if knobs not in found:
                found[knobs] = _cost(roles, knobs, share, target)
    ranked = sorted(found.items(), key=lambda item: (item[1], str(item[0])))
    return [(asdict(knobs), cost) for knobs, cost in ranked[:LIMIT]]


def _configurations(
    roles: Roles, rows: int, depth: int, target: Target
) -> Iterator[SparseMatMulConfig]:
    wide = [target.lanes] + ([8] if target.lanes >= 16 else [])
    for lanes in wide:
        for along, columns, pack in _tiles(roles, lanes, rows, target):
            tile = _tile(along, columns, rows, lanes, pack)
            unroll, chains = _chains(tile, depth, target)
            tiles = ceil(roles.filters / rows)
            for panels in _panels(roles, columns, pack, target):
                blocks = roles.problem.batch
                if panels:
                    blocks *= ceil(roles.positions / (columns * panels))
                splits = max(1, min(tiles // 2, ceil(_UNITS / blocks)))
                yield SparseMatMulConfig(
                    along, lanes, rows, depth, columns, pack, panels, splits, unroll, chains
                )


def _tiles(roles: Roles, lanes: int, rows: int, target: Target) -> Iterator[_Tiling]:
    """Register tiles of ``rows`` filters that fit the registers."""
    count = roles.positions
    packs = [True] if roles.position != 1 else [False, True]
    most = max((v for v in range(1, 25) if tile_fits(Tile(rows, (lanes,) * v), target)), default=0)
    even = ceil(count / max(1, ceil(count / (most * lanes)))) if most else 0
    for vectors in {most, most - 1, (most + 1) // 2, 3, 4, ceil(even / lanes)}:
        if 0 < vectors <= most and (vectors - 1) * lanes < count:
            for pack in packs:
                yield "space", min(vectors * lanes, count), pack
    if roles.on_rows or rows < 4 or rows > 2 * lanes:
        return
    widths = split_widths(rows, lanes)
    most = max((n for n in range(1, 29) if tile_fits(Tile(n, widths), target)), default=0)
    for parts in {ceil(count / n) for n in (most, 8, 12) if 0 < n <= most}:
        yield "channel", ceil(count / parts), False


def _tile(along: str, columns: int, rows: int, lanes: int, pack: bool) -> Tile:
    if along == "channel":
        return Tile(columns, split_widths(rows, lanes))
    return Tile(rows, row_widths(columns, lanes, pack))


def _chains(tile: Tile, depth: int, target: Target) -> tuple[int, int]:
    """Entries per iteration and partial sums of a register tile."""
    sums = tile.rows * len(tile.widths)
    chains = 1
    while chains * sums < _SUMS and tile_fits(Tile(2 * chains * tile.rows, tile.widths), target):
        chains *= 2
    return max(chains // depth, 1 if depth > 1 else 4), chains


def _panels(roles: Roles, columns: int, pack: bool, target: Target) -> Iterator[int]:
    """Register tiles per block of positions."""
    total = ceil(roles.positions / columns)
    for panels in (1, 2, 4, 0):
        size = 4 * roles.channels * columns * (panels or total)
        if panels == 1 or ((panels or total + 1) <= total + 1 and size <= target.l2_bytes):
            yield panels


def _cost(roles: Roles, knobs: SparseMatMulConfig, share: float, target: Target) -> float:
    steps = share * roles.channels  # per filter tile
    work = 0.0
    for columns, panels in _parts(roles.positions, knobs.columns):
        for filters, tiles in _parts(roles.filters, knobs.rows):
            tile = _tile(knobs.along, columns, filters, knobs.lanes, knobs.pack)
            work += panels * tiles * _tile_cost(tile, knobs, steps, target)
            if knobs.along == "space" and not roles.on_rows:
                work += panels * tiles * 0.8 * columns * filters
    if knobs.pack:
        each = 1.0 if roles.channel == 1 else 0.3
        work += each * roles.channels * roles.positions * knobs.splits
    return roles.problem.batch * (work + _traffic(roles, knobs, share, target))


def _tile_cost(tile: Tile, knobs: SparseMatMulConfig, steps: float, target: Target) -> float:
    unroll = knobs.depth * knobs.unroll
    once = tile_cycles(tile, max(steps, 1.0), unroll, target)
    once += steps / knobs.depth * (2.0 if uses_lanes(target) else 0.7)
    if knobs.along == "channel" and not uses_lanes(target):
        once *= 1.35  # a broadcast load for every multiply-add
    return once + 10


def _traffic(roles: Roles, knobs: SparseMatMulConfig, share: float, target: Target) -> float:
    return 0.0


def _parts(total: int, tile: int) -> list[tuple[int, int]]:
    """(size, count) of the full tiles and of the remainder."""
    parts = [(tile, total // tile), (total % tile, 1)]
    return [(size, count) for size, count in parts if size and count]
