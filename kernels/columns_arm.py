"""Inner products of ``columns`` for Cortex-M with the DSP extension, in assembly.

Instructions per product, loop included: 0.97 in an unrolled loop of four slots.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm import tirx

from effc.kernels.builder import T, bind
from effc.kernels.inline_assembly import Routine

__all__ = [
    "filters",
    "filters_listed",
    "pair",
    "pairs",
    "pairs_listed",
    "plane",
    "requantized",
    "rows",
    "widened",
]

_REGISTERS = ("w0", "w1", "l0", "l1", "x0", "x1")

Expr = Any  # tvm.tirx expressions have no useful static types


def widened(quad: Expr, rotation: int) -> Expr:
    """Bytes 0 and 2 (behind a rotation to the right by 8: 1 and 3) of a word as pairs."""
    if rotation:
        low = T.reinterpret("uint32", quad)
        low = T.reinterpret("int32", tirx.shift_right(low, tirx.const(rotation, "uint32")))
        high = tirx.shift_left(quad, tirx.const(32 - rotation, "int32"))
        quad = tirx.bitwise_or(low, high)
    return bind(T.call_llvm_pure_intrin("int32", "llvm.arm.sxtb16", quad))


def pair(low: Expr, high: Expr) -> Expr:
    """Two int32 of 16 bits as one word (``pkhbt``)."""
    kept = tirx.bitwise_and(low, tirx.const(0xFFFF, "int32"))
    return tirx.bitwise_or(kept, tirx.shift_left(high, tirx.const(16, "int32")))


@cache
def pairs(positions: int, slots: int, unroll: int) -> Routine:
    """A tile's products over all slots, in order."""
    body = _slot([_NEXT] * positions)
    loops, rest = divmod(slots, unroll)
    lines = body * rest
    counted = loops > 1
    if counted:
        lines = [f"movw {{n}}, #{loops}", "1:", *body * unroll, "subs {n}, #1", "bne 1b", *lines]
    else:
        lines = body * slots
    return Routine(
        f"effc_pairs{positions}_{slots}_{unroll}",
        tuple(f"a{i}" for i in range(4)),
        ("w", "x"),
        (),
        (*_REGISTERS, *(["n"] if counted else [])),
        "\n".join(lines),
        places=_places(positions),
    )


@cache
def filters(slots: int, unroll: int, plane: int, right: int, rolled: bool) -> Routine:
    """All filters at two positions, requantized and stored.

    Operands: the stream (per two filters: biases, weights of all slots, multipliers), the columns,
    with four words before them that are used here, the first outputs of either position, half and
    zero point together, and how often the outer loop runs: the number of quads of filters, if
    ``rolled`` of pairs.

    Args:
        slots, unroll: Slots, and how many of them an iteration takes.
        plane: Bytes from a quad of filters to the next one in the output.
        right: Shift of the Requantize.
        rolled: Whether the pairs of a quad share code.
    """
    loops, rest = divmod(slots, unroll)
    body = _slot([_NEXT] * 2)
    products = body * slots
    if loops > 1:
        products = [f"movw {{n}}, #{loops}", "1:", *body * unroll, "subs {n}, #1", "bne 1b"]
        products += body * rest
    lines = ["strd {x0}, {x1}, [{x}, #-16]", "strd {l0}, {l1}, [{x}, #-8]", "0:"]
    for pair in range(1 if rolled else 2):
        lines += [*_BIASES, *products, f"movw {{n}}, #{16 * slots}", "sub {x}, {n}"]
        lines += _stored(pair, right)
    lines += [*_next_outputs(plane, rolled), "bne 0b"]
    return Routine(
        f"effc_filters_{slots}_{unroll}_{plane}_{right}_{rolled:d}",
        (),
        ("w", "x", "x0", "x1"),
        ("l0", "l1"),
        ("a0", "a1", "a2", "a3", "w0", "w1", "n"),
        "\n".join(lines),
    )


@cache
def filters_listed(quads: int, unroll: int, plane: int, right: int, rolled: bool) -> Routine:
    """As ``filters``, of listed slots.

    Operands: as ``filters``, with six words before the columns, and behind the columns the
    lists. A list of int16 has the number of slots, the bytes to go on from slot to slot,
    and the bytes back to the first one.

    Args:
        quads: Quads of filters that share a list.
        unroll: Slots per iteration, 1 or 2.
        plane, right, rolled: As ``filters``.
    """
    share = 2 * quads if rolled else quads
    start = ["strd {x0}, {x1}, [{x}, #-16]", "strd {l0}, {l1}, [{x}, #-8]"]
    start += ["str {l}, [{x}, #-20]", f"movw {{n}}, #{share}", "str {n}, [{x}, #-24]", "0:"]
    lines = start
    for pair in range(1 if rolled else 2):
        lines += ["ldr {l}, [{x}, #-20]", *_BIASES, "ldrsh {n}, [{l}], #2"]
        lines += [*_listed(2, unroll), "ldrsh {x0}, [{l}], #2", "add {x}, {x0}"]
        lines += _stored(pair, right)
    lines += ["ldr {n}, [{x}, #-24]", "subs {n}, #1", "itt eq", "streq {l}, [{x}, #-20]"]
    lines += [f"moveq {{n}}, #{share}", "str {n}, [{x}, #-24]"]
    lines += [*_next_outputs(plane, rolled), "bne 0b"]
    return Routine(
        f"effc_filters_listed_{quads}_{unroll}_{plane}_{right}_{rolled:d}",
        (),
        ("w", "x", "l", "x0", "x1"),
        ("l0", "l1"),
        ("a0", "a1", "a2", "a3", "w0", "w1", "n"),
        "\n".join(lines),
    )


