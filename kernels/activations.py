"""Emitters of activation functions for ``effc.kernels.elementwise_ops``."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from effc.kernels import vectormath as vm
from effc.kernels.builder import bind
from effc.kernels.elementwise_emit import Operands, bounded

__all__ = [
    "celu",
    "elu_like",
    "gelu",
    "hard_sigmoid",
    "hard_swish",
    "leaky_relu",
    "mish",
    "relu",
    "scaled_below_zero",
    "selu",
    "shrink",
    "softsign",
    "thresholded_relu",
]

Expr = Any  # tvm.tirx expressions have no useful static types


def relu(o: Operands) -> Expr:
    return vm.maximum(o.x, o.const(0.0)) if o.is_float else tirx.Max(o.x, o.const(0))


def scaled_below_zero(x: Expr, slope: Expr) -> Expr:
    x = bind(x)
    return vm.select(x < vm.const(0, x), x * slope, x)


def leaky_relu(o: Operands) -> Expr:
    return scaled_below_zero(o.x, o.const(o.attr("alpha", 0.01)))


def elu_like(x: Expr, gain: float, alpha: float, width: float) -> Expr:
    """``gain * x`` above 0, else ``gain * alpha * expm1(x / width)``."""
    x = bind(x)
    scaled = x if width == 1.0 else x * vm.const(1.0 / width, x)
    below = vm.expm1_nonpositive(scaled) * vm.const(gain * alpha, x)
    above = x if gain == 1.0 else x * vm.const(gain, x)
    return vm.select(x > vm.const(0.0, x), above, below)


def celu(o: Operands) -> Expr:
    alpha = o.attr("alpha", 1.0)
    return elu_like(o.x, 1.0, alpha, alpha)


def selu(o: Operands) -> Expr:
    gamma, alpha = o.attr("gamma", 1.0507009873554805), o.attr("alpha", 1.6732632423543772)
    return elu_like(o.x, gamma, alpha, 1.0)


def thresholded_relu(o: Operands) -> Expr:
    x = bind(o.x)
    return vm.select(x > o.const(o.attr("alpha", 1.0)), x, o.const(0.0))


def hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    return bounded(x * vm.const(alpha, x) + vm.const(beta, x), 0.0, 1.0)


def hard_swish(o: Operands) -> Expr:
    x = bind(o.x)
    return x * hard_sigmoid(x, 1.0 / 6.0, 0.5)


def mish(o: Operands) -> Expr:
    """``x tanh(log(1 + e))`` with ``e = exp(x)``: ``x w / (w + 2)``, ``w = e (e + 2)``."""
    x = bind(o.x)
    e = bind(vm.exp(vm.minimum(x, vm.const(20.0, x))))
    w = bind(e * (e + vm.const(2.0, x)))
    return vm.select(x > vm.const(20.0, x), x, x * (w / (w + vm.const(2.0, x))))


def gelu(o: Operands) -> Expr:
    x = bind(o.x)
    if o.attr("approximate", "none") == "tanh":
        cubic = x + vm.const(0.044715, x) * x * x * x
        inner = vm.tanh(cubic * vm.const(math.sqrt(2.0 / math.pi), x))
    else:
        inner = vm.erf(x * vm.const(math.sqrt(0.5), x))
    return x * vm.const(0.5, x) * (vm.const(1.0, x) + inner)


def softsign(o: Operands) -> Expr:
    x = bind(o.x)
    return x / (vm.const(1.0, x) + vm.absolute(x))


def shrink(o: Operands) -> Expr:
    x = bind(vm.cast(o.x, "float32") if not o.is_float else o.x)
    bias, limit = vm.const(float(o.attr("bias", 0.0)), x), vm.const(float(o.attr("lambd", 0.5)), x)
    inner = vm.select(x > limit, x - bias, vm.const(0.0, x))
    return vm.cast(vm.select(x < vm.const(0.0, x) - limit, x + bias, inner), o.out_dtype)
