"""Rounding of floats for processors without an instruction for it, in LLVM's IR.

Floating-point units before Armv8 round to integers by calls of ``rintf``, ``floorf`` and so on,
which firmware may not have. Here every ``llvm.rint``, ``floor``, ``ceil`` and ``trunc`` of a module
becomes a call of a function in the same module that is always inlined. ``rint`` adds and subtracts
``2^23`` with the sign of ``x``: a float of that size has no fraction, so the addition rounds, to
nearest and halves to even. The others correct its result by one. Exact for all floats; zeros keep
the sign of ``x``, infinities and NaN stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["replace_rounding"]

_CALL = re.compile(r"@llvm\.(rint|floor|ceil|trunc)\.(v(\d+)f32|f32)\(")
_DECLARATION = re.compile(r"^declare .*@(llvm\.[\w.]+)\(.*$", re.MULTILINE)

_RINT = """\
define internal {type} @effc_rint_{suffix}({type} %x) alwaysinline nounwind {{
  %shift = call {type} @llvm.copysign.{suffix}({type} {large}, {type} %x)
  %sum = fadd {type} %x, %shift
  %near = fsub {type} %sum, %shift
  %signed = call {type} @llvm.copysign.{suffix}({type} %near, {type} %x)
  %size = call {type} @llvm.fabs.{suffix}({type} %x)
  %small = fcmp olt {type} %size, {large}
  %y = select {bool} %small, {type} %signed, {type} %x
  ret {type} %y
}}
"""
_STEP = """\
define internal {type} @effc_{name}_{suffix}({type} %x) alwaysinline nounwind {{
  %near = call {type} @effc_rint_{suffix}({type} %x)
  %beyond = fcmp {compare} {type} %near, %x
  %step = select {bool} %beyond, {type} {one}, {type} {zero}
  %moved = {move} {type} %near, %step
  %signed = call {type} @llvm.copysign.{suffix}({type} %moved, {type} %x)
  %y = select {bool} %beyond, {type} %signed, {type} %near
  ret {type} %y
}}
"""
_TRUNC = """\
define internal {type} @effc_trunc_{suffix}({type} %x) alwaysinline nounwind {{
  %size = call {type} @llvm.fabs.{suffix}({type} %x)
  %down = call {type} @effc_floor_{suffix}({type} %size)
  %y = call {type} @llvm.copysign.{suffix}({type} %down, {type} %x)
  ret {type} %y
}}
"""
_UNARY, _BINARY = (
    "declare {type} @llvm.{name}.{suffix}({type})\n",
    ("declare {type} @llvm.{name}.{suffix}({type}, {type})\n"),
)


def replace_rounding(ir: str) -> str:
    """A module without rounding intrinsics of float32, scalar or vector.

    Args:
        ir: The module in LLVM's text form.
    """
    suffixes = sorted({match[2] for match in _CALL.finditer(ir)})
    ir = re.sub(r"^declare .*@llvm\.(rint|floor|ceil|trunc)\.(v\d+)?f32\(.*\n", "", ir, flags=re.M)
    ir = _CALL.sub(r"@effc_\1_\2(", ir)
    declared = {match[1] for match in _DECLARATION.finditer(ir)}
    return ir + "".join(text for suffix in suffixes for text in _definitions(suffix, declared))


def _definitions(suffix: str, declared: set[str]) -> Iterable[str]:
    lanes = int(suffix[1:-3]) if suffix.startswith("v") else 1

    def wide(scalar: str) -> str:
        return scalar if lanes == 1 else f"<{lanes} x {scalar}>"

    def constant(value: str) -> str:
        return value if lanes == 1 else f"splat (float {value})"

    fields = {
        "suffix": suffix,
        "type": wide("float"),
        "bool": wide("i1"),
        "large": constant("8.388608e+06"),
        "one": constant("1.0"),
        "zero": constant("0.0"),
    }
    for name, text in (("copysign", _BINARY), ("fabs", _UNARY)):
        if f"llvm.{name}.{suffix}" not in declared:
            yield text.format(name=name, **fields)
    yield _RINT.format(**fields)
    yield _STEP.format(name="floor", compare="ogt", move="fsub", **fields)
    yield _STEP.format(name="ceil", compare="olt", move="fadd", **fields)
    yield _TRUNC.format(**fields)
