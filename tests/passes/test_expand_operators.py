"""Expansion passes: same numbers as ONNX Runtime computes for the original operator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference import run

from effc.frontend import import_model
from effc.passes.expand_operators import ExpandOperators
from effc.passes.expand_quantized import ExpandQuantized

RNG = np.random.default_rng(3)
Array = np.ndarray[Any, Any]


def model_of(
    op: str, operands: list[Array | None], constants: tuple[int, ...], outputs: int, **attrs: Any
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A one-node model and its feeds; operands in ``constants`` are initializers."""
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(operands)]
    known = [n for i, n in enumerate(names) if n and i in constants]
    values = {n: v for n, v in zip(names, operands, strict=True) if v is not None}
    results = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, name="node", **attrs)],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in values.items()
            if n not in known
        ],
        [helper.make_empty_tensor_value_info(n) for n in results],
        [onnx.numpy_helper.from_array(values[n], n) for n in known],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    return model, {n: v for n, v in values.items() if n not in known}


def expanded(
    op: str,
    operands: list[Array | None],
    *,
    constants: tuple[int, ...] = (),
    outputs: int = 1,
    **attrs: Any,
) -> tuple[list[Array], list[Array]]:
    """Outputs after expansion, and before."""
    model, feeds = model_of(op, operands, constants, outputs, **attrs)
    expected = run(model, feeds)
    imported = import_model(model)
    for expansion in (ExpandOperators(), ExpandQuantized()):
        again = expansion.run(imported)
        assert expansion.run(again.model).modified is False  # idempotent
    assert op not in {node.op_type for node in imported.graph}
    return run(imported, feeds), expected


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def uint8(*shape: int) -> Array:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def int8(*shape: int) -> Array:
    return RNG.integers(-128, 128, shape).astype(np.int8)


def scalar(value: float, dtype: Any = np.float32) -> Array:
    return np.array(value, dtype)


@pytest.mark.parametrize("axis", [None, 0, 2])
def test_dequantize_linear(axis: int | None) -> None:
    x = int8(3, 4, 5)
    if axis is None:
        operands = [x, scalar(0.3), scalar(-7, np.int8)]
        got, expected = expanded("DequantizeLinear", list(operands))
    else:
        n = x.shape[axis]
        got, expected = expanded(
            "DequantizeLinear", [x, RNG.uniform(0.1, 1, n).astype("f"), int8(n)], axis=axis
        )
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantize_linear_saturates_and_rounds_to_even(dtype: Any) -> None:
    x = np.concatenate([np.arange(-3, 3, 0.25), [1e9, -1e9, 0.5, 1.5]]).astype(np.float32)
    got, expected = expanded("QuantizeLinear", [x, scalar(0.5), scalar(3, dtype)])
    np.testing.assert_array_equal(got[0], expected[0])


@pytest.mark.parametrize("terms", [5, 258, 259, 700])
def test_matmul_integer_is_exact_for_long_sums(terms: int) -> None:
    a, b = np.full((3, terms), 255, np.uint8), np.full((terms, 4), 255, np.uint8)
    a[1], b[:, 2] = uint8(terms), uint8(terms)
    got, expected = expanded("MatMulInteger", [a, b, scalar(0, np.uint8), scalar(3, np.uint8)])
    np.testing.assert_array_equal(got[0], expected[0])


def test_matmul_integer_zero_point_per_row() -> None:
    zeros = np.array([3, 0, 250], np.uint8)
    a, b = uint8(3, 6), uint8(6, 4)
    model, _ = model_of("MatMulInteger", [a, b, zeros, None], (), 1)
    imported = import_model(model)
    ExpandQuantized().run(imported)
    result = run(imported, {"x0": a, "x1": b, "x2": zeros})[0]
    exact = (a.astype(np.int64) - zeros[:, None]) @ b.astype(np.int64)
    np.testing.assert_array_equal(result, exact.astype(np.int32))


@pytest.mark.parametrize("depth", [4, 80])
def test_conv_integer(depth: int) -> None:
    x, w = uint8(1, depth, 7, 7), uint8(5, depth, 3, 3)
    got, expected = expanded(
        "ConvInteger", [x, w, scalar(128, np.uint8)], constants=(1,), pads=[1, 1, 1, 1]
    )
    np.testing.assert_array_equal(got[0], expected[0])


