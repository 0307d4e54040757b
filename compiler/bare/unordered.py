"""Tests for NaN in vectors of Helium, which LLVM gets wrong.

``fcmp uno <4 x float> %x, %x`` becomes "neither at least zero nor below it", whose two comparisons
LLVM then inverts as if they were of integers: with a NaN both stay false (LLVM of ziglang 0.17).
The test is done on the bits instead: a NaN is what is above infinity without its sign.
"""

from __future__ import annotations

import re

__all__ = ["replace_nan_tests"]

_TEST = re.compile(
    r"^ *(?P<out>%[\w.]+) = fcmp (?:\w+ )*uno <(?P<lanes>\d+) x (?P<kind>float|half)> "
    r"(?P<x>%[\w.]+), (?P=x)(?P<rest>,.*)?$",
    re.MULTILINE,
)
_BITS = {"float": ("i32", 0x7FFFFFFF, 0x7F800000), "half": ("i16", 0x7FFF, 0x7C00)}


def replace_nan_tests(ir: str) -> str:
    """LLVM IR with integer comparisons in place of vectors' tests for NaN."""
    return _TEST.sub(_on_bits, ir)


def _on_bits(test: re.Match[str]) -> str:
    out, x, lanes, kind = (test[name] for name in ("out", "x", "lanes", "kind"))
    integer, mask, infinity = _BITS[kind]
    vector, name = f"<{lanes} x {integer}>", out.removeprefix("%")
    bits, size = f"%nan.bits.{name}", f"%nan.size.{name}"
    return (
        f"  {bits} = bitcast <{lanes} x {kind}> {x} to {vector}\n"
        f"  {size} = and {vector} {bits}, splat ({integer} {mask})\n"
        f"  {out} = icmp ugt {vector} {size}, splat ({integer} {infinity})"
    )
