"""Data movement around a convolution's product kernel.

- ``pack_weights``: at compile time, to the order in which the kernel reads them.
- ``copy_stage``: the input, padded and split into stride phases (``conv_shape.Source``).
- ``pack_panel``: inside the kernel, a panel of output positions as ``[reduction][columns]``
  in ``scratch`` (im2col of just the panel, so it stays in cache). It costs about
  ``2 / cout`` of the product and makes every later access contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.arithmetic import Arithmetic
from effc.kernels.builder import T, bind, loop, splat, stage_func, vload, vstore
from effc.kernels.conv_shape import ConvShape, Source
from effc.kernels.lanes import pieces
from effc.kernels.register_tile import split_widths
from effc.kernels.vectorbase import weight_as

__all__ = [
    "copy_stage",
    "pack_panel",
    "pack_row",
    "pack_runs",
    "pack_weights",
    "panel_slack",
    "widen",
]

Expr = Any
_MOST_RUNS = 9  # more are copied by a loop instead of straight code


def pack_weights(weight: np.ndarray, groups: int, tile: int) -> np.ndarray:
    """``[groups*cout, cin, *kernel]`` to ``[groups][ceil(cout/tile)][reduction][tile]``, flat.

    Any element type.

    The last tile of a group is as narrow as what is left, so that channel tile ``t``
    begins at ``(group*cout + t*tile) * reduction``.
    """
    cout = weight.shape[0] // groups
    matrix = weight.reshape(groups, cout, -1)
    parts = [
        np.ascontiguousarray(matrix[g, start : start + tile].T).ravel()
        for g in range(groups)
        for start in range(0, cout, tile)
    ]
    return np.concatenate(parts)


def widen(source: Any, start: Expr, count: Expr, to: Any, at: Expr, lanes: int) -> None:
    """``to[at + i] = source[start + i]`` for ``i < count``, float16 to float32."""

    def move(i: Expr, width: int) -> None:
        vstore(to, at + i, weight_as(vload(source, start + i, width), "float32"), width)

    trips = count // lanes if isinstance(count, int) else bind(tirx.truncdiv(count, lanes))
    with loop(trips) as trip:
        move(trip * lanes, lanes)
    if isinstance(count, int):
        for offset, width in pieces(count % lanes, lanes):
            move(trips * lanes + offset, width)
    else:
        with loop(bind(trips * lanes), count) as i:
            move(i, 1)


def copy_stage(
    shape: ConvShape, source: Source, arithmetic: Arithmetic, target: Target, size: int
) -> tirx.PrimFunc:
    """Copy the input into ``source``'s layout; one unit per (batch, channel).

    Args:
        shape: The convolution.
        source: Layout to produce.
        arithmetic: Type of the elements, and what padding consists of.
        target: Whose vectors copy.
        size: Elements of the destination workspace.
    """
    last = len(shape.input) - 1
    lanes, dtype = arithmetic.lanes(target), arithmetic.dtype
    total = shape.batch * shape.groups * shape.cin * shape.input_positions
    axes = [[_valid(shape, source, phase, i) for i in range(last + 1)] for phase in source.phases]
    covered = all(
        (lo, hi) == (0, size)
        for ranges in axes
        for (lo, hi), size in zip(ranges, source.extent, strict=True)
    )

    def body(x: Any, p: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as unit:
            to = bind(unit * source.channel)
            if not covered:
                _fill(p, arithmetic.fill, to, source.channel, lanes)
            for number, (phase, ranges) in enumerate(zip(source.phases, axes, strict=True)):
                if any(lo >= hi for lo, hi in ranges):
                    continue
                starts = [
                    bind(unit * shape.input_positions + _first(shape, phase, ranges)),
                    bind(to + number * source.plane + _flat([r[0] for r in ranges], source.extent)),
                ]
                # How far a row's vectors may read from its first element: to the row's end.
                room = shape.input[last] - _first_on_axis(shape, phase, ranges, last)
                _rows(shape, source, ranges, 0, starts, room, x, p, lanes)

    return stage_func([("x", dtype, total), ("p", dtype, size)], body)


def _valid(shape: ConvShape, source: Source, phase: tuple[int, ...], i: int) -> tuple[int, int]:
    """Range of destination coordinates on axis ``i`` that lie inside the input."""
    shift, stride = shape.pads[i] - phase[i], shape.strides[i]
    lo = max(0, -(-shift // stride))
    hi = min(source.extent[i], (shape.input[i] - 1 + shift) // stride + 1)
    return lo, hi


def _first(shape: ConvShape, phase: tuple[int, ...], ranges: list[tuple[int, int]]) -> int:
    """Flat input offset of the first valid destination element."""
    coords = [_first_on_axis(shape, phase, ranges, i) for i in range(len(ranges))]
    return _flat(coords, shape.input)


def _first_on_axis(
    shape: ConvShape, phase: tuple[int, ...], ranges: list[tuple[int, int]], axis: int
) -> int:
    return ranges[axis][0] * shape.strides[axis] + phase[axis] - shape.pads[axis]


def _flat(coords: list[int], extent: tuple[int, ...]) -> int:
    offset = 0
    for coord, size in zip(coords, extent, strict=True):
        offset = offset * size + coord
    return offset


def _rows(
    shape: ConvShape,
    source: Source,
    ranges: list[tuple[int, int]],
    axis: int,
    starts: list[Expr],
    room: int,
    x: Any,
    p: Any,
    lanes: int,
) -> None:
    """Loops over the outer axes, then one strided row copy."""
    lo, hi = ranges[axis]
    if axis == len(ranges) - 1:
        _row(x, starts[0], p, starts[1], hi - lo, shape.strides[axis], room, lanes)
        return
    steps = [
        shape.strides[axis] * _volume(shape.input, axis),
        _volume(source.extent, axis),
    ]
    with loop(hi - lo) as i:
        moved = [bind(start + i * step) for start, step in zip(starts, steps, strict=True)]
        _rows(shape, source, ranges, axis + 1, moved, room, x, p, lanes)


def _volume(extent: tuple[int, ...], axis: int) -> int:
    return int(np.prod(extent[axis + 1 :], dtype=np.int64))


def _row(
    x: Any, src: Expr, p: Any, dst: Expr, count: int, stride: int, room: int, lanes: int
) -> None:
    """``p[dst + i] = x[src + i*stride]`` for ``i < count``, reading below ``src + room``."""
    wide = count // lanes
    if stride == 2:
        wide = min(wide, room // (2 * lanes))

    def copy(at: Expr, width: int, deinterleave: bool) -> None:
        if deinterleave:
            pair = [bind(vload(x, src + at * 2 + h * width, width)) for h in (0, 1)]
            value = tirx.Shuffle(pair, list(range(0, 2 * width, 2)))
        else:
            value = vload(x, src + at * stride, width, stride)
        vstore(p, dst + at, value, width)

    if wide:
        with loop(wide) as i:
            copy(i * lanes, lanes, stride == 2)
    at = wide * lanes
    for width in split_widths(count - at, lanes):
        copy(at, width, stride == 2 and width > 1 and 2 * (at + width) <= room)
        at += width


def _fill(p: Any, value: Expr, to: Expr, count: int, lanes: int) -> None:
    if count // lanes:
        with loop(count // lanes) as i:
            vstore(p, to + i * lanes, splat(value, lanes), lanes)
    at = count - count % lanes
    for width in split_widths(count % lanes, lanes):
        vstore(p, to + at, splat(value, width), width)
        at += width


def panel_slack(shape: ConvShape, source: Source, columns: int, lanes: int) -> tuple[int, int]:
    """Elements that ``pack_panel`` may touch beyond the (workspace, panel): full vectors only."""
    if source.flat:
        return 0, 0
    width, pitch = shape.output[-1], source.extent[-1]
    rows = columns // width + 2
    outer = 1 if len(source.extent) < 3 else -(-rows // shape.output[-2]) + 1
    missed = source.plane // source.extent[0] * outer if len(source.extent) == 3 else 0
    return rows * pitch + missed + 2 * lanes, width + 2 * lanes


def pack_panel(
    shape: ConvShape,
    source: Source,
    x: Any,
    taps: Any,
    base: Expr,
    position: Expr,
    panel: Any,
    to: Expr,
    channels: int,
    columns: int,
    lanes: int,
) -> None:
    """Write ``panel[to + (c*taps + t)*columns + j]`` for ``columns`` positions from ``position``.

    Args:
        shape, source: What is read, and its layout.
        x: Buffer in ``source``'s layout.
        taps: Buffer with ``source.taps`` (data, so that the code is one loop), or ``None``
            if there is just one tap.
        base: Offset of the first channel in ``x``.
        position: First output position.
        panel: Destination buffer.
        to: First element of the panel.
        channels: Input channels to pack.
        columns: Positions per panel.
        lanes: Vector width.
    """
    count = len(source.taps)
    copy = pack_row(shape, source, x, position, panel, columns, lanes)
    with loop(channels) as c:
        if taps is None:
            copy(bind(base + c * source.channel + source.taps[0]), bind(to + c * columns))
        else:
            with loop(count) as t:
                src = bind(base + c * source.channel + taps[t])
                copy(src, bind(to + (c * count + t) * columns))


def pack_row(
    shape: ConvShape,
    source: Source,
    x: Any,
    position: Expr,
    panel: Any,
    columns: int,
    lanes: int,
) -> Callable[[Expr, Expr], None]:
    """How to copy one row of a panel: ``copy(src, dst)``, for ``columns`` output positions.

    ``src`` is the offset in ``x`` that belongs to output position 0, ``dst`` where the row of
    the panel begins.
    """
    runs = _runs(shape, source, position, columns, lanes)

    def copy(src: Expr, dst: Expr) -> None:
        if runs is None:
            _copy_rows(shape, source, x, src, position, panel, dst, columns, lanes)
            return
        for first, start, widths in runs:
            at = 0
            for width in widths:
                vstore(panel, dst + (first + at), vload(x, src + start + at, width), width)
                at += width

    return copy


def pack_runs(shape: ConvShape, source: Source, columns: int, lanes: int) -> tuple[int, int]:
    """(contiguous runs of the source, vectors per run) that make one row of a panel."""
    width = shape.output[-1]
    vectors = -(-min(columns, width) // min(lanes, _ceil_power(width)))
    if source.flat:
        return 1, len(split_widths(columns, lanes))
    if width % columns == 0:
        return 1, vectors
    return columns // width if columns % width == 0 else (columns - 2) // width + 2, vectors


def _runs(
    shape: ConvShape, source: Source, position: Expr, columns: int, lanes: int
) -> list[tuple[Expr, Expr, tuple[int, ...]]] | None:
    """(first column, source offset, vectors) of each run; ``None`` if there are too many.

    A run's last vector may run over into columns that the next run or row overwrites.
    """
    count, vectors = pack_runs(shape, source, columns, lanes)
    if source.flat:
        return [(0, position, split_widths(columns, lanes))]
    if count > _MOST_RUNS:
        return None
    width = shape.output[-1]
    widths = (min(lanes, _ceil_power(width)),) * vectors
    if columns % width == 0 or width % columns == 0:
        return [
            (i * width, bind(_offset(shape, source, position + i * width)), widths)
            for i in range(count)
        ]
    row = bind(position // width)
    found = []
    for i in range(count):
        first = bind(T.max(T.min((row + i) * width - position, columns), 0))
        found.append((first, bind(_offset(shape, source, position + first)), widths))
    return found


def _offset(shape: ConvShape, source: Source, position: Expr) -> Expr:
    """Flat source offset of an output position."""
    *outer, width = shape.output
    row, offset = position // width, position % width
    if len(outer) == 2:
        offset += row // outer[1] * (source.extent[1] * source.extent[2])
        row = row % outer[1]
    return offset + row * source.extent[-1]


def _copy_rows(
    shape: ConvShape,
    source: Source,
    x: Any,
    src: Expr,
    position: Expr,
    panel: Any,
    dst: Expr,
    columns: int,
    lanes: int,
) -> None:
    """As the runs of ``_runs``, in a loop."""
    width = shape.output[-1]
    lanes = min(lanes, _ceil_power(width))
    first = bind(position // width)
    with loop((columns - 2) // width + 2) as i:
        # Row ``first + i`` covers panel columns [lo, hi).
        lo = bind(T.max((first + i) * width - position, 0))
        hi = bind(T.min((first + i + 1) * width - position, columns))
        start = bind(src + _offset(shape, source, position + lo))
        with T.If(lo < hi), T.Then(), loop((hi - lo + (lanes - 1)) // lanes) as v:
            vstore(panel, dst + lo + v * lanes, vload(x, start + v * lanes, lanes), lanes)


def _ceil_power(value: int) -> int:
    return 1 << (value - 1).bit_length()
