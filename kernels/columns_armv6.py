"""Inner products of ``columns`` for Armv6-M, in assembly.

Eight registers are all that most instructions know: sums lie in upper ones, which only additions
reach. (LLVM loses values that it is asked to keep there itself.) 4 instructions per product, loop
included.
"""

from __future__ import annotations

from functools import cache

from effc.kernels.inline_assembly import Routine

__all__ = ["bytes_listed", "single_bytes"]

_UPPERS = {"r8": 0, "r9": 16, "r10": 4, "r11": 20}
"""Registers of sums: where these lie. Two filters by two positions."""


@cache
def single_bytes() -> Routine:
    """Products of two positions by two filters, a byte at a time.

    Operands: sums of the first filter, four words before those of its second position; the ends
    of weights and of columns, both interleaved by two, and the negative number of their bytes.
    """
    lines = ["mov r12, {s}", *_loaded("b"), "1:", *_ELEMENT, "bne 1b", "mov {s}, r12"]
    return _routine("effc_bytes", ("s", "w", "x"), ("i",), [*lines, *_stored("b")])


@cache
def bytes_listed() -> Routine:
    """The same over listed slots.

    Operands: sums as before; weights of the kept slots, beginning of the columns, the list (int16:
    bytes between the end of one slot and the beginning of the next) and its end.
    """
    lines = ["mov lr, {i}", "mov r12, {s}", *_loaded("b"), "movs {i}, #0", "1:"]
    lines += ["ldrh {b}, [{l}]", "adds {l}, #2", "adds {x}, {x}, {b}", *_ELEMENT * 4]
    lines += ["cmp {l}, lr", "bne 1b", "mov {s}, r12", *_stored("b")]
    return _routine("effc_bytes_listed", ("s", "w", "x", "l", "i"), (), lines, "lr")


_ELEMENT = [
    "ldrsb {s}, [{x}, {i}]",
    "ldrsb {b}, [{w}, {i}]",
    "mov {c}, {s}",
    "muls {c}, {b}, {c}",
    "add r8, {c}",
    "adds {i}, #1",
    "ldrsb {c}, [{x}, {i}]",
    "muls {b}, {c}, {b}",
    "add r9, {b}",
    "ldrsb {b}, [{w}, {i}]",
    "muls {s}, {b}, {s}",
    "add r10, {s}",
    "muls {b}, {c}, {b}",
    "add r11, {b}",
    "adds {i}, #1",
]


def _loaded(temporary: str) -> list[str]:
    return [
        line
        for upper, offset in _UPPERS.items()
        for line in (f"ldr {{{temporary}}}, [{{s}}, #{offset}]", f"mov {upper}, {{{temporary}}}")
    ]


def _stored(temporary: str) -> list[str]:
    return [
        line
        for upper, offset in _UPPERS.items()
        for line in (f"mov {{{temporary}}}, {upper}", f"str {{{temporary}}}, [{{s}}, #{offset}]")
    ]


def _routine(
    name: str,
    pointers: tuple[str, ...],
    numbers: tuple[str, ...],
    lines: list[str],
    *clobbers: str,
) -> Routine:
    upper = ("r12", *_UPPERS, *clobbers)
    return Routine(name, (), pointers, numbers, ("b", "c"), "\n".join(lines), clobbers=upper)
