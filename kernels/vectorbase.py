"""Elements of vector arithmetic: constants, casts, selections, rounding, polynomials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from effc.kernels import intrinsics
from effc.kernels.builder import T, bind, splat

__all__ = [
    "absolute",
    "all_ones",
    "bits_as",
    "cast",
    "ceil",
    "const",
    "copysign",
    "element_type",
    "floor",
    "is_nan",
    "lanes_of",
    "libm",
    "maximum",
    "minimum",
    "poly",
    "reciprocal",
    "round_even",
    "scalar",
    "select",
    "sqrt",
    "trunc",
    "weight_as",
]

Expr = Any  # tvm.tirx expressions have no useful static types


def element_type(x: Expr) -> str:
    """Element dtype of an expression, without lanes (``float32``, ``bool``, ...)."""
    return str(x.ty.dtype).split("x")[0]


def lanes_of(x: Expr) -> int:
    """Number of lanes of an expression (1 for a scalar)."""
    return int(x.ty.dtype.lanes)


def const(value: float | int | bool, like: Expr, dtype: str | None = None) -> Expr:
    """The constant ``value`` with the lanes (and, unless given, the dtype) of ``like``."""
    return splat(scalar(value, dtype or element_type(like)), lanes_of(like))


def scalar(value: float | int | bool, dtype: str) -> Expr:
    """The constant ``value`` (also infinite or NaN) as a scalar of ``dtype``."""
    return tirx.const(int(value) if "int" in dtype else float(value), dtype)


def all_ones(like: Expr) -> Expr:
    """The integer whose bits are all set, with dtype and lanes of ``like``."""
    dtype = element_type(like)
    bits = int(dtype.removeprefix("u").removeprefix("int"))
    return const((1 << bits) - 1 if dtype.startswith("u") else -1, like)


def _vector_type(dtype: str, like: Expr) -> str:
    lanes = lanes_of(like)
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def cast(x: Expr, dtype: str) -> Expr:
    """Convert to ``dtype`` lane by lane, with the CPU's rules (C conversion)."""
    if element_type(x) == dtype:
        return x
    return T.Cast(_vector_type(dtype, x), x)


def weight_as(x: Expr, dtype: str) -> Expr:
    """A weight in the type it is computed with; of float16 it must be finite."""
    if element_type(x) == "float16" and dtype == "float32":
        return intrinsics.widen(bind(x))
    return cast(x, dtype)


def bits_as(x: Expr, dtype: str) -> Expr:
    """The same bits read as another dtype of the same width."""
    return T.reinterpret(_vector_type(dtype, x), x)


def is_nan(x: Expr) -> Expr:
    """Lane-wise test for NaN (TVM would fold ``x != x``)."""
    return tirx.isnan(x)


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Lane-wise choice; both sides are evaluated."""
    return tirx.Select(condition, yes, no)


def _intrinsic(name: str, x: Expr, *more: Expr) -> Expr:
    return T.call_llvm_pure_intrin(x.ty.dtype, name, x, *more)


def libm(name: str, *operands: Expr) -> Expr:
    """Call the libm function ``name`` (``f`` is appended for float32) once per lane."""
    dtype, lanes = element_type(operands[0]), lanes_of(operands[0])
    symbol = name + "f" if dtype == "float32" else name
    if lanes == 1:
        return T.call_pure_extern(dtype, symbol, *operands)
    bound = [bind(x) for x in operands]
    results = [
        T.call_pure_extern(dtype, symbol, *(T.Shuffle([x], [lane]) for x in bound))
        for lane in map(T.int32, range(lanes))
    ]
    return T.Shuffle(results, [T.int32(lane) for lane in range(lanes)])


def poly(coefficients: Sequence[float], x: Expr) -> Expr:
    """Horner's scheme, lowest coefficient first; ``x`` must be a variable."""
    result = const(coefficients[-1], x)
    for coefficient in reversed(coefficients[:-1]):
        result = bind(result * x + const(coefficient, x))  # short terms: TVM's passes are slow
    return result


def maximum(x: Expr, bound: Expr) -> Expr:
    """The larger of two floats; a NaN in ``x`` is kept. ``bound`` must not be NaN."""
    return intrinsics.maximum(bind(x), bound)


def minimum(x: Expr, bound: Expr) -> Expr:
    """The smaller of two floats; a NaN in ``x`` is kept. ``bound`` must not be NaN."""
    return intrinsics.minimum(bind(x), bound)


def floor(x: Expr) -> Expr:
    """Largest integer not above ``x``."""
    return _intrinsic("llvm.floor", x)


def ceil(x: Expr) -> Expr:
    """Smallest integer not below ``x``."""
    return _intrinsic("llvm.ceil", x)


def trunc(x: Expr) -> Expr:
    """Integer part of ``x``."""
    return _intrinsic("llvm.trunc", x)


def round_even(x: Expr) -> Expr:
    """Nearest integer, halves to even (the rounding mode nobody changes).

    ``llvm.roundeven`` would say so itself, but 32-bit Arm calls a function for it that
    Android's libm does not have.
    """
    return _intrinsic("llvm.rint", x)


def sqrt(x: Expr) -> Expr:
    """Square root (correctly rounded)."""
    return _intrinsic("llvm.sqrt", x)


def reciprocal(x: Expr) -> Expr:
    """``1 / x`` by division (correctly rounded)."""
    return const(1.0, x) / x


def absolute(x: Expr) -> Expr:
    """Absolute value of a float."""
    return _intrinsic("llvm.fabs", x)


def copysign(x: Expr, sign: Expr) -> Expr:
    """The magnitude of ``x`` with the sign of ``sign``."""
    return _intrinsic("llvm.copysign", x, sign)
