"""Inner products of ``columns`` for Cortex-M with MVE (Helium), in assembly.

``vmladava`` adds up sixteen products of bytes in a general-purpose register of even number.
Instructions per product, loop included: 0.14 over all slots, 0.16 over listed ones, whose quads
``vldrw`` gathers four at a time.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from effc.kernels.inline_assembly import Routine

__all__ = ["QUADS", "vectors", "vectors_listed"]

QUADS = 4
"""Slots of a vector."""

_SUMS = tuple(f"a{i}" for i in range(4))


@cache
def vectors(positions: int, count: int) -> Routine:
    """A tile's products over ``count`` bytes per filter and position.

    Operands: weights, one filter after the other, and the columns, likewise.
    """
    filters = 4 // positions
    weights = ["w", *(f"w{i}" for i in range(1, filters))]
    columns = _columns(positions)
    lines = [f"movw {{n}}, #{count}"]
    for names in (weights, columns):
        lines += [f"add {{{other}}}, {{{before}}}, {{n}}" for before, other in pairwise(names)]
    lines += ["dlstp.8 lr, {n}", "1:"]
    lines += [f"vldrb.u8 q{i}, [{{{name}}}], #16" for i, name in enumerate(columns)]
    lines += _products(weights, "vldrb.u8", list(range(positions)))
    lines.append("letp lr, 1b")
    return _routine(
        f"effc_vectors{positions}_{count}",
        positions,
        ("w", "x"),
        (),
        (*weights[1:], *columns[1:], "n"),
        lines,
    )


@cache
def vectors_listed(positions: int, pitch: int) -> Routine:
    """A tile's products over listed slots.

    Operands: weights, per four slots those of one filter after the other; the columns; the list
    (numbers of slots, int16) and its length, a multiple of four.

    Args:
        positions: Of the tile.
        pitch: Bytes from one column to the next.
    """
    columns = _columns(positions)
    lines = []
    if positions == 2:
        lines = [f"movw {{x1}}, #{pitch}", "add {x1}, {x}"]
    lines += ["dlstp.32 lr, {n}", "1:", "vldrh.u32 q0, [{l}], #8"]
    lines += [f"vldrw.u32 q{3 - i}, [{{{name}}}, q0, uxtw #2]" for i, name in enumerate(columns)]
    lines += _products(["w"] * (4 // positions), "vldrw.u32", [3 - i for i in range(positions)])
    lines.append("letp lr, 1b")
    name = f"effc_vectors_listed{positions}_{pitch}"
    temporaries = tuple(columns[1:])
    return _routine(name, positions, ("w", "x", "l"), ("n",), temporaries, lines, low=("l",))


def _columns(positions: int) -> list[str]:
    return ["x", "x1"][:positions]


def _products(weights: list[str], load: str, columns: list[int]) -> list[str]:
    """Vectors of weights, by those of the columns, which lie in vector registers ``columns``."""
    free = [i for i in range(4) if i not in columns]
    lines = []
    for f, name in enumerate(weights):
        q = free[f % len(free)]
        lines.append(f"{load} q{q}, [{{{name}}}], #16")
        for p, x in enumerate(columns):
            lines.append(f"vmladava.s8 {{a{f * len(columns) + p}}}, q{q}, q{x}")
    return lines


def _routine(
    name: str,
    positions: int,
    pointers: tuple[str, ...],
    numbers: tuple[str, ...],
    temporaries: tuple[str, ...],
    lines: list[str],
    low: tuple[str, ...] = (),
) -> Routine:
    return Routine(
        name,
        _SUMS,
        pointers,
        numbers,
        temporaries,
        "\n".join(lines),
        places=(0, 1, 2, 3) if positions == 1 else (0, 4, 1, 5),
        clobbers=("lr", *(f"q{i}" for i in range(4)), "vpr"),
        even=True,
        low=low,
    )