_BIASES = ("ldrd {a0}, {a2}, [{w}], #8", "mov {a1}, {a0}", "mov {a3}, {a2}")


def _stored(pair: int, right: int) -> list[str]:
    """Sums of two filters at two positions, requantized, into half a quad."""
    lines = ["ldrd {w0}, {w1}, [{w}], #8", "ldrd {x0}, {x1}, [{x}, #-16]"]
    lines.append("ldrd {l0}, {l1}, [{x}, #-8]")
    for filter_ in range(2):
        for position in range(2):
            total = f"{{a{2 * filter_ + position}}}"
            lines += [
                f"smmla {total}, {total}, {{w{filter_}}}, {{l0}}",
                f"ssat {total}, #8, {total}, asr #{right}",
                f"strb {total}, [{{x{position}}}, #{2 * pair + filter_}]",
            ]
    return lines


def _next_outputs(plane: int, rolled: bool) -> list[str]:
    """Outputs of the next quad or pair of filters; the flags say whether there is one."""
    step = plane - 2 if rolled else plane
    low, high = step & 0xFFFF, step >> 16
    lines = ["subs {l1}, #1", f"movw {{n}}, #{low}", *([f"movt {{n}}, #{high}"] if high else [])]
    if rolled:  # behind the first pair of a quad an odd number is left
        lines += ["tst {l1}, #1", "it ne", "movne {n}, #2"]
    lines += ["add {x0}, {n}", "add {x1}, {n}", "strd {x0}, {x1}, [{x}, #-16]"]
    return [*lines, "str {l1}, [{x}, #-4]", "cmp {l1}, #0"]


def _listed(positions: int, unroll: int) -> list[str]:
    """Products over ``n`` listed slots."""
    loads = ["ldrd {x0}, {x1}, [{x}]", "ldrd {x0}, {x1}, [{x}, #8]"][:positions]
    step = ["ldrsh {x0}, [{l}], #2", "add {x}, {x0}", *_slot(loads)]
    lines = []
    if unroll == 2:
        lines = ["lsrs {n}, {n}, #1", "bcc 1f", *step, "cmp {n}, #0", "beq 2f"]
    return [*lines, "1:", *step * unroll, "subs {n}, #1", "bne 1b", "2:"]


@cache
def pairs_listed(positions: int, unroll: int) -> Routine:
    """A tile's products over listed slots.

    Operands: weights of the kept slots, the buffer's beginning, the list (int16: bytes to go on
    from one slot's words to the next one's), the number of slots, at least 1.

    Args:
        positions: Of the tile.
        unroll: Slots per iteration, 1 or 2.
    """
    sums = tuple(f"a{i}" for i in range(4))
    pointers, numbers, text = ("w", "x", "l"), ("n",), "\n".join(_listed(positions, unroll))
    name = f"effc_listed{positions}_{unroll}"
    return Routine(name, sums, pointers, numbers, _REGISTERS, text, places=_places(positions))


def _places(positions: int) -> tuple[int, ...]:
    """Sums of a tile, filter by filter, lie with four filters of a position side by side."""
    return (0, 1, 2, 3) if positions == 1 else (0, 4, 1, 5)


_NEXT = "ldrd {x0}, {x1}, [{x}], #8"


def _slot(loads: list[str]) -> list[str]:
    """One slot of a tile, 16 products; ``loads``: of its words, per position."""
    weights = [
        "ldrd {w0}, {w1}, [{w}], #8",
        "sxtb16 {l0}, {w0}",
        "sxtb16 {w0}, {w0}, ror #8",
        "sxtb16 {l1}, {w1}",
        "sxtb16 {w1}, {w1}, ror #8",
    ]

    def add(first: int, second: int) -> list[str]:
        return [
            f"smlad {{a{first}}}, {{x0}}, {{l0}}, {{a{first}}}",
            f"smlad {{a{second}}}, {{x0}}, {{l1}}, {{a{second}}}",
            f"smlad {{a{first}}}, {{x1}}, {{w0}}, {{a{first}}}",
            f"smlad {{a{second}}}, {{x1}}, {{w1}}, {{a{second}}}",
        ]

    if len(loads) == 1:
        return [*loads, *weights, *add(0, 1), *weights, *add(2, 3)]
    return [*weights, loads[0], *add(0, 2), loads[1], *add(1, 3)]


