"""Element-wise ONNX operators as emitters of TIR expressions.

``OPS`` maps every element-wise operator type to an ``ElementwiseOp``. An emitter
gets its operands as expressions of one lane count and returns the result for
the same lanes, so the same table serves stand-alone chains, epilogues of other
templates and scalar code. Semantics are ONNX's at opset 20; where ONNX leaves a
choice (NaN in Max, conversion of values out of range, ...) ONNX Runtime's CPU
behaviour is followed. float16 is computed in float32 and rounded after every
operator. Integer operators (domain ``effc``) stand in the same table. Booleans are uint8
vectors that hold 0 or 1 (``storage_dtype``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from effc.kernels import vectormath as vm
from effc.kernels.activations import (
    celu,
    elu_like,
    gelu,
    hard_sigmoid,
    hard_swish,
    leaky_relu,
    mish,
    relu,
    scaled_below_zero,
    selu,
    shrink,
    softsign,
    thresholded_relu,
)
from effc.kernels.builder import bind, splat
from effc.kernels.elementwise_emit import (
    ALL_DTYPES,
    BOOL,
    FLOATS,
    INTS,
    NUMBERS,
    SIGNED,
    UNSIGNED,
    Emit,
    Operands,
    absolute,
    by_libm,
    choose,
    clip,
    compare,
    convert,
    divide,
    folded,
    is_inf_flag,
    is_nan_flag,
    larger,
    mean,
    modulo,
    negate,
    power,
    shift,
    sign,
    smaller,
    storage_dtype,
    unary,
)
from effc.kernels.integer_ops import (
    BYTES,
    WORDS,
    add_rescaled,
    flip_sign,
    join_bytes,
    mul_integer,
    requantize,
    take_byte,
)
from effc.kernels.region import DOMAIN, Op, Value

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


@dataclass(frozen=True)
class ElementwiseOp:
    """One operator of the table.

    Attributes:
        emit: Builds the result expression.
        dtypes: ONNX dtypes allowed for the first operand.
        least, most: Number of inputs (``most`` None for variadic operators).
        widen: Whether float16 operands are converted to float32 first; not needed where one
            correctly rounded operation is all there is.
        domain: Of the operator.
    """

    emit: Emit
    dtypes: frozenset[str]
    least: int = 1
    most: int | None = 1
    widen: bool = True
    domain: str = ""

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


def _binary(emit: Emit, dtypes: frozenset[str], **more: Any) -> ElementwiseOp:
    return ElementwiseOp(emit, dtypes, least=2, most=2, **more)


def _variadic(emit: Emit, dtypes: frozenset[str], **more: Any) -> ElementwiseOp:
    return ElementwiseOp(emit, dtypes, least=1, most=None, **more)


def _float(emit: Emit) -> ElementwiseOp:
    return ElementwiseOp(emit, FLOATS)


OPS: dict[str, ElementwiseOp] = {
    "Abs": ElementwiseOp(absolute, NUMBERS, widen=False),
    "Acos": _float(by_libm("acos")),
    "Acosh": _float(by_libm("acosh")),
    "Add": _binary(folded(lambda a, b: a + b), NUMBERS, widen=False),
    "And": _binary(folded(tirx.bitwise_and), BOOL),
    "Asin": _float(by_libm("asin")),
    "Asinh": _float(by_libm("asinh")),
    "Atan": _float(by_libm("atan")),
    "Atanh": _float(by_libm("atanh")),
    "BitShift": _binary(shift, UNSIGNED),
    "BitwiseAnd": _binary(folded(tirx.bitwise_and), INTS),
    "BitwiseNot": ElementwiseOp(unary(lambda x: tirx.bitwise_xor(x, vm.all_ones(x))), INTS),
    "BitwiseOr": _binary(folded(tirx.bitwise_or), INTS),
    "BitwiseXor": _binary(folded(tirx.bitwise_xor), INTS),
    "Cast": ElementwiseOp(convert, ALL_DTYPES, widen=False),
    "CastLike": ElementwiseOp(convert, ALL_DTYPES, least=2, most=2, widen=False),
    "Ceil": _float(unary(vm.ceil)),
    "Celu": _float(celu),
    "Clip": ElementwiseOp(clip, NUMBERS, least=1, most=3, widen=False),
    "Cos": _float(unary(vm.cos)),
    "Cosh": _float(by_libm("cosh")),
    "Div": _binary(divide, NUMBERS, widen=False),
    "Elu": _float(lambda o: elu_like(o.x, 1.0, o.attr("alpha", 1.0), 1.0)),
    "Equal": _binary(compare(tirx.EQ), ALL_DTYPES),
    "Erf": _float(unary(vm.erf)),
    "Exp": _float(unary(vm.exp)),
    "Floor": _float(unary(vm.floor)),
    "Gelu": _float(gelu),
    "Greater": _binary(compare(tirx.GT), NUMBERS),
    "GreaterOrEqual": _binary(compare(tirx.GE), NUMBERS),
    "HardSigmoid": _float(lambda o: hard_sigmoid(o.x, o.attr("alpha", 0.2), o.attr("beta", 0.5))),
    "HardSwish": _float(hard_swish),
    "Identity": ElementwiseOp(unary(lambda x: x), ALL_DTYPES, widen=False),
    "IsInf": _float(is_inf_flag),
    "IsNaN": _float(is_nan_flag),
    "LeakyRelu": _float(leaky_relu),
    "Less": _binary(compare(tirx.LT), NUMBERS),
    "LessOrEqual": _binary(compare(tirx.LE), NUMBERS),
    "Log": _float(unary(vm.log)),
    "Max": _variadic(folded(larger), NUMBERS, widen=False),
    "Mean": _variadic(mean, FLOATS),
    "Min": _variadic(folded(smaller), NUMBERS, widen=False),
    "Mish": _float(mish),
    "Mod": _binary(modulo, NUMBERS),
    "Mul": _binary(folded(lambda a, b: a * b), NUMBERS, widen=False),
    "Neg": ElementwiseOp(negate, NUMBERS, widen=False),
    "Not": ElementwiseOp(unary(lambda x: tirx.bitwise_xor(x, vm.const(1, x))), BOOL),
    "Or": _binary(folded(tirx.bitwise_or), BOOL),
    "PRelu": _binary(lambda o: scaled_below_zero(*o.args), NUMBERS),
    "Pow": _binary(power, NUMBERS),
    "Reciprocal": _float(unary(vm.reciprocal)),
    "Relu": ElementwiseOp(relu, FLOATS | SIGNED, widen=False),
    "Round": _float(unary(vm.round_even)),
    "Selu": _float(selu),
    "Shrink": ElementwiseOp(shrink, NUMBERS),
    "Sigmoid": _float(unary(vm.sigmoid)),
    "Sign": ElementwiseOp(sign, NUMBERS),
    "Sin": _float(unary(vm.sin)),
    "Sinh": _float(by_libm("sinh")),
    "Softplus": _float(unary(vm.softplus)),
    "Softsign": _float(softsign),
    "Sqrt": _float(unary(vm.sqrt)),
    "Sub": _binary(folded(lambda a, b: a - b), NUMBERS, widen=False),
    "Sum": _variadic(folded(lambda a, b: a + b), FLOATS),
    "Tan": _float(unary(vm.tan)),
    "Tanh": _float(unary(vm.tanh)),
    "ThresholdedRelu": _float(thresholded_relu),
    "Where": ElementwiseOp(choose, BOOL, least=3, most=3, widen=False),
    "Xor": _binary(folded(tirx.bitwise_xor), BOOL),
    "AddRescaled": _binary(add_rescaled, BYTES, domain=DOMAIN),
    "FlipSign": ElementwiseOp(flip_sign, BYTES, domain=DOMAIN),
    "MulInteger": _binary(mul_integer, BYTES, domain=DOMAIN),
    "JoinBytes": _binary(join_bytes, frozenset({"int32"}), domain=DOMAIN),
    "Requantize": _binary(requantize, BYTES | {"int32"}, domain=DOMAIN),
    "TakeByte": ElementwiseOp(take_byte, WORDS, domain=DOMAIN),
}


def refusal(op: Op) -> str | None:
    """Why ``op`` is not an element-wise operator that the table can compute, or ``None``."""
    entry = OPS.get(op.op_type)
    if entry is None or op.domain != entry.domain:
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
        if value is not None and value.dtype not in ALL_DTYPES:
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
