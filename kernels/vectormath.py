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
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from effc.kernels import intrinsics
from effc.kernels.builder import T, bind, splat

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
_SIN = (-0.16666667, 0.008333329, -0.00019839333, 2.7183025e-06)  # (sin r / r - 1) / r^2
_COS = (0.041666668, -0.0013888883, 2.479952e-05, -2.7210154e-07)  # (cos r - 1 + r^2/2) / r^4
_LOG2_64 = (  # atanh(s) * 2 / (s * ln 2) in s^2, float64
    2.885390081777851, 0.961796694114517, 0.5770779420194942,
    0.4122092876042402, 0.31990423831465065, 0.2829212063733973,
)  # fmt: skip
_EXP2_64 = (  # 2^r for abs(r) <= 1/2, float64
    0.9999999999595489, 0.6931471805350304, 0.24022651213584784, 0.055504109760988664,
    0.009618025604085471, 0.001333342265336794, 0.00015469731677769498, 1.5316459941210667e-05,
)  # fmt: skip
_PIO2 = (1.5707964897155762, -1.6292068494294654e-07, 5.390302858158119e-15)  # 22 + 22 + 53 bits


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


def _bits(x: Expr, dtype: str) -> Expr:
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


def _poly(coefficients: Sequence[float], x: Expr) -> Expr:
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


def _reduce_exp(x: Expr) -> tuple[Expr, Expr]:
    """``x = n ln 2 + r``: (bits of n + magic as int32, r)."""
    shifted = bind(x * const(1.0 / math.log(2), x) + const(_MAGIC, x))
    n = bind(shifted - const(_MAGIC, x))
    r = bind(x - n * const(_LN2_HI, x) - n * const(_LN2_LO, x))
    return _bits(shifted, "int32"), r


def _exponent(n: Expr) -> Expr:
    """``2 ** n`` as float32 for n in [-126, 128] (128 gives infinity)."""
    return _bits((n + const(127, n)) << const(23, n), "float32")


def exp(x: Expr) -> Expr:
    """``e ** x`` over the whole range; overflow gives infinity."""
    if element_type(x) == "float64":
        return T.exp(x)
    x = bind(minimum(maximum(x, const(-104.0, x)), const(89.0, x)))
    bits, r = _reduce_exp(x)
    n = bind(bits - const(_MAGIC_BITS, bits))
    half = bind(n >> const(1, n))
    value = const(1.0, r) + (r + r * r * _poly(_EXP, r))
    return value * _exponent(half) * _exponent(n - half)


def exp_nonpositive(x: Expr) -> Expr:
    """``e ** x`` for ``x <= 0``, cheaper; results below 1.2e-38 are 0."""
    if element_type(x) == "float64":
        return T.exp(x)
    x = bind(x)
    bits, r = _reduce_exp(bind(maximum(x, const(-87.0, x))))
    value = const(1.0, r) + (r + r * r * _poly(_EXP, r))
    scaled = value * _exponent(bits - const(_MAGIC_BITS, bits))
    return select(x < const(-87.0, x), const(0.0, x), scaled)


def expm1_nonpositive(x: Expr) -> Expr:
    """``e ** x - 1`` where ``x <= 0`` (meaningless above), accurate near 0."""
    if element_type(x) == "float64":
        return libm("expm1", x)
    bits, r = _reduce_exp(bind(maximum(x, const(-87.0, x))))
    scale = bind(_exponent(bits - const(_MAGIC_BITS, bits)))
    return (r + r * r * _poly(_EXPM1, r)) * scale + (scale - const(1.0, r))


def expm1(x: Expr) -> Expr:
    """``e ** x - 1``, accurate near 0."""
    if element_type(x) == "float64":
        return libm("expm1", x)
    x = bind(x)
    bits, r = _reduce_exp(bind(minimum(maximum(x, const(-87.0, x)), const(80.0, x))))
    scale = bind(_exponent(bits - const(_MAGIC_BITS, bits)))
    small = (r + r * r * _poly(_EXPM1, r)) * scale + (scale - const(1.0, r))
    return select(x > const(80.0, x), exp(x), small)


def log(x: Expr) -> Expr:
    """Natural logarithm; ``log(0)`` is -inf, of negative numbers NaN."""
    if element_type(x) == "float64":
        return T.log(x)
    x = bind(x)
    tiny = x < const(2.0**-126, x)
    scaled = bind(select(tiny, x * const(2.0**23, x), x))
    bits = bind(_bits(scaled, "int32") - const(0x3F3504F3, x, "int32"))
    exponent = cast(bits >> const(23, bits), "float32")
    n = bind(exponent - select(tiny, const(23.0, x), const(0.0, x)))
    mantissa = (bits & const(0x7FFFFF, bits)) + const(0x3F3504F3, bits)
    f = bind(_bits(mantissa, "float32") - const(1.0, x))
    square = bind(f * f)
    tail = f * square * _poly(_LOG1P, f) + n * const(_LN2_LO, x)
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
    return _copysign(m / (const(2.0, x) + m), x)


