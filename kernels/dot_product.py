"""Dot products of four bytes: ``acc[i] + sum_j x[4i + j] * w[4i + j]`` in one instruction."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T

__all__ = ["DOT_FEATURES", "dot4", "has_dot4", "multiply_pairs"]

Expr = Any  # tvm.tirx expressions have no useful static types

DOT_FEATURES = frozenset({"avx512vnni", "avxvnni", "dotprod"})
"""What ``Template.features`` says of code that asks ``has_dot4``."""

_PAIRS = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}


def has_dot4(target: Target, dtype: str, lanes: int) -> bool:
    """Whether one instruction adds ``lanes`` products of ``dtype`` quads and int8 quads."""
    if target.arch == "x86_64":
        narrow = target.has("avxvnni") or (target.has("avx512vnni") and target.has("avx512vl"))
        wide = lanes == 16 and target.has("avx512vnni")
        return dtype == "uint8" and (wide or (lanes in (4, 8) and narrow))
    return target.arch == "aarch64" and target.has("dotprod") and dtype == "int8" and lanes == 4


def dot4(acc: Expr, x: Expr, w: Expr, target: Target) -> Expr:
    """Add dot products; ``has_dot4`` must hold.

    Args:
        acc: int32, ``lanes``.
        x: ``4 * lanes`` activations of the target's dtype.
        w: ``4 * lanes`` int8.
        target: Whose instruction to use.
    """
    lanes = vm.lanes_of(acc)
    if target.arch == "aarch64":
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, x, w)
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    signless = T.reinterpret(f"int8x{4 * lanes}", x)  # LLVM's bytes have no sign
    return T.call_llvm_pure_intrin(f"int32x{lanes}", name, acc, signless, w)


def multiply_pairs(x: Expr, w: Expr) -> Expr:
    """x86: ``x[2i] * w[2i] + x[2i+1] * w[2i+1]`` of int16, as int32."""
    lanes = vm.lanes_of(x) // 2
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.x86.{_PAIRS[lanes]}", x, w)
