"""Element-wise integer operators (domain ``effc``) for ``effc.kernels.elementwise_ops``.

What they compute, bit by bit, is in docs/QUANTIZATION.md. Each emitter takes 8-bit
or int32 lanes and works in int32.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from effc.kernels import intrinsics
from effc.kernels import vectormath as vm
from effc.kernels.builder import bind
from effc.kernels.elementwise_emit import Operands
from effc.kernels.fixed_point import bounded, saturating_shift
from effc.kernels.vectorbase import bits_as

__all__ = [
    "BYTES",
    "WORDS",
    "add_rescaled",
    "flip_sign",
    "join_bytes",
    "mul_integer",
    "requantize",
    "take_byte",
]

Expr = Any  # tvm.tirx expressions have no useful static types

BYTES = frozenset({"int8", "uint8"})
WORDS = frozenset({"int16", "uint16"})
_SAFE_LEFT = 22  # 9 bits and the sign still fit int32 behind such a shift


def _wide(x: Expr, zero: int = 0) -> Expr:
    """int32 lanes of ``x - zero``."""
    x = vm.cast(x, "int32")
    return x - vm.const(zero, x) if zero else x


def requantize(o: Operands) -> Expr:
    x, multiplier = o.args
    left, right = int(o.attr("left", 0)), int(o.attrs["right"])
    v = _wide(x, int(o.attr("x_zero", 0)))
    if left and o.dtypes[0] in BYTES and left <= _SAFE_LEFT:
        v = tirx.shift_left(v, vm.const(left, v))
    elif left:
        v = saturating_shift(bind(v), left)
    zero = int(o.attrs["zero"])
    scaled = intrinsics.rescale(bind(v), bind(multiplier), right, zero)
    return bounded(scaled, {**o.attrs, "zero": 0}, o.out_dtype)


def add_rescaled(o: Operands) -> Expr:
    a, b = (bind(_wide(x)) for x in o.args)
    total = a * vm.const(int(o.attrs["a_multiplier"]), a)
    total = total + vm.const(int(o.attrs["offset"]), a)
    total = bind(total + b * vm.const(int(o.attrs["b_multiplier"]), b))
    rounded = tirx.shift_right(total, vm.const(int(o.attrs["right"]), total))
    return bounded(rounded, o.attrs, o.out_dtype)


def mul_integer(o: Operands) -> Expr:
    a, b = o.args
    zeros = (int(o.attr("a_zero", 0)), int(o.attr("b_zero", 0)))
    return bind(_wide(a, zeros[0])) * bind(_wide(b, zeros[1]))


def join_bytes(o: Operands) -> Expr:
    high, low = o.args
    shift = int(o.attrs["shift"])
    if shift:
        low = bind(low + vm.const(1 << shift >> 1, low))
        low = tirx.shift_right(low, vm.const(shift, low))
    return bind(tirx.shift_left(high, vm.const(8 - shift, high))) + bind(low)


def take_byte(o: Operands) -> Expr:
    x = bind(_wide(o.x))
    low, index = -32768 if o.dtypes[0] == "int16" else 0, int(o.attrs["index"])
    whole = bind(x - vm.const(low, x) if low else x)
    byte = tirx.bitwise_and(tirx.shift_right(whole, vm.const(8 * index, x)), vm.const(255, x))
    if o.out_dtype == "int8":
        byte = bind(byte) - vm.const(128, x)
    return vm.cast(bind(byte), o.out_dtype)


def flip_sign(o: Operands) -> Expr:
    flipped = tirx.bitwise_xor(o.x, vm.const(-128 if o.dtypes[0] == "int8" else 128, o.x))
    return bits_as(flipped, o.out_dtype)
