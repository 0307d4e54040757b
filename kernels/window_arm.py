"""Windows of bytes into ``columns``, for Cortex-M, in assembly (``column_rows``).

A window is some words and single bytes at known distances from its first byte, at any address.
Single bytes are put together four at a time; the last slot may hold anything behind them.
"""

from __future__ import annotations

import hashlib
from functools import cache

from effc.kernels.inline_assembly import Routine

__all__ = ["REACH", "bytes_of_window", "pairs_of_window"]

Distances = tuple[int, ...]

REACH = 4092
"""Farthest word that an instruction's offset reaches."""


@cache
def pairs_of_window(words: Distances, left: Distances, step: int, unsigned: bool) -> Routine:
    """As pairs of 16 bits: elements 0, 2 and 1, 3 of a slot.

    Operands: the window's first byte, the column's first word.

    Args:
        words, left: Distances of words, and of single bytes.
        step: Bytes from slot to slot of the column, two words of 32 bits.
        unsigned: Whether 128 is taken off.
    """
    lines = ["mov {m}, #0x80808080"] if unsigned else []
    for slot, word in enumerate(words):
        lines.append(f"ldr {{a}}, [{{x}}, #{word}]")
        lines += ["eor {a}, {a}, {m}"] if unsigned else []
        lines += ["sxtb16 {b}, {a}", "sxtb16 {d}, {a}, ror #8"]
        lines.append(f"strd {{b}}, {{d}}, [{{c}}, #{slot * step}]")
    for number, four in enumerate(_fours(left)):
        for register, pair in (("b", four[::2]), ("d", four[1::2])):
            lines += _byte(register, pair[0], unsigned) if pair else []
            if len(pair) == 2:
                lines += _byte("a", pair[1], unsigned)
                lines.append(f"pkhbt {{{register}}}, {{{register}}}, {{a}}, lsl #16")
        lines.append(f"strd {{b}}, {{d}}, [{{c}}, #{(len(words) + number) * step}]")
    return _routine("pairs", lines)


@cache
def bytes_of_window(words: Distances, left: Distances, unsigned: bool) -> Routine:
    """As bytes, one slot after the other; operands and arguments as ``pairs_of_window``."""
    lines = ["mov {m}, #0x80808080"] if unsigned else []
    for slot, word in enumerate(words):
        lines.append(f"ldr {{a}}, [{{x}}, #{word}]")
        lines += ["eor {a}, {a}, {m}"] if unsigned else []
        lines.append(f"str {{a}}, [{{c}}, #{4 * slot}]")
    for number, distance in enumerate(left):
        lines += _byte("a", distance, unsigned)
        lines.append(f"strb {{a}}, [{{c}}, #{4 * len(words) + number}]")
    return _routine("bytes", lines)


def _fours(left: Distances) -> list[Distances]:
    return [left[i : i + 4] for i in range(0, len(left), 4)]


def _byte(register: str, distance: int, unsigned: bool) -> list[str]:
    if not unsigned:
        return [f"ldrsb {{{register}}}, [{{x}}, #{distance}]"]
    return [
        f"ldrb {{{register}}}, [{{x}}, #{distance}]",
        f"sub {{{register}}}, {{{register}}}, #128",
    ]


def _routine(kind: str, lines: list[str]) -> Routine:
    text = "\n".join(lines)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    used = tuple(name for name in ("a", "b", "d", "m") if f"{{{name}}}" in text)
    return Routine(f"effc_window_{kind}_{digest}", (), ("x", "c"), (), used, text)
