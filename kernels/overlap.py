"""Safe distances between the result of a kernel and an input that dies there.

A kernel that has read what it needs before it writes may put its result where the input
lies, if no step of it writes bytes that a later one still reads. How far the two must be apart
follows from the order of access alone ("diagonal" memory optimisation: Blacker, Bridges,
Hadfield, 2020; vMCU, MLSys 2024). Distances are ``address(result) - address(source)`` in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from effc.kernels.region import Region, Value
from effc.kernels.template import Overlap
from effc.kernels.window import Axis

__all__ = [
    "Shifts",
    "all_planes",
    "ascending",
    "overlap",
    "plane_by_plane",
    "plane_multiples",
    "quad_bytes",
]

Shifts = tuple[tuple[int, int], ...]


def ascending(first_read: np.ndarray, written: np.ndarray, sizes: tuple[int, int]) -> Shifts:
    """Distances for steps that run one after another, each reading all it needs before it writes.

    Args:
        first_read: First byte of the source that each step reads, in the order of the steps.
        written: Byte of the result behind the last one that each step writes.
        sizes: Bytes of source and result: further apart the two share no byte.

    Returns:
        One range, up to the largest distance at which no step writes at or above the first
        byte that any later one reads; empty if there is none.
    """
    source, result = sizes
    done = np.maximum.accumulate(written)[:-1]
    unread = np.minimum.accumulate(first_read[::-1])[::-1][1:]
    limit = int(min(np.min(unread - done, initial=source), source))
    return ((-result, limit),) if limit > -result else ()


def plane_multiples(plane: int, source_planes: int, result_planes: int) -> Shifts:
    """Distances for kernels that map a position of all input planes to the same one of all outputs.

    If every step reads its positions of all planes before it writes them, the result may begin at
    any plane of the source, or the source at any plane of the result.

    Args:
        plane: Bytes of one plane, the same on both sides.
        source_planes, result_planes: How many there are.
    """
    return tuple((i * plane, i * plane) for i in range(1 - result_planes, source_planes))


def plane_by_plane(
    axes: Sequence[Axis], planes: int, elements: tuple[int, int], rows: int = 0
) -> Shifts:
    """Distances for kernels that make one plane after the other, each from one of the input.

    Args:
        axes: Of the window, outermost first.
        planes: How many there are, of all images.
        elements: Bytes per position of source and result.
        rows: A step computes that many indices of the first axis; 0 means a step per position.
    """
    read, written = _steps(axes, rows)
    sizes = prod(a.size for a in axes), prod(a.out for a in axes)
    number = np.arange(planes)[:, None]
    first = (number * sizes[0] + read) * elements[0]
    last = (number * sizes[1] + written) * elements[1]
    whole = (planes * sizes[0] * elements[0], planes * sizes[1] * elements[1])
    return ascending(first.reshape(-1), last.reshape(-1), whole)


def all_planes(axes: Sequence[Axis], planes: tuple[int, int], elements: tuple[int, int]) -> Shifts:
    """Distances for kernels that make one position of all planes after the other, from all planes.

    Args:
        axes: Of the window, outermost first.
        planes: Of source and result, of a single image.
        elements: Bytes per position of source and result.
    """
    read, written = _steps(axes, 0)
    sizes = prod(a.size for a in axes), prod(a.out for a in axes)
    above = (planes[1] - 1) * sizes[1]
    whole = (planes[0] * sizes[0] * elements[0], planes[1] * sizes[1] * elements[1])
    shifts = ascending(read * elements[0], (above + written) * elements[1], whole)
    plain = all(a.kernel == a.stride == 1 and a.size == a.out for a in axes)
    if plain and elements[0] == elements[1]:
        shifts += plane_multiples(sizes[0] * elements[0], *planes)
    return shifts


def _steps(axes: Sequence[Axis], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """First input position, and position behind the last output, of the steps over a plane."""
    outer, inner = axes[0], axes[1:]
    if rows:
        start = np.arange(0, outer.out, rows)
        read = np.maximum(start * outer.stride - outer.before, 0) * prod(a.size for a in inner)
        return read, np.minimum(start + rows, outer.out) * prod(a.out for a in inner)
    read = np.zeros((), np.int64)
    for axis in axes:
        first = np.maximum(np.arange(axis.out) * axis.stride - axis.before, 0)
        read = read[..., None] * axis.size + first
    flat = read.reshape(-1)
    return flat, np.arange(1, flat.size + 1)


def quad_bytes(value: Value) -> int:
    """Bytes of four channels of one position."""
    return 4 * np.dtype(value.dtype).itemsize


def overlap(region: Region, source: Value, shifts: Shifts) -> tuple[Overlap, ...]:
    """The anchor's input ``source`` and the region's result, unless the epilogue reads it too."""
    behind = [v for op in region.epilogue for v in op.inputs]
    if not shifts or any(v is source for v in behind):
        return ()
    return (Overlap(source.name, region.outputs[0].name, shifts),)
