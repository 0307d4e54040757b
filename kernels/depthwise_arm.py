"""A channel of a depthwise convolution in quads, read where it lies, in assembly for Cortex-M.

Every input of a window is loaded as a byte (``ldrsb``) and multiplied by one half of a word of
weights (``smlabb``, ``smlabt``): with strides of 2 that is less than bringing neighbours
together for ``smlad``, as few inputs belong to two windows of the same parity. Two outputs share
loads. Rows and columns whose windows reach over a border have code of their own, in which
padding is a register that holds the zero point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from effc.kernels.columns_arm import requantized
from effc.kernels.inline_assembly import Routine
from effc.kernels.window import Axis

__all__ = ["REACH", "clipped", "distance", "plane_in_place"]

REACH = 4095
"""Farthest byte that an instruction's offset reaches."""

Taps = tuple[bool, ...]
"""Which taps of an axis fall on the input."""


def clipped(axis: Axis) -> int:
    """Outputs whose windows reach over a border."""
    return sum(not all(taps) for taps in _taps(axis))


def distance(y: Axis, x: Axis) -> int:
    """Bytes from the first window's first element, which may be padding, to the first input."""
    return 4 * (y.before * x.size + x.before)


@cache
def plane_in_place(y: Axis, x: Axis, right: int, zero: int, in_pairs: bool) -> Routine:
    """All outputs of a channel, requantized.

    Operands: the first input, the first output, five words
    (bias, multiplier, half and zero point together, and two that are used here), and the taps in
    order, two in a word.

    Args:
        y, x: Rows and columns.
        right: Shift of the Requantize.
        zero: What padding counts as.
        in_pairs: Whether neighbours share loads, which is more code.
    """
    writer = _Writer(y, x, right, zero, in_pairs)
    lines = _moved("x", -distance(y, x))
    for taps, rows in _runs(y):
        lines += writer.rows(taps, rows)
    words = (y.kernel * x.kernel + 1) // 2
    digest = "_".join(map(str, (*_numbers(y), *_numbers(x), right, zero, int(in_pairs))))
    return Routine(
        f"effc_in_place_{digest}".replace("-", "m"),
        (),
        ("x", "y", "c"),
        (),
        ("a0", "a1", "t0", "t1", "e"),
        "\n".join(lines),
        inputs=tuple(f"w{i}" for i in range(words)),
    )


@dataclass(frozen=True)
class _Writer:
    y: Axis
    x: Axis
    right: int
    zero: int
    in_pairs: bool

    @property
    def pitch(self) -> int:
        """Bytes of a row."""
        return 4 * self.x.size

    def rows(self, taps: Taps, count: int) -> list[str]:
        """Rows of outputs that have the same taps of ``y``."""
        lines = [] if count == 1 else [f"mov {{t0}}, #{count}", "str {t0}, [{c}, #12]", "0:"]
        for columns, outputs in _runs(self.x):
            lines += self.columns(taps, columns, outputs)
        skip = self.y.stride * self.pitch - 4 * self.x.out * self.x.stride
        lines += _moved("x", skip)
        if count > 1:
            lines += ["ldr {t0}, [{c}, #12]", "subs {t0}, #1", "str {t0}, [{c}, #12]", "bne 0b"]
        return lines

    def columns(self, rows: Taps, columns: Taps, count: int) -> list[str]:
        """Neighbouring outputs with the same taps."""
        if all(columns) and self.in_pairs:
            pairs, single = divmod(count, 2)
            lines = self._repeated(self.outputs(rows, columns, 2), pairs, 8)
            return lines + (self.outputs(rows, columns, 1) if single else [])
        return self._repeated(self.outputs(rows, columns, 1), count, 4)

    def _repeated(self, body: list[str], count: int, step: int) -> list[str]:
        if count < 2:
            return body * count
        return [*_sum("e", "y", step * count), "1:", *body, "cmp {y}, {e}", "bne 1b"]

    def outputs(self, rows: Taps, columns: Taps, count: int) -> list[str]:
        """One output, or two neighbours."""
        padded = not (all(rows) and all(columns))
        lines = ["mov {a1}, {a0}"] if count == 2 else []
        lines = ["ldr {a0}, [{c}]", *lines]
        lines += [f"mov {{t1}}, #{self.zero}"] if padded else []
        loads: list[str] = []
        products: list[list[str]] = []
        for ky, valid in enumerate(rows):
            for column in range((count - 1) * self.x.stride + self.x.kernel):
                users = [
                    (output, column - output * self.x.stride)
                    for output in range(count)
                    if 0 <= column - output * self.x.stride < self.x.kernel
                ]
                if not users:
                    continue
                if valid and columns[users[0][1]]:
                    register = "t0" if padded else f"t{len(loads) % 2}"
                    at = ky * self.pitch + 4 * column
                    loads.append(f"ldrsb {{{register}}}, [{{x}}, #{at}]")
                    products.append([self._product(*user, ky, register) for user in users])
                else:
                    lines += [self._product(*user, ky, "t1") for user in users]
        lines += _interleaved(loads, products, 1 if padded else 2)
        lines.append("ldrd {t0}, {t1}, [{c}, #4]")
        for output in range(count):
            lines += requantized(f"a{output}", self.right, ("t0", "t1"))
        return [*lines, *_moved("x", 4 * count * self.x.stride)]

    def _product(self, output: int, kx: int, ky: int, register: str) -> str:
        tap = ky * self.x.kernel + kx
        half = "bt"[tap % 2]
        return f"smlab{half} {{a{output}}}, {{{register}}}, {{w{tap // 2}}}, {{a{output}}}"


def _interleaved(loads: Sequence[str], products: Sequence[list[str]], ahead: int) -> list[str]:
    """Each input is loaded before the products of ``ahead - 1`` others."""
    lines = list(loads[: ahead - 1])
    for i, own in enumerate(products):
        lines += [*loads[i + ahead - 1 : i + ahead], *own]
    return lines


def _runs(axis: Axis) -> Iterator[tuple[Taps, int]]:
    """Outputs with the same taps, and how many follow each other."""
    for taps, found in groupby(_taps(axis)):
        yield taps, len(list(found))


def _taps(axis: Axis) -> Iterator[Taps]:
    for output in range(axis.out):
        first = output * axis.stride - axis.before
        yield tuple(0 <= first + k < axis.size for k in range(axis.kernel))


def _moved(register: str, distance: int) -> list[str]:
    return _sum(register, register, distance) if distance else []


def _sum(result: str, register: str, distance: int) -> list[str]:
    name = "add" if distance >= 0 else "sub"
    return [f"{name} {{{result}}}, {{{register}}}, #{abs(distance)}"]


def _numbers(axis: Axis) -> tuple[int, ...]:
    return axis.size, axis.out, axis.kernel, axis.stride, axis.before
