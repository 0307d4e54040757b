"""Emitters of arithmetic, comparison, logic and conversion for ``effc.kernels.elementwise_ops``.

Each takes the ``Operands`` of one ONNX operator and returns the result's expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from tvm import tirx

from effc.kernels import vectormath as vm
from effc.kernels.builder import bind

__all__ = [
    "ALL_DTYPES",
    "BOOL",
    "FLOATS",
    "INTS",
    "NUMBERS",
    "SIGNED",
    "UNSIGNED",
    "Emit",
    "Operands",
    "absolute",
    "bounded",
    "by_libm",
    "choose",
    "clip",
    "compare",
    "convert",
    "divide",
    "folded",
    "is_inf_flag",
    "is_nan_flag",
    "larger",
    "mean",
    "modulo",
    "negate",
    "power",
    "shift",
    "sign",
    "smaller",
    "storage_dtype",
    "unary",
]

Expr = Any  # tvm.tirx expressions have no useful static types

FLOATS = frozenset({"float16", "float32", "float64"})
SIGNED = frozenset({"int8", "int16", "int32", "int64"})
UNSIGNED = frozenset({"uint8", "uint16", "uint32", "uint64"})
INTS = SIGNED | UNSIGNED
NUMBERS = FLOATS | INTS
BOOL = frozenset({"bool"})
ALL_DTYPES = NUMBERS | BOOL


def storage_dtype(dtype: str) -> str:
    """Element type of buffers and expressions that hold ONNX ``dtype``."""
    return "uint8" if dtype == "bool" else dtype


@dataclass(frozen=True)
class Operands:
    """What an emitter sees of one operator.

    Attributes:
        args: Operand expressions (``None`` for an absent optional input).
        dtypes: ONNX dtype per operand (``""`` if absent).
        values: Python value of operands that are scalars known at compile time.
        attrs: ONNX attributes, defaults left out.
        out_dtype: ONNX dtype of the result.
    """

    args: tuple[Expr, ...]
    dtypes: tuple[str, ...]
    values: tuple[float | int | bool | None, ...]
    attrs: Mapping[str, Any]
    out_dtype: str

    @property
    def x(self) -> Expr:
        """The first operand."""
        return self.args[0]

    @property
    def is_float(self) -> bool:
        """Whether the first operand is floating point."""
        return self.dtypes[0] in FLOATS

    def const(self, value: float | int) -> Expr:
        """A constant with the type and lanes of the first operand."""
        return vm.const(value, self.x)

    def attr(self, name: str, default: Any) -> Any:
        """Attribute ``name`` or its default."""
        return self.attrs.get(name, default)


Emit = Callable[[Operands], Expr]


def _flag(condition: Expr, like: Expr) -> Expr:
    """A comparison as 0 or 1 (never a cast of a mask: TVM cannot bind those)."""
    return vm.select(condition, vm.const(1, like, "uint8"), vm.const(0, like, "uint8"))


def _is_true(x: Expr) -> Expr:
    return tirx.NE(x, vm.const(0, x))


def larger(a: Expr, b: Expr) -> Expr:
    """Larger operand; NaN if either is."""
    if not vm.element_type(a).startswith("float"):
        return tirx.Max(a, b)
    a, b = bind(a), bind(b)
    return vm.select(vm.is_nan(a), a, vm.maximum(b, a))


def smaller(a: Expr, b: Expr) -> Expr:
    """Smaller operand; NaN if either is."""
    if not vm.element_type(a).startswith("float"):
        return tirx.Min(a, b)
    a, b = bind(a), bind(b)
    return vm.select(vm.is_nan(a), a, vm.minimum(b, a))


def bounded(x: Expr, low: float | None, high: float | None) -> Expr:
    """Clamp a float to constant bounds; NaN stays."""
    if low is not None and low != -math.inf:
        x = vm.maximum(x, vm.const(low, x))
    if high is not None and high != math.inf:
        x = vm.minimum(x, vm.const(high, x))
    return x


def folded(combine: Callable[[Expr, Expr], Expr]) -> Emit:
    return lambda o: reduce(combine, o.args)


def unary(function: Callable[[Expr], Expr]) -> Emit:
    return lambda o: function(o.x)


def by_libm(name: str) -> Emit:
    return lambda o: vm.libm(name, o.x)


def divide(o: Operands) -> Expr:
    a, b = o.args
    return a / b if o.is_float else _int_divide(a, b, o.dtypes[0], _quotient)


def _quotient(a: Expr, b: Expr) -> Expr:
    return tirx.truncdiv(a, b)


def _remainder(a: Expr, b: Expr) -> Expr:
    return tirx.truncmod(a, b)


def _int_divide(a: Expr, b: Expr, dtype: str, operate: Callable[[Expr, Expr], Expr]) -> Expr:
    """Integer division that never traps: by 0 gives 0, ``min / -1`` wraps."""
    a, b = bind(a), bind(b)
    zero, one = vm.const(0, b), vm.const(1, b)
    special = tirx.EQ(b, zero)
    if dtype in SIGNED:
        special = tirx.Or(special, tirx.EQ(b, vm.const(-1, b)))
    result = operate(a, bind(vm.select(special, one, b)))
    if dtype in SIGNED:
        negative = zero - a if operate is _quotient else zero
        result = vm.select(tirx.EQ(b, vm.const(-1, b)), negative, result)
    return vm.select(tirx.EQ(b, zero), zero, result)


def modulo(o: Operands) -> Expr:
    a, b = o.args
    if o.dtypes[0] in UNSIGNED:
        return _int_divide(a, b, o.dtypes[0], _remainder)
    b = bind(b)
    if o.is_float:
        result = bind(vm.libm("fmod", a, b))
    else:
        result = bind(_int_divide(a, b, o.dtypes[0], _remainder))
    if o.attr("fmod", 0):
        return result
    sign = result * b if o.is_float else tirx.bitwise_xor(result, b)
    apart = vm.select(sign < vm.const(0, b), b, vm.const(0, b))
    return vm.select(tirx.EQ(result, vm.const(0, b)), result, result + apart)


def power(o: Operands) -> Expr:
    x, y = o.args
    known = o.values[1]
    if o.is_float and known in _POWERS:
        return _POWERS[float(known)](bind(x))
    if o.dtypes[0] == "float32" and o.dtypes[1] != "float64":
        return vm.pow(x, vm.cast(y, "float32"))
    power = vm.pow(vm.cast(x, "float64"), vm.cast(y, "float64"))
    if o.is_float:
        return vm.cast(power, o.out_dtype)
    return _float_to_int(bind(power), o.out_dtype)


_POWERS: dict[float, Callable[[Expr], Expr]] = {
    -2.0: lambda x: vm.reciprocal(x * x),
    -1.0: vm.reciprocal,
    -0.5: lambda x: vm.reciprocal(vm.sqrt(x)),
    0.5: vm.sqrt,
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    4.0: lambda x: bind(x * x) * (x * x),
}


def negate(o: Operands) -> Expr:
    if o.is_float:
        return o.x * o.const(-1.0)
    return o.const(0) - o.x


def absolute(o: Operands) -> Expr:
    if o.is_float:
        return vm.absolute(o.x)
    x = bind(o.x)
    return x if o.dtypes[0] in UNSIGNED else tirx.Max(x, vm.const(0, x) - x)


def sign(o: Operands) -> Expr:
    x = bind(o.x)
    zero, one = vm.const(0, x), vm.const(1, x)
    if o.dtypes[0] in UNSIGNED:
        return vm.select(tirx.NE(x, zero), one, zero)
    other = vm.select(x < zero, vm.const(-1, x), x if o.is_float else zero)
    return vm.select(x > zero, one, other)


def mean(o: Operands) -> Expr:
    return folded(lambda a, b: a + b)(o) * o.const(1.0 / len(o.args))


def clip(o: Operands) -> Expr:
    x, low, high = (*o.args, None, None)[:3]
    if o.is_float:
        values = (*o.values, None, None)[:3]
        for bound, value, extreme, open_end in (
            (low, values[1], vm.maximum, -math.inf),
            (high, values[2], vm.minimum, math.inf),
        ):
            if bound is not None and value != open_end:
                x = extreme(x, bound)
        return x
    if low is not None:
        x = tirx.Max(x, low)
    return tirx.Min(x, high) if high is not None else x


def _float_to_int(x: Expr, dtype: str) -> Expr:
    """Truncate toward zero; out of range follows ``int(int32)`` or the CPU."""
    if dtype in ("int8", "int16", "uint8", "uint16"):
        return vm.cast(vm.cast(x, "int32"), dtype)
    if dtype == "uint32":
        return vm.cast(vm.cast(x, "int64"), dtype)
    if dtype != "uint64":
        return vm.cast(x, dtype)
    top = vm.const(2.0**63, x)
    low = vm.cast(vm.cast(x, "int64"), "uint64")
    high = vm.cast(vm.cast(x - top, "int64"), "uint64") + vm.const(2**63, x, "uint64")
    return vm.select(x < top, low, high)


def convert(o: Operands) -> Expr:
    source, target = o.dtypes[0], o.out_dtype
    if source == target:
        return o.x
    x = bind(o.x)
    if target == "bool":
        return _flag(_is_true(x), x)
    if source in FLOATS and target in INTS:
        x = bind(vm.cast(x, "float32")) if source == "float16" else x
        return _float_to_int(x, target)
    if target == "float16" and source != "float32":
        x = bind(vm.cast(x, "float32"))
    return vm.cast(x, target)


def choose(o: Operands) -> Expr:
    condition, yes, no = o.args
    return vm.select(_is_true(condition), yes, no)


def compare(node: Callable[[Expr, Expr], Expr]) -> Emit:
    return lambda o: _flag(node(*o.args), o.x)


def is_inf_flag(o: Operands) -> Expr:
    x = bind(o.x)
    plus, minus = tirx.EQ(x, vm.const(math.inf, x)), tirx.EQ(x, vm.const(-math.inf, x))
    found = [_flag(plus, x)] if o.attr("detect_positive", 1) else []
    found += [_flag(minus, x)] if o.attr("detect_negative", 1) else []
    return reduce(tirx.bitwise_or, found, vm.const(0, x, "uint8"))


def is_nan_flag(o: Operands) -> Expr:
    x = bind(o.x)
    return _flag(vm.is_nan(x), x)


def shift(o: Operands) -> Expr:
    """Shift of unsigned integers; by the width or more gives 0."""
    x, amount = o.args
    amount = bind(amount)
    width = np.dtype(o.dtypes[0]).itemsize * 8
    within = amount < vm.const(width, amount)
    safe = bind(vm.select(within, amount, vm.const(0, amount)))
    moved = (
        tirx.shift_left(x, safe)
        if o.attr("direction", "") == "LEFT"
        else (tirx.shift_right(x, safe))
    )
    return vm.select(within, moved, vm.const(0, amount))
