"""``Requantize`` on vectors of 32-bit sums, as each processor does it best.

docs/QUANTIZATION.md says what is computed; the same bits come out everywhere. Results are narrowed
four vectors at a time and come out in *blocks*: block ``b`` of the bytes holds lanes
``4b .. 4b+3`` of the first vector, then of the second, third and fourth. That is how the
pack instructions of x86 work (128 bits at a time), and with four lanes it is the plain order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, splat
from effc.kernels.intrinsics import rounding
from effc.kernels.lanes import concat
from effc.kernels.region import DOMAIN, Op, Region

__all__ = [
    "ROOM",
    "Scaling",
    "blocked",
    "bounded",
    "narrow",
    "plain_scaling",
    "requantize",
    "saturating_shift",
    "scale",
    "sole_scaling",
    "woven",
]

Expr = Any  # tvm.tirx expressions have no useful static types

_PACKS = {  # lanes of int32: to int16, to uint8, to int8
    4: ("sse2.packssdw.128", "sse2.packuswb.128", "sse2.packsswb.128"),
    8: ("avx2.packssdw", "avx2.packuswb", "avx2.packsswb"),
    16: ("avx512.packssdw.512", "avx512.packuswb.512", "avx512.packsswb.512"),
}
_PACK_FEATURES = {4: None, 8: "avx2", 16: "avx512bw"}
ROOM = 21  # half + zero point still fit beside the high word if shifted by no more than this


@dataclass(frozen=True)
class Scaling:
    """The attributes of a ``Requantize``."""

    x_zero: int
    left: int
    right: int
    zero: int
    low: int
    high: int

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> Scaling:
        """Read the attributes of an operator; ``x_zero`` and ``left`` may be missing."""
        given = {"x_zero": 0, "left": 0, **attrs}
        return cls(*(int(given[k]) for k in ("x_zero", "left", "right", "zero", "low", "high")))


def plain_scaling(op: Op) -> Scaling | None:
    """Of a Requantize of sums that clamps to nothing but int8; ``None`` for other operators."""
    if (op.domain, op.op_type) != (DOMAIN, "Requantize") or op.outputs[0].dtype != "int8":
        return None
    scaling = Scaling.of(op.attrs)
    plain = scaling.left == scaling.x_zero == 0 and scaling.right <= ROOM
    return scaling if plain and (scaling.low, scaling.high) == (-128, 127) else None


def sole_scaling(region: Region) -> Scaling | None:
    """The Requantize that is all of a region's epilogue, if it clamps to nothing but int8."""
    return plain_scaling(region.epilogue[0]) if len(region.epilogue) == 1 else None