def sigmoid(x: Expr) -> Expr:
    """Logistic function ``1 / (1 + exp(-x))``."""
    one = const(1.0, x)
    if element_type(x) == "float64":
        return one / (one + T.exp(-x))
    # Beyond 88.4 the exponent field reaches infinity, so that the result is 0.
    y = bind(minimum(maximum(const(0.0, x) - x, const(-87.0, x)), const(88.7, x)))
    bits, r = _reduce_exp(y)
    value = one + (r + r * r * _poly(_EXP, r))
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
    value = bind(x * _poly(_ERF_P, z) / _poly(_ERF_Q, z))
    return minimum(maximum(value, const(-1.0, x)), const(1.0, x))


def absolute(x: Expr) -> Expr:
    """Absolute value of a float."""
    return _intrinsic("llvm.fabs", x)


def _copysign(x: Expr, sign: Expr) -> Expr:
    return _intrinsic("llvm.copysign", x, sign)


def _reduce_pio2(x: Expr) -> tuple[Expr, Expr]:
    """``x = q pi/2 + r`` in float64: (q modulo 4 as int32, r as float32)."""
    wide = bind(cast(x, "float64"))
    magic = 1.5 * 2.0**52
    shifted = bind(wide * const(2.0 / math.pi, wide) + const(magic, wide))
    n = bind(shifted - const(magic, wide))
    r = wide
    for part in _PIO2:
        r = r - n * const(part, wide)
    quadrant = cast(_bits(shifted, "int64"), "int32")
    return bind(quadrant), bind(cast(r, "float32"))


def _sin_cos(x: Expr) -> tuple[Expr, Expr, Expr]:
    quadrant, r = _reduce_pio2(x)
    z = bind(r * r)
    sine = bind(r + r * z * _poly(_SIN, z))
    cosine = bind(const(1.0, z) - const(0.5, z) * z + z * z * _poly(_COS, z))
    return quadrant, sine, cosine


def _by_quadrant(quadrant: Expr, sine: Expr, cosine: Expr) -> Expr:
    odd = tirx.EQ(quadrant & const(1, quadrant), const(1, quadrant))
    sign = (quadrant & const(2, quadrant)) << const(30, quadrant)
    return _bits(_bits(select(odd, cosine, sine), "int32") ^ sign, "float32")


def sin(x: Expr) -> Expr:
    """Sine of radians."""
    if element_type(x) == "float64":
        return T.sin(x)
    return _by_quadrant(*_sin_cos(x))


def cos(x: Expr) -> Expr:
    """Cosine of radians."""
    if element_type(x) == "float64":
        return T.cos(x)
    quadrant, sine, cosine = _sin_cos(x)
    return _by_quadrant(quadrant + const(1, quadrant), sine, cosine)


def tan(x: Expr) -> Expr:
    """Tangent of radians."""
    if element_type(x) == "float64":
        return libm("tan", x)
    quadrant, sine, cosine = _sin_cos(x)
    odd = tirx.EQ(quadrant & const(1, quadrant), const(1, quadrant))
    return select(odd, const(0.0, sine) - cosine, sine) / select(odd, sine, cosine)


def pow(base: Expr, exponent: Expr) -> Expr:
    """``base ** exponent`` with C99's special cases (float32; float64 calls libm)."""
    if element_type(base) == "float64":
        return libm("pow", base, exponent)
    x, y = bind(base), bind(exponent)
    one, zero = const(1.0, x), const(0.0, x)
    magnitude = bind(absolute(x))
    value = _pow_positive(magnitude, y)
    whole = tirx.EQ(trunc(y), y)
    half = bind(y * const(0.5, y))
    odd = tirx.And(whole, tirx.NE(trunc(half), half))
    value = bind(select(odd, _copysign(value, x), value))
    finite_negative = tirx.And(x < zero, x > const(-math.inf, x))
    value = bind(select(tirx.And(finite_negative, tirx.Not(whole)), const(math.nan, x), value))
    value = bind(select(tirx.Or(is_nan(x), is_nan(y)), x + y, value))
    return select(tirx.Or(tirx.EQ(x, one), tirx.EQ(y, zero)), one, value)


def _pow_positive(x: Expr, y: Expr) -> Expr:
    """``x ** y`` for ``x >= 0`` in float64; the result as float32."""
    wide, power = bind(cast(x, "float64")), cast(y, "float64")
    bits = bind(_bits(wide, "int64") - const(0x3FE6A09E667F3BCD, wide, "int64"))
    exponent = cast(bits >> const(52, bits), "float64")
    mantissa = (bits & const((1 << 52) - 1, bits)) + const(0x3FE6A09E667F3BCD, bits)
    m = bind(_bits(mantissa, "float64"))
    s = bind((m - const(1.0, m)) / (m + const(1.0, m)))
    z = bind(s * s)
    finite = exponent + s * _poly(_LOG2_64, z)
    infinite = select(x > const(1.0, x), const(math.inf, wide), const(-math.inf, wide))
    regular = tirx.And(x > const(0.0, x), x < const(math.inf, x))
    product = select(regular, finite, infinite) * power
    product = bind(select(tirx.EQ(x, const(1.0, x)), const(0.0, wide), product))
    t = bind(minimum(maximum(product, const(-200.0, wide)), const(200.0, wide)))
    magic = 1.5 * 2.0**52
    shifted = bind(t + const(magic, t))
    r = bind(t - (shifted - const(magic, t)))
    scale = (_bits(shifted, "int64") + const(1023, bits)) << const(52, bits)
    return bind(cast(_poly(_EXP2_64, r) * _bits(scale, "float64"), "float32"))
