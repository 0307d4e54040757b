"""Configurations of the direct convolution and their predicted cost.

The model counts, per unit of work, issue cycles of the register tile (fused
multiply-adds against loads and against the latency of one dependent chain), the packing,
the epilogue's stores, and the bytes that each cache level has to deliver. On Arm it counts
instructions, which its narrower front end makes the better measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil

from effc.devices.target import Target
from effc.kernels.arithmetic import FLOAT32, Arithmetic, Float16
from effc.kernels.conv_layout import ProductConfig, reads_in_place
from effc.kernels.conv_pack import pack_runs
from effc.kernels.conv_shape import ConvShape, Source
from effc.kernels.lanes import uses_lanes
from effc.kernels.quad_pairs import whole_pairs
from effc.kernels.register_tile import Tile, split_widths
from effc.kernels.template import Config

__all__ = ["direct_candidates", "pack_cycles", "tile_cycles", "tile_fits", "tile_parts"]

LIMIT = 24  # candidates offered to the tuner
_LATENCY = 4  # cycles from one fused multiply-add to the next on the same register
_UNITS = 8  # parallel units worth having
_CODE = {"speed": 0.0, "balanced": 0.1, "size": 0.3}
"""How much slower is still better than code for another size of tile, on microcontrollers."""


def tile_fits(tile: Tile, target: Target, arithmetic: Arithmetic = FLOAT32) -> bool:
    """Whether accumulators and operands of a register tile fit the vector registers."""
    sums = tile.rows * len(tile.widths)
    registers = target.registers(arithmetic.sums)
    scalars = -(-tile.rows // arithmetic.shared) if uses_lanes(target) else 1
    if arithmetic.steps > 1:  # weights come one vector after the other, loaded ahead
        return sums + arithmetic.steps * len(tile.widths) + 3 <= registers
    # Registers that LLVM needs beside, or it spills: unrolled steps overlap on Arm; SSE has no
    # fused multiply-add and holds a product.
    spare = 2 if target.vector_bits <= 128 else 0
    return sums + len(tile.widths) + scalars + spare <= registers


def tile_cycles(
    tile: Tile,
    depth: float,
    unroll: int,
    target: Target,
    arithmetic: Arithmetic = FLOAT32,
    paired: bool = True,
) -> float:
    """Predicted cycles of one register tile over ``depth`` reduction steps.

    Args:
        tile: Rows and vectors.
        depth: Reduction steps.
        unroll: Steps per loop iteration.
        target: Whose instructions to count.
        arithmetic: Type of the elements.
        paired: Whether successive steps read adjacent memory, so that Arm can load pairs.
    """
    count = len(tile.widths)
    if arithmetic.steps > 1:
        return _pair_cycles(tile, depth, unroll)
    if uses_lanes(target):
        vectors, scalars = tile.rows * count, -(-tile.rows // arithmetic.shared)
        loads = (count + scalars) / 2 if paired else count + 1 + scalars / 2
        if tile.rows % arithmetic.shared:
            loads += 0.5
        step = vectors + loads + 4 / min(unroll, depth)
        return depth * max(step, _LATENCY) + (3.5 + half_sum_cost(depth, arithmetic)) * vectors + 12
    if target.bare and arithmetic.sums == "float32":
        # One instruction after the other. A fused multiply-add takes three cycles on a Cortex-M4
        # (its Technical Reference Manual), so LLVM makes two instructions of it there.
        other = 0.25 if target.cpu in ("cortex-m4", "cortex-m33") else 0.5
        step = 0.5 * tile.rows * count + other * (tile.rows + count + 4 / min(unroll, depth))
        return depth * step + 20 + tile.rows * count
    half = arithmetic.lanes(target) // 2
    rate = 1.0 if target.vector_bits >= 512 else 0.5  # cycles of a full-width multiply-add
    weights = [rate if width > half else rate / 2 for width in tile.widths]
    fma = tile.rows * sum(max(w, 0.5) for w in weights)
    loads = sum(max(w, 0.5) for w in weights) + 0.5 * tile.rows
    issue = (tile.rows * count + count + tile.rows + 3 / unroll) / 5
    return depth * max(fma, loads, issue, _LATENCY) + 20 + tile.rows * count


def _pair_cycles(tile: Tile, depth: float, unroll: int) -> float:
    """As ``tile_cycles``, for pairs of quads (``quad_pairs``)."""
    count, pairs = len(tile.widths), ceil(depth / 2)
    vectors = tile.rows * count
    loads, zips = (2 * count + tile.rows / 2) / 2, 2 * count
    step = vectors + loads + zips + 4 / min(max(unroll // 2, 1), pairs)
    return pairs * max(step, _LATENCY) + (3.5 + 1.5) * vectors + 12


def half_sum_cost(depth: float, arithmetic: Arithmetic) -> float:
    """Instructions per vector of a tile that adding partial sums up costs."""
    if not isinstance(arithmetic, Float16):
        return 0.0
    return 2.0 if depth <= arithmetic.terms else 7.0 * ceil(depth / arithmetic.terms) + 5.0


@dataclass(frozen=True)
class _Machine:
    """Bytes per cycle that a level delivers to the tile beside its arithmetic."""

    l2: float = 48.0
    far: float = 14.0


def direct_candidates(
    shape: ConvShape, source: Source, arithmetic: Arithmetic, target: Target
) -> list[tuple[Config, float]]:
    """Configurations with predicted cycles, best first."""
    found: dict[ProductConfig, float] = {}
    for knobs in _configurations(shape, source, arithmetic, target):
        if knobs not in found:
            found[knobs] = _cost(shape, source, knobs, arithmetic, target)
    ranked = sorted(found.items(), key=lambda item: (item[1], str(item[0])))
    return [(asdict(knobs), cost) for knobs, cost in ranked[:LIMIT]]


def _configurations(
    shape: ConvShape, source: Source, arithmetic: Arithmetic, target: Target
) -> Iterator[ProductConfig]:
    full = arithmetic.lanes(target)
    wide = [full] + ([full // 2] if target.vector_bits >= 512 else [])
    packs = [True, False] if reads_in_place(source) else [True]
    for lanes in wide:
        for along, channels, columns in _tiles(shape, lanes, arithmetic, target):
            for pack in packs:
                for block in _blocks(shape, source, columns, arithmetic, target):
                    if arithmetic.steps > 1 and not whole_pairs(shape, source, block):
                        continue
                    for panels in (1, 2, 4):
                        splits = _splits(shape, channels, columns, panels)
                        yield ProductConfig(
                            along,
                            lanes,
                            channels,
                            columns,
                            pack,
                            panels,
                            block,
                            splits,
                            unroll=_unroll(block * len(source.taps), target),
                        )


def _unroll(depth: int, target: Target) -> int:
    """Steps per loop iteration; on Arm every instruction beside the multiply-adds counts.

    With 16 registers LLVM spills what it loads ahead, so not there.
    """
    if not uses_lanes(target) or target.vector_registers < 32:
        return 2
    return 16 if depth >= 128 else 8


def _tiles(
    shape: ConvShape, lanes: int, arithmetic: Arithmetic, target: Target
) -> Iterator[tuple[str, int, int]]:
    """(along, channels, columns) that fit the registers."""
    enough = min(8, target.registers(arithmetic.sums) // 2, _largest(shape, lanes))
    for vectors in range(1, 9):
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28):
            if not tile_fits(Tile(rows, (lanes,) * vectors), target, arithmetic):
                continue
            if uses_lanes(target) and rows > 4 and rows % 4:
                continue
            if rows * vectors < enough:
                continue
            run = vectors * lanes
            if run - lanes < shape.positions and rows % arithmetic.channels == 0:
                yield "space", min(rows, shape.cout), min(run, shape.positions)
            turned = shape.positions <= 256 and arithmetic.steps == 1
            if turned and run - lanes < shape.cout and run % arithmetic.channels == 0:
                yield "channel", min(run, shape.cout), min(rows, shape.positions)


def _largest(shape: ConvShape, lanes: int) -> int:
    return -(-shape.positions // lanes) * shape.cout


def _blocks(
    shape: ConvShape, source: Source, columns: int, arithmetic: Arithmetic, target: Target
) -> list[int]:
    """Input channels per pass: all, or the most that keep a panel in half of a cache."""
    found = [shape.cin]
    if isinstance(arithmetic, Float16):  # its sums do not wait in scratch, which has its type
        return found
    for room in (target.l1_bytes // 2, target.l2_bytes // 2):
        most = room // (arithmetic.nbytes * len(source.taps) * columns)
        fitting = [d for d in range(1, shape.cin + 1) if shape.cin % d == 0 and d <= most]
        if fitting and fitting[-1] not in found and fitting[-1] * len(source.taps) >= 32:
            found.append(fitting[-1])
    return found


def _splits(shape: ConvShape, channels: int, columns: int, panels: int) -> int:
    """Enough splits of the channels that all cores get work."""
    blocks = shape.batch * shape.groups * ceil(shape.positions / (columns * panels))
    tiles = ceil(shape.cout / channels)
    return max(1, min(tiles, ceil(_UNITS / blocks), ceil(shape.cout / 128)))


def _cost(
    shape: ConvShape,
    source: Source,
    knobs: ProductConfig,
    arithmetic: Arithmetic,
    target: Target,
) -> float:
    taps = len(source.taps)
    depth, passes = knobs.block * taps, shape.cin // knobs.block
    images = shape.batch * shape.groups
    work, kinds = 0.0, 0
    for columns, panels in tile_parts(shape.positions, knobs.columns):
        for channels, tiles in tile_parts(shape.cout, knobs.channels):
            rows, run = (channels, columns) if knobs.along == "space" else (columns, channels)
            tile = Tile(rows, split_widths(run, knobs.lanes, arithmetic.narrowest(target)))
            vectors = rows * len(tile.widths)
            cycles = tile_cycles(tile, depth, knobs.unroll, target, arithmetic, knobs.pack)
            once = cycles * passes
            if passes > 1 or knobs.along == "channel":
                once += 2.0 * vectors * passes + vectors
            if knobs.along == "channel":
                once += 2.0 * rows * run / min(knobs.lanes, 4)
            work += panels * tiles * once
            kinds += 1
    if target.bare:  # every kind of tile is code of its own, in a flash that is small
        work *= 1 + _CODE[target.optimize] * (kinds - 1)
    blocks = ceil(shape.positions / (knobs.columns * knobs.panels))
    if knobs.pack:
        panels = ceil(shape.positions / knobs.columns)
        work += (
            panels
            * shape.reduction
            * pack_cycles(shape, source, knobs.columns, knobs.lanes)
            * knobs.splits
        )
    if arithmetic.stored != arithmetic.dtype:
        work += 2.5 * shape.cout * shape.reduction * blocks / arithmetic.lanes(target)
    work += _traffic(shape, knobs, depth, blocks, arithmetic, target)
    if source.copied:
        work += 3.0 * shape.cin * source.channel / arithmetic.lanes(target)
    return images * work


def pack_cycles(shape: ConvShape, source: Source, columns: int, lanes: int) -> float:
    """Cycles to pack one reduction index of one panel."""
    runs, vectors = pack_runs(shape, source, columns, lanes)
    return runs * (2.0 * vectors + (0.5 if runs == 1 else 1.0)) + 2


def _traffic(
    shape: ConvShape,
    knobs: ProductConfig,
    depth: int,
    blocks: int,
    arithmetic: Arithmetic,
    target: Target,
) -> float:
    """Cycles that caches beyond the first add, per image and group."""
    machine = _Machine()
    size = float(arithmetic.nbytes)
    panel = size * depth * knobs.columns
    tiles = ceil(shape.cout / knobs.channels)
    passes = shape.reduction // depth
    cycles = 0.0
    block = panel * knobs.panels
    read = block * tiles * passes * blocks
    if block > target.l2_bytes // 2:
        cycles += read / machine.far
    elif block > target.l1_bytes // 2:
        cycles += 0.3 * read / machine.l2
    elif not knobs.pack and shape.positions * size >= 2048 and tiles > 1:
        # Rows a page apart: few cache sets and many address translations.
        cycles += 0.3 * read / machine.far
    weights = size * shape.cout * shape.reduction
    pace = machine.l2 if weights < target.l2_bytes // 2 else machine.far
    return cycles + 0.5 * weights * blocks / pace


def tile_parts(total: int, tile: int) -> list[tuple[int, int]]:
    """(size, count) of the full tiles and of the remainder, as far as there are any."""
    both = ((tile, total // tile), (total % tile, 1))
    return [(size, count) for size, count in both if size and count]