def test_qlinear_conv_within_one_step() -> None:
    operands = [
        uint8(1, 8, 9, 9),
        scalar(0.02),
        scalar(120, np.uint8),
        int8(6, 8, 3, 3),
        RNG.uniform(0.005, 0.02, 6).astype("f"),
        np.zeros(6, np.int8),
        scalar(0.3),
        scalar(100, np.uint8),
        RNG.integers(-900, 900, 6).astype(np.int32),
    ]
    got, expected = expanded("QLinearConv", operands, constants=(3, 4, 5, 8), strides=[2, 2])
    error = np.abs(got[0].astype(int) - expected[0])
    assert error.max() <= 1
    assert (error > 0).mean() < 0.01


def test_qlinear_matmul_within_one_step() -> None:
    operands = [
        uint8(5, 40),
        scalar(0.02),
        scalar(120, np.uint8),
        uint8(40, 6),
        scalar(0.01),
        scalar(128, np.uint8),
        scalar(0.05),
        scalar(110, np.uint8),
    ]
    got, expected = expanded("QLinearMatMul", operands)
    assert np.abs(got[0].astype(int) - expected[0]).max() <= 1


@pytest.mark.parametrize(
    ("parts", "inverse", "onesided"), [(1, 0, 0), (2, 0, 0), (1, 1, 0), (2, 1, 0), (1, 0, 1)]
)
def test_dft(parts: int, inverse: int, onesided: int) -> None:
    x = floats(2, 12, 3, parts)
    got, _ = expanded(
        "DFT", [x, None, scalar(1, np.int64)], constants=(2,), inverse=inverse, onesided=onesided
    )
    signal = x[..., 0] + 1j * x[..., 1] if parts == 2 else x[..., 0].astype(complex)
    exact = np.fft.ifft(signal, axis=1) if inverse else np.fft.fft(signal, axis=1)
    exact = exact[:, :7] if onesided else exact  # ONNX Runtime's own error is larger than ours
    np.testing.assert_allclose(got[0][..., 0], exact.real, atol=1.2e-7 * 24 * 4)
    np.testing.assert_allclose(got[0][..., 1], exact.imag, atol=1.2e-7 * 24 * 4)


def test_dft_inverse_of_onesided_restores_the_signal() -> None:
    x = floats(1, 9, 2, 1)
    spectrum = np.fft.rfft(x[..., 0], axis=1)
    packed = np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)
    model, feeds = model_of(
        "DFT",
        [packed, scalar(9, np.int64), scalar(1, np.int64)],
        (1, 2),
        1,
        inverse=1,
        onesided=1,
    )
    imported = import_model(model)
    assert ExpandOperators().run(imported).modified
    np.testing.assert_allclose(run(imported, feeds)[0], x, atol=2e-6)


@pytest.mark.parametrize("constant_window", [True, False])
def test_stft(constant_window: bool) -> None:
    operands = [floats(2, 50, 1), scalar(6, np.int64), np.hanning(16).astype("f"), None]
    got, expected = expanded(
        "STFT", operands, constants=(1, 2) if constant_window else (1,), onesided=1
    )
    assert expected[0].shape == got[0].shape
    np.testing.assert_allclose(got[0], expected[0], atol=1e-4)  # ONNX Runtime's own error


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization_of_a_zero_row_is_zero(p: int) -> None:
    x = floats(3, 4)
    x[1] = 0
    model, feeds = model_of("LpNormalization", [x], (), 1, axis=1, p=p)
    imported = import_model(model)
    ExpandOperators().run(imported)
    norm = np.linalg.norm(x, p, axis=1, keepdims=True)
    expected = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    np.testing.assert_allclose(run(imported, feeds)[0], expected, rtol=1e-6)


def test_layer_normalization_with_statistics() -> None:
    got, expected = expanded(
        "LayerNormalization", [floats(2, 3, 8), floats(8), floats(8)], outputs=3, axis=-1
    )
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_determinant() -> None:
    got, expected = expanded("Det", [floats(4, 3, 3)])
    np.testing.assert_allclose(got[0], expected[0], atol=1e-5)


def test_unsupported_forms_stay_and_say_why() -> None:
    x, scale = floats(4, 4), scalar(0.1)
    model, _ = model_of("Det", [floats(5, 5)], (), 1)
    outcome = ExpandOperators().run(import_model(model))
    assert not outcome.modified
    assert outcome.refused[0][1] == "determinants of 5 x 5 matrices are not supported"
    model, _ = model_of("QuantizeLinear", [x, scale], (), 1)
    assert ExpandQuantized().run(import_model(model)).modified
