"""Sine, cosine, tangent and power for ``effc.kernels.vectormath``, through float64.

The reduction of angles and the exponent of a power need more than float32's digits;
the polynomials in between do not. float64 arguments go to LLVM or libm.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from effc.kernels.builder import T, bind
from effc.kernels.vectorbase import (
    absolute,
    bits_as,
    cast,
    const,
    copysign,
    element_type,
    is_nan,
    libm,
    maximum,
    minimum,
    poly,
    select,
    trunc,
)

__all__ = ["cos", "pow", "sin", "tan"]

Expr = Any  # tvm.tirx expressions have no useful static types

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


def _reduce_pio2(x: Expr) -> tuple[Expr, Expr]:
    """``x = q pi/2 + r`` in float64: (q modulo 4 as int32, r as float32)."""
    wide = bind(cast(x, "float64"))
    magic = 1.5 * 2.0**52
    shifted = bind(wide * const(2.0 / math.pi, wide) + const(magic, wide))
    n = bind(shifted - const(magic, wide))
    r = wide
    for part in _PIO2:
        r = r - n * const(part, wide)
    quadrant = cast(bits_as(shifted, "int64"), "int32")
    return bind(quadrant), bind(cast(r, "float32"))


def _sin_cos(x: Expr) -> tuple[Expr, Expr, Expr]:
    quadrant, r = _reduce_pio2(x)
    z = bind(r * r)
    sine = bind(r + r * z * poly(_SIN, z))
    cosine = bind(const(1.0, z) - const(0.5, z) * z + z * z * poly(_COS, z))
    return quadrant, sine, cosine


def _by_quadrant(quadrant: Expr, sine: Expr, cosine: Expr) -> Expr:
    odd = tirx.EQ(quadrant & const(1, quadrant), const(1, quadrant))
    sign = (quadrant & const(2, quadrant)) << const(30, quadrant)
    return bits_as(bits_as(select(odd, cosine, sine), "int32") ^ sign, "float32")


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
    value = bind(select(odd, copysign(value, x), value))
    finite_negative = tirx.And(x < zero, x > const(-math.inf, x))
    value = bind(select(tirx.And(finite_negative, tirx.Not(whole)), const(math.nan, x), value))
    value = bind(select(tirx.Or(is_nan(x), is_nan(y)), x + y, value))
    return select(tirx.Or(tirx.EQ(x, one), tirx.EQ(y, zero)), one, value)


def _pow_positive(x: Expr, y: Expr) -> Expr:
    """``x ** y`` for ``x >= 0`` in float64; the result as float32."""
    wide, power = bind(cast(x, "float64")), cast(y, "float64")
    bits = bind(bits_as(wide, "int64") - const(0x3FE6A09E667F3BCD, wide, "int64"))
    exponent = cast(cast(bits >> const(52, bits), "int32"), "float64")
    mantissa = (bits & const((1 << 52) - 1, bits)) + const(0x3FE6A09E667F3BCD, bits)
    m = bind(bits_as(mantissa, "float64"))
    s = bind((m - const(1.0, m)) / (m + const(1.0, m)))
    z = bind(s * s)
    finite = exponent + s * poly(_LOG2_64, z)
    infinite = select(x > const(1.0, x), const(math.inf, wide), const(-math.inf, wide))
    regular = tirx.And(x > const(0.0, x), x < const(math.inf, x))
    product = select(regular, finite, infinite) * power
    product = bind(select(tirx.EQ(x, const(1.0, x)), const(0.0, wide), product))
    t = bind(minimum(maximum(product, const(-200.0, wide)), const(200.0, wide)))
    magic = 1.5 * 2.0**52
    shifted = bind(t + const(magic, t))
    r = bind(t - (shifted - const(magic, t)))
    scale = (bits_as(shifted, "int64") + const(1023, bits)) << const(52, bits)
    return bind(cast(poly(_EXP2_64, r) * bits_as(scale, "float64"), "float32"))