def blocked(vectors: int, lanes: int) -> list[int]:
    """Which lane of the concatenated vectors each result of ``narrow`` comes from."""
    return [
        v * lanes + block * 4 + i
        for block in range(lanes // 4)
        for v in range(vectors)
        for i in range(4)
    ]


def requantize(
    values: Sequence[Expr],
    multipliers: Sequence[Expr],
    scaling: Scaling,
    dtype: str,
    target: Target,
) -> Expr:
    """``Requantize`` of four vectors.

    Args:
        values: Four int32 vectors of ``lanes`` (a multiple of 4), bound.
        multipliers: int32, ``lanes``, bound; one per vector.
        scaling: The attributes.
        dtype: ``int8`` or ``uint8``.
        target: Whose instructions to use.

    Returns:
        ``4 * lanes`` bytes in blocks, see above.
    """
    pairs = list(zip(values, multipliers, strict=True))
    if _narrows_while_shifting(values[0], scaling, target):
        shift = tirx.const(scaling.right + 1, "int32")
        words = [
            bind(_intrinsic("aarch64.neon.sqrshrn.v4i16", "int16x4", product, shift))
            for product in (_doubled_product(v, m, scaling, target) for v, m in pairs)
        ]
        return _finish_words(words, scaling, dtype)
    scaled = [scale(v, m, scaling, target) for v, m in pairs]
    return narrow(scaled, scaling, dtype, target)


def scale(value: Expr, multiplier: Expr, scaling: Scaling, target: Target) -> Expr:
    """``r + zero`` of ``Requantize``, not clamped: int32 with the lanes of ``value``."""
    right = scaling.right
    if _is_neon(value, target):
        product = _doubled_product(value, multiplier, scaling, target)
        shift = vm.const(-right - 1, value)
        rounded = _intrinsic("aarch64.neon.srshl.v4i32", "int32x4", product, shift)
        return bind(rounded + vm.const(scaling.zero, value))
    product = _high_product(_shifted(value, scaling), multiplier, target)
    half, zero = rounding(right, scaling.zero)
    result = tirx.shift_right(product + vm.const(half, value), vm.const(right, value))
    return bind(result + vm.const(zero, value) if zero else result)


def narrow(values: Sequence[Expr], scaling: Scaling, dtype: str, target: Target) -> Expr:
    """Four int32 vectors clamped to ``low .. high``, as bytes in blocks."""
    lanes = vm.lanes_of(values[0])
    feature = _PACK_FEATURES.get(lanes, "")
    if target.arch == "x86_64" and feature != "" and (feature is None or target.has(feature)):
        words, unsigned, signed = (f"x86.{name}" for name in _PACKS[lanes])
        pairs = [
            bind(_intrinsic(words, f"int16x{2 * lanes}", values[i], values[i + 1])) for i in (0, 2)
        ]
        name = unsigned if dtype == "uint8" else signed
        packed = T.reinterpret(
            f"{dtype}x{4 * lanes}", _intrinsic(name, f"int8x{4 * lanes}", *pairs)
        )
        return _clamped(packed, scaling, dtype)
    if all(_is_neon(v, target) for v in values):
        words_of = [
            bind(_intrinsic("aarch64.neon.sqxtn.v4i16", "int16x4", value)) for value in values
        ]
        return _finish_words(words_of, Scaling(**{**vars(scaling), "zero": 0}), dtype)
    low, high = vm.const(scaling.low, values[0]), vm.const(scaling.high, values[0])
    kept = [bind(vm.cast(tirx.Min(tirx.Max(v, low), high), dtype)) for v in values]
    return bind(concat(kept, blocked(len(kept), lanes)))


def woven(blocks: Expr, lanes: int) -> Expr:
    """Bytes in blocks of four vectors as ``lanes`` int32: byte ``q`` of each is of vector ``q``."""
    order = [b * 16 + row * 4 + i for b in range(lanes // 4) for i in range(4) for row in range(4)]
    return bind(T.reinterpret(f"int32x{lanes}", concat([blocks], order)))


def saturating_shift(value: Expr, left: int) -> Expr:
    """``saturate_int32(value << left)`` of int32 lanes, bound."""
    amount = vm.const(left, value)
    moved = bind(tirx.shift_left(value, amount))
    limit = tirx.bitwise_xor(
        tirx.shift_right(value, vm.const(31, value)), vm.const(2**31 - 1, value)
    )
    fits = tirx.EQ(tirx.shift_right(moved, amount), value)
    return bind(vm.select(fits, moved, limit))


def bounded(value: Expr, attrs: Mapping[str, Any], dtype: str) -> Expr:
    """``clamp(value + zero, low, high)`` of int32 lanes as ``dtype``; attributes of an operator."""
    zero, low, high = (int(attrs[name]) for name in ("zero", "low", "high"))
    moved = bind(value + vm.const(zero, value) if zero else value)
    kept = bind(tirx.Min(tirx.Max(moved, vm.const(low, moved)), vm.const(high, moved)))
    return vm.cast(kept, dtype)


def _is_neon(value: Expr, target: Target) -> bool:
    return target.arch == "aarch64" and vm.lanes_of(value) == 4


def _narrows_while_shifting(value: Expr, scaling: Scaling, target: Target) -> bool:
    return _is_neon(value, target) and scaling.right + 1 <= 16


def _intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, f"llvm.{name}", *args)


def _shifted(value: Expr, scaling: Scaling) -> Expr:
    """``saturate_int32((value - x_zero) << left)``."""
    if scaling.x_zero:
        value = bind(value - vm.const(scaling.x_zero, value))
    if not scaling.left:
        return value
    return saturating_shift(value, scaling.left)


def _doubled_product(value: Expr, multiplier: Expr, scaling: Scaling, target: Target) -> Expr:
    """``(v * multiplier) >> 31`` on Arm; it cannot overflow, ``multiplier`` is not negative."""
    if scaling.x_zero:
        value = bind(value - vm.const(scaling.x_zero, value))
    if scaling.left:
        left = vm.const(scaling.left, value)
        value = bind(_intrinsic("aarch64.neon.sqshl.v4i32", "int32x4", value, left))
    return bind(_intrinsic("aarch64.neon.sqdmulh.v4i32", "int32x4", value, multiplier))


def _high_product(value: Expr, multiplier: Expr, target: Target) -> Expr:
    """``(int64(value) * multiplier) >> 32``."""
    lanes = vm.lanes_of(value)
    if target.arch != "x86_64" or lanes < 4:
        wide = vm.cast(value, "int64") * vm.cast(multiplier, "int64")
        return bind(vm.cast(tirx.shift_right(wide, vm.const(32, wide)), "int32"))
    # vpmuldq multiplies the lower halves of 64-bit lanes: even and odd lanes apart.
    shift = splat(tirx.const(32, "int64"), lanes // 2)
    pairs = [bind(T.reinterpret(f"int64x{lanes // 2}", x)) for x in (value, multiplier)]
    even, odd = (
        [tirx.shift_right(tirx.shift_left(x, shift), shift) for x in pairs],
        [tirx.shift_right(x, shift) for x in pairs],
    )
    products = [bind(T.reinterpret(f"int32x{lanes}", bind(a * b))) for a, b in (even, odd)]
    order = [lane + 1 if lane % 2 == 0 else lanes + lane for lane in range(lanes)]
    return bind(concat(products, order))


def _finish_words(words: Sequence[Expr], scaling: Scaling, dtype: str) -> Expr:
    """Arm: four vectors of int16 to bytes, with the zero point added on the way."""
    pairs = [bind(concat(words[i : i + 2], range(8))) for i in (0, 2)]
    if scaling.zero:
        zero = splat(tirx.const(scaling.zero, "int16"), 8)
        pairs = [bind(_intrinsic("aarch64.neon.sqadd.v8i16", "int16x8", p, zero)) for p in pairs]
    name = f"aarch64.neon.{'sqxtn' if dtype == 'int8' else 'sqxtun'}.v8i8"
    halves = [bind(T.reinterpret(f"{dtype}x8", _intrinsic(name, "int8x8", p))) for p in pairs]
    return _clamped(concat(halves, range(16)), scaling, dtype)


def _clamped(value: Expr, scaling: Scaling, dtype: str) -> Expr:
    limits = np.iinfo(dtype)
    if scaling.low > limits.min:
        value = tirx.Max(value, vm.const(scaling.low, value))
    if scaling.high < limits.max:
        value = tirx.Min(bind(value), vm.const(scaling.high, value))
    return bind(value)
