"""Operators that effc adds to TIR; LLVM code generation never sees them.

They live from the builder to the ``LowerIntrin`` pass, which replaces each by
ordinary TIR for the target at hand:

``tirx.effc_maximum(x, bound)``, ``tirx.effc_minimum(x, bound)``
    Float extremes that keep a NaN in ``x``: one instruction on x86 (compare and
    select in the order of ``maxps``) as well as on Arm (``llvm.maximum``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import tirx

__all__ = ["maximum", "minimum"]

Expr = Any  # tvm.tirx expressions have no useful static types


def _is_arm() -> bool:
    triple = str(tvm.target.Target.current().attrs["mtriple"])
    return triple.startswith(("aarch64", "arm", "thumb"))


def _extreme(intrinsic: str, node: Callable[[Expr, Expr], Expr]) -> Callable[[Expr], Expr]:
    def rule(call: Expr) -> Expr:
        x, bound = call.args
        if _is_arm():
            return tirx.call_llvm_pure_intrin(call.ty.dtype, intrinsic, x, bound)
        return tirx.Select(node(bound, x), bound, x)

    return rule


def _register(name: str, effect: tirx.CallEffectKind, rule: Callable[[Expr], Expr]) -> None:
    if name not in tvm.ir.Op.list_op_names():
        tvm.ir._ffi_api.RegisterOp(name, "effc")
    tvm.ir.register_op_attr(name, "TCallEffectKind", effect.value, level=99)
    tvm.ir.register_op_attr(name, "TScriptPrinterName", name.removeprefix("tirx."), level=99)
    tirx.register_intrin_lowering(name, target="llvm", f=rule, level=99)


_register("tirx.effc_maximum", tirx.CallEffectKind.Pure, _extreme("llvm.maximum", tirx.GT))
_register("tirx.effc_minimum", tirx.CallEffectKind.Pure, _extreme("llvm.minimum", tirx.LT))


def maximum(x: Expr, bound: Expr) -> Expr:
    """The larger of two floats; ``x`` must be a variable, ``bound`` not NaN."""
    return tirx.call_intrin(x.ty.dtype, "tirx.effc_maximum", x, bound)


def minimum(x: Expr, bound: Expr) -> Expr:
    """The smaller of two floats; ``x`` must be a variable, ``bound`` not NaN."""
    return tirx.call_intrin(x.ty.dtype, "tirx.effc_minimum", x, bound)
