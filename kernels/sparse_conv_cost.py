"""Configurations of the sparse convolution and their predicted cost.

As ``conv_cost`` for the dense one; what differs is that the reduction is as long as the units
that a tile of filters keeps, so a larger unit saves overhead and computes more zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import ceil

from effc.devices.target import Target
from effc.kernels.arithmetic import Arithmetic
from effc.kernels.conv_cost import half_sum_cost, pack_cycles, tile_cycles, tile_fits, tile_parts
from effc.kernels.conv_shape import ConvShape, Source
from effc.kernels.lanes import uses_lanes
from effc.kernels.register_tile import Tile, split_widths
from effc.kernels.sparse_positions import Positions, SparseConfig, row_widths
from effc.kernels.sparsity import Structure
from effc.kernels.template import Config

__all__ = ["sparse_candidates"]

LIMIT = 24  # candidates offered to the tuner
_UNITS = 8  # parallel units worth having


def sparse_candidates(
    shape: ConvShape,
    source: Source,
    zeros: Structure,
    arithmetic: Arithmetic,
    target: Target,
) -> list[tuple[Config, float]]:
    """Configurations with predicted cycles, best first."""
    found: dict[SparseConfig, float] = {}
    channels = arithmetic.channels
    natural = [(unit, share, False) for unit, share in zeros.units]
    ordered = [(unit, share, True) for unit, share in zeros.sorted_units if channels == 1]
    for (rows, inputs), share, sort in natural + ordered:
        if rows % channels or inputs % channels:
            continue
        depth = inputs // channels  # in elements
        if depth > shape.cin or (rows > shape.cout and rows > 1):
            continue
        for knobs in _configurations(shape, source, (rows, depth), sort, arithmetic, target):
            if knobs not in found:
                found[knobs] = _cost(shape, source, knobs, share, arithmetic, target)
    ranked = sorted(found.items(), key=lambda item: (item[1], str(item[0])))
    return [(asdict(knobs), cost) for knobs, cost in ranked[:LIMIT]]


def _configurations(
    shape: ConvShape,
    source: Source,
    unit: tuple[int, int],
    sort: bool,
    arithmetic: Arithmetic,
    target: Target,
) -> Iterator[SparseConfig]:
    rows, depth = unit
    full = arithmetic.lanes(target)
    wide = [full] + ([full // 2] if target.vector_bits >= 512 else [])
    for lanes in wide:
        for along, height, columns in _tiles(shape, source, lanes, rows, arithmetic, target):
            packs = []
            if height or source.flat:
                packs.append(False)
            if not height and not (source.flat and not source.copied and depth * columns > 256):
                packs.append(True)
            for pack in packs:
                for panels in _panels(shape, height):
                    blocks = shape.batch * shape.groups
                    if panels:
                        blocks *= ceil(shape.positions / (columns * panels * max(height, 1)))
                    tiles = ceil(shape.cout / rows)
                    splits = max(1, min(tiles // 2, ceil(_UNITS / blocks)))
                    unroll = 1 if depth > 1 else 4
                    streams = panels and _streams(shape, source, arithmetic, target)
                    for fetch in (False, True) if streams else (False,):
                        yield SparseConfig(
                            along, lanes, rows, depth, height, columns, pack, panels, splits,
                            unroll, fetch, sort,
                        )  # fmt: skip


def _panels(shape: ConvShape, height: int) -> tuple[int, ...]:
    """Register tiles per block of positions; all positions (0) where these are few."""
    few = (0,) if shape.positions <= 256 else ()
    return (1, *few) if height else (1, 2, 4, *few)


def _streams(shape: ConvShape, source: Source, arithmetic: Arithmetic, target: Target) -> bool:
    """Whether activations come from beyond the second cache, row by row, and can be prefetched.

    Other processors see the rows coming by themselves, or count instructions.
    """
    elements = shape.batch * shape.groups * shape.positions * (shape.cin + shape.cout)
    moved = arithmetic.nbytes * elements
    return target.arch == "x86_64" and not source.copied and moved > target.l2_bytes


def _tiles(
    shape: ConvShape,
    source: Source,
    lanes: int,
    rows: int,
    arithmetic: Arithmetic,
    target: Target,
) -> Iterator[tuple[str, int, int]]:
    """(along, height, columns) that fit the registers with ``rows`` filters."""
    narrowest = arithmetic.narrowest(target)
    if rows < 16:
        most = max(
            (v for v in range(1, 25) if tile_fits(Tile(rows, (lanes,) * v), target, arithmetic)),
            default=0,
        )
        needed = ceil(shape.positions / lanes)
        for vectors in {
            min(v, needed) for v in (most, most - 1, (most + 1) // 2, 3, 4) if v <= most
        }:
            if vectors > 0:
                yield "space", 0, min(vectors * lanes, shape.positions)
        if not source.flat and len(shape.output) <= 2:
            high = shape.output[0] if len(shape.output) == 2 else 1
            for columns in _row_parts(shape.output[-1], most * lanes):
                for height in range(1, min(high, 8) + 1):
                    tile = Tile(rows, row_widths(columns, lanes, source.copied, narrowest) * height)
                    if tile_fits(tile, target, arithmetic):
                        yield "space", height, columns
    if rows < 4 or rows > 2 * lanes or shape.cout < rows or rows % min(rows, lanes):
        return
    widths = split_widths(rows, lanes)
    most = max(
        (n for n in range(1, 29) if tile_fits(Tile(n, widths), target, arithmetic)), default=0
    )
    if not source.flat and len(shape.output) <= 2:
        high = shape.output[0] if len(shape.output) == 2 else 1
        for columns in _row_parts(shape.output[-1], most):
            for height in {most // columns, max(most // columns - 1, 1)}:
                if columns > 1:
                    yield "channel", min(height, high), columns
    if shape.positions <= 1024:
        for parts in range(1, 1 + ceil(shape.positions / max(most, 1))):
            columns = ceil(shape.positions / parts)
            if columns <= most:
                yield "channel", 0, columns
                break
        yield "channel", 0, min(most, shape.positions)


def _row_parts(width: int, most: int) -> list[int]:
    """Columns of register tiles that cut a row into equal parts, or into ``most`` and a rest."""
    found = {min(width, most)}
    found |= {ceil(width / parts) for parts in range(1, 9) if ceil(width / parts) <= most}
    return sorted(found, reverse=True)[:5]


def _cost(
    shape: ConvShape,
    source: Source,
    knobs: SparseConfig,
    share: float,
    arithmetic: Arithmetic,
    target: Target,
) -> float:
    size = float(arithmetic.nbytes)
    positions = Positions.of(shape, source, knobs)
    steps = max(share * shape.reduction, 1.0)  # of a tile of filters
    tile_cost = _arm_tile if uses_lanes(target) else _x86_tile
    work = 0.0
    for height, bands in tile_parts(positions.height, positions.tile[0]):
        for columns, panels in tile_parts(positions.width, positions.tile[1]):
            for filters, tiles in tile_parts(shape.cout, knobs.rows):
                once = tile_cost(
                    source, knobs, (filters, height, columns), steps, arithmetic, target
                )
                work += bands * panels * tiles * once
    if knobs.pack:
        work += _packing(shape, source, knobs, share, arithmetic, target)
    weights = size * shape.cout * shape.reduction * share
    blocks = 1
    if knobs.panels:
        blocks = ceil(positions.width / (knobs.columns * knobs.panels)) * ceil(
            positions.height / positions.tile[0]
        )
    if arithmetic.stored != arithmetic.dtype:
        work += 2.5 * weights / size * blocks / arithmetic.lanes(target)
    pace = 32.0 if weights < target.l2_bytes // 2 else 12.0
    if not uses_lanes(target):
        work += 0.5 * weights * blocks / pace
    if _streams(shape, source, arithmetic, target):
        moved = size * shape.positions * (shape.cin + shape.cout)
        work += moved / (8.0 if knobs.fetch else 4.0)
    if source.copied:
        work += 3.0 * shape.cin * source.channel / arithmetic.lanes(target)
    return shape.batch * shape.groups * work


def _x86_tile(
    source: Source,
    knobs: SparseConfig,
    size: tuple[int, int, int],
    steps: float,
    arithmetic: Arithmetic,
    target: Target,
) -> float:
    """Cycles of one register tile of (filters, height, columns)."""
    filters, height, columns = size
    if knobs.along == "space":
        widths = row_widths(
            columns, knobs.lanes, knobs.height > 0 and source.copied, arithmetic.narrowest(target)
        )
        tile = Tile(filters, widths * height)
        once = tile_cycles(tile, steps, knobs.depth * knobs.unroll, target, arithmetic)
    else:
        tile = Tile(height * columns, split_widths(filters, knobs.lanes))
        # A broadcast load for every multiply-add.
        once = 1.35 * tile_cycles(tile, steps, knobs.depth * knobs.unroll, target, arithmetic)
        once += 3.0 * tile.rows * len(tile.widths) + 2.0 * filters * ceil(height * columns / 8)
    return once + 0.7 * steps / knobs.depth + 10


def _arm_tile(
    source: Source,
    knobs: SparseConfig,
    size: tuple[int, int, int],
    steps: float,
    arithmetic: Arithmetic,
    target: Target,
) -> float:
    """Instructions of one register tile of (filters, height, columns)."""
    filters, height, columns = size
    if knobs.along == "space":
        lanes = arithmetic.lanes(target)
        loads = height * len(
            row_widths(
                columns, lanes, knobs.height > 0 and source.copied, arithmetic.narrowest(target)
            )
        )
        products, last = filters * loads, 3.5
    else:
        loads = height * len(split_widths(columns, arithmetic.shared))
        products, last = height * columns * -(-filters // arithmetic.lanes(target)), 6.0
    weights = -(-filters // arithmetic.shared)
    if knobs.pack:
        loads = -(-loads // 2)
    elif source.channel % 4:
        loads += 1  # the address of every step
    each = products + -(-weights // 2) + loads + (3 + 3 / knobs.unroll) / knobs.depth
    return steps * max(each, 4) + (last + half_sum_cost(steps, arithmetic)) * products + 14


def _packing(
    shape: ConvShape,
    source: Source,
    knobs: SparseConfig,
    share: float,
    arithmetic: Arithmetic,
    target: Target,
) -> float:
    """Cycles to make panels, and to read them where they do not fit the first cache."""
    panels = ceil(shape.positions / knobs.columns)
    tiles = ceil(shape.cout / knobs.rows)
    used = 1 - (1 - share) ** tiles
    cycles = pack_cycles(shape, source, knobs.columns, knobs.lanes)
    work = panels * shape.reduction * used * cycles * knobs.splits
    if uses_lanes(target):
        return work
    panel = arithmetic.nbytes * shape.reduction * knobs.columns
    read = panel * share * knobs.splits * panels * tiles
    size = panel * used * (knobs.panels or panels)
    if size > 0.75 * target.l2_bytes:
        work += 0.3 * read / 14
    elif size > target.l1_bytes:
        work += 0.25 * read / 32
    return work