@cache
def plane(height: int, strides: tuple[int, int], pitch: int, outputs: int, right: int) -> Routine:
    """Rows of outputs of one channel of a depthwise kernel, three taps wide, requantized.

    Operands: the first input (rows of pairs of 16 bits), the first output (a byte in every
    fourth), five words that are used here, bias, multiplier, half and zero point together, number
    of rows; then, per row of the kernel, its taps as the pairs ``0, 1`` and ``1, 2``.

    Args:
        height: Rows of the kernel.
        strides: Of rows, and of columns: 1 or 2.
        pitch: Bytes from one row of inputs to the next.
        outputs: Of a row.
        right: Shift of the Requantize.
    """
    pairs, odd = divmod(outputs, 2)
    down, stride = strides
    step = 4 * stride
    lines = ["strd {a0}, {a1}, [{c}]", "strd {x0}, {x1}, [{c}, #8]", "0:"]
    if pairs:
        lines += [f"add {{x0}}, {{y}}, #{8 * pairs}", "str {x0}, [{c}, #16]", "1:"]
        lines += ["ldr {a0}, [{c}]", "mov {a1}, {a0}"]
        lines += _taps(height, stride, pitch, 2)
        lines += ["ldrd {x0}, {x1}, [{c}, #4]", *requantized("a0", right)]
        lines += requantized("a1", right)
        lines += [f"add {{x}}, #{step}", "ldr {x0}, [{c}, #16]", "cmp {y}, {x0}", "bne 1b"]
    if odd:
        lines += ["ldr {a0}, [{c}]", *_taps(height, stride, pitch, 1)]
        lines += ["ldrd {x0}, {x1}, [{c}, #4]", *requantized("a0", right)]
    skip = down * pitch - pairs * step
    move = "add" if skip >= 0 else "sub"
    lines += [f"{move} {{x}}, {{x}}, #{abs(skip)}", "ldr {x0}, [{c}, #12]", "subs {x0}, #1"]
    lines += ["str {x0}, [{c}, #12]", "bne 0b"]
    return Routine(
        f"effc_plane{height}_{down}_{stride}_{pitch}_{outputs}_{right}",
        (),
        ("x", "y", "c"),
        ("a0", "a1", "x0", "x1"),
        (),
        "\n".join(lines),
        inputs=tuple(f"w{i}" for i in range(2 * height)),
    )


def requantized(total: str, right: int, factors: tuple[str, str] = ("x0", "x1")) -> list[str]:
    """A sum as a byte in a quad; ``factors``: registers of multiplier, half and zero point."""
    return [
        f"smmla {{{total}}}, {{{total}}}, {{{factors[0]}}}, {{{factors[1]}}}",
        f"ssat {{{total}}}, #8, {{{total}}}, asr #{right}",
        f"strb {{{total}}}, [{{y}}], #4",
    ]


@cache
def rows(height: int, stride: int, pitch: int) -> Routine:
    """Two neighbouring outputs of a depthwise kernel, three taps wide.

    Operands: the first input (a word of two neighbours), per row of the kernel its taps as
    ``plane`` has them.

    Args:
        height, pitch: As ``plane``.
        stride: Of columns.
    """
    weights = tuple(f"w{i}" for i in range(2 * height))
    name = f"effc_rows{height}_{stride}_{pitch}"
    text = "\n".join(_taps(height, stride, pitch, 2))
    return Routine(name, ("a0", "a1"), ("x",), (), ("x0", "x1"), text, weights)


def _taps(height: int, stride: int, pitch: int, outputs: int) -> list[str]:
    """Products of one output, or of two neighbours, over all rows of the kernel."""
    lines = []
    for row in range(height):
        first, second = f"{{w{2 * row}}}", f"{{w{2 * row + 1}}}"
        lines += [
            f"ldrd {{x0}}, {{x1}}, [{{x}}, #{row * pitch}]",
            f"smlad {{a0}}, {{x0}}, {first}, {{a0}}",
            f"smlabt {{a0}}, {{x1}}, {second}, {{a0}}",
        ]
        if outputs == 2 and stride == 1:
            lines += [
                f"smlatb {{a1}}, {{x0}}, {first}, {{a1}}",
                f"smlad {{a1}}, {{x1}}, {second}, {{a1}}",
            ]
        elif outputs == 2:
            lines += [
                f"ldr {{x0}}, [{{x}}, #{row * pitch + 8}]",
                f"smlad {{a1}}, {{x1}}, {first}, {{a1}}",
                f"smlabt {{a1}}, {{x0}}, {second}, {{a1}}",
            ]
    return lines
