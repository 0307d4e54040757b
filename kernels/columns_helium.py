"""Inner products of ``columns`` for Cortex-M with MVE (Helium), in assembly.

``vmladava`` adds up sixteen products of bytes in a general-purpose register of even number.
Instructions per product, loop included: 0.14 over all slots, 0.16 over listed ones, whose quads
``vldrw`` gathers four at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from effc.kernels.inline_assembly import Routine

__all__ = [
    "LARGEST_SHIFT",
    "OUTSIDE",
    "QUADS",
    "Output",
    "filters",
    "filters_listed",
    "gather",
    "gather_inside",
    "vectors",
    "vectors_listed",
]

QUADS = 4
"""Slots of a vector."""
OUTSIDE = 0xFFFF
"""Place of a quad that is not in the input."""
LARGEST_SHIFT = 16
"""Of a Requantize, in one instruction."""

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


@cache
def gather(count: int) -> Routine:
    """Brings ``count`` quads together.

    Operands: the input, the places (uint16, in words), and where the quads are put.
    """
    lines = [f"movw {{n}}, #{count}", "dlstp.32 lr, {n}", "1:", "vldrh.u32 q0, [{o}], #8"]
    lines += ["vldrw.u32 q1, [{x}, q0, uxtw #2]", "vstrw.32 q1, [{c}], #16", "letp lr, 1b"]
    return _moves(f"effc_gather_{count}", (), lines)


@cache
def gather_inside(count: int, fill: int) -> Routine:
    """As ``gather``, with ``fill`` (a quad as int32) for quads whose place is ``OUTSIDE``."""
    low, high = fill & 0xFFFF, fill >> 16 & 0xFFFF
    lines = [f"movw {{n}}, #{low}", f"movt {{n}}, #{high}", "vdup.32 q2, {n}"]
    lines += [f"movw {{f}}, #{OUTSIDE}", f"movw {{n}}, #{count}", "dlstp.32 lr, {n}", "1:"]
    lines += ["vldrh.u32 q0, [{o}], #8", "vpt.i32 ne, q0, {f}"]
    lines += ["vldrwt.u32 q1, [{x}, q0, uxtw #2]", "vpsel q1, q1, q2"]
    lines += ["vstrw.32 q1, [{c}], #16", "letp lr, 1b"]
    return _moves(f"effc_gather_inside_{count}_{low}_{high}", ("f",), lines)


def _moves(name: str, more: tuple[str, ...], lines: list[str]) -> Routine:
    text, clobbers = "\n".join(lines), ("lr", "q0", "q1", "q2", "vpr")
    pointers = ("x", "o", "c")
    return Routine(name, (), pointers, (), ("n", *more), text, clobbers=clobbers, low=("o",))


@dataclass(frozen=True)
class Output:
    """What becomes of sums.

    Attributes:
        quads: Quads of filters.
        plane: Bytes from one to the next in the output.
        right, zero: Of the Requantize.
        uneven: Whether the second position may be missing.
        added: Shift of the AddRescaled behind, ``None`` if there is none.
    """

    quads: int
    plane: int
    right: int
    zero: int
    uneven: bool
    added: int | None = None

    @property
    def name(self) -> str:
        """For functions: different ones are different."""
        zero = f"m{-self.zero}" if self.zero < 0 else str(self.zero)
        return f"{self.quads}_{self.plane}_{self.right}_{zero}_{self.uneven:d}_{self.added}"

    @property
    def numbers(self) -> tuple[str, ...]:
        """Operand with the number of results of a quad, if it is not always eight."""
        return ("k",) if self.uneven else ()

    @property
    def pointers(self) -> tuple[str, ...]:
        """Operands: the output, and what is added."""
        return ("y",) if self.added is None else ("y", "o")

    @property
    def begin(self) -> list[str]:
        """Constants of the routine: the zero point in q7, which results exist in P0."""
        lines = ["vctp.16 {k}"] if self.uneven else []
        return [*lines, f"movw {{n}}, #{self.zero & 0xFFFF}", "vdup.16 q7, {n}", "movs {n}, #0"]

    @property
    def store(self) -> list[str]:
        """Sums of four filters at two positions, in q4 and q5, to bytes; ``n`` counts quads."""
        lines = []
        for q in (4, 5):
            lines += ["vldrw.u32 q0, [{w}], #16", f"vmulh.s32 q{q}, q{q}, q0"]
        lines += [f"vqrshrnb.s32 q4, q4, #{self.right}", f"vqrshrnt.s32 q4, q5, #{self.right}"]
        lines += ["vqadd.s16 q4, q4, q7", "vqmovnb.s16 q4, q4", *self._sum]
        lines += ["vpst", "vstrbt.16 q4, [{y}]"] if self.uneven else ["vstrb.16 q4, [{y}]"]
        for pointer in self.pointers:
            lines += _further(pointer, pointer, self.plane, "a0")
        return [*lines, "adds {n}, #1"]

    @property
    def _sum(self) -> list[str]:
        """Adds the residual, whose numbers are next in the stream, to bytes in lanes of 16 bits."""
        if self.added is None:
            return []
        load = ["vpst", "vldrbt.s16 q0, [{o}]"] if self.uneven else ["vldrb.s16 q0, [{o}]"]
        lines = ["ldrd {a0}, {a1}, [{w}], #8", "ldrd {a2}, {a3}, [{w}], #8", "vmovlb.s8 q4, q4"]
        lines += ["vmovlt.s16 q5, q4", "vmovlb.s16 q4, q4"]
        for q, half in ((4, "b"), (5, "t")):
            lines += [f"vmul.i32 q{q}, q{q}, {{a0}}", *load, f"vmovl{half}.s16 q0, q0"]
            lines += [f"vmla.i32 q{q}, q0, {{a1}}", f"vadd.i32 q{q}, q{q}, {{a2}}"]
        last = min(self.added, LARGEST_SHIFT)
        if self.added > last:
            lines += [f"vshr.s32 q{q}, q{q}, #{self.added - last}" for q in (4, 5)]
        lines += [f"vqshrnb.s32 q4, q4, #{last}", f"vqshrnt.s32 q4, q5, #{last}"]
        return [*lines, "vqadd.s16 q4, q4, {a3}", "vqmovnb.s16 q4, q4"]


@cache
def filters(vectors: int, unroll: int, output: Output) -> Routine:
    """All filters at two positions, requantized and stored.

    Operands: the stream (``column_assembly``), the columns, the first output, what is added to it,
    if anything is, and, of uneven outputs, how many of the eight results of a quad exist.

    Args:
        vectors, unroll: Vectors of a column, and how many of them an iteration takes.
        output: What becomes of sums.
    """
    lines = output.begin
    if vectors <= len(_HELD):
        held = _HELD[:vectors]
        for i, (x0, x1) in enumerate(held):
            lines += [f"vldrw.u32 q{x0}, [{{x}}, #{16 * i}]"]
            lines += [f"vldrw.u32 q{x1}, [{{x}}, #{16 * (vectors + i)}]"]
        products = [line for columns in held for line in _pair(0, 5, *columns)]
    else:
        products = ["mov {p}, {x}", *_further("p1", "x", 16 * vectors, "p1")]
        loops, rest = divmod(vectors, unroll)
        body = ["vldrw.u32 q0, [{p}], #16", "vldrw.u32 q1, [{p1}], #16", *_pair(2, 3, 0, 1)]
        if loops > 1:
            lines.append(f"movw {{k}}, #{loops}")
            products += ["dls lr, {k}", "1:", *body * unroll, "le lr, 1b", *body * rest]
        else:
            products += body * vectors
    lines += ["0:", *_tiles(products), *output.store, f"cmp {{n}}, #{output.quads}", "bne 0b"]
    name = f"effc_filters_{vectors}_{unroll}_{output.name}"
    more = ("n", "p", "p1", *([] if output.uneven else ["k"]))
    return _filters(name, ("w", "x"), output, more, lines, ())


@cache
def filters_listed(pitch: int, share: int, output: Output, *, short: bool) -> Routine:
    """As ``filters``, of listed slots.

    Operands: as ``filters``, with the lists behind the columns. A list of int16 has the number of
    vectors, and the numbers of their slots.

    Args:
        pitch: Bytes from one column to the next.
        share: Quads of filters that share a list, a power of two.
        output: What becomes of sums.
        short: Whether lists of one or two vectors have code of their own, which gathers these
            vectors once for all filters.
    """
    lines = [*output.begin, *_further("x1", "x", pitch, "x1"), "mov {l}, {b}"]
    lines += ["0:", "mov {b}, {l}", "ldrh {k}, [{b}], #2"]
    if short:
        lines += ["mov {l}, {b}", "cmp {k}, #2", "beq 2f", "bhi 3f"]
        lines += [*_kept(1, share, output), "2:", *_kept(2, share, output), "3:"]
    gathered = ["mov {l}, {b}", "dls lr, {k}", "1:", *_gathered(3, 2, 0), *_pair(0, 1, 3, 2)]
    lines += ["5:", *_tiles([*gathered, "le lr, 1b"]), *_next(share, output, "5b"), "9:"]
    name = f"effc_filters_listed_{pitch}_{share}_{short:d}_{output.name}"
    more = ("n", "x1", "l", *([] if output.uneven else ["k"]))
    return _filters(name, ("w", "x", "b"), output, more, lines, ("l",))


def _kept(vectors: int, share: int, output: Output) -> list[str]:
    """The filters of a list that has one or two vectors, and where to go on."""
    held = _HELD[:vectors]
    lines = [line for columns in held for line in _gathered(*columns, 0)]
    products = [line for columns in held for line in _pair(0, 5, *columns)]
    return [*lines, "5:", *_tiles(products), *_next(share, output, "5b")]


def _gathered(x0: int, x1: int, places: int) -> list[str]:
    """The next vector of a list, of both positions; arguments are vector registers."""
    lines = [f"vldrh.u32 q{places}, [{{l}}], #8"]
    for q, base in ((x0, "x"), (x1, "x1")):
        lines.append(f"vldrw.u32 q{q}, [{{{base}}}, q{places}, uxtw #2]")
    return lines


def _tiles(products: list[str]) -> list[str]:
    """Sums of four filters at two positions, in q4 and q5."""
    return [line for q in (4, 5) for line in (*_BIASES, *products, *_lanes(q))]


def _next(share: int, output: Output, same: str) -> list[str]:
    """Stores; goes on with the next quad of the list, the next list, or behind label 9."""
    lines = [*output.store, f"cmp {{n}}, #{output.quads}", "beq 9f"]
    if share > 1:
        lines += [f"tst {{n}}, #{share - 1}", f"bne {same}"]
    return [*lines, "b 0b"]


_HELD = ((1, 2), (3, 6))
"""Vector registers that hold the columns of both positions while all filters use them."""
_BIASES = ["ldrd {a0}, {a2}, [{w}], #8", "mov {a1}, {a0}", "mov {a3}, {a2}"]


def _pair(first: int, second: int, x0: int, x1: int) -> list[str]:
    """A vector of two filters by one of two positions; arguments are vector registers."""
    lines = []
    for f, q in enumerate((first, second)):
        lines.append(f"vldrw.u32 q{q}, [{{w}}], #16")
        lines += [f"vmladava.s8 {{a{2 * f + p}}}, q{q}, q{x}" for p, x in enumerate((x0, x1))]
    return lines


def _lanes(q: int) -> list[str]:
    """The sums as a vector: two filters at the first position, then at the second one."""
    return [f"vmov q{q}[2], q{q}[0], {{a0}}, {{a1}}", f"vmov q{q}[3], q{q}[1], {{a2}}, {{a3}}"]


def _further(result: str, base: str, distance: int, temporary: str) -> list[str]:
    """``result = base + distance``; ``temporary`` may be ``result``, but not ``base``."""
    if distance < 4096:
        return [f"addw {{{result}}}, {{{base}}}, #{distance}"]
    lines = [f"movw {{{temporary}}}, #{distance & 0xFFFF}"]
    if distance >> 16:
        lines.append(f"movt {{{temporary}}}, #{distance >> 16}")
    return [*lines, f"add {{{result}}}, {{{base}}}, {{{temporary}}}"]


def _filters(
    name: str,
    pointers: tuple[str, ...],
    output: Output,
    temporaries: tuple[str, ...],
    lines: list[str],
    low: tuple[str, ...],
) -> Routine:
    return Routine(
        name,
        (),
        (*pointers, *output.pointers),
        output.numbers,
        (*temporaries, *_SUMS),
        "\n".join(lines),
        clobbers=("lr", *(f"q{i}" for i in range(8)), "vpr"),
        even=_SUMS,
        low=(*low, *output.pointers),
    )


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
        even=_SUMS,
        low=low,
    )
