"""C types, constants and helper functions of the printed source."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from effc.errors import UnsupportedError

__all__ = ["C_TYPES", "HELPERS", "c_type", "constant", "helper_sources", "short_name"]

C_TYPES = {
    "bool": "uint8_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "uint16": "uint16_t",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "int64": "int64_t",
    "uint64": "uint64_t",
    "float32": "float",
    "float64": "double",
    "float16": "uint16_t",  # its bits, see half.py
}
"""Type of an element in memory, by NumPy dtype name."""

_SHORT = {"float32": "f32", "float64": "f64", "bool": "u8"}


def c_type(dtype: str) -> str:
    """The C type of a dtype.

    Raises:
        UnsupportedError: C11 has none.
    """
    if dtype not in C_TYPES:
        raise UnsupportedError(
            f"portable C has no type for {dtype}", expected=", ".join(C_TYPES), got=dtype
        )
    return C_TYPES[dtype]


def short_name(dtype: str) -> str:
    """``i32``, ``u8``, ``f32`` ...: the end of a helper's name."""
    return _SHORT.get(dtype) or dtype.replace("uint", "u").replace("int", "i")


def constant(value: float | int, dtype: str) -> str:
    """A literal of a dtype; exactly the same value comes back from a C compiler."""
    if dtype in ("float32", "float64"):
        return _float(float(value), dtype)
    if dtype == "float16":
        return str(int(np.float16(value).view(np.uint16)))
    number = int(value)
    if dtype == "bool":
        return str(number)
    if dtype in ("int32", "int64") and number == np.iinfo(dtype).min:
        return f"{dtype.upper()}_MIN"
    if dtype == "int64":
        return f"INT64_C({number})" if number >= 0 else f"-INT64_C({-number})"
    if dtype == "uint64":
        return f"UINT64_C({number})"
    return f"{number}u" if dtype == "uint32" else str(number)


def _float(value: float, dtype: str) -> str:
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    text = str(np.float32(value)) if dtype == "float32" else repr(value)
    if not any(c in text for c in ".e"):
        text += ".0"
    return text + ("f" if dtype == "float32" else "")


def _extreme(name: str, sign: str, dtype: str) -> str:
    c = C_TYPES[dtype]
    return (
        f"static inline {c} {name}_{short_name(dtype)}({c} a, {c} b)\n"
        f"{{\n    return a {sign} b ? a : b;\n}}\n"
    )


def _reinterpret(source: str, dest: str) -> str:
    c_source, c_dest = C_TYPES[source], C_TYPES[dest]
    return (
        f"static inline {c_dest} {short_name(dest)}_from_{short_name(source)}({c_source} x)\n"
        f"{{\n    const union {{\n        {c_source} from;\n        {c_dest} to;\n"
        "    } bits = {x};\n    return bits.to;\n}\n"
    )


def _rounding(dtype: str) -> dict[str, str]:
    """Functions of ``<math.h>`` that firmware without a C library can do without."""
    c, short = C_TYPES[dtype], short_name(dtype)
    bits, suffix = (32, "f") if dtype == "float32" else (64, "")
    sign, whole = f"UINT{bits}_C(1) << {bits - 1}", f"0x1p{23 if bits == 32 else 52}{suffix}"
    head = f"static inline {c} {{0}}_{short}({c} x)\n{{{{\n"
    rint = f"{head}    return {{1}};\n}}}}\n"
    return {
        f"copysign_{short}": (
            f"static inline {c} copysign_{short}({c} size, {c} sign)\n{{\n"
            f"    union {{\n        {c} value;\n        uint{bits}_t bits;\n"
            "    } a = {size}, b = {sign};\n"
            f"    a.bits = (a.bits & ~({sign})) | (b.bits & ({sign}));\n"
            "    return a.value;\n}\n"
        ),
        f"fabs_{short}": rint.format("fabs", f"copysign_{short}(x, 1)"),
        f"rint_{short}": (
            "/* To the nearest, halves to even: what is added leaves no bits for a fraction. */\n"
            + head.format("rint")
            + f"    const {c} size = copysign_{short}(x, 1), large = {whole};\n"
            f"    const {c} sum = size + large; /* a variable is no wider than its type */\n"
            f"    return size < large ? copysign_{short}(sum - large, x) : x;\n}}\n"
        ),
        f"floor_{short}": head.format("floor")
        + f"    const {c} near = rint_{short}(x);\n    return near > x ? near - 1 : near;\n}}\n",
        f"ceil_{short}": head.format("ceil")
        + f"    const {c} near = rint_{short}(x);\n    return near < x ? near + 1 : near;\n}}\n",
        f"trunc_{short}": rint.format("trunc", f"x < 0 ? ceil_{short}(x) : floor_{short}(x)"),
    }


