"""Float16 in C, which has no such type: computed in float32, rounded after every operation.

Sums, products, quotients and roots of halves come out as if they had been rounded once: float32
has more than twice the bits (S. A. Figueroa, When is double rounding innocuous?, SIGNUM
Newsletter 30(3), 1995).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

__all__ = ["dtype_of", "in_float32", "lanes_of"]

Expr = Any  # tvm.tirx expressions have no useful static types

_BINARY = frozenset(
    ("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "LT", "LE", "GT", "GE", "EQ", "NE")
)
_CALLS = frozenset(
    ("tirx.effc_maximum", "tirx.effc_minimum", "tirx.call_llvm_pure_intrin", "tirx.isnan")
)


def dtype_of(x: Expr) -> str:
    """Element dtype of an expression, without lanes."""
    return str(x.ty.dtype).split("x")[0]


def lanes_of(x: Expr) -> int:
    """Lanes of an expression, 1 for a scalar."""
    return int(x.ty.dtype.lanes)


def in_float32(x: Expr) -> Expr | None:
    """An operation on float16 as one on float32 between conversions; ``None`` for others."""
    if type(x).__name__ in _BINARY:
        if not _is_half(x.a):
            return None
        result = type(x)(_wide(x.a), _wide(x.b))
    elif type(x).__name__ == "Call" and str(x.op.name) in _CALLS:
        if not any(_is_half(a) for a in x.args):
            return None
        operands = [_wide(a) if _is_half(a) else a for a in x.args]
        result = tirx.call_intrin(_as_float32(x), str(x.op.name), *operands)
    else:
        return None
    return tirx.Cast(str(x.ty.dtype), result) if dtype_of(x) == "float16" else result


def _is_half(x: Expr) -> bool:
    return hasattr(x, "ty") and hasattr(x.ty, "dtype") and dtype_of(x) == "float16"


def _wide(x: Expr) -> Expr:
    """A float16 operand in float32."""
    if type(x).__name__ == "FloatImm":
        return tirx.const(float(np.float16(x.value)), "float32")
    if type(x).__name__ == "Broadcast":
        return tirx.Broadcast(_wide(x.value), lanes_of(x))
    return tirx.Cast(_as_float32(x), x)


def _as_float32(x: Expr) -> str:
    return str(x.ty.dtype).replace("float16", "float32")
