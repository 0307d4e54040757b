"""Element-wise ONNX operators as emitters of TIR expressions.

``OPS`` maps every element-wise operator type to an ``ElementwiseOp``. An emitter
gets its operands as expressions of one lane count and returns the result for
the same lanes, so the same table serves stand-alone chains, epilogues of other
templates and scalar code. Semantics are ONNX's at opset 20; where ONNX leaves a
choice (NaN in Max, conversion of values out of range, ...) ONNX Runtime's CPU
behaviour is followed. float16 is computed in float32 and rounded after every
operator. Booleans are uint8 vectors that hold 0 or 1 (``storage_dtype``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from tvm import tirx

from effc.kernels import vectormath as vm
from effc.kernels.builder import bind, splat
from effc.kernels.region import Op, Value

__all__ = [
    "OPS",
    "ElementwiseOp",
    "Operands",
    "evaluate",
    "immediate",
    "larger",
    "refusal",
    "smaller",
    "storage_dtype",
]

Expr = Any  # tvm.tirx expressions have no useful static types

_FLOATS = frozenset({"float16", "float32", "float64"})
_SIGNED = frozenset({"int8", "int16", "int32", "int64"})
_UNSIGNED = frozenset({"uint8", "uint16", "uint32", "uint64"})
_INTS = _SIGNED | _UNSIGNED
_NUMBERS = _FLOATS | _INTS
_BOOL = frozenset({"bool"})
_ALL = _NUMBERS | _BOOL


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
        return self.dtypes[0] in _FLOATS

    def const(self, value: float | int) -> Expr:
        """A constant with the type and lanes of the first operand."""
        return vm.const(value, self.x)

    def attr(self, name: str, default: Any) -> Any:
        """Attribute ``name`` or its default."""
        return self.attrs.get(name, default)


Emit = Callable[[Operands], Expr]


@dataclass(frozen=True)
class ElementwiseOp:
    """One operator of the table.

    Attributes:
        emit: Builds the result expression.
        dtypes: ONNX dtypes allowed for the first operand.
        least, most: Number of inputs (``most`` None for variadic operators).
        widen: Whether float16 operands are converted to float32 first.
    """

    emit: Emit
    dtypes: frozenset[str]
    least: int = 1
    most: int | None = 1
    widen: bool = True

    def __call__(self, operands: Operands) -> Expr:
        """Result of the operator as an expression of ``storage_dtype(out_dtype)``."""
        if not self.widen or "float16" not in (*operands.dtypes, operands.out_dtype):
            return self.emit(operands)
        out = "float32" if operands.out_dtype == "float16" else operands.out_dtype
        wide = replace(
            operands,
            args=tuple(_widened(a, d) for a, d in zip(operands.args, operands.dtypes, strict=True)),
            dtypes=tuple("float32" if d == "float16" else d for d in operands.dtypes),
            out_dtype=out,
        )
        return vm.cast(self.emit(wide), storage_dtype(operands.out_dtype))


def _widened(arg: Expr | None, dtype: str) -> Expr | None:
    return bind(vm.cast(arg, "float32")) if dtype == "float16" else arg


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


def _bounded(x: Expr, low: float | None, high: float | None) -> Expr:
    """Clamp a float to constant bounds; NaN stays."""
    if low is not None and low != -math.inf:
        x = vm.maximum(x, vm.const(low, x))
    if high is not None and high != math.inf:
        x = vm.minimum(x, vm.const(high, x))
    return x


# Arithmetic


def _fold(combine: Callable[[Expr, Expr], Expr]) -> Emit:
    return lambda o: reduce(combine, o.args)


def _unary(function: Callable[[Expr], Expr]) -> Emit:
    return lambda o: function(o.x)


def _libm(name: str) -> Emit:
    return lambda o: vm.libm(name, o.x)


def _div(o: Operands) -> Expr:
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
    if dtype in _SIGNED:
        special = tirx.Or(special, tirx.EQ(b, vm.const(-1, b)))
    result = operate(a, bind(vm.select(special, one, b)))
    if dtype in _SIGNED:
        negative = zero - a if operate is _quotient else zero
        result = vm.select(tirx.EQ(b, vm.const(-1, b)), negative, result)
    return vm.select(tirx.EQ(b, zero), zero, result)


def _mod(o: Operands) -> Expr:
    a, b = o.args
    if o.dtypes[0] in _UNSIGNED:
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


def _pow(o: Operands) -> Expr:
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


def _neg(o: Operands) -> Expr:
    if o.is_float:
        return o.x * o.const(-1.0)
    return o.const(0) - o.x


def _abs(o: Operands) -> Expr:
    if o.is_float:
        return vm.absolute(o.x)
    x = bind(o.x)
    return x if o.dtypes[0] in _UNSIGNED else tirx.Max(x, vm.const(0, x) - x)


def _sign(o: Operands) -> Expr:
    x = bind(o.x)
    zero, one = vm.const(0, x), vm.const(1, x)
    if o.dtypes[0] in _UNSIGNED:
        return vm.select(tirx.NE(x, zero), one, zero)
    other = vm.select(x < zero, vm.const(-1, x), x if o.is_float else zero)
    return vm.select(x > zero, one, other)


def _mean(o: Operands) -> Expr:
    return _fold(lambda a, b: a + b)(o) * o.const(1.0 / len(o.args))


def _clip(o: Operands) -> Expr:
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


# Activations


def _relu(o: Operands) -> Expr:
    return vm.maximum(o.x, o.const(0.0)) if o.is_float else tirx.Max(o.x, o.const(0))


def _scaled_below_zero(x: Expr, slope: Expr) -> Expr:
    x = bind(x)
    return vm.select(x < vm.const(0, x), x * slope, x)


def _leaky_relu(o: Operands) -> Expr:
    return _scaled_below_zero(o.x, o.const(o.attr("alpha", 0.01)))


def _elu_like(x: Expr, gain: float, alpha: float, width: float) -> Expr:
    """``gain * x`` above 0, else ``gain * alpha * expm1(x / width)``."""
    x = bind(x)
    scaled = x if width == 1.0 else x * vm.const(1.0 / width, x)
    below = vm.expm1_nonpositive(scaled) * vm.const(gain * alpha, x)
    above = x if gain == 1.0 else x * vm.const(gain, x)
    return vm.select(x > vm.const(0.0, x), above, below)


def _celu(o: Operands) -> Expr:
    alpha = o.attr("alpha", 1.0)
    return _elu_like(o.x, 1.0, alpha, alpha)


def _selu(o: Operands) -> Expr:
    gamma, alpha = o.attr("gamma", 1.0507009873554805), o.attr("alpha", 1.6732632423543772)
    return _elu_like(o.x, gamma, alpha, 1.0)


def _thresholded_relu(o: Operands) -> Expr:
    x = bind(o.x)
    return vm.select(x > o.const(o.attr("alpha", 1.0)), x, o.const(0.0))


def _hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    return _bounded(x * vm.const(alpha, x) + vm.const(beta, x), 0.0, 1.0)


def _hard_swish(o: Operands) -> Expr:
    x = bind(o.x)
    return x * _hard_sigmoid(x, 1.0 / 6.0, 0.5)


def _mish(o: Operands) -> Expr:
    """``x tanh(log(1 + e))`` with ``e = exp(x)``: ``x w / (w + 2)``, ``w = e (e + 2)``."""
    x = bind(o.x)
    e = bind(vm.exp(vm.minimum(x, vm.const(20.0, x))))
    w = bind(e * (e + vm.const(2.0, x)))
    return vm.select(x > vm.const(20.0, x), x, x * (w / (w + vm.const(2.0, x))))


def _gelu(o: Operands) -> Expr:
    x = bind(o.x)
    if o.attr("approximate", "none") == "tanh":
        cubic = x + vm.const(0.044715, x) * x * x * x
        inner = vm.tanh(cubic * vm.const(math.sqrt(2.0 / math.pi), x))
    else:
        inner = vm.erf(x * vm.const(math.sqrt(0.5), x))
    return x * vm.const(0.5, x) * (vm.const(1.0, x) + inner)


def _softsign(o: Operands) -> Expr:
    x = bind(o.x)
    return x / (vm.const(1.0, x) + vm.absolute(x))


def _shrink(o: Operands) -> Expr:
    x = bind(vm.cast(o.x, "float32") if not o.is_float else o.x)
    bias, limit = vm.const(float(o.attr("bias", 0.0)), x), vm.const(float(o.attr("lambd", 0.5)), x)
    inner = vm.select(x > limit, x - bias, vm.const(0.0, x))
    return vm.cast(vm.select(x < vm.const(0.0, x) - limit, x + bias, inner), o.out_dtype)


# Conversion, logic and comparison


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


def _convert(o: Operands) -> Expr:
    source, target = o.dtypes[0], o.out_dtype
    if source == target:
        return o.x
    x = bind(o.x)
    if target == "bool":
        return _flag(_is_true(x), x)
    if source in _FLOATS and target in _INTS:
        x = bind(vm.cast(x, "float32")) if source == "float16" else x
        return _float_to_int(x, target)
    if target == "float16" and source != "float32":
        x = bind(vm.cast(x, "float32"))
    return vm.cast(x, target)


def _where(o: Operands) -> Expr:
    condition, yes, no = o.args
    return vm.select(_is_true(condition), yes, no)


def _compare(node: Callable[[Expr, Expr], Expr]) -> Emit:
    return lambda o: _flag(node(*o.args), o.x)


def _is_inf(o: Operands) -> Expr:
    x = bind(o.x)
    plus, minus = tirx.EQ(x, vm.const(math.inf, x)), tirx.EQ(x, vm.const(-math.inf, x))
    found = [_flag(plus, x)] if o.attr("detect_positive", 1) else []
    found += [_flag(minus, x)] if o.attr("detect_negative", 1) else []
    return reduce(tirx.bitwise_or, found, vm.const(0, x, "uint8"))


def _is_nan(o: Operands) -> Expr:
    x = bind(o.x)
    return _flag(vm.is_nan(x), x)


def _shift(o: Operands) -> Expr:
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


def _binary(emit: Emit, dtypes: frozenset[str], **more: Any) -> ElementwiseOp:
    return ElementwiseOp(emit, dtypes, least=2, most=2, **more)


def _variadic(emit: Emit, dtypes: frozenset[str]) -> ElementwiseOp:
    return ElementwiseOp(emit, dtypes, least=1, most=None)


def _float(emit: Emit) -> ElementwiseOp:
    return ElementwiseOp(emit, _FLOATS)


OPS: dict[str, ElementwiseOp] = {
    "Abs": ElementwiseOp(_abs, _NUMBERS),
    "Acos": _float(_libm("acos")),
    "Acosh": _float(_libm("acosh")),
    "Add": _binary(_fold(lambda a, b: a + b), _NUMBERS),
    "And": _binary(_fold(tirx.bitwise_and), _BOOL),
    "Asin": _float(_libm("asin")),
    "Asinh": _float(_libm("asinh")),
    "Atan": _float(_libm("atan")),
    "Atanh": _float(_libm("atanh")),
    "BitShift": _binary(_shift, _UNSIGNED),
    "BitwiseAnd": _binary(_fold(tirx.bitwise_and), _INTS),
    "BitwiseNot": ElementwiseOp(_unary(lambda x: tirx.bitwise_xor(x, vm.all_ones(x))), _INTS),
    "BitwiseOr": _binary(_fold(tirx.bitwise_or), _INTS),
    "BitwiseXor": _binary(_fold(tirx.bitwise_xor), _INTS),
    "Cast": ElementwiseOp(_convert, _ALL, widen=False),
    "CastLike": ElementwiseOp(_convert, _ALL, least=2, most=2, widen=False),
    "Ceil": _float(_unary(vm.ceil)),
    "Celu": _float(_celu),
    "Clip": ElementwiseOp(_clip, _NUMBERS, least=1, most=3),
    "Cos": _float(_unary(vm.cos)),
    "Cosh": _float(_libm("cosh")),
    "Div": _binary(_div, _NUMBERS),
    "Elu": _float(lambda o: _elu_like(o.x, 1.0, o.attr("alpha", 1.0), 1.0)),
    "Equal": _binary(_compare(tirx.EQ), _ALL),
    "Erf": _float(_unary(vm.erf)),
    "Exp": _float(_unary(vm.exp)),
    "Floor": _float(_unary(vm.floor)),
    "Gelu": _float(_gelu),
    "Greater": _binary(_compare(tirx.GT), _NUMBERS),
    "GreaterOrEqual": _binary(_compare(tirx.GE), _NUMBERS),
    "HardSigmoid": _float(lambda o: _hard_sigmoid(o.x, o.attr("alpha", 0.2), o.attr("beta", 0.5))),
    "HardSwish": _float(_hard_swish),
    "Identity": ElementwiseOp(_unary(lambda x: x), _ALL, widen=False),
    "IsInf": _float(_is_inf),
    "IsNaN": _float(_is_nan),
    "LeakyRelu": _float(_leaky_relu),
    "Less": _binary(_compare(tirx.LT), _NUMBERS),
    "LessOrEqual": _binary(_compare(tirx.LE), _NUMBERS),
    "Log": _float(_unary(vm.log)),
    "Max": _variadic(_fold(larger), _NUMBERS),
    "Mean": _variadic(_mean, _FLOATS),
    "Min": _variadic(_fold(smaller), _NUMBERS),
    "Mish": _float(_mish),
    "Mod": _binary(_mod, _NUMBERS),
    "Mul": _binary(_fold(lambda a, b: a * b), _NUMBERS),
    "Neg": ElementwiseOp(_neg, _NUMBERS),
    "Not": ElementwiseOp(_unary(lambda x: tirx.bitwise_xor(x, vm.const(1, x))), _BOOL),
    "Or": _binary(_fold(tirx.bitwise_or), _BOOL),
    "PRelu": _binary(lambda o: _scaled_below_zero(*o.args), _NUMBERS),
    "Pow": _binary(_pow, _NUMBERS),
    "Reciprocal": _float(_unary(vm.reciprocal)),
    "Relu": ElementwiseOp(_relu, _FLOATS | _SIGNED),
    "Round": _float(_unary(vm.round_even)),
    "Selu": _float(_selu),
    "Shrink": ElementwiseOp(_shrink, _NUMBERS),
    "Sigmoid": _float(_unary(vm.sigmoid)),
    "Sign": ElementwiseOp(_sign, _NUMBERS),
    "Sin": _float(_unary(vm.sin)),
    "Sinh": _float(_libm("sinh")),
    "Softplus": _float(_unary(vm.softplus)),
    "Softsign": _float(_softsign),
    "Sqrt": _float(_unary(vm.sqrt)),
    "Sub": _binary(_fold(lambda a, b: a - b), _NUMBERS),
    "Sum": _variadic(_fold(lambda a, b: a + b), _FLOATS),
    "Tan": _float(_unary(vm.tan)),
    "Tanh": _float(_unary(vm.tanh)),
    "ThresholdedRelu": _float(_thresholded_relu),
    "Where": ElementwiseOp(_where, _BOOL, least=3, most=3, widen=False),
    "Xor": _binary(_fold(tirx.bitwise_xor), _BOOL),
}


def refusal(op: Op) -> str | None:
    """Why ``op`` is not an element-wise operator that the table can compute, or ``None``."""
    entry = OPS.get(op.op_type)
    if entry is None or op.domain:
        return f"{op.op_type} is not element-wise"
    count = len(op.inputs)
    if count < entry.least or (entry.most is not None and count > entry.most):
        return f"{op.op_type} with {count} inputs"
    if op.inputs[0] is None:
        return f"{op.op_type} without its first input"
    if len(op.outputs) != 1:
        return f"{op.op_type} with {len(op.outputs)} outputs"
    if op.inputs[0].dtype not in entry.dtypes:
        return f"{op.op_type} on {op.inputs[0].dtype}"
    for value in (*op.inputs, *op.outputs):
        if value is not None and value.dtype not in _ALL:
            return f"{op.op_type} on {value.dtype}"
    return None


def immediate(value: Value) -> float | int | bool | None:
    """The Python value of a scalar that may be written into code, else ``None``."""
    if value.const is None or not value.baked or value.const.size != 1:
        return None
    item: float | int | bool = value.const.reshape(()).item()
    return item


def evaluate(
    ops: Sequence[Op], leaf: Callable[[Value], Expr], known: Mapping[int, Expr], lanes: int
) -> dict[int, Expr]:
    """Emit element-wise operators for ``lanes`` elements.

    Args:
        ops: In execution order.
        leaf: Expression (``lanes`` wide) of a value that no operator here computes.
        known: Expressions already at hand, by ``id`` of the value.
        lanes: Lanes of every expression.

    Returns:
        Bound expressions of all values computed or read, by ``id`` of the value.
    """
    found = dict(known)

    def operand(value: Value | None) -> Expr | None:
        if value is None:
            return None
        if id(value) not in found:
            scalar = immediate(value)
            if scalar is None:
                found[id(value)] = bind(leaf(value))
            else:
                dtype = storage_dtype(value.dtype)
                found[id(value)] = splat(vm.scalar(scalar, dtype), lanes)
        return found[id(value)]

    for op in ops:
        entry = OPS[op.op_type]
        inputs = op.inputs[:1] if op.op_type == "CastLike" else op.inputs
        result = entry(
            Operands(
                args=tuple(operand(v) for v in inputs),
                dtypes=tuple("" if v is None else v.dtype for v in inputs),
                values=tuple(None if v is None else immediate(v) for v in inputs),
                attrs=op.attrs,
                out_dtype=op.outputs[0].dtype,
            )
        )
        found[id(op.outputs[0])] = bind(result)
    return found
