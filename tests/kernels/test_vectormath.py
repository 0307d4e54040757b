"""Vector mathematics against float64, in units in the last place, and its assembly."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import special
from single_op import host, library

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import loop, stage_func, vload, vstore
from effc.lower import lower_to_module

_COUNT = 1 << 16
_LANES = 8

Function = Callable[..., Any]

# name: (ours, float64 reference, largest error in ulp, largest magnitude tested)
_UNARY: dict[str, tuple[Function, Function, float, float]] = {
    "exp": (vm.exp, np.exp, 1.5, 104.0),
    "expm1": (vm.expm1, np.expm1, 3.0, 88.0),
    "log": (vm.log, np.log, 1.0, 3e38),
    "log1p": (vm.log1p, np.log1p, 3.0, 3e38),
    "tanh": (vm.tanh, np.tanh, 3.0, 20.0),
    "sigmoid": (vm.sigmoid, special.expit, 3.0, 87.0),
    "erf": (vm.erf, special.erf, 7.0, 6.0),
    "softplus": (vm.softplus, lambda x: np.logaddexp(x, 0.0), 3.0, 86.0),
    "sin": (vm.sin, np.sin, 2.0, 3e9),
    "cos": (vm.cos, np.cos, 2.0, 3e9),
    "tan": (vm.tan, np.tan, 3.5, 3e9),
    "round_even": (vm.round_even, np.rint, 0.0, 1e9),
}
_POSITIVE = {"log", "log1p"}
_SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, 3e38, -3e38], np.float32
)


def _stage(function: Function, arity: int, lanes: int = _LANES) -> Any:
    def body(*args: Any) -> None:
        *sources, target, begin, end = args
        with loop(begin, end) as i:
            value = function(*(vload(s, i * lanes, lanes) for s in sources))
            vstore(target, i * lanes, value, lanes)

    names = [f"p{k}" for k in range(arity + 1)]
    return stage_func([(name, "float32", _COUNT) for name in names], body)


@cache
def _compiled() -> ctypes.CDLL:
    functions = {f"f_{name}": _stage(entry[0], 1) for name, entry in _UNARY.items()}
    functions["f_exp_nonpositive"] = _stage(vm.exp_nonpositive, 1)
    functions["f_pow"] = _stage(vm.pow, 2)
    return library(functions, host())


def _call(name: str, *arrays: np.ndarray) -> np.ndarray:
    padded = [np.zeros(_COUNT, np.float32) for _ in arrays]
    for target, source in zip(padded, arrays, strict=True):
        target[: source.size] = source
    out = np.zeros(_COUNT, np.float32)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*padded, out)]
    getattr(_compiled(), f"f_{name}")(*pointers, 0, _COUNT // _LANES)
    return out[: arrays[0].size]


def _ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Error in units in the last place of the correctly rounded float32 result."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
        unit = np.spacing(np.abs(rounded)).astype(np.float64)
        error = np.abs(got.astype(np.float64) - exact) / unit
    same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    return np.where(same, np.minimum(np.nan_to_num(error, posinf=0.0), 0.5), error)


def _sweep(limit: float, positive: bool) -> Iterator[np.ndarray]:
    """Dense linear and logarithmic sweeps of magnitudes up to ``limit``."""
    half = _COUNT // 2
    linear = np.linspace(-min(limit, 30.0), min(limit, 30.0), _COUNT)
    logarithmic = np.geomspace(1e-38, limit, half)
    for sweep in (linear, np.concatenate([logarithmic, -logarithmic])):
        values = sweep.astype(np.float32)
        yield np.abs(values) if positive else values


@pytest.mark.parametrize("name", sorted(_UNARY))
def test_unary_error_bound(name: str) -> None:
    _, reference, bound, limit = _UNARY[name]
    for x in _sweep(limit, name in _POSITIVE):
        with np.errstate(all="ignore"):
            errors = _ulps(_call(name, x), reference(x.astype(np.float64)))
        worst = int(np.argmax(errors))
        assert errors[worst] <= bound, f"{name}({x[worst]}) is off by {errors[worst]} ulp"


@pytest.mark.parametrize("name", sorted(_UNARY))
def test_unary_special_values(name: str) -> None:
    _, reference, bound, limit = _UNARY[name]
    x = _SPECIAL if limit > 1e10 or name not in ("sin", "cos", "tan") else _SPECIAL[:-2]
    with np.errstate(all="ignore"):
        exact = reference(x.astype(np.float64)).astype(np.float32)
    got = _call(name, x)
    same = (got == exact) | (np.isnan(got) & np.isnan(exact))
    finite = np.isfinite(exact) & np.isfinite(got)
    tolerance = 2e-38 + bound * np.spacing(np.abs(exact[finite]))
    same[finite] |= np.abs(got[finite] - exact[finite]) <= tolerance
    assert same.all(), dict(zip(x.tolist(), got.tolist(), strict=True))


def test_exp_nonpositive_flushes_tiny_results() -> None:
    x = -np.geomspace(1e-30, 1e30, _COUNT).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    got = _call("exp_nonpositive", x)
    assert (got[x < -87.5] == 0).all()
    normal = x > -87.0
    assert _ulps(got[normal], exact[normal]).max() <= 1.5
    assert _call("exp_nonpositive", np.float32([-np.inf, np.nan]))[0] == 0


def test_pow_error_bound() -> None:
    rng = np.random.default_rng(1)
    x = np.exp(rng.uniform(-80, 80, _COUNT)).astype(np.float32)
    y = rng.uniform(-3, 3, _COUNT).astype(np.float32)
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), y.astype(np.float64))
    normal = (exact > 1.2e-38) & (exact < 3.4e38)
    assert _ulps(_call("pow", x, y)[normal], exact[normal]).max() <= 1.0


def test_pow_special_values() -> None:
    values = np.float32([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, 1e30, -1e30])
    values = np.concatenate([values, np.float32([np.inf, -np.inf, np.nan])])
    x, y = (a.reshape(-1) for a in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        exact = np.power(x, y)
    got = _call("pow", x, y)
    wrong = ~((got == exact) | (np.isnan(got) & np.isnan(exact)))
    wrong &= ~np.isclose(got, exact, rtol=2e-7)
    assert not wrong.any(), list(zip(x[wrong], y[wrong], got[wrong], exact[wrong], strict=True))


def _target(name: str, arch: str, features: tuple[str, ...], bits: int, registers: int) -> Target:
    triple = f"{arch}-linux-gnu"
    return Target(
        name, arch, "linux", "", triple, "", features, bits, registers, 32768, 1 << 20, 2, "", ""
    )


_TARGETS = [
    _target("avx2", "x86_64", ("+avx2", "+fma"), 256, 16),
    _target("sse4", "x86_64", ("+sse4.2",), 128, 16),
    _target("neon", "aarch64", ("+neon",), 128, 32),
]


@pytest.mark.parametrize("target", _TARGETS, ids=lambda t: t.name)
def test_no_library_calls(target: Target) -> None:
    functions = {name: _stage(entry[0], 1, target.lanes) for name, entry in _UNARY.items()}
    functions["pow"] = _stage(vm.pow, 2, target.lanes)
    text = lower_to_module(functions, target).inspect_source("s")
    names = ("exp", "expm1", "log", "log1p", "tanh", "erf", "sin", "cos", "tan", "pow", "fmin",
             "fmax", "fma", "roundeven", "trunc", "floor")  # fmt: skip
    called = {w for line in text.splitlines() for w in line.split()[1:2] if line.split()[0] in (
        "callq", "jmp", "bl", "b")}  # fmt: skip
    assert not called & {f"{n}f{s}" for n in names for s in ("", "@PLT")}, called
