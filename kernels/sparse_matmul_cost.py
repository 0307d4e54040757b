"""Configurations of the sparse matrix product, with predicted cost; see ``sparse_conv_cost``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import ceil

from effc.devices.target import Target
from effc.kernels.conv_cost import tile_fits, tile_parts
from effc.kernels.lanes import uses_lanes
from effc.kernels.matmul_cost import streamed
from effc.kernels.register_tile import Tile, split_widths
from effc.kernels.sparse_matmul_roles import Roles, SparseMatMulConfig
from effc.kernels.sparse_positions import row_widths
from effc.kernels.sparsity import Structure
from effc.kernels.template import Config

__all__ = ["sparse_matmul_candidates"]

LIMIT = 24  # candidates offered to the tuner
_UNITS = 8  # parallel units worth having
_SUMS = 8  # accumulators that hide the latency of a multiply-add
_BROADCASTS = 1.6  # measured: x86 dot products take only weights from memory, not the scalar
_Tiling = tuple[str, int, bool]  # along, columns, pack


def sparse_matmul_candidates(
    roles: Roles, zeros: Structure, target: Target
) -> list[tuple[Config, float]]:
    """Configurations with predicted cycles, best first."""
    found: dict[SparseMatMulConfig, float] = {}
    together = roles.arithmetic.channels
    for (rows, inputs), share in zeros.units:
        if rows % together or inputs % together:
            continue
        depth = inputs // together
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
    full = roles.arithmetic.lanes(target)
    wide = [full] + ([full // 2] if target.vector_bits >= 512 else [])
    for lanes in wide:
        for along, columns, pack in _tiles(roles, lanes, rows, target):
            if along == "channel" and rows < lanes and lanes != wide[-1]:
                continue  # as with narrower vectors
            tile = _tile(roles, along, columns, rows, lanes, pack, target)
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
    few = count < lanes // 2 and rows >= 4 and not roles.on_rows  # vectors would be mostly empty
    for vectors in set() if few else {most, most - 1, (most + 1) // 2, 3, 4, ceil(even / lanes)}:
        if 0 < vectors <= most and (vectors - 1) * lanes < count:
            for pack in packs:
                yield "space", min(vectors * lanes, count), pack
    if roles.on_rows or rows < 4 or rows > 2 * lanes:
        return
    widths = split_widths(rows, lanes)
    most = max((n for n in range(1, 29) if _channel_fits(Tile(n, widths), target)), default=0)
    for parts in {ceil(count / n) for n in (most, 8, 12) if 0 < n <= most}:
        yield "channel", ceil(count / parts), False


def _channel_fits(tile: Tile, target: Target) -> bool:
    """Whether a tile fits the registers; Arm holds a vector of channels for each position."""
    if uses_lanes(target):
        sums, held = tile.rows * len(tile.widths), tile.rows + len(tile.widths) + 2
        return sums + held <= target.vector_registers
    return tile_fits(tile, target)


def _tile(
    roles: Roles, along: str, columns: int, rows: int, lanes: int, pack: bool, target: Target
) -> Tile:
    narrowest = roles.arithmetic.narrowest(target)
    if along == "channel":
        return Tile(columns, split_widths(rows, lanes, narrowest))
    return Tile(rows, row_widths(columns, lanes, pack, narrowest))


def _chains(tile: Tile, depth: int, target: Target) -> tuple[int, int]:
    """Entries per iteration and partial sums of a register tile."""
    sums = tile.rows * len(tile.widths)
    chains = 1
    while chains * sums < _SUMS and tile_fits(Tile(2 * chains * tile.rows, tile.widths), target):
        chains *= 2
    return max(chains // depth, 1 if depth > 1 else 4), chains


def _panels(roles: Roles, columns: int, pack: bool, target: Target) -> Iterator[int]:
    """Register tiles per block of positions, whose panels should stay in the second cache."""
    total = ceil(roles.positions / columns)
    size = roles.arithmetic.nbytes * roles.channels * columns
    yield 1
    for panels in (2, 4):
        if panels < total and size * panels <= target.l2_bytes:
            yield panels
    if total > 1 and size * total <= target.l2_bytes:
        yield 0


def _cost(roles: Roles, knobs: SparseMatMulConfig, share: float, target: Target) -> float:
    steps = share * roles.channels  # per filter tile
    work = 0.0
    for columns, panels in tile_parts(roles.positions, knobs.columns):
        size = (
            roles.arithmetic.nbytes
            * roles.channels
            * columns
            * (knobs.panels or ceil(roles.positions / columns))
        )
        for filters, tiles in tile_parts(roles.filters, knobs.rows):
            tile = _tile(roles, knobs.along, columns, filters, knobs.lanes, knobs.pack, target)
            once = steps * _step(tile, roles, knobs, size > target.l1_bytes, target)
            once += _store(tile, roles, knobs)
            if knobs.along == "channel" and size > target.l1_bytes and not uses_lanes(target):
                # Cache lines with any kept channel come from the second cache, one per cycle.
                lines = roles.channels / 16 * (1 - (1 - share) ** (16 / knobs.depth))
                once += lines * columns
            work += panels * tiles * once
    if knobs.pack:
        each = 1.0 if roles.adjacent else 0.3
        work += each * roles.channels * roles.positions * knobs.splits
    batch = roles.problem.batch
    weights = float(roles.matrix.itemsize) * share * roles.channels * roles.filters
    passes = batch * ceil(roles.positions / (knobs.columns * knobs.panels)) if knobs.panels else 1
    return streamed(batch * work, weights, passes, target)


def _step(tile: Tile, roles: Roles, knobs: SparseMatMulConfig, far: bool, target: Target) -> float:
    """Cycles per channel of a register tile; on Arm instructions, two of which take a cycle.

    ``far``: the data of a block of positions is larger than the first cache.
    """
    count, sums = len(tile.widths), tile.rows * len(tile.widths)
    space = knobs.along == "space"
    if uses_lanes(target):
        scalars = ceil(tile.rows / 4) / 2 if space else tile.rows / (1 if roles.in_quads else 4)
        # The address of a single quad is part of its load.
        entry = 2.5 if roles.in_quads and not space and tile.rows == 1 else 5.0
        beside = (entry + 2.0 / knobs.unroll) / knobs.depth
        return 0.5 * max(sums + 0.5 * count + scalars + beside, 8.0 / knobs.chains)
    rate = 1.0 if target.lanes >= 16 else 0.5  # cycles of a full-width multiply-add
    cycles = [rate if width > target.lanes // 2 else max(rate / 2, 0.5) for width in tile.widths]
    fma = tile.rows * sum(cycles)
    loads = sum(cycles) + 0.5 * tile.rows
    issue = (sums + count + tile.rows + 2 / knobs.depth) / 5
    lines = 2.2 * tile.columns / 16 if space and far else 0.0
    most = max(fma, loads, issue, lines, 4.0 / knobs.chains)
    if roles.in_quads and not space and tile.rows > 1:
        most *= _BROADCASTS
    return most + 0.7 / knobs.depth


def _store(tile: Tile, roles: Roles, knobs: SparseMatMulConfig) -> float:
    """Cycles of a register tile beside its reduction."""
    cycles = 40 + 4.0 * tile.rows * len(tile.widths) * knobs.chains
    if knobs.along == "space" and not roles.on_rows:
        cycles += 0.6 * tile.rows * tile.columns
    return cycles
