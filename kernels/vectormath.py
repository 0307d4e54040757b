"""Vector mathematics without library calls, for any number of lanes.

Every function takes TIR expressions (scalars or vectors of any lane count) and
must be called inside a stage function, because shared sub-expressions are bound
there. The float32 versions are branch-free polynomials and bit tricks that LLVM
turns into plain SIMD code on x86 and Arm. They use no fused operation
explicitly: LLVM contracts ``a * b + c`` where the CPU has it, and the error
bounds hold either way.

Methods: argument reduction as in W. J. Cody and W. Waite, *Software Manual for
the Elementary Functions* (1980); all coefficients are our own weighted minimax
fits (Lawson's iteration on Chebyshev nodes). Largest errors found by dense sweeps
(``tests/kernels/test_vectormath.py``), in units in the last place of float32:

==========  =====  ==========================================================
function    ulp    remarks
==========  =====  ==========================================================
exp         1.5    denormal results included
log         1      denormal arguments included
log1p       3
expm1       3
tanh        3
sigmoid     3      0 where the true value is below 4e-39
erf         7
softplus    3
sin, cos    2      abs(x) up to 3e9, beyond that no digit is right
tan         3.5    same range
pow         1      through float64
==========  =====  ==========================================================

float64 goes to LLVM's intrinsics or libm, one call per lane.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from effc.kernels.builder import T, bind
from effc.kernels.vectorbase import (
    absolute,
    all_ones,
    bits_as,
    cast,
    ceil,
    const,
    copysign,
    element_type,
    floor,
    is_nan,
    lanes_of,
    libm,
    maximum,
    minimum,
    poly,
    reciprocal,
    round_even,
    scalar,
    select,
    sqrt,
    trunc,
)
from effc.kernels.vectortrig import cos, pow, sin, tan

__all__ = [
    "absolute",
    "all_ones",
    "cast",
    "ceil",
    "const",
    "cos",
    "element_type",
    "erf",
    "exp",
    "exp_nonpositive",
    "expm1",
    "expm1_nonpositive",
    "floor",
    "is_nan",
    "lanes_of",
    "libm",
    "log",
    "log1p",
    "maximum",
    "minimum",
    "pow",
    "reciprocal",
    "round_even",
    "scalar",
    "select",
    "sigmoid",
    "sin",
    "softplus",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
]

Expr = Any  # tvm.tirx expressions have no useful static types

_LN2_HI = 0.693359375  # 9 bits of ln 2, so that n * _LN2_HI is exact for abs(n) < 2**15
_LN2_LO = math.log(2) - _LN2_HI
_MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer in the low mantissa bits
_MAGIC_BITS = 0x4B400000
_EXP = (0.5, 0.16666518, 0.041666206, 0.008368908, 0.0013950522)  # (e^r - 1 - r) / r^2
_EXPM1 = (0.5, 0.16666543, 0.04166628, 0.008366602, 0.0013946479)  # same, relative to r
_LOG1P = (  # (log(1 + f) - f + f^2 / 2) / f^3 for f in [sqrt(1/2) - 1, sqrt(2) - 1]
    0.3333331, -0.24999987, 0.20002227, -0.16669251, 0.14218652,
    -0.123843305, 0.11873008, -0.117899336, 0.06915447,
)  # fmt: skip
_ERF_P = (1.1283791, 0.190398, 0.052747477, 0.0037652224, 0.00028486885, 2.0500852e-06)
_ERF_Q = (1.0, 0.5020686, 0.11410549, 0.014968426, 0.0011624307, 3.8090973e-05)
_ERF_ONE = 3.92  # erf rounds to 1 in float32 from here on


def _reduce_exp(x: Expr) -> tuple[Expr, Expr]:
    """``x = n ln 2 + r``: (bits of n + magic as int32, r)."""
    shifted = bind(x * const(1.0 / math.log(2), x) + const(_MAGIC, x))
    n = bind(shifted - const(_MAGIC, x))
    r = bind(x - n * const(_LN2_HI, x) - n * const(_LN2_LO, x))
    return bits_as(shifted, "int32"), r


def _exponent(n: Expr) -> Expr:
    """``2 ** n`` as float32 for n in [-126, 128] (128 gives infinity)."""
    return bits_as((n + const(127, n)) << const(23, n), "float32")


def exp(x: Expr) -> Expr:
    """``e ** x`` over the whole range; overflow gives infinity."""
    if element_type(x) == "float64":
        return T.exp(x)
    x = bind(minimum(maximum(x, const(-104.0, x)), const(89.0, x)))
    bits, r = _reduce_exp(x)
    n = bind(bits - const(_MAGIC_BITS, bits))
    half = bind(n >> const(1, n))
    value = const(1.0, r) + (r + r * r * poly(_EXP, r))
    return value * _exponent(half) * _exponent(n - half)


def exp_nonpositive(x: Expr) -> Expr:
    """``e ** x`` for ``x <= 0``, cheaper; results below 1.2e-38 are 0."""
    if element_type(x) == "float64":
        return T.exp(x)
    x = bind(x)
    bits, r = _reduce_exp(bind(maximum(x, const(-87.0, x))))
    value = const(1.0, r) + (r + r * r * poly(_EXP, r))
    scaled = value * _exponent(bits - const(_MAGIC_BITS, bits))
    return select(x < const(-87.0, x), const(0.0, x), scaled)


def expm1_nonpositive(x: Expr) -> Expr:
    """``e ** x - 1`` where ``x <= 0`` (meaningless above), accurate near 0."""
    if element_type(x) == "float64":
        return libm("expm1", x)
    bits, r = _reduce_exp(bind(maximum(x, const(-87.0, x))))
    scale = bind(_exponent(bits - const(_MAGIC_BITS, bits)))
    return (r + r * r * poly(_EXPM1, r)) * scale + (scale - const(1.0, r))


def expm1(x: Expr) -> Expr:
    """``e ** x - 1``, accurate near 0."""
    if element_type(x) == "float64":
        return libm("expm1", x)
    x = bind(x)
    bits, r = _reduce_exp(bind(minimum(maximum(x, const(-87.0, x)), const(80.0, x))))
    scale = bind(_exponent(bits - const(_MAGIC_BITS, bits)))
    small = (r + r * r * poly(_EXPM1, r)) * scale + (scale - const(1.0, r))
    return select(x > const(80.0, x), exp(x), small)


def log(x: Expr) -> Expr:
    """Natural logarithm; ``log(0)`` is -inf, of negative numbers NaN."""
    if element_type(x) == "float64":
        return T.log(x)
    x = bind(x)
    tiny = x < const(2.0**-126, x)
    scaled = bind(select(tiny, x * const(2.0**23, x), x))
    bits = bind(bits_as(scaled, "int32") - const(0x3F3504F3, x, "int32"))
    exponent = cast(bits >> const(23, bits), "float32")
    n = bind(exponent - select(tiny, const(23.0, x), const(0.0, x)))
    mantissa = (bits & const(0x7FFFFF, bits)) + const(0x3F3504F3, bits)
    f = bind(bits_as(mantissa, "float32") - const(1.0, x))
    square = bind(f * f)
    tail = f * square * poly(_LOG1P, f) + n * const(_LN2_LO, x)
    value = (f + (tail - const(0.5, x) * square)) + n * const(_LN2_HI, x)
    value = select(x < const(math.inf, x), value, x)  # +inf and NaN
    value = select(x < const(0.0, x), const(math.nan, x), value)
    return select(tirx.EQ(x, const(0.0, x)), const(-math.inf, x), value)


def log1p(x: Expr) -> Expr:
    """``log(1 + x)``, accurate near 0."""
    if element_type(x) == "float64":
        return libm("log1p", x)
    x = bind(x)
    u = bind(x + const(1.0, x))
    # Rounding error of u, exactly (2Sum; abs(x) may exceed 1), relative to u.
    virtual = bind(u - x)
    error = (x - (u - virtual)) + (const(1.0, x) - virtual)
    finite = select(u < const(math.inf, u), error / u, const(0.0, u))
    value = log(u) + select(u > const(0.0, u), finite, const(0.0, u))
    return select(tirx.EQ(x, const(0.0, x)), x, value)


def tanh(x: Expr) -> Expr:
    """Hyperbolic tangent as ``-m / (2 + m)`` with ``m = expm1(-2 |x|)``."""
    if element_type(x) == "float64":
        return libm("tanh", x)
    x = bind(x)
    m = bind(expm1_nonpositive(bind(absolute(x) * const(-2.0, x))))
    return copysign(m / (const(2.0, x) + m), x)


def sigmoid(x: Expr) -> Expr:
    """Logistic function ``1 / (1 + exp(-x))``."""
    one = const(1.0, x)
    if element_type(x) == "float64":
        return one / (one + T.exp(-x))
    # Beyond 88.4 the exponent field reaches infinity, so that the result is 0.
    y = bind(minimum(maximum(const(0.0, x) - x, const(-87.0, x)), const(88.7, x)))
    bits, r = _reduce_exp(y)
    value = one + (r + r * r * poly(_EXP, r))
    return one / (one + value * _exponent(bits - const(_MAGIC_BITS, bits)))


def softplus(x: Expr) -> Expr:
    """``log(1 + exp(x))`` without overflow."""
    x = bind(x)
    rest = log1p(exp_nonpositive(bind(const(0.0, x) - absolute(x))))
    return maximum(x, const(0.0, x)) + rest


def erf(x: Expr) -> Expr:
    """Error function, a rational function of ``x ** 2`` times ``x``."""
    if element_type(x) == "float64":
        return libm("erf", x)
    limit = const(_ERF_ONE, x)
    x = bind(minimum(maximum(x, const(-_ERF_ONE, x)), limit))
    z = bind(x * x)
    value = bind(x * poly(_ERF_P, z) / poly(_ERF_Q, z))
    return minimum(maximum(value, const(-1.0, x)), const(1.0, x))
