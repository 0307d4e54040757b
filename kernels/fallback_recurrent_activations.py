"""Activation functions of recurrent operators, as expressions over vectors.

Names, default functions and default parameters are those of the ONNX operator specifications.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from effc.errors import UnsupportedError
from effc.kernels import vectormath as vm
from effc.kernels.builder import bind
from effc.kernels.region import Op

__all__ = ["Function", "activations"]

_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_DEFAULT_ALPHA = {
    "LeakyRelu": 0.01,
    "ThresholdedRelu": 1.0,
    "HardSigmoid": 0.2,
    "Elu": 1.0,
    "ScaledTanh": 1.0,
    "Affine": 1.0,
}
_DEFAULT_BETA = {"HardSigmoid": 0.5, "ScaledTanh": 1.0, "Affine": 0.0}

Expr = Any
Function = Callable[[Expr], Expr]


def activations(op: Op, direction: int) -> list[Function]:
    """The functions of one direction; alphas and betas are given in order of use.

    Raises:
        UnsupportedError: A function is not covered.
    """
    defaults = _ACTIVATIONS[op.op_type]
    names = list(op.attrs.get("activations") or defaults * (direction + 1))
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    alphas, betas = (list(op.attrs.get(f"activation_{k}") or []) for k in ("alpha", "beta"))
    functions = []
    for name in names:
        key = next((k for k in _FUNCTIONS if k.lower() == name.lower()), None)
        if key is None:
            raise UnsupportedError(f"{op.op_type} activation {name}")
        alpha, beta = _DEFAULT_ALPHA.get(key, 0.0), _DEFAULT_BETA.get(key, 0.0)
        if key in _DEFAULT_ALPHA and alphas:
            alpha = alphas.pop(0)
        if key in _DEFAULT_BETA and betas:
            beta = betas.pop(0)
        functions.append(_function(key, float(alpha), float(beta)))
    count = len(defaults)
    return functions[direction * count : (direction + 1) * count]


def _function(name: str, alpha: float, beta: float) -> Function:
    return lambda x: _FUNCTIONS[name](x, alpha, beta)


def _zero(x: Expr) -> Expr:
    return vm.const(0, x)


_FUNCTIONS: dict[str, Callable[[Expr, float, float], Expr]] = {
    "Affine": lambda x, a, b: x * vm.const(a, x) + vm.const(b, x),
    "Elu": lambda x, a, b: vm.select(x < _zero(x), vm.const(a, x) * vm.expm1(x), x),
    "HardSigmoid": lambda x, a, b: tirx.max(
        tirx.min(x * vm.const(a, x) + vm.const(b, x), vm.const(1, x)), _zero(x)
    ),
    "LeakyRelu": lambda x, a, b: vm.select(x < _zero(x), vm.const(a, x) * x, x),
    "Relu": lambda x, a, b: tirx.max(x, _zero(x)),
    "ScaledTanh": lambda x, a, b: vm.const(a, x) * vm.tanh(bind(vm.const(b, x) * x)),
    "Sigmoid": lambda x, a, b: vm.sigmoid(x),
    "Softplus": lambda x, a, b: vm.softplus(x),
    "Softsign": lambda x, a, b: x / (vm.const(1, x) + vm.absolute(x)),
    "Tanh": lambda x, a, b: vm.tanh(x),
    "ThresholdedRelu": lambda x, a, b: vm.select(x > vm.const(a, x), x, _zero(x)),
}
