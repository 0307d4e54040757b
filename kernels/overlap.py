"""Safe distances between the result of a kernel and an input that dies there.

A kernel that has read what it needs before it writes may put its result where the input
lies, if no unit writes bytes that a later one still reads. How far the two must be apart follows
from the order of access alone ("diagonal" memory optimisation: Blacker et al., "Efficient memory
management for DNN inference", 2020). Distances are ``address(result) - address(source)`` in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

__all__ = ["Shifts", "Unit", "ascending", "plane_multiples"]

Shifts = tuple[tuple[int, int], ...]
Unit = tuple[int, int]
"""What one unit touches: first byte of the source that it reads, byte behind the last one of the
result that it writes. A unit reads before it writes."""


def ascending(units: Iterable[Unit], source_bytes: int, result_bytes: int) -> Shifts:
    """Distances for units that run one after another, each reading all it needs before it writes.

    Args:
        units: In the order in which they run.
        source_bytes, result_bytes: Sizes: further apart the two share no byte.

    Returns:
        One range, up to the largest distance at which no unit writes at or above the first
        byte that any later one reads; empty if there is none.
    """
    steps = list(units)
    written = list(accumulate((end for _, end in steps), max))
    unread = list(accumulate((first for first, _ in reversed(steps)), min))[::-1]
    room = (first - end for first, end in zip(unread[1:], written, strict=False))
    limit = min(room, default=source_bytes)
    return ((-result_bytes, min(limit, source_bytes)),) if limit > -result_bytes else ()


def plane_multiples(plane: int, source_planes: int, result_planes: int) -> Shifts:
    """Distances for kernels that map a position of all input planes to the same one of all outputs.

    If every unit reads its positions of all planes before it writes them, the result may begin at
    any plane of the source, or the source at any plane of the result.

    Args:
        plane: Bytes of one plane, the same on both sides.
        source_planes, result_planes: How many there are.
    """
    return tuple((i * plane, i * plane) for i in range(1 - result_planes, source_planes))
