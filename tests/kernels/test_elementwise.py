"""Element-wise chains against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.helper
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import Node, check, host, run_kernel

from effc.kernels.elementwise import OPS, ElementwiseTemplate
from effc.kernels.region import Op, Region, TensorType, Value

_TEMPLATE = ElementwiseTemplate()
_NARROW = [{"vectors": 1}]
_EPS = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


def _compare(found: list[Any], ulps: float, scale: float = 0.0) -> None:
    """Floats within ``ulps`` of ``max(|expected|, scale)``; everything else equal."""
    for got, expected in found:
        for name, want in expected.items():
            have = got[name]
            assert have.shape == want.shape
            assert have.dtype == want.dtype
            if want.dtype.kind != "f":
                np.testing.assert_array_equal(have, want)
                continue
            np.testing.assert_array_equal(np.isnan(have), np.isnan(want))
            infinite = np.isinf(want)
            np.testing.assert_array_equal(have[infinite], want[infinite])
            fine = np.isfinite(want)
            error = np.abs(have[fine].astype(np.float64) - want[fine])
            bound = ulps * _EPS[want.dtype.name] * np.maximum(np.abs(want[fine]), scale)
            assert (error <= bound + 1e-37).all(), (error / (bound + 1e-37)).max()


def _run(
    nodes: list[Node], inputs: dict[str, np.ndarray], constants: Any = None, **more: Any
) -> Any:
    more.setdefault("configs", _NARROW)
    return check(_TEMPLATE, nodes, inputs, constants, anchored=False, **more)


def _normal(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * 3).astype(dtype)


# operator: (attributes, ulps, scale of the operands that cancel in the result)
_FLOAT_UNARY: dict[str, tuple[dict[str, Any], float, float]] = {
    "Abs": ({}, 0, 0), "Ceil": ({}, 0, 0), "Floor": ({}, 0, 0), "Neg": ({}, 0, 0),
    "Round": ({}, 0, 0), "Sign": ({}, 0, 0), "Relu": ({}, 0, 0), "Identity": ({}, 0, 0),
    "Reciprocal": ({}, 0.5, 0), "Softsign": ({}, 2, 0), "LeakyRelu": ({"alpha": 0.2}, 1, 0),
    "ThresholdedRelu": ({"alpha": 0.7}, 0, 0), "HardSigmoid": ({"alpha": 0.3}, 1, 1),
    "HardSwish": ({}, 2, 3), "Elu": ({"alpha": 1.3}, 4, 1.3), "Celu": ({"alpha": 0.8}, 4, 1),
    "Selu": ({}, 4, 2), "Shrink": ({"lambd": 0.3, "bias": 0.1}, 1, 1), "Softplus": ({}, 8, 1),
    "Mish": ({}, 8, 1), "Tanh": ({}, 8, 1), "Sigmoid": ({}, 8, 1), "Erf": ({}, 8, 1),
    "Exp": ({}, 4, 0), "Sin": ({}, 2, 1), "Cos": ({}, 2, 1), "Tan": ({}, 6, 1),
    "Atan": ({}, 2, 0), "Asinh": ({}, 2, 0), "Sinh": ({}, 4, 0), "Cosh": ({}, 4, 0),
    "Gelu": ({}, 8, 9), "IsNaN": ({}, 0, 0), "IsInf": ({"detect_negative": 0}, 0, 0),
}  # fmt: skip
_POSITIVE_UNARY = {"Log": (2, 1), "Sqrt": (0.5, 0), "Acosh": (2, 0)}
_UNIT_UNARY = {"Asin": (2, 0), "Acos": (2, 1), "Atanh": (2, 0)}


@pytest.mark.parametrize("op", sorted(_FLOAT_UNARY))
def test_float_unary(op: str) -> None:
    attrs, ulps, scale = _FLOAT_UNARY[op]
    x = _normal(3, 37)
    x[0, :4] = 0.0, -0.0, 1e-39, 40.0
    if op not in ("Sin", "Cos", "Tan", "HardSwish", "Mish", "Gelu"):
        x[1, :3] = np.nan, np.inf, -np.inf
    _compare(_run([Node(op, ["x"], attrs=attrs)], {"x": x}), ulps, scale)


@pytest.mark.parametrize("op", sorted(_POSITIVE_UNARY) + sorted(_UNIT_UNARY))
def test_float_unary_on_its_domain(op: str) -> None:
    x = np.abs(_normal(41)) + 1 if op in _POSITIVE_UNARY else np.tanh(_normal(41)).astype("float32")
    _compare(_run([Node(op, ["x"])], {"x": x}), *{**_POSITIVE_UNARY, **_UNIT_UNARY}[op])


@pytest.mark.parametrize("op", ["Exp", "Tanh", "Relu", "Sqrt"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types(op: str, dtype: str) -> None:
    x = np.abs(_normal(21, dtype=dtype))
    _compare(_run([Node(op, ["x"])], {"x": x}), 4, 1)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64", "uint8"])
def test_arithmetic_types(op: str, dtype: str) -> None:
    a, b = _normal(5, 19, dtype=dtype), _normal(5, 1, dtype=dtype, seed=1)
    b[b == 0] = 3
    _compare(_run([Node(op, ["a", "b"])], {"a": a, "b": b}), 1, 0)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8"])
@pytest.mark.parametrize("fmod", [0, 1])
def test_integer_modulo(dtype: str, fmod: int) -> None:
    a = np.array([7, -7, 7, -7, 0, 100, 3], dtype="int64").astype(dtype)
    b = np.array([3, 3, -3, -3, 5, 7, 100], dtype="int64").astype(dtype)
    _compare(_run([Node("Mod", ["a", "b"], attrs={"fmod": fmod})], {"a": a, "b": b}), 0)


def test_float_modulo() -> None:
    a, b = _normal(33), _normal(33, seed=1)
    _compare(_run([Node("Mod", ["a", "b"], attrs={"fmod": 1})], {"a": a, "b": b}), 0)


@pytest.mark.printed
def test_integer_division_never_traps() -> None:
    a = np.array([5, -(2**31), -(2**31), 0], np.int32)
    b = np.array([0, -1, 1, 0], np.int32)
    for op, want in (("Div", [0, -(2**31), -(2**31), 0]), ("Mod", [0, 0, 0, 0])):
        region = _region(op, a, b)
        kernel = _TEMPLATE.build(region, host(), {"vectors": 1})
        got = run_kernel(kernel, region, {"a": a, "b": b}, host())["y"]
        np.testing.assert_array_equal(got, np.array(want, np.int32))


def _region(op: str, a: np.ndarray, b: np.ndarray) -> Region:
    kind = TensorType(a.shape, str(a.dtype))
    x, y, z = Value("a", kind), Value("b", kind), Value("y", kind)
    return Region("r", (Op(op, (x, y), (z,)),), None, (x, y), (z,))


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_variadic(op: str) -> None:
    arrays = {f"x{i}": _normal(4, 1, 9, seed=i) if i else _normal(3, 9) for i in range(3)}
    arrays["x0"][0, :2] = np.nan
    arrays["x1"][0, 0, 4] = np.nan
    _compare(_run([Node(op, list(arrays))], arrays), 2, 9)


@pytest.mark.parametrize("exponent", [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 1.7])
def test_pow_with_constant_exponent(exponent: float) -> None:
    x = np.abs(_normal(2, 29)) + 0.1
    found = _run([Node("Pow", ["x", "e"])], {"x": x}, {"e": np.array(exponent, np.float32)})
    _compare(found, 4)


def test_pow_of_integers() -> None:
    x, y = np.array([7, -7, 2, 1, 3], np.int32), np.array([3, 3, 4, 0, 2], np.int32)
    _compare(_run([Node("Pow", ["x", "e"])], {"x": x, "e": y}), 0)


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (None, 2.0), (0.0, None)])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_clip(bounds: tuple[Any, Any], dtype: str) -> None:
    x = _normal(40, dtype=dtype)
    if dtype == "float32":
        x[0] = np.nan
    names = ["x", *("" if b is None else f"b{i}" for i, b in enumerate(bounds))]
    constants = {f"b{i}": np.array(b, dtype) for i, b in enumerate(bounds) if b is not None}
    _compare(_run([Node("Clip", names)], {"x": x}, constants), 0)


@pytest.mark.printed
def test_clip_with_runtime_bounds() -> None:
    inputs = {"x": _normal(40), "low": np.array(-1, np.float32), "high": np.array(1, np.float32)}
    _compare(_run([Node("Clip", list(inputs))], inputs), 0)


@pytest.mark.parametrize("source", ["float32", "float16", "float64", "int32", "uint8", "bool"])
@pytest.mark.parametrize(
    "target", ["float32", "float16", "int8", "int32", "int64", "uint8", "bool"]
)
def test_cast(source: str, target: str) -> None:
    values = np.array([0, 1, 2.5, 100.75, -3.5, -0.25, 12, 90, 0, 7, 3])
    x = np.abs(values).astype(source) if target == "uint8" else values.astype(source)
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target))
    _compare(_run([Node("Cast", ["x"], attrs={"to": to})], {"x": x}), 0)


@pytest.mark.parametrize("op", ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_comparison_and_logic(op: str, dtype: str) -> None:
    a, b = np.round(_normal(3, 21)).astype(dtype), np.round(_normal(21, seed=1)).astype(dtype)
    nodes = [
        Node(op, ["a", "b"], ["c"]), Node("Not", ["c"], ["n"]), Node("Xor", ["n", "m"], ["o"]),
        Node("Or", ["o", "c"], ["p"]), Node("And", ["p", "n"], ["q"]),
        Node("Where", ["q", "a", "b"]),
    ]  # fmt: skip
    _compare(_run(nodes, {"a": a, "b": b, "m": _normal(21, seed=2) > 0}, outputs=("y", "q")), 0)


@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bitwise(op: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 255, (2, 37)).astype(np.uint8)
    nodes = [Node(op, ["a", "b"], ["c"]), Node("BitwiseNot", ["c"])]
    _compare(_run(nodes, {"a": a, "b": b}), 0)


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bit_shift(direction: str) -> None:
    a = np.array([1, 255, 16, 7, 128], np.uint8)
    b = np.array([1, 4, 8, 0, 7], np.uint8)
    node = Node("BitShift", ["a", "b"], attrs={"direction": direction})
    _compare(_run([node], {"a": a, "b": b}), 0)


@pytest.mark.printed
def test_prelu_and_residual_chain_in_place() -> None:
    nodes = [Node("PRelu", ["x", "s"], ["p"]), Node("Add", ["p", "r"])]
    inputs = {"x": _normal(2, 5, 7, 7), "r": _normal(2, 5, 7, 7, seed=1)}
    constants = {"s": _normal(5, 1, 1, seed=2)}
    _compare(_run(nodes, inputs, constants, inplace=True), 2, 9)


def test_wide_vectors_give_the_same() -> None:
    nodes = [Node("Sigmoid", ["x"], ["s"]), Node("Mul", ["x", "s"])]
    _compare(_run(nodes, {"x": _normal(5000)}, configs=None), 8, 1)


_sizes = st.sampled_from([1, 2, 3, 7, 8, 9, 16, 31, 33])


@st.composite
def _broadcasts(draw: st.DrawFn) -> list[tuple[int, ...]]:
    shape = tuple(draw(st.lists(_sizes, min_size=1, max_size=4)))
    operands = [shape]
    for _ in range(2):
        kept = tuple(s if draw(st.booleans()) else 1 for s in shape)
        operands.append(kept[draw(st.integers(0, len(kept))) :])
    return operands


@settings(deadline=None, max_examples=15, derandomize=True)
@given(_broadcasts())
def test_broadcasting(shapes: list[tuple[int, ...]]) -> None:
    inputs = {n: _normal(*s, seed=i) for i, (n, s) in enumerate(zip("abc", shapes, strict=True))}
    nodes = [Node("Add", ["a", "b"], ["t"]), Node("Mul", ["c", "t"])]
    _compare(_run(nodes, inputs, outputs=("y", "t")), 2, 30)


def test_table_covers_what_it_says() -> None:
    kind = TensorType((2,), "float32")
    x = Value("x", kind)
    for name, entry in OPS.items():
        assert entry.least >= 1, name
        missing = Op(name, (), (Value("y", kind),), domain=entry.domain)
        region = Region("r", (missing,), None, (x,), missing.outputs)
        assert "0 inputs" in (_TEMPLATE.refuse(region, host()) or ""), name


def test_refusals() -> None:
    a, b = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert "not element-wise" in str(_TEMPLATE.refuse(_region("Conv", a, b), host()))
    strings = _region("Add", a.astype(bool), b.astype(bool))
    assert "Add on bool" in str(_TEMPLATE.refuse(strings, host()))