_REAL = ("float32", "float64")
_NUMBERS = (*(t for t in C_TYPES if t not in ("bool", "float16", *_REAL)), *_REAL)

HELPERS: dict[str, str] = {
    **{
        f"{name}_{short_name(t)}": _extreme(name, sign, t)
        for name, sign in (("min", "<"), ("max", ">"))
        for t in _NUMBERS
    },
    **{
        f"{short_name(b)}_from_{short_name(a)}": _reinterpret(a, b)
        for f, sizes in (("float32", ("int32", "uint32")), ("float64", ("int64", "uint64")))
        for i in sizes
        for a, b in ((f, i), (i, f))
    },
    **_rounding("float32"),
    **_rounding("float64"),
    "rescale": """\
/* x * multiplier / 2^(32 + right), rounded half up; 0 <= multiplier < 2^31. */
static inline int32_t rescale(int32_t x, int32_t multiplier, int32_t right)
{
    const int32_t high = (int32_t)((int64_t)x * multiplier >> 32);
    return (high + (1 << (right - 1))) >> right;
}
""",
    "leading_zeros": """\
/* Zero bits above the highest one; 64 for 0. */
static inline int64_t leading_zeros(int64_t x)
{
    uint64_t rest = (uint64_t)x;
    int64_t bits = 64;
    while (rest != 0) {
        rest >>= 1;
        bits--;
    }
    return bits;
}
""",
    "any_half_to_f32": """\
/* An IEEE half, given by its bits; exact. */
static inline float any_half_to_f32(uint16_t half)
{
    const union {
        uint32_t from;
        float to;
    } bits = {(uint32_t)(half & 0x8000) << 16 | 0x7F800000 | (uint32_t)(half & 0x3FF) << 13};
    return (half & 0x7C00) == 0x7C00 ? bits.to : half_to_f32(half);
}
""",
    "half_from_f32": """\
/* The bits of the nearest IEEE half, halfway to the even one. */
static inline uint16_t half_from_f32(float x)
{
    const union {
        float from;
        uint32_t to;
    } bits = {x};
    const uint32_t sign = bits.to >> 16 & 0x8000, size = bits.to & 0x7FFFFFFF;
    if (size > 0x7F800000) /* not a number */
        return (uint16_t)(sign | 0x7E00);
    if (size >= 0x477FF000) /* 65520 and above */
        return (uint16_t)(sign | 0x7C00);
    if (size < 0x38800000) { /* below 2^-14: multiples of 2^-24, as what is added leaves no more */
        const union {
            uint32_t from;
            float to;
        } small = {size};
        const union {
            float from;
            uint32_t to;
        } sum = {small.to + 0.5f};
        return (uint16_t)(sign | (sum.to & 0xFFF));
    }
    return (uint16_t)(sign | (size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13);
}
""",
    "half_from_f64": """\
/* As half_from_f32. What float has no bits for sets its lowest bit: no second rounding is off. */
static inline uint16_t half_from_f64(double x)
{
    union {
        float value;
        uint32_t bits;
    } near = {(float)x};
    if (near.value != x && x == x) {
        near.bits -= (near.value > x) == (x > 0);
        near.bits |= 1;
    }
    return half_from_f32(near.value);
}
""",
    "half_to_f32": """\
/* A finite IEEE half, given by its bits; exact. */
static inline float half_to_f32(uint16_t half)
{
    const union {
        uint32_t from;
        float to;
    } bits = {(uint32_t)(half & 0x7FFF) << 13};
    const float size = bits.to * 0x1p112f; /* the exponents' biases differ */
    return (half & 0x8000) != 0 ? -size : size;
}
""",
}
"""Source of every helper function by its name; printed where it is used."""


def helper_sources(names: Iterable[str]) -> list[str]:
    """Sources of helper functions and of those that they call, callees first."""
    found: dict[str, str] = {}

    def add(name: str) -> None:
        if name in found:
            return
        for callee in re.findall(r"\b(\w+_f(?:32|64))\(", HELPERS[name]):
            if callee != name:
                add(callee)
        found[name] = HELPERS[name]

    for name in sorted(names):
        add(name)
    return list(found.values())
