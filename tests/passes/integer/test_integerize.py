"""Quantized graphs in integer operators: within a step of ONNX Runtime, nothing left in float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdq import Model, operators, steps

Array = np.ndarray[Any, Any]

FLOATS = {"Cast", "Mul", "Div", "QuantizeLinear", "DequantizeLinear", "Conv", "MatMul", "Gemm"}
TYPES = st.sampled_from([np.int8, np.uint8])


def values(dtype: Any, shape: tuple[int, ...], seed: int = 0) -> Array:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


def zero_of(draw: Any, dtype: Any) -> Array:
    limits = np.iinfo(dtype)
    return np.array(draw(st.integers(limits.min, limits.max)), dtype)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_convolution(data: st.DataObject) -> None:
    draw = data.draw
    model = Model()
    x_type, w_type, y_type = draw(TYPES), draw(TYPES), draw(TYPES)
    group = draw(st.sampled_from([1, 1, 2, 4]))
    depth, filters = draw(st.sampled_from([1, 3, 4, 9])), draw(st.sampled_from([1, 3, 4])) * group
    x = model.dq(
        model.input("x", values(x_type, (1, depth * group, 6, 5))), 0.02, zero_of(draw, x_type)
    )
    per_channel = draw(st.booleans())
    scale = np.linspace(0.001, 0.01, filters) if per_channel else np.array(0.004)
    zero = np.zeros(scale.shape, w_type)
    if w_type == np.uint8:
        zero = np.full(scale.shape, draw(st.sampled_from([0, 128, 130])), w_type)
    w = model.dq(model.const(values(w_type, (filters, depth, 3, 3), 1)), scale, zero, axis=0)
    operands = [x, w]
    if draw(st.booleans()):
        bias = np.random.default_rng(2).integers(-9000, 9000, filters).astype(np.int32)
        operands.append(
            model.dq(model.const(bias), 0.02 * scale, np.zeros(scale.shape, np.int32), axis=0)
        )
    pads = draw(st.sampled_from([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 0]]))
    y = model.op(
        "Conv", *operands, pads=pads, strides=draw(st.sampled_from([[1, 1], [2, 1]])), group=group
    )
    clamp = draw(st.sampled_from(["", "Relu", "Clip"]))
    if clamp == "Relu":
        y = model.op("Relu", y)
    elif clamp == "Clip":
        y = model.op("Clip", y, model.const(np.float32(-0.3)), model.const(np.float32(0.9)))
    y = model.q(y, draw(st.sampled_from([0.01, 0.1, 1.0])), zero_of(draw, y_type))
    made = steps(model, y)
    assert made["ConvInteger"] >= 1
    assert not FLOATS & set(made)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_matrix_product(data: st.DataObject) -> None:
    draw = data.draw
    model = Model()
    a_type, y_type = draw(TYPES), draw(TYPES)
    m, k, n = draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.integers(1, 9))
    a = model.dq(model.input("a", values(a_type, (2, m, k))), 0.05, zero_of(draw, a_type))
    kind = draw(st.sampled_from(["constant", "computed", "transposed"]))
    if kind == "computed":
        b = model.dq(model.input("b", values(a_type, (2, k, n), 1)), 0.03, zero_of(draw, a_type))
    elif kind == "constant":
        weights = model.const(values(np.int8, (k, n), 1))
        b = model.dq(weights, np.linspace(0.01, 0.02, n), np.zeros(n, np.int8), axis=1)
    else:
        weights = model.const(values(np.int8, (n, k), 1))
        b = model.dq(weights, np.linspace(0.01, 0.02, n), np.zeros(n, np.int8), axis=0)
        b = model.op("Transpose", b, perm=[1, 0])
    y = model.op("MatMul", a, b)
    if draw(st.booleans()):
        y = model.op("Add", y, model.const(np.linspace(-1, 1, n, dtype=np.float32)))
    y = model.q(y, 0.3, zero_of(draw, y_type))
    made = steps(model, y)
    assert made["MatMulInteger"] == 1


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    model = Model()
    a = model.dq(model.input("a", values(np.uint8, (3, 20))), 0.05, np.array(7, np.uint8))
    shape = (6, 20) if transposed else (20, 6)
    weights = model.const(values(np.int8, shape, 1))
    b = model.dq(weights, np.linspace(0.01, 0.02, 6), np.zeros(6, np.int8), axis=1 - transposed)
    bias = model.dq(model.const(np.arange(6, dtype=np.int32)), 0.001, np.array(0, np.int32))
    y = model.q(model.op("Gemm", a, b, bias, transB=transposed), 0.2, np.array(1, np.int8))
    assert not FLOATS & set(steps(model, y))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_sums_and_products(data: st.DataObject) -> None:
    draw = data.draw
    model = Model()
    a_type, b_type, y_type = draw(TYPES), draw(TYPES), draw(TYPES)
    shapes = draw(st.sampled_from([((2, 5), (2, 5)), ((1, 6, 3, 3), (1, 6, 1, 1)), ((3,), (2, 3))]))
    a = model.dq(
        model.input("a", values(a_type, shapes[0])),
        draw(st.floats(0.01, 0.2)),
        zero_of(draw, a_type),
    )
    b = model.dq(
        model.input("b", values(b_type, shapes[1], 1)),
        draw(st.floats(0.01, 0.2)),
        zero_of(draw, b_type),
    )
    op = draw(st.sampled_from(["Add", "Sub", "Mul"]))
    y = model.op(op, a, b)
    if draw(st.booleans()):
        y = model.op("Relu", y)
    made = steps(model, model.q(y, draw(st.floats(0.02, 0.5)), zero_of(draw, y_type)))
    assert made["MulInteger" if op == "Mul" else "AddRescaled"] == 1
    assert not FLOATS & set(made)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_pools(data: st.DataObject) -> None:
    draw = data.draw
    model = Model()
    x_type = draw(TYPES)
    shape = (1, draw(st.integers(1, 6)), 6, 7)
    zero = zero_of(draw, x_type)
    x = model.dq(model.input("x", values(x_type, shape)), 0.05, zero)
    kind = draw(st.sampled_from(["AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMean"]))
    window = {
        "kernel_shape": [3, 2],
        "strides": [2, 1],
        "pads": draw(st.sampled_from([[0] * 4, [1, 0, 1, 1]])),
    }
    if kind == "AveragePool":
        y = model.op(kind, x, count_include_pad=draw(st.integers(0, 1)), **window)
    elif kind == "MaxPool":
        y = model.op(kind, x, **window)
    elif kind == "ReduceMean":
        axes = model.const(np.array([2, 3], np.int64))
        y = model.op(kind, x, axes, keepdims=draw(st.integers(0, 1)))
    else:
        y = model.op(kind, x)
    same = draw(st.booleans())
    y = model.q(y, 0.05 if same else 0.03, zero if same else zero_of(draw, x_type))
    made = steps(model, y)
    if kind != "MaxPool":
        assert made["SumPool"] == 1
    assert not FLOATS & set(made)


@pytest.mark.parametrize(
    "function", ["Sigmoid", "Tanh", "HardSwish", "silu", "Relu", "LeakyRelu", "scaled", "none"]
)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_functions_of_one_tensor(function: str, dtype: Any) -> None:
    model = Model()
    x = model.dq(model.input("x", values(dtype, (2, 300))), 0.05, np.array(20, dtype))
    if function == "silu":
        y = model.op("Mul", x, model.op("Sigmoid", x))
    elif function == "scaled":
        y = model.op(
            "Add", model.op("Mul", x, model.const(np.float32(0.3))), model.const(np.float32(1))
        )
    elif function == "none":
        y = x
    else:
        y = model.op(function, x)
    made = steps(model, model.q(y, 0.03, np.array(5, dtype)))
    assert made["Requantize" if function in ("Relu", "none") else "Lookup"] == 1
    assert not FLOATS & set(made)


def _conv(model: Model, x: str, channels: int, filters: int, scale: float) -> str:
    """A quantized 1x1 convolution, so that the result lies in quads."""
    w = model.dq(
        model.const(values(np.int8, (filters, channels, 1, 1), filters)), 0.01, np.array(0, np.int8)
    )
    return model.q(model.op("Conv", x, w), scale, np.array(3, np.uint8))


@pytest.mark.parametrize("filters", [8, 6])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_concat(filters: int, axis: int) -> None:
    model = Model()
    x = model.dq(model.input("x", values(np.uint8, (1, 5, 4, 4))), 0.05, np.array(9, np.uint8))
    parts = [
        model.dq(_conv(model, x, 5, filters, scale), scale, np.array(3, np.uint8))
        for scale in (0.1, 0.2)
    ]
    y = model.op("Concat", *parts, axis=axis)
    made = steps(model, model.q(y, 0.2, np.array(3, np.uint8)))
    assert made["Concat"] == 1
    assert made["FromQuads"] == (2 if axis == 1 and filters == 6 else 1)
    assert not FLOATS & set(made)


@pytest.mark.parametrize(
    "move",
    [
        "Transpose", "Reshape", "Slice", "Pad", "Resize", "Flatten", "MaxPool", "Split",
        "Slice channels", "Slice odd", "Pad channels",
    ],
)  # fmt: skip
def test_movement_in_integers(move: str) -> None:
    model = Model()
    grid = 0.1, np.array(3, np.uint8)
    x = model.dq(model.input("x", values(np.uint8, (1, 5, 4, 4))), 0.05, np.array(9, np.uint8))
    y = model.dq(_conv(model, x, 5, 8, 0.1), *grid)
    ints = {
        "Reshape": [[1, 2, 4, 16]],
        "Slice": [[1], [3], [2]],
        "Slice channels": [[4], [99], [1]],
        "Slice odd": [[3], [7], [-3]],
        "Pad": [[0, 0, 1, 2, 0, 0, 0, 1]],
        "Pad channels": [[0, 4, 1, 2, 0, 8, 0, 1]],
    }
    operands = [model.const(np.array(v, np.int64)) for v in ints.get(move, [])]
    attrs: dict[str, Any] = {}
    if move == "Resize":
        operands = ["", model.const(np.array([1, 1, 2, 2], np.float32))]
        attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    elif move == "MaxPool":
        attrs = {"kernel_shape": [2, 2]}
    elif move == "Split":
        attrs = {"axis": 1, "num_outputs": 2, "outputs": 2}
    elif move == "Transpose":
        attrs = {"perm": [0, 2, 3, 1]}
    kind = move.split()[0]
    y = model.q(model.op(kind, y, *operands, **attrs), *grid)
    made = steps(model, y)
    assert not FLOATS & set(made)
    in_quads = kind in ("Slice", "Pad", "Resize", "MaxPool", "Split") and move != "Slice odd"
    name = "MaxPool8" if move == "MaxPool" else kind
    assert made[name] == 1
    assert made[f"{name} in quads"] == int(in_quads)


@pytest.mark.parametrize("choice", ["Max", "Min", "GlobalMaxPool", "PRelu"])
def test_choices_of_elements(choice: str) -> None:
    model = Model()
    x = model.dq(model.input("x", values(np.uint8, (1, 5, 4, 4))), 0.05, np.array(9, np.uint8))
    a = model.dq(_conv(model, x, 5, 6, 0.1), 0.1, np.array(3, np.uint8))
    operands = [a]
    if choice in ("Max", "Min"):
        operands.append(model.dq(_conv(model, x, 5, 6, 0.05), 0.05, np.array(3, np.uint8)))
    elif choice == "PRelu":
        operands.append(model.const(np.linspace(0, 1, 6, dtype=np.float32).reshape(6, 1, 1)))
    y = model.q(model.op(choice, *operands), 0.08, np.array(100, np.uint8))
    made = steps(model, y)
    assert made[{"GlobalMaxPool": "MaxPool8", "PRelu": "Max"}.get(choice, choice)] == 1
    assert not FLOATS & set(made)


@pytest.mark.parametrize(
    "mode", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]
)
@pytest.mark.parametrize("size", [(8, 8), (7, 3), (1, 9)])
def test_linear_resize(mode: str, size: tuple[int, int]) -> None:
    model = Model()
    x = model.dq(model.input("x", values(np.uint8, (2, 5, 4, 4))), 0.05, np.array(9, np.uint8))
    sizes = model.const(np.array([2, 5, *size], np.int64))
    attrs = {"mode": "linear", "coordinate_transformation_mode": mode}
    y = model.q(model.op("Resize", x, "", "", sizes, **attrs), 0.05, np.array(9, np.uint8))
    made = steps(model, y)
    assert made["ResizeLinear"] == 1
    assert not FLOATS & set(made)


def test_padding_by_the_zero_point() -> None:
    model = Model()
    grid = 0.05, np.array(9, np.uint8)
    x = model.dq(model.input("x", values(np.uint8, (1, 4, 5, 5))), *grid)
    pads = model.const(np.array([0, 0, 1, 0, 0, 0, 1, 2], np.int64))
    padded = model.dq(model.q(model.op("Pad", x, pads), *grid), *grid)
    w = model.dq(model.const(values(np.int8, (4, 4, 3, 3))), 0.01, np.array(0, np.int8))
    made = steps(model, model.q(model.op("Conv", padded, w), 0.7, np.array(3, np.uint8)))
    assert made["Pad"] == 0
    assert made["ConvInteger"] == 1


def test_transposes_around_every_convolution_cancel() -> None:
    """Channels last, as some exporters write it."""
    model = Model()
    grid = 0.2, np.array(9, np.uint8)
    y = model.input("x", values(np.uint8, (1, 5, 5, 4)))
    for _ in range(3):
        y = model.op("Transpose", model.dq(y, *grid), perm=[0, 3, 1, 2])
        w = model.dq(model.const(values(np.int8, (4, 4, 1, 1))), 0.01, np.array(0, np.int8))
        y = model.op("Transpose", model.op("Conv", y, w), perm=[0, 2, 3, 1])
        y = model.q(model.op("Relu", y), *grid)
    made = steps(model, y)
    assert made["Transpose"] == 1  # ToQuads reads the input as it is
    assert made["ToQuads"] == made["FromQuads"] == 1


def _float_conv(model: Model, x: str, channels: int, filters: int) -> str:
    weights = model.const(values(np.int8, (filters, channels, 1, 1), filters))
    w = model.dq(weights, np.linspace(0.01, 0.02, filters), np.zeros(filters, np.int8), axis=0)
    return model.op("Conv", x, w)


@pytest.mark.parametrize("filters", [6, 8])
def test_floats_between_convolutions_stay_in_quads(filters: int) -> None:
    """A residual block whose sum and activation are not quantized in between."""
    model = Model()
    grid = 0.05, np.array(128, np.uint8)
    x = model.dq(model.input("x", values(np.uint8, (1, 5, 4, 4))), *grid)
    a = _float_conv(model, x, 5, filters)
    silu = model.op("Mul", a, model.op("Sigmoid", a))
    inner = model.dq(model.q(silu, *grid), *grid)
    total = model.op("Relu", model.op("Add", _float_conv(model, inner, filters, filters), silu))
    slope = model.const(np.linspace(0.5, 1, filters, dtype=np.float32).reshape(filters, 1, 1))
    end = model.dq(model.q(model.op("Mul", total, slope), *grid), *grid)
    made = steps(model, model.q(_float_conv(model, end, filters, 4), 0.9, np.array(9, np.uint8)))
    assert made["ConvInteger"] == 3
    assert made["ToQuads"] == made["FromQuads"] == 1
    assert made["Sigmoid in quads"] == made["Sigmoid"] == 1


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_transposed_convolution(data: st.DataObject) -> None:
    draw = data.draw
    model = Model()
    filters, stride = draw(st.sampled_from([1, 4, 6])), draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    x = model.dq(model.input("x", values(np.uint8, (1, 5, 4, 3))), 0.05, np.array(9, np.uint8))
    weights = model.const(values(np.int8, (5, filters, *kernel), 1))
    scale = np.linspace(0.01, 0.02, filters)
    w = model.dq(weights, scale, np.zeros(filters, np.int8), axis=1)
    bias = model.const(np.linspace(-1, 1, filters, dtype=np.float32))
    attrs = {
        "strides": [stride, stride],
        "pads": [draw(st.integers(0, k // 2)) for k in (*kernel, *kernel)],
        "output_padding": [draw(st.integers(0, stride - 1)) for _ in kernel],
    }
    y = model.op("ConvTranspose", x, w, bias, **attrs)
    if draw(st.booleans()):
        y = model.op("Relu", y)
    made = steps(model, model.q(y, 0.5, np.array(60, np.uint8)))
    assert made["ConvInteger"] == 1
    assert not FLOATS & set(made)


def test_what_has_no_integer_form_stays_float() -> None:
    model = Model()
    x = model.dq(model.input("x", values(np.uint8, (2, 8))), 0.05, np.array(9, np.uint8))
    y = model.q(model.op("Softmax", x, axis=0), 1 / 256, np.array(0, np.uint8))
    made = steps(model, y)
    assert made["Softmax"] == 1
    assert made["DequantizeLinear"] == made["QuantizeLinear"] == 1


def test_a_convolution_with_a_float_result() -> None:
    model = Model()
    x = model.dq(model.input("x", values(np.uint8, (1, 5, 4, 4))), 0.05, np.array(9, np.uint8))
    w = model.dq(model.const(values(np.int8, (6, 5, 1, 1))), 0.01, np.array(0, np.int8))
    y = model.op("Sigmoid", model.op("Conv", x, w))
    made = steps(model, y, atol=1e-5)
    assert made["ConvInteger"] == 1
    assert made["DequantizeLinear"] == 0


def test_a_tensor_that_is_read_and_returned() -> None:
    model = Model()
    x = model.dq(model.input("x", values(np.int8, (1, 4, 3, 3))), 0.05, np.array(9, np.int8))
    y = model.q(model.op("Relu", x), 0.02, np.array(-5, np.int8))
    again = model.dq(y, 0.02, np.array(-5, np.int8))
    z = model.q(model.op("GlobalAveragePool", again), 0.02, np.array(-5, np.int8))
    steps(model, y, z, model.op("Softmax", again), atol=0.01)  # a step is 2 %


@pytest.mark.parametrize("bits16", [np.int16, np.uint16])
def test_sixteen_bits_stay_float(bits16: Any) -> None:
    model = Model()
    x = model.dq(model.input("x", values(np.uint8, (2, 8))), 0.05, np.array(9, np.uint8))
    grid = [model.const(np.array(0.001, np.float32)), model.const(np.array(0, bits16))]
    wide = model.op("QuantizeLinear", model.op("Add", x, x), *grid, domain="com.microsoft")
    back = model.op("DequantizeLinear", wide, *grid, domain="com.microsoft")
    y = model.q(back, 0.1, np.array(0, np.uint8))
    made = operators(model, y)
    assert made["QuantizeLinear"] == 2
    assert made["DequantizeLinear"] == 2


def test_sums_that_may_overflow_stay_float() -> None:
    model = Model()
    x = model.dq(model.input("x", values(np.uint8, (1, 4))), 0.05, np.array(9, np.uint8))
    w = model.dq(model.const(values(np.int8, (4, 3))), 1e-4, np.array(0, np.int8))
    bias = model.const(np.array([1e5, 0, 0], np.float32))
    made = steps(
        model,
        model.q(model.op("Add", model.op("MatMul", x, w), bias), 800.0, np.array(0, np.uint8)),
    )
    assert made["MatMulInteger"] == 0


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_qlinear_operators(data: st.DataObject) -> None:
    draw = data.draw
    model = Model()
    dtype = draw(TYPES)

    def grid(scale: float) -> list[str]:
        return [model.const(np.array(scale, np.float32)), model.const(zero_of(draw, dtype))]

    x = model.input("x", values(dtype, (1, 4, 5, 5)))
    kind = draw(
        st.sampled_from(["Conv", "MatMul", "Add", "Mul", "Concat", "Pool", "Sigmoid", "Leaky"])
    )
    contrib = {"domain": "com.microsoft"}
    no_zero = model.const(np.array(0, np.int8))
    if kind == "Conv":
        w = model.const(values(np.int8, (6, 4, 3, 3)))
        scale = model.const(np.linspace(0.01, 0.02, 6, dtype=np.float32))
        zero = model.const(np.zeros(6, np.int8))
        bias = model.const(np.arange(6, dtype=np.int32) * 99)
        y = model.op("QLinearConv", x, *grid(0.02), w, scale, zero, *grid(0.7), bias, pads=[1] * 4)
    elif kind == "MatMul":
        b = model.const(values(np.int8, (5, 7)))
        scale = model.const(np.array(0.02, np.float32))
        y = model.op("QLinearMatMul", x, *grid(0.02), b, scale, no_zero, *grid(0.3))
    elif kind in ("Add", "Mul"):
        other = model.input("z", values(dtype, (1, 4, 5, 5), 1))
        operands = [x, *grid(0.02), other, *grid(0.03), *grid(0.05)]
        y = model.op(f"QLinear{kind}", *operands, **contrib)
    elif kind == "Concat":
        other = model.input("z", values(dtype, (1, 3, 5, 5), 1))
        operands = [*grid(0.05), x, *grid(0.02), other, *grid(0.05)]
        y = model.op("QLinearConcat", *operands, axis=1, **contrib)
    elif kind == "Pool":
        last = draw(st.integers(0, 1))
        operands = [x, *grid(0.02), *grid(0.01)]
        y = model.op("QLinearGlobalAveragePool", *operands, channels_last=last, **contrib)
    elif kind == "Sigmoid":
        y = model.op("QLinearSigmoid", x, *grid(0.02), *grid(1 / 256), **contrib)
    else:
        y = model.op("QLinearLeakyRelu", x, *grid(0.02), *grid(0.02), alpha=0.1, **contrib)
    made = steps(model, y)
    assert not FLOATS & set(made)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_integer_products_are_exact(data: st.DataObject) -> None:
    draw = data.draw
    model = Model()
    x_type, w_type = draw(TYPES), draw(TYPES)
    convolution = draw(st.booleans())
    known = draw(st.booleans())
    x = model.input("x", values(x_type, (1, 4, 5, 5)))
    zero = zero_of(draw, x_type)
    x_zero = model.const(zero) if known else model.input("zero", zero)
    w_zero = model.const(zero_of(draw, w_type))
    if convolution:
        w = model.const(values(w_type, (6, 4, 2, 2), 1))
        y = model.op("ConvInteger", x, w, x_zero, w_zero, pads=[0, 1, 1, 0] if known else [0] * 4)
    else:
        y = model.op("MatMulInteger", x, model.const(values(w_type, (5, 300), 1)), x_zero, w_zero)
    made = steps(model, y, exact=True)
    assert not {"Conv", "MatMul", "Slice"} & set(made)


def test_dynamic_quantization() -> None:
    model = Model()
    x = model.input("x", np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32))
    q = model.op("DynamicQuantizeLinear", x, outputs=3)
    scale, zero = q.replace("_0", "_1"), q.replace("_0", "_2")
    w = model.const(values(np.int8, (20, 6)))
    total = model.op("MatMulInteger", q, w, zero, model.const(np.array(0, np.int8)))
    factor = model.op("Mul", scale, model.const(np.array(0.01, np.float32)))
    y = model.op("Mul", model.op("Cast", total, to=1), factor)
    made = steps(model, y, atol=1e-4)
    assert made["MatMulInteger"] == 1
    assert made["MatMul"] == 0
