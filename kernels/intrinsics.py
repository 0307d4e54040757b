"""Operators that effc adds to TIR; LLVM code generation never sees them.

They live from the builder to the ``LowerIntrin`` pass, which replaces each by
ordinary TIR for the target at hand:

``tirx.effc_maximum(x, bound)``, ``tirx.effc_minimum(x, bound)``
    Float extremes that keep a NaN in ``x``: one instruction on x86 (compare and
    select in the order of ``maxps``) as well as on Arm with NEON (``llvm.maximum``).

``tirx.effc_widen(x)``
    float16 to float32: the processor's conversion, or integer arithmetic where it has none.
    For finite numbers.

``tirx.effc_rescale(x, multiplier, right, zero)``
    ``floor((x * multiplier + 2^(31 + right)) / 2^(32 + right)) + zero`` of int32 lanes, as
    docs/QUANTIZATION.md defines Requantize: ``sqdmulh`` and a rounding shift on 64-bit
    Arm; elsewhere the high word of 64-bit products (``vpmuldq``, ``vmulh``, ``smmul``) and a 32-bit
    shift, with the zero point added together with the half.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.script.builder import ir as T

__all__ = ["maximum", "minimum", "rescale", "rounding", "widen"]

Expr = Any  # tvm.tirx expressions have no useful static types


def _has_neon() -> bool:
    """Whether there are instructions for extremes that keep a NaN; microcontrollers have none."""
    triple = str(tvm.target.Target.current().attrs["mtriple"])
    return triple.startswith(("aarch64", "arm"))


def _extreme(intrinsic: str, node: Callable[[Expr, Expr], Expr]) -> Callable[[Expr], Expr]:
    def rule(call: Expr) -> Expr:
        x, bound = call.args
        if _has_neon():
            return tirx.call_llvm_pure_intrin(call.ty.dtype, intrinsic, x, bound)
        return tirx.Select(node(bound, x), bound, x)

    return rule


def _converts() -> bool:
    """Whether the target converts float16."""
    attrs = tvm.target.Target.current().attrs
    features = [str(f) for f in attrs.get("mattr", ())]
    triple = str(attrs["mtriple"])
    if triple.startswith("aarch64"):
        return True
    return "+f16c" in features or "+avx512f" in features or "+fp16" in features


def _widen(call: Expr) -> Expr:
    (x,) = call.args
    dtype = call.ty.dtype
    if _converts():
        return T.Cast(dtype, x)
    lanes = int(dtype.lanes)
    suffix = "" if lanes == 1 else f"x{lanes}"

    def constant(value: float, kind: str) -> Expr:
        scalar = tirx.const(value, kind)
        return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)

    bits = T.Cast(f"uint32{suffix}", T.reinterpret(f"uint16{suffix}", x))
    sign = tirx.shift_left(
        tirx.bitwise_and(bits, constant(0x8000, "uint32")), constant(16, "uint32")
    )
    size = tirx.shift_left(
        tirx.bitwise_and(bits, constant(0x7FFF, "uint32")), constant(13, "uint32")
    )
    # The exponents' biases differ by 112; the product is exact, subnormals included.
    scaled = T.reinterpret(dtype, size) * constant(2.0**112, "float32")
    joined = tirx.bitwise_or(T.reinterpret(f"uint32{suffix}", scaled), sign)
    return T.reinterpret(dtype, joined)


_NEON_LANES = 4
_MVE_LANES = 4


def _has_mve() -> bool:
    return "+mve" in [str(f) for f in tvm.target.Target.current().attrs.get("mattr", ())]


def rounding(right: int, zero: int) -> tuple[int, int]:
    """What is added to a high word before it is shifted to the right, and what behind that.

    High words are at most 2^30 in magnitude, so that the zero point often fits beside the half.
    """
    both = (1 << (right - 1)) + (zero << right)
    return (both, 0) if abs(both) < 2**30 else (1 << (right - 1), zero)


def _high_word(x: Expr, multiplier: Expr, right: int, zero: int) -> Expr:
    lanes = int(x.ty.dtype.lanes)

    def cast(value: Expr, dtype: str) -> Expr:
        return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)

    def const(value: int, dtype: str) -> Expr:
        scalar = tirx.const(value, dtype)
        return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)

    if lanes == _MVE_LANES and _has_mve():
        signed = tirx.const(0, "int32")
        name = "llvm.arm.mve.vmulh.v4i32"
        high = tirx.call_llvm_pure_intrin("int32x4", name, x, multiplier, signed)
    else:
        product = cast(x, "int64") * cast(multiplier, "int64")
        high = cast(tirx.shift_right(product, const(32, "int64")), "int32")
    half, zero = rounding(right, zero)
    shifted = tirx.shift_right(high + const(half, "int32"), const(right, "int32"))
    return shifted + const(zero, "int32") if zero else shifted


def _doubling(x: Expr, multiplier: Expr, right: int, zero: int) -> Expr:
    """Four lanes at a time: the intrinsics know no wider vectors."""
    lanes = int(x.ty.dtype.lanes)
    width = min(lanes, _NEON_LANES)

    def call(name: str, a: Expr, b: Expr) -> Expr:
        full = f"llvm.aarch64.neon.{name}.v{width}i32"
        return tirx.call_llvm_pure_intrin(f"int32x{width}", full, a, b)

    def part(value: Expr, start: int) -> Expr:
        if width == lanes:
            return value
        return tirx.Shuffle([value], [tirx.const(start + i, "int32") for i in range(width)])

    shift = tirx.Broadcast(tirx.const(-(right + 1), "int32"), width)
    parts = [
        call("srshl", call("sqdmulh", part(x, start), part(multiplier, start)), shift)
        for start in range(0, lanes, width)
    ]
    whole = parts[0]
    if len(parts) > 1:
        whole = tirx.Shuffle(parts, [tirx.const(i, "int32") for i in range(lanes)])
    return whole + tirx.Broadcast(tirx.const(zero, "int32"), lanes) if zero else whole


def _rescale(call: Expr) -> Expr:
    x, multiplier, right, zero = call.args
    lanes = int(x.ty.dtype.lanes)
    triple = str(tvm.target.Target.current().attrs["mtriple"])
    doubling = triple.startswith(("aarch64", "arm64")) and lanes > 1
    return (_doubling if doubling else _high_word)(x, multiplier, int(right), int(zero))


def _register(name: str, effect: tirx.CallEffectKind, rule: Callable[[Expr], Expr]) -> None:
    if name not in tvm.ir.Op.list_op_names():
        tvm.ir._ffi_api.RegisterOp(name, "effc")
    tvm.ir.register_op_attr(name, "TCallEffectKind", effect.value, level=99)
    tvm.ir.register_op_attr(name, "TScriptPrinterName", name.removeprefix("tirx."), level=99)
    tirx.register_intrin_lowering(name, target="llvm", f=rule, level=99)


_register("tirx.effc_maximum", tirx.CallEffectKind.Pure, _extreme("llvm.maximum", tirx.GT))
_register("tirx.effc_minimum", tirx.CallEffectKind.Pure, _extreme("llvm.minimum", tirx.LT))

_register("tirx.effc_rescale", tirx.CallEffectKind.Pure, _rescale)


_register("tirx.effc_widen", tirx.CallEffectKind.Pure, _widen)


def widen(x: Expr) -> Expr:
    """float16 as float32; ``x`` must be a variable and finite."""
    lanes = int(x.ty.dtype.lanes)
    return tirx.call_intrin("float32" if lanes == 1 else f"float32x{lanes}", "tirx.effc_widen", x)


def maximum(x: Expr, bound: Expr) -> Expr:
    """The larger of two floats; ``x`` must be a variable, ``bound`` not NaN."""
    return tirx.call_intrin(x.ty.dtype, "tirx.effc_maximum", x, bound)


def minimum(x: Expr, bound: Expr) -> Expr:
    """The smaller of two floats; ``x`` must be a variable, ``bound`` not NaN."""
    return tirx.call_intrin(x.ty.dtype, "tirx.effc_minimum", x, bound)


def rescale(x: Expr, multiplier: Expr, right: int, zero: int = 0) -> Expr:
    """int32 ``x`` times ``multiplier / 2^(32 + right)``, rounded half up, plus ``zero``.

    Args:
        x: Variable of 1, 2 or a multiple of 4 lanes.
        multiplier: Variable of as many lanes, in ``[0, 2^31)``.
        right: 1 to 31.
        zero: 16 bits.
    """
    numbers = [tirx.const(v, "int32") for v in (right, zero)]
    return tirx.call_intrin(x.ty.dtype, "tirx.effc_rescale", x, multiplier, *numbers)
